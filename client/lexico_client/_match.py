"""Which pages are stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lexico_client._deadline import Budget, with_retry
from lexico_client._parts import parts
from lexico_client._results import Match
from lexico_client._transport import Transport
from lexico_codec.identity import Identity
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InternalError
from lexico_proto.v1 import reload_pb2 as reload


async def match_pages(
    transport: Transport,
    spec: CacheSpec | Identity,
    page_keys: Sequence[bytes],
    budget: Budget,
    most: float = math.inf,
    *,
    renew: bool = False,
    prefix: bool = False,
    first: int = 0,
) -> Match:
    """Asks for all pages, as many at once as a call takes; nobody is asked about none.

    Args:
        transport: the service.
        spec: what the pages belong to.
        page_keys: of consecutive pages from the start of a sequence.
        budget: of the operation that wants to know.
        most: seconds for one answer, where the budget has more.
        renew: the missing ones will be sent, so those that are there must not expire before.
        prefix: only leading pages count: stops at the first answer that lacks one.
        first: index of the first of them, where they are a part of a sequence.

    Raises:
        LexicoError: the service could not answer.
    """
    present: list[bool] = []
    for part in parts(len(page_keys)):
        request = reload.MatchRequest(
            page_keys=page_keys[part.start : part.stop],
            namespace=spec.namespace,
            first_page=first + part.start,
            renew=renew,
            # An explanation asks as well: it is no load, and not to be counted as one.
            page_tokens=spec.page_tokens if isinstance(spec, CacheSpec) else 0,
            codec=spec.codec.name if isinstance(spec, CacheSpec) else "",
        )
        present += await _ask(transport, request, budget, most)
        if prefix and not all(present[part.start :]):
            break
    leading = (*present, False).index(False)
    asked = tuple(page_keys[: len(present)])
    return Match(leading * spec.page_tokens, leading, tuple(present), asked)


async def _ask(
    transport: Transport, request: reload.MatchRequest, budget: Budget, most: float
) -> list[bool]:
    response = await with_retry(budget, lambda: transport.match(request, min(most, budget.left())))
    present = list(response.present)
    leading = (*present, False).index(False)
    if len(present) != len(request.page_keys) or response.leading != leading:
        raise InternalError(
            f"match: the answer does not fit the {len(request.page_keys)} pages asked for"
        )
    return present
