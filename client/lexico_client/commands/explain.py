"""`lexico explain`: why a prompt is found, or not. Needs no Ray, and no model in memory."""

from __future__ import annotations

import argparse
from typing import Any

from lexico_client._explain import Explanation
from lexico_client._nearest import StoredNamespace
from lexico_client.commands.connection import Connection
from lexico_client.commands.output import Answer, Screen
from lexico_client.commands.prompts import codec_of, sequence, spec_of


def explain(options: argparse.Namespace, screen: Screen) -> Answer:
    """What the service has of the prompt.

    Raises:
        ConfigurationError: a file that cannot be used.
        LexicoError: the service could not answer.
    """
    connection, prompt = Connection.of(options), sequence(options)
    against = None if options.against is None else spec_of(options.against, options)
    with connection.client() as client:
        explained = client.explain(
            prompt.spec,
            prompt.token_ids,
            inputs=prompt.inputs,
            against=against,
            timeout=connection.timeout,
        )
    document = {**_document(explained), "waits_for_set": prompt.waits}
    if not prompt.waits:
        return Answer(document, (explained.text(),))
    waits = (
        f"No set is built in or published for the model with {codec_of(options)}: nodes run "
        "lossless, and so is what follows."
    )
    return Answer(document, (waits, explained.text()))


def _document(explained: Explanation) -> dict[str, Any]:
    match, absence = explained.match, explained.absence
    return {
        "namespace": explained.namespace.hex(),
        "identity": {part.name: part.says for part in explained.identity.parts},
        "prompt_tokens": explained.prompt_tokens,
        "loadable_tokens": match.tokens,
        "pages": [
            {"page": page, "page_key": key.hex(), "present": present}
            for page, (key, present) in enumerate(zip(match.page_keys, match.present, strict=True))
        ],
        "pages_with_inputs": list(explained.page_inputs),
        "first_absent": explained.first_absent,
        "absence": None if absence is None else absence.cause.value,
        "forgotten_s": None if absence is None else absence.forgotten_s or None,
        "differs": list(explained.differs),
        "namespaces": explained.namespaces,
        "nearest": [_nearest(each) for each in explained.stored],
        "tokens_without_inputs": explained.plain_tokens,
        "untold": None if explained.untold is None else explained.untold.message,
    }


def _nearest(each: StoredNamespace) -> dict[str, Any]:
    return {
        "differences": [
            {"part": part.part, "ours": part.ours, "theirs": part.theirs}
            for part in each.differences
        ],
        "tokens": each.tokens,
        "stored_s": each.stored_s,
    }
