"""`lexico dictionaries`: the sets that a tenant can use, and which of them its nodes take."""

from __future__ import annotations

import argparse
from typing import Final

from lexico_client.commands.connection import Connection
from lexico_client.commands.output import Answer, Screen, Table, size
from lexico_client.commands.prompts import digest_of, lossless_spec
from lexico_codec.files import write_atomically
from lexico_codec.sets.choose import check_model
from lexico_codec.sets.dictionary import DictionarySet
from lexico_proto.errors import ConfigurationError


def dictionaries(options: argparse.Namespace, screen: Screen) -> Answer:
    """Lists, fetches, registers or publishes sets.

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
    if options.for_model is None:
        if options.any_weights or options.shared:
            raise ConfigurationError("--any-weights and --shared go with --for MODEL")
        with connection.client() as client:
            added = client.register_dictionary(given)
        codecs: tuple[str, ...] = ()
    else:
        spec = lossless_spec(options.for_model, options)
        check_model(given, spec.whole_geometry)
        with connection.client() as client:
            added = client.register_dictionary(given)
            codecs = client.publish_dictionary(
                given, spec, any_weights=options.any_weights, shared=options.shared
            )
    document = {"digest": given.digest.hex(), "added": added, "codecs": list(codecs)}
    said = f"{given.digest.hex()} {'is registered' if added else 'was there'}"
    if codecs:
        whose = "every tenant" if options.shared else "this tenant"
        said += (
            f"\nnodes of {whose} with {options.for_model} code with it, within a minute or two: "
            f"{', '.join(codecs)}"
        )
    return Answer(document, (said,))


def _take_back(options: argparse.Namespace) -> Answer:
    spec = lossless_spec(options.model, options)
    connection = Connection.of(options)
    with connection.client() as client:
        codecs = client.take_back_dictionary(
            spec, any_weights=options.any_weights, shared=options.shared
        )
    if not codecs:
        return Answer({"codecs": []}, ("nothing was published for it",))
    said = f"nodes that start from now on have no set for {', '.join(codecs)}"
    return Answer({"codecs": list(codecs)}, (said,))


_ACTIONS: Final = {
    "list": _list,
    "fetch": _fetch,
    "register": _register,
    "take-back": _take_back,
}
