"""What `studies.unknown_positions` makes of its points."""

from __future__ import annotations

import pytest

from lexico_codec.codecs import ResidualCodec
from lexico_codec.geometry import Geometry, Rope
from lexico_lab.studies.unknown_positions import GIVEN, SPLIT, Curve, curves, summary
from tests.support.residual_sets import residual_set

GEOMETRY = Geometry(2, 3, 16, "float16", Rope(tuple(10000.0 ** (-i / 8) for i in range(8))))
SET = residual_set(2, 3, 16)


def test_the_price_is_bytes_over_the_usuals_at_equal_kl() -> None:
    every = (Curve(GIVEN, SET, {}), Curve("stored", SET, {}), Curve("worse", SET, {}))
    whole = SPLIT.coded * 100
    sizes = {GIVEN: (0.1, 0.05), "stored": (0.12, 0.06), "worse": (0.2, 0.1)}
    kls = {GIVEN: (0.004, 0.04), "stored": (0.004, 0.04), "worse": (0.03, 0.3)}
    text = {
        f"{name} step={step}": {"bytes": whole * size, "kl": kl}
        for name in sizes
        for step, size, kl in zip("ab", sizes[name], kls[name], strict=True)
    }
    text |= {name: {"bytes": whole * 0.7, "kl": 0.0} for name in ("lossless", "lossless, far")}
    found = summary([text, text], every, 100)
    assert found["price"]["stored"]["0.02"] == pytest.approx(1.2)
    assert found["price"]["worse"]["0.02"] is None  # never extrapolated
    assert GIVEN not in found["price"]
    assert found["lossless"] == {"lossless": 0.7, "lossless, far": 0.7}
    assert [point["kl_standard_error"] for point in found["points"]] == [0.0] * 6


def test_pages_without_positions_are_coded_so() -> None:
    for one in curves(SET):
        ways = list(one.ways(GEOMETRY))
        found = one.name.startswith("found")
        codecs = [way.spec.codec for way in ways]
        assert all(isinstance(codec, ResidualCodec) for codec in codecs)
        assert {codec.config_json().count('"positions":"found"') for codec in codecs} == {found}
        exact = 4 if one.name == GIVEN else 0
        assert {codec.sink_tokens(0, 64) for codec in codecs} == {exact}
        assert len({way.name for way in ways}) == len(ways) == 4
