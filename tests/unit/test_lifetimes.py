"""A page never outlives the page before it: any history of commits, renewals, expiry, eviction."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lexico_proto.errors import InvalidInput
from lexico_store import MemoryStore
from lexico_store.lifetimes import MAX_PAGE, PART_PAGES, page_life_ms, prefix_lives_ms
from tests.contract.store_suite import key_of

SCOPE, NAMESPACE = b"tenant-of-a-test", b"n" * 32
PAGES = 7
TTL_S = 60.0


@given(
    ttl_ms=st.integers(1, 10**9),
    first=st.integers(0, 3 * PART_PAGES),
    count=st.integers(0, 50),
)
def test_lives_fall_along_a_sequence(ttl_ms: int, first: int, count: int) -> None:
    lives = prefix_lives_ms(ttl_ms, first, count)
    assert len(lives) == count
    assert all(later <= earlier for earlier, later in pairwise(lives))
    assert all(ttl_ms / 2 <= life <= ttl_ms for life in lives)
    if ttl_ms > 10**6 and not first:
        assert all(later < earlier for earlier, later in pairwise(lives))
        assert lives == [page_life_ms(ttl_ms, page) for page in range(count)]


def test_a_later_part_lives_shorter_by_the_life_of_a_stream() -> None:
    day_ms = 86_400_000
    (last,) = prefix_lives_ms(day_ms, PART_PAGES - 1, 1)
    whole = prefix_lives_ms(day_ms, 0, PART_PAGES)
    part = prefix_lives_ms(day_ms, PART_PAGES, 3)
    assert whole[-1] - part[0] > 120_000
    assert last < whole[-1]
    for first, count in ((-1, 1), (MAX_PAGE, 1), (0, -1)):
        with pytest.raises(InvalidInput):
            prefix_lives_ms(day_ms, first, count)
    with pytest.raises(InvalidInput):
        page_life_ms(day_ms, -1)


class Histories(RuleBasedStateMachine):
    """Two conversations that share their beginning, in a store with room for one to two of them.

    A store that is smaller than one sequence, or that is filled anew within the lag along it (10 ms
    a page), holds ends without beginnings for a while: nothing older is left to go.
    """

    @initialize(room=st.integers(PAGES, 2 * PAGES - 3))
    def start(self, room: int) -> None:
        self.now = 0.0
        self.store = MemoryStore(max_bytes=room * 10, clock=lambda: self.now)
        shared = [key_of(n) for n in range(3)]
        self.chains = [
            shared + [key_of(100 * chain + n) for n in range(3, PAGES)] for chain in (1, 2)
        ]

    @rule(chain=st.integers(0, 1), length=st.integers(1, PAGES))
    def offload(self, chain: int, length: int) -> None:
        """As a client does: a match that renews, then the missing pages, in order."""
        self.now += 0.2
        keys = self.chains[chain][:length]
        found = self.store.match(SCOPE, NAMESPACE, keys, renew_s=TTL_S)
        for page, present in enumerate(found.present):
            if not present:
                self.store.commit(SCOPE, keys[page], [b"x" * 10], TTL_S, page=page)

    @rule(chain=st.integers(0, 1), length=st.integers(1, PAGES))
    def load(self, chain: int, length: int) -> None:
        """What is found is renewed; pages behind a hole are not."""
        self.now += 0.2
        keys = self.chains[chain][:length]
        present = self.store.match(SCOPE, NAMESPACE, keys).present
        leading = [*present, False].index(False)
        self.store.touch(SCOPE, keys[:leading], TTL_S)

    @rule(seconds=st.floats(0.2, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def no_page_outlives_the_one_before_it(self) -> None:
        for keys in getattr(self, "chains", ()):
            present = self.store.present(SCOPE, keys)
            assert sorted(present, reverse=True) == present, present


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
