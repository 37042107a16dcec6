"""What `studies.unknown_positions` makes of its points."""

from __future__ import annotations

import pytest

from lexico_codec.geometry import Geometry, Rope
from lexico_lab.studies.unknown_positions import SPLIT, USUAL, Curve, curves, summary
from tests.support.dictionaries import as_stored
from tests.support.residual_sets import residual_set, transform_of

GEOMETRY = Geometry(2, 3, 16, "float16", Rope(tuple(10000.0 ** (-i / 8) for i in range(8))))
SET = residual_set(2, 3, 16)


def test_the_price_is_bytes_over_the_usuals_at_equal_kl() -> None:
    every = (Curve(USUAL, SET, {}), Curve("stored", SET, {}), Curve("worse", SET, {}))
    whole = SPLIT.coded * 100
    sizes = {USUAL: (0.1, 0.05), "stored": (0.12, 0.06), "worse": (0.2, 0.1)}
    kls = {USUAL: (0.004, 0.04), "stored": (0.004, 0.04), "worse": (0.03, 0.3)}
    text = {
        f"{name} step={step}": {"bytes": whole * size, "kl": kl}
        for name in sizes
        for step, size, kl in zip("ab", sizes[name], kls[name], strict=True)
    }
    text |= {name: {"bytes": whole * 0.7, "kl": 0.0} for name in ("lossless", "lossless, far")}
    found = summary([text, text], every, 100)
    assert found["price"]["stored"]["0.02"] == pytest.approx(1.2)
    assert found["price"]["worse"]["0.02"] is None  # never extrapolated
    assert USUAL not in found["price"]
    assert found["lossless"] == {"lossless": 0.7, "lossless, far": 0.7}
    assert [point["kl_standard_error"] for point in found["points"]] == [0.0] * 6


def test_each_kind_of_set_codes_its_kind_of_pages() -> None:
    stored = as_stored(SET)
    assert transform_of(stored).steps == transform_of(SET).steps
    for one in curves(SET, stored):  # type: ignore[arg-type]
        ways = list(one.ways(GEOMETRY))
        assert {way.alone for way in ways} == {one.name.startswith("stored")}
        assert {way.spec.geometry.rope is None for way in ways} == {one.name.startswith("stored")}
        exact = 4 if one.name in (USUAL, "stored, first exact") else 0
        assert {way.spec.codec.sink_tokens(0, 64) for way in ways} == {exact}
        assert len({way.name for way in ways}) == len(ways) == 4
