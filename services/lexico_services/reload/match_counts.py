"""Hit rates: what was asked for at Match, and what of it was there."""

from __future__ import annotations

from typing import Final

from lexico_codec.limits import MAX_PAGE_TOKENS
from lexico_proto.metrics import HIT_TOKENS, MATCH_TOKENS, MATCHES, Metrics, codec_label
from lexico_proto.v1 import reload_pb2 as pb

_ALL, _SOME, _NONE = "all", "some", "none"
COUNTED: Final = (_ALL, _SOME, _NONE)


class MatchCounts:
    """Counts the Matches of those who want to load. An offload asks too, for the pages that it
    need not send: counted as well, each prompt that was computed here would be a second miss.
    """

    def __init__(self, metrics: Metrics) -> None:
        """
        Args:
            metrics: where they are counted.
        """
        self._metrics = metrics

    def add(self, tenant: str, request: pb.MatchRequest, leading: int) -> None:
        """Counts one that was answered.

        Args:
            tenant: who asked.
            request: what for. Callers of an earlier release do not say codec and tokens of a page:
                of theirs no tokens are counted.
            leading: pages that were there.
        """
        asked = len(request.page_keys)
        if request.renew or not asked:
            return
        codec, count = codec_label(request.codec), self._metrics.counter
        outcome = _ALL if leading == asked else _SOME if leading else _NONE
        count(MATCHES, tenant, codec, outcome).add()
        tokens = min(request.page_tokens, MAX_PAGE_TOKENS)
        count(MATCH_TOKENS, tenant, codec).add(asked * tokens)
        count(HIT_TOKENS, tenant, codec).add(leading * tokens)
