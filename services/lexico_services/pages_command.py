"""`lexico pages`: what a tenant has stored, and what it keeps or forgets of it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, Final

import grpc

from lexico_proto.errors import REASON_METADATA_KEY, ConfigurationError, from_wire
from lexico_proto.v1 import admin_pb2 as pb
from lexico_proto.v1 import admin_pb2_grpc

TOKEN_VARIABLE: Final = "LEXICO_TOKEN"
MAX_PROMPT_BYTES: Final = 1 << 20


def run(options: argparse.Namespace) -> str:
    """Runs one of the commands; what it has to say.

    Raises:
        ConfigurationError: an option that cannot be used.
        LexicoError: what the server refused, or that it is not there.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with _channel(options) as channel:
        admin = admin_pb2_grpc.AdminStub(channel)
        try:
            return _ACTIONS[options.action](admin, options, metadata)
        except grpc.RpcError as error:
            trailing: Any = error.trailing_metadata() or ()
            reason = next((str(v) for k, v in trailing if k == REASON_METADATA_KEY), None)
            raise from_wire(error.code().value[0], reason, error.details() or "") from error


def _channel(options: argparse.Namespace) -> grpc.Channel:
    if options.tls_ca is None:
        return grpc.insecure_channel(options.server)
    pair = options.tls_certificate, options.tls_key
    ca, certificate, key = (_pem(file) for file in (options.tls_ca, *pair))
    if (certificate is None) is not (key is None):
        raise ConfigurationError("--tls-certificate and --tls-key go together")
    return grpc.secure_channel(options.server, grpc.ssl_channel_credentials(ca, key, certificate))


def _pem(file: Path | None) -> bytes | None:
    try:
        return None if file is None else file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot read ({error.strerror or error})") from error


def _usage(admin: Any, options: argparse.Namespace, metadata: Any) -> str:
    usage = admin.Usage(pb.UsageRequest(), metadata=metadata, timeout=options.seconds)
    if options.json:
        return json.dumps(_as_json(usage), indent=1)
    lines = []
    for use in usage.namespaces:
        lines.append(
            f"{use.namespace.hex()}  {use.pages} pages, {use.bytes} bytes; {use.pages_gone} gone "
            f"since they were last counted; {use.about}"
        )
    lines += [
        f"pin {pin.pin.hex()}  {pin.pages} pages, {pin.bytes} bytes; {pin.label or 'no label'}"
        for pin in usage.pins
    ]
    lines.append(f"A page lives {usage.page_ttl_s:g} s after it is stored or last used.")
    lines.append(
        f"At most: stored {usage.max_stored_bytes or 'any'} bytes, pinned {usage.max_pinned_bytes} "
        f"bytes, in flight {usage.max_inflight_bytes or 'any'} bytes, "
        f"{usage.max_calls_per_s or 'any'} calls a second."
    )
    return "\n".join([*lines, usage.eviction])


def _pin(admin: Any, options: argparse.Namespace, metadata: Any) -> str:
    request = pb.PinRequest(prompt=_prompt(options.prompt), label=options.label)
    made = admin.Pin(request, metadata=metadata, timeout=options.seconds)
    if not made.pages:
        return "nothing is pinned: the prompt's first page is not stored"
    return f"pin {made.pin.hex()}: {made.pages} pages, {made.bytes} bytes"


def _unpin(admin: Any, options: argparse.Namespace, metadata: Any) -> str:
    request = pb.UnpinRequest(pin=_bytes(options.pin, "--pin"))
    done = admin.Unpin(request, metadata=metadata, timeout=options.seconds)
    return f"{done.pages} pages expire from now on"


def _forget(admin: Any, options: argparse.Namespace, metadata: Any) -> str:
    if options.prompt is not None:
        request = pb.ForgetRequest(prompt=_prompt(options.prompt))
    elif options.namespace is not None:
        request = pb.ForgetRequest(namespace=_bytes(options.namespace, "--namespace"))
    else:
        request = pb.ForgetRequest(everything=True)
    done = admin.Forget(request, metadata=metadata, timeout=options.seconds)
    return f"forgotten: {done.pages} pages were removed"


_ACTIONS: Final = {"usage": _usage, "pin": _pin, "unpin": _unpin, "forget": _forget}


def _prompt(file: Path) -> pb.Prompt:
    try:
        with file.open("rb") as opened:
            about = json.loads(opened.read(MAX_PROMPT_BYTES))
        keys = [bytes.fromhex(key) for key in about["page_keys"]]
        return pb.Prompt(namespace=bytes.fromhex(about["namespace"]), page_keys=keys)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigurationError(
            f'{file}: needs {{"namespace": HEX, "page_keys": [HEX, ...]}} as JSON'
        ) from error


def _bytes(text: str, option: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: not hexadecimal digits") from error


def _as_json(usage: pb.UsageResponse) -> dict[str, Any]:
    names = ("page_ttl_s", "max_stored_bytes", "max_pinned_bytes", "max_inflight_bytes")
    return {
        "namespaces": [
            {
                "namespace": use.namespace.hex(),
                "about": use.about,
                "pages": use.pages,
                "bytes": use.bytes,
                "pages_gone": use.pages_gone,
            }
            for use in usage.namespaces
        ],
        "pins": [
            {
                "pin": pin.pin.hex(),
                "namespace": pin.namespace.hex(),
                "label": pin.label,
                "pages": pin.pages,
                "bytes": pin.bytes,
            }
            for pin in usage.pins
        ],
        **{name: getattr(usage, name) for name in (*names, "max_calls_per_s", "eviction")},
    }
