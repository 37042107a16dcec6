"""`lexico put` and `get`: the cache of one prompt, from a file and into one."""

from __future__ import annotations

import argparse
from typing import Any

from lexico_client._load import PageView
from lexico_client.cache_file import CacheFile
from lexico_client.commands.connection import Connection
from lexico_client.commands.exits import Exit
from lexico_client.commands.output import Answer, Screen, part_of, size
from lexico_client.commands.prompts import SUFFIX, sequence
from lexico_codec.keys import token_array
from lexico_proto.errors import ConfigurationError


def put(options: argparse.Namespace, screen: Screen) -> Answer:
    """Sends the full pages of a cache file that the service lacks.

    Raises:
        ConfigurationError, InvalidInput: a file that cannot be used.
        LexicoError: the service refused, or could not take the pages.
    """
    connection, saved = Connection.of(options), CacheFile.read(options.file)
    if not saved.pages:
        raise ConfigurationError(
            f"{options.file}: {saved.tokens} tokens fill no page of {saved.spec.page_tokens}"
        )
    with connection.client() as client:
        report = client.offload(
            saved.spec,
            saved.token_ids,
            saved.view(),
            inputs=saved.inputs,
            timeout=connection.timeout,
        )
    counts = {outcome.value: report.pages.count(outcome) for outcome in set(report.pages)}
    document: dict[str, Any] = {
        "namespace": saved.spec.namespace.hex(),
        "codec": saved.spec.codec.name,
        "tokens": report.tokens,
        "pages": len(report.pages),
        "outcomes": counts,
        "bytes_sent": report.bytes_sent,
        "bytes_stored": report.bytes_stored,
        "seconds": report.seconds.total,
    }
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    share = part_of(report.bytes_stored, report.bytes_sent)
    said = (
        f"{len(report.pages)} pages, {report.tokens} tokens: {outcomes}\n"
        f"sent {size(report.bytes_sent)}, stored {size(report.bytes_stored)} ({share}), codec "
        f"{saved.spec.codec.name}, {report.seconds.total:.2f} s"
    )
    return Answer(document, (said,))


def get(options: argparse.Namespace, screen: Screen) -> Answer:
    """Writes the leading pages of a prompt that are stored into a cache file.

    Raises:
        ConfigurationError, InvalidInput: a file that cannot be used.
        LexicoError: the service could not answer.
    """
    connection = Connection.of(options)
    if options.out.suffix != SUFFIX:
        raise ConfigurationError(f"--out {options.out}: cache files end with {SUFFIX}")
    prompt = sequence(options)
    spec, ids = prompt.spec, token_array(prompt.token_ids)
    made: list[CacheFile] = []

    def target(pages: int) -> PageView:
        made.append(CacheFile.empty(spec, ids[: pages * spec.page_tokens]))
        return made[0].view()

    with connection.client() as client:
        loaded = client.load(spec, ids, target, inputs=prompt.inputs, timeout=connection.timeout)
    asked = len(prompt.keys)
    if not loaded.pages and loaded.reason is not None:
        raise loaded.reason
    if loaded.pages:
        cache = made[0].leading(loaded.tokens)
        inputs = tuple(prompt.inputs)[: loaded.pages]
        CacheFile(spec, cache.token_ids, cache.keys, cache.values, inputs).write(options.out)
    document: dict[str, Any] = {
        "namespace": spec.namespace.hex(),
        "codec": spec.codec.name,
        "out": str(options.out) if loaded.pages else None,
        "tokens": loaded.tokens,
        "pages": loaded.pages,
        "pages_asked": asked,
        "reason": None if loaded.reason is None else loaded.reason.message,
        "bytes_received": loaded.bytes_received,
        "seconds": loaded.seconds.total,
    }
    whole = 0 < asked == loaded.pages
    said = f"{loaded.pages} of {asked} pages, {loaded.tokens} tokens"
    if loaded.pages:
        said += (
            f" in {options.out}\nreceived {size(loaded.bytes_received)}, codec {spec.codec.name}, "
            f"{loaded.seconds.total:.2f} s"
        )
    if not whole:
        said += "\nthe rest is not stored: `lexico inspect` and `lexico explain` say more"
    return Answer(document, (said,), Exit.DONE if whole else Exit.NOT_THERE)
