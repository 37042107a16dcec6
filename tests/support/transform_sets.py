"""A small set of format 3, its metadata, and exact products for its tests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lexico_codec.sets.dictionary import DictionarySet
from tests.support.residual_sets import (
    products,
    residual_tensors,
)

TENSORS = residual_tensors(2, 3, 8, runs=2, joint=6, width=12, atoms=20, sparsity=2)
"""Of a set with two runs of a layer each."""
COUNT = 2 * 3 * 8
"""Components of a run."""


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """What a machine with quick products of bfloat16 loses has a test of its own."""
    with products(quick=False):
        yield


def metadata_of(dictionary: DictionarySet) -> dict[str, str]:
    """What the file of a set says beside its tensors."""
    data = dictionary.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, str] = header["__metadata__"]
    return found
