"""`lexico dictionaries`: the dictionary sets that a tenant can use."""

from __future__ import annotations

import argparse
from typing import Final

from lexico_client.commands.connection import Connection
from lexico_client.commands.output import Answer, Screen, Table, size
from lexico_client.commands.prompts import digest_of
from lexico_codec.files import write_atomically
from lexico_codec.sets.dictionary import DictionarySet


def dictionaries(options: argparse.Namespace, screen: Screen) -> Answer:
    """Lists, fetches or registers sets.

    Raises:
        ConfigurationError, InvalidInput: an option or a file that cannot be used.
        LexicoError: the service refused, or could not answer.
    """
    return _ACTIONS[options.action](options)


def _list(options: argparse.Namespace) -> Answer:
    connection = Connection.of(options)
    with connection.client() as client:
        entries = client.list_dictionaries()
    document = {
        "dictionaries": [
            {
                "digest": each.digest.hex(),
                "bytes": each.artefact_bytes,
                "model": each.model,
                "layers": each.layers,
                "kv_heads": each.kv_heads,
                "head_dim": each.head_dim,
                "shared": each.shared,
            }
            for each in entries
        ]
    }
    rows = tuple(
        (
            each.digest.hex(),
            size(each.artefact_bytes),
            f"{each.layers} x {each.kv_heads} x {each.head_dim}",
            "every tenant" if each.shared else "this tenant",
            each.model,
        )
        for each in entries
    )
    columns = ("digest", ">bytes", ">layers x heads x dim", "for", "model")
    return Answer(document, (Table("", columns, rows),))


def _fetch(options: argparse.Namespace) -> Answer:
    digest = digest_of(options.digest, "DIGEST")
    connection = Connection.of(options)
    with connection.client() as client:
        found = client.fetch_dictionary(digest)
    data = found.to_bytes()
    write_atomically(options.out, data)
    document = {"digest": digest.hex(), "bytes": len(data), "out": str(options.out)}
    return Answer(document, (f"{size(len(data))} in {options.out}",))


def _register(options: argparse.Namespace) -> Answer:
    given = DictionarySet.load(options.file)
    connection = Connection.of(options)
    with connection.client() as client:
        added = client.register_dictionary(given)
    document = {"digest": given.digest.hex(), "added": added}
    return Answer(document, (f"{given.digest.hex()} {'is registered' if added else 'was there'}",))


_ACTIONS: Final = {"list": _list, "fetch": _fetch, "register": _register}
