"""Asking why a prompt is found, or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from lexico_client._deadline import Budget, with_retry
from lexico_client._explain import Absence, AbsenceCause, Explanation
from lexico_client._match import match_pages
from lexico_client._nearest import nearest_first
from lexico_client._parts import keys_of
from lexico_client._results import Match
from lexico_client._transport import Transport
from lexico_codec.identity import Identity
from lexico_codec.spec import CacheSpec
from lexico_codec.wire import described
from lexico_proto.errors import Cancelled, LexicoError
from lexico_proto.limits import MAX_CALL_PAGES
from lexico_proto.v1 import reload_pb2 as reload

ASKED: Final = 4
"""Nearest namespaces that are asked for the prompt's tokens."""
_SHARE: Final = 0.5
"""Part of the time that is left that one question beyond the first may take: what is known without
its answer is told in any case."""

Ids = npt.NDArray[np.uint32]

_CAUSES: Final = {
    reload.ABSENCE_CAUSE_PRESENT: AbsenceCause.PRESENT,
    reload.ABSENCE_CAUSE_NO_TRACE: AbsenceCause.NO_TRACE,
    reload.ABSENCE_CAUSE_LEFT: AbsenceCause.LEFT,
    reload.ABSENCE_CAUSE_FORGOTTEN: AbsenceCause.FORGOTTEN,
}


async def explain_prompt(
    transport: Transport,
    spec: CacheSpec,
    token_ids: Ids,
    inputs: tuple[bytes, ...],
    against: CacheSpec | None,
    budget: Budget,
) -> Explanation:
    """What the service has of a prompt, and of what else it has pages. Arguments are checked.

    Raises:
        LexicoError: the service could not say which pages are there. What it does not say beyond
            that is missing in the explanation.
    """
    keys = await keys_of(spec, token_ids, inputs)
    match = await match_pages(transport, spec, keys, budget)
    explained = Explanation(
        identity=spec.identity,
        match=match,
        prompt_tokens=len(token_ids),
        page_inputs=tuple(page for page, digest in enumerate(inputs) if digest),
        against=None if against is None else against.identity,
    )
    try:
        explained = await _with_stored(transport, spec, explained, budget)
        if explained.first_absent is None:
            return explained
        return await _with_tokens(transport, token_ids, inputs, explained, budget)
    except Cancelled:
        raise
    except LexicoError as error:
        return replace(explained, untold=error)


async def _with_stored(
    transport: Transport, spec: CacheSpec, explained: Explanation, budget: Budget
) -> Explanation:
    """Of what the tenant has pages, and why the first absent one is absent."""
    absent = explained.first_absent
    request = reload.NamespacesRequest(
        namespace=spec.namespace,
        page_key=b"" if absent is None else explained.match.page_keys[absent],
        spec=described(spec).spec,
    )
    answer = await with_retry(budget, lambda: transport.namespaces(request, _SHARE * budget.left()))
    cause = _CAUSES.get(answer.cause)
    return replace(
        explained,
        stored=nearest_first(spec.identity, answer.namespaces),
        namespaces=answer.total,
        absence=None if cause is None else Absence(cause, answer.forgotten_s),
    )


async def _with_tokens(
    transport: Transport,
    token_ids: Ids,
    inputs: tuple[bytes, ...],
    explained: Explanation,
    budget: Budget,
) -> Explanation:
    """How much of the prompt is stored without its inputs, and in the nearest namespaces."""
    own, plain = explained.identity, None
    if inputs:
        plain = (await _leading(transport, own, token_ids, (), budget)).tokens
    stored, asked = [], 0
    for each in explained.stored:
        if each.differences and not each.other_salt and asked < ASKED:
            asked += 1
            ids, digests = token_ids, inputs
            if inputs and each.identity.page_tokens != own.page_tokens:
                # Digests are of whole pages: those of other pages are not known.
                bare = next(page for page, digest in enumerate(inputs) if digest)
                ids, digests = token_ids[: bare * own.page_tokens], ()
            match = await _leading(transport, each.identity, ids, digests, budget)
            each = replace(each, tokens=match.tokens)
        stored.append(each)
    return replace(explained, stored=tuple(stored), plain_tokens=plain)


async def _leading(
    transport: Transport, identity: Identity, ids: Ids, inputs: tuple[bytes, ...], budget: Budget
) -> Match:
    """The leading pages of a prompt in one namespace, as many as one call asks for."""
    ids = ids[: MAX_CALL_PAGES * identity.page_tokens]
    keys = await keys_of(identity, ids, inputs)
    most = _SHARE * budget.left()
    return await match_pages(transport, identity, keys, budget, most, prefix=True)
