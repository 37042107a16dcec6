"""`lexico inspect`, `pin`, `unpin` and `forget`: the pages of one prompt, or of more."""

from __future__ import annotations

import argparse
from typing import Any, Final

from lexico_client.commands.connection import Connection
from lexico_client.commands.exits import Exit
from lexico_client.commands.output import Answer, Screen, Table, part_of, size, span
from lexico_client.commands.prompts import Prompt, TokenPrompt, digest_of, named
from lexico_codec.spec import CacheSpec
from lexico_codec.wire import spec_from_wire
from lexico_proto.errors import ConfigurationError, LexicoError
from lexico_proto.limits import MAX_CALL_PAGES
from lexico_proto.v1 import admin_pb2 as pb

INSPECTED: Final = 1024
"""Pages of one call: a store is asked for every frame of each."""
PIN_BYTES: Final = 20


def inspect(options: argparse.Namespace, screen: Screen) -> Answer:
    """What is stored of a prompt's pages, or of a namespace.

    Raises:
        ConfigurationError: an option or file that cannot be used.
        LexicoError: the service could not answer.
    """
    connection = Connection.of(options)
    if options.namespace is not None:
        return _namespace(connection, digest_of(options.namespace, "--namespace"))
    prompt = named(options)
    spec = prompt.spec if isinstance(prompt, TokenPrompt) else None
    states: list[pb.PageState] = []
    response = pb.InspectResponse()
    for first in range(0, len(prompt.keys), INSPECTED):
        keys = prompt.keys[first : first + INSPECTED]
        request = pb.InspectRequest(
            prompt=pb.Prompt(namespace=prompt.namespace, page_keys=keys),
            first_page=first,
            groups=0 if spec is None else spec.groups,
        )
        response = connection.admin("Inspect", request)
        states += response.pages
    if not prompt.keys:  # a server is asked about pages, and else says how long they live in Usage
        usage: pb.UsageResponse = connection.admin("Usage", pb.UsageRequest())
        response = pb.InspectResponse(page_ttl_s=usage.page_ttl_s)
    if spec is None:
        spec = _told(response)
    document = _document(prompt, spec, states, response)
    whole = all(state.present for state in states)
    code = Exit.DONE if whole else Exit.NOT_THERE
    return Answer(document, _parts(document, spec), code)


def pin(options: argparse.Namespace, screen: Screen) -> Answer:
    """Keeps the leading pages of a prompt."""
    connection, prompt = Connection.of(options), _bounded(named(options))
    made: pb.PinResponse = connection.admin(
        "Pin", pb.PinRequest(prompt=prompt, label=options.label)
    )
    document = {"pin": made.pin.hex(), "pages": made.pages, "bytes": made.bytes}
    if not made.pages:
        said = "nothing is pinned: the prompt's first page is not stored"
        return Answer(document, (said,), Exit.NOT_THERE)
    return Answer(document, (f"pin {made.pin.hex()}: {made.pages} pages, {size(made.bytes)}",))


def unpin(options: argparse.Namespace, screen: Screen) -> Answer:
    """Lets the pages of a pin expire."""
    request = pb.UnpinRequest(pin=digest_of(options.pin, "PIN", PIN_BYTES))
    done: pb.UnpinResponse = Connection.of(options).admin("Unpin", request)
    return Answer({"pages": done.pages}, (f"{done.pages} pages expire from now on",))


def forget(options: argparse.Namespace, screen: Screen) -> Answer:
    """Removes pages, for good."""
    connection = Connection.of(options)
    if options.everything:
        request = pb.ForgetRequest(everything=True)
    elif options.namespace is not None:
        request = pb.ForgetRequest(namespace=digest_of(options.namespace, "--namespace"))
    else:
        request = pb.ForgetRequest(prompt=_bounded(named(options)))
    done: pb.ForgetResponse = connection.admin("Forget", request)
    return Answer({"pages": done.pages}, (f"forgotten: {done.pages} pages were removed",))


def _bounded(prompt: Prompt) -> pb.Prompt:
    if not 1 <= len(prompt.keys) <= MAX_CALL_PAGES:
        raise ConfigurationError(
            f"the prompt has {len(prompt.keys)} full pages: 1 to {MAX_CALL_PAGES} are possible"
        )
    return pb.Prompt(namespace=prompt.namespace, page_keys=prompt.keys)


def _namespace(connection: Connection, namespace: bytes) -> Answer:
    usage: pb.UsageResponse = connection.admin("Usage", pb.UsageRequest())
    found = next((use for use in usage.namespaces if use.namespace == namespace), None)
    document = {
        **_EMPTY,
        "namespace": namespace.hex(),
        "page_ttl_s": usage.page_ttl_s,
    }
    if found is None or not found.pages:
        said = f"no page of namespace {namespace.hex()} is stored; `lexico quota` lists namespaces"
        return Answer(document, (said,), Exit.NOT_THERE)
    document |= {"stored_pages": found.pages, "bytes": found.bytes, "about": found.about}
    said = (
        f"namespace {namespace.hex()}: {found.about}\n{found.pages} pages, {size(found.bytes)}; "
        f"{found.pages_gone} gone since they were last counted"
    )
    return Answer(document, (said,))


_EMPTY: Final[dict[str, Any]] = {
    "about": None,
    "codec": None,
    "page_tokens": None,
    "raw_page_bytes": None,
    "stored_pages": 0,
    "leading_pages": 0,
    "bytes": 0,
    "pages": [],
}


def _told(response: pb.InspectResponse) -> CacheSpec | None:
    """The spec that a server told, which need not be one that this build knows."""
    try:
        return spec_from_wire(response.spec) if response.HasField("spec") else None
    except LexicoError:
        return None


def _document(
    prompt: Prompt,
    spec: CacheSpec | None,
    states: list[pb.PageState],
    response: pb.InspectResponse,
) -> dict[str, Any]:
    present = [state.present for state in states]
    codec = response.spec.codec if spec is None else spec.codec.name
    return {
        **_EMPTY,
        "namespace": prompt.namespace.hex(),
        "codec": codec or None,
        "page_tokens": None if spec is None else spec.page_tokens,
        "raw_page_bytes": None if spec is None else spec.page_bytes,
        "page_ttl_s": response.page_ttl_s,
        "stored_pages": sum(present),
        "leading_pages": [*present, False].index(False),
        "bytes": sum(state.bytes for state in states),
        "pages": [
            {
                "page": page,
                "page_key": key.hex(),
                "present": state.present,
                "groups": state.groups,
                "bytes": state.bytes,
                "pinned": state.pinned,
                "left_s": state.left_s if state.HasField("left_s") else None,
                "unused_s": state.unused_s if state.HasField("unused_s") else None,
            }
            for page, (key, state) in enumerate(zip(prompt.keys, states, strict=True))
        ],
    }


def _parts(document: dict[str, Any], spec: CacheSpec | None) -> tuple[Table | str, ...]:
    raw, pages = document["raw_page_bytes"], document["pages"]

    def seconds(page: dict[str, Any], name: str) -> str:
        if page["pinned"]:
            return "pinned" if name == "left_s" else "-"
        return "-" if page[name] is None else span(page[name])

    rows = tuple(
        (
            str(page["page"]),
            "-" if spec is None else _tokens(spec, page["page"]),
            "stored" if page["present"] else "absent",
            size(page["bytes"]) if page["present"] else "-",
            part_of(page["bytes"], raw) if raw and page["present"] else "-",
            seconds(page, "unused_s"),
            seconds(page, "left_s"),
        )
        for page in pages
    )
    columns = ("page", "tokens", "", ">bytes", ">of raw", ">unused for", ">expires in")
    codec = document["codec"] or "not told"
    about = f"namespace {document['namespace']}, codec {codec}"
    if not rows:
        return (f"{about}\nthe prompt fills no page: there is nothing of it to be stored",)
    said = (
        f"{about}\n{document['stored_pages']} of "
        f"{len(pages)} pages are stored, {size(document['bytes'])}; {document['leading_pages']} "
        "can be loaded"
    )
    return said, Table("", columns, rows)


def _tokens(spec: CacheSpec, page: int) -> str:
    return f"{page * spec.page_tokens}-{(page + 1) * spec.page_tokens - 1}"
