"""Hit rates: which Matches count, and what callers say of them."""

from __future__ import annotations

import pytest

from lexico_codec.limits import MAX_PAGE_TOKENS
from lexico_proto.metrics import HIT_TOKENS, MATCH_TOKENS, MATCHES, UNKNOWN, Metrics
from lexico_proto.v1.reload_pb2 import MatchRequest
from lexico_services.reload.match_counts import MatchCounts

KEYS = [bytes([number]) * 32 for number in range(4)]


@pytest.mark.parametrize(("leading", "outcome"), [(4, "all"), (1, "some"), (0, "none")])
def test_tokens_are_counted_by_tenant_and_codec(leading: int, outcome: str) -> None:
    metrics = Metrics()
    request = MatchRequest(page_keys=KEYS, page_tokens=64, codec="lexico-residual")
    MatchCounts(metrics).add("red", request, leading)
    labels = ("red", "lexico-residual")
    assert metrics.snapshot() == {
        MATCHES: {(*labels, outcome): 1},
        MATCH_TOKENS: {labels: 256},
        HIT_TOKENS: {labels: 64 * leading},
    }


@pytest.mark.parametrize(
    "request_",
    [MatchRequest(page_keys=KEYS, page_tokens=64, renew=True), MatchRequest(page_tokens=64)],
    ids=["of an offload", "of nothing"],
)
def test_what_is_no_load_is_not_counted(request_: MatchRequest) -> None:
    metrics = Metrics()
    MatchCounts(metrics).add("red", request_, 0)
    assert metrics.snapshot() == {}


@pytest.mark.parametrize(
    ("said", "tokens"),
    [({}, 0), ({"codec": "x" * 9999, "page_tokens": 1 << 31}, 4 * MAX_PAGE_TOKENS)],
    ids=["an earlier release", "nonsense"],
)
def test_what_a_caller_says_makes_no_series_and_is_bounded(
    said: dict[str, object], tokens: int
) -> None:
    metrics = Metrics()
    MatchCounts(metrics).add("red", MatchRequest(page_keys=KEYS, **said), 2)  # type: ignore[arg-type]
    found = metrics.snapshot()
    assert found[MATCHES] == {("red", UNKNOWN, "some"): 1}
    assert found[MATCH_TOKENS] == {("red", UNKNOWN): tokens}
