from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from lexico_store import keys

SCOPES = st.binary(min_size=1, max_size=64)
KEYS = st.binary(min_size=32, max_size=32)


def test_names_are_pinned() -> None:
    """Another name for the same page loses every stored page: that takes a new prefix."""
    scope, key = bytes(range(16)), bytes(range(32))
    assert keys.page(scope, key) == "lx1:p:{a7bfdca2cd8c34b047ce921a4029f757fcd059f9}"
    assert keys.lease(scope, key) == "lx1:h:{a7bfdca2cd8c34b047ce921a4029f757fcd059f9}"
    assert keys.dictionary(scope, b"\xab") == "lx1:d:{d1c976cb54061123612ea06953d5ce960fecde26}:ab"
    assert keys.dictionary_listing(scope) == "lx1:s:{d1c976cb54061123612ea06953d5ce960fecde26}"
    assert [keys.group_field(12), keys.chunk_field(3), keys.FRAME_COUNT_FIELD] == ["g12", "c3", "m"]


@given(scope=SCOPES, key=KEYS)
def test_names_share_a_slot_and_nothing_else(scope: bytes, key: bytes) -> None:
    page, lease = keys.page(scope, key), keys.lease(scope, key)
    dictionary, listing = keys.dictionary(scope, key), keys.dictionary_listing(scope)
    assert len({page, lease, dictionary, listing}) == 4
    assert _tag(page) == _tag(lease)
    assert _tag(dictionary) == _tag(listing)


@given(a=st.tuples(SCOPES, KEYS), b=st.tuples(SCOPES, KEYS))
def test_equal_names_mean_equal_pages(a: tuple[bytes, bytes], b: tuple[bytes, bytes]) -> None:
    assert (keys.page(*a) == keys.page(*b)) == (a == b)


def test_padded_scope_is_another_scope() -> None:
    """BLAKE2b pads its key with zeros, but counts its length."""
    assert keys.page(b"a", bytes(32)) != keys.page(b"a\0", bytes(32))


@given(scope=st.binary(min_size=8, max_size=64), key=KEYS)
def test_no_name_shows_the_scope(scope: bytes, key: bytes) -> None:
    for name in (keys.page(scope, key), keys.lease(scope, key), keys.dictionary_listing(scope)):
        assert scope.hex() not in name


def _tag(name: str) -> str:
    found = re.search(r"\{(.*)\}", name)
    assert found is not None
    return found[1]
