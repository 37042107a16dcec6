"""Which pages are stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lexico_client._deadline import Budget, with_retry
from lexico_client._results import Match
from lexico_client._transport import Transport
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InternalError
from lexico_proto.v1 import reload_pb2 as reload


async def match_pages(
    transport: Transport,
    spec: CacheSpec,
    page_keys: Sequence[bytes],
    budget: Budget,
    most: float = math.inf,
    *,
    renew: bool = False,
) -> Match:
    """Asks for all pages at once; nobody is asked about none.

    Args:
        transport: the service.
        spec: what the pages belong to.
        page_keys: of consecutive pages from the start of a sequence.
        budget: of the operation that wants to know.
        most: seconds for one answer, where the budget has more.
        renew: the missing ones will be sent, so those that are there must not expire before.

    Raises:
        LexicoError: the service could not answer.
    """
    if not page_keys:
        return Match(0, 0, (), ())
    request = reload.MatchRequest(page_keys=page_keys, namespace=spec.namespace, renew=renew)
    response = await with_retry(budget, lambda: transport.match(request, min(most, budget.left())))
    present = tuple(response.present)
    leading = (*present, False).index(False)
    if len(present) != len(page_keys) or response.leading != leading:
        raise InternalError(f"match: the answer does not fit the {len(page_keys)} pages asked for")
    return Match(leading * spec.page_tokens, leading, present, tuple(page_keys))
