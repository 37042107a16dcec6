"""Sending the pages of one sequence, and the dictionary set that they need."""

from __future__ import annotations

from functools import partial

from lexico_client._async_client import Wait
from lexico_client._coding import Coding
from lexico_client._deadline import left_of
from lexico_client._results import PutReport
from lexico_client._sync_client import Client
from lexico_client.engines.hf._prefix import CachedPrefix
from lexico_codec.inputs import PageDigests
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import UnknownDictionary


def send_prefix(
    client: Client,
    coding: Coding,
    spec: CacheSpec,
    ids: list[int],
    digests: PageDigests,
    prefix: CachedPrefix,
    wait: Wait,
    timeout: float | None,
) -> PutReport:
    """Sends the full pages of a sequence that the service lacks.

    Args:
        client: the way to the service.
        coding: of the model: a set of its that the service does not know is registered.
        spec: of the pages.
        ids: of the sequence, whose first ones the prefix holds.
        digests: of what else it was made from.
        prefix: its keys and values.
        wait: as `HuggingFaceCache.offload` has it.
        timeout: seconds, in place of `Timeouts.offload`.

    Raises:
        LexicoError: the service refused, or could not take the pages.
    """
    left = left_of(timeout, client._timeouts.offload)
    pages = min(len(ids), prefix.tokens) // spec.page_tokens
    send = partial(
        client.offload,
        spec,
        ids[: pages * spec.page_tokens],
        partial(prefix.read, spec),
        inputs=digests,
        wait=wait,
    )
    try:
        return send(timeout=left())
    except UnknownDictionary:
        dictionary = coding.dictionary
        if dictionary is None:
            raise
    client.register_dictionary(dictionary, timeout=left())
    return send(timeout=left())
