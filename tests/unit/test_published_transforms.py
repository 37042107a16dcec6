"""KVTC, CacheGen, CSKV and Mustafar: what they store is counted, and less error costs more."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from lexico_codec.geometry import Rope
from lexico_lab.published import cachegen, cskv, kvtc, mustafar
from lexico_lab.published.coder import Coder, Prefix, Stored
from lexico_lab.published.training import Training

LAYERS, HEADS, HEAD_DIM = 6, 2, 32
ROPE = Rope(tuple(10000.0 ** (-i / 16) for i in range(16)))
MODULES = (kvtc, cachegen, cskv, mustafar)

FAMILIES: dict[str, Callable[[], Sequence[Coder]]] = {
    "kvtc": lambda: [kvtc.Kvtc(share) for share in (0.04, 0.08, 0.16)],
    "cachegen": lambda: [cachegen.CacheGen(scale) for scale in (2.2, 0.8, 0.2)],
    "cskv-4": lambda: [cskv.Cskv(share, 4) for share in (1 / 8, 1 / 4, 1.0)],
    "cskv-16": lambda: [cskv.Cskv(share, 16) for share in (1 / 16, 1 / 8, 1 / 3)],
    "mustafar-4": lambda: [mustafar.Mustafar(sparsity, 4) for sparsity in (0.85, 0.7, 0.5)],
    "mustafar-16": lambda: [mustafar.Mustafar(sparsity, 16) for sparsity in (0.85, 0.7, 0.5)],
}


def prefix(seed: int, tokens: int) -> Prefix:
    """Correlated over tokens, channels and layers, with a mean."""
    make = torch.Generator().manual_seed(0)  # the same mixing for every prefix
    dims = LAYERS * HEADS * HEAD_DIM
    mixing = torch.linalg.qr(torch.randn(dims, dims, generator=make)).Q
    mixing = mixing * (torch.arange(1, dims + 1) ** -0.8)[:, None] * 8
    noise = torch.Generator().manual_seed(seed)

    def side(mean: float) -> Tensor:
        fresh = torch.randn(tokens, dims, generator=noise)
        for token in range(1, tokens):
            fresh[token] = 0.7 * fresh[token - 1] + 0.7 * fresh[token]
        rows = fresh @ mixing + mean
        return rows.reshape(tokens, LAYERS, HEADS, HEAD_DIM).transpose(0, 1)

    positions = torch.arange(4, 4 + tokens)
    plain = Prefix(side(0.5), side(0.1), positions, ROPE, torch.ones(LAYERS, tokens))
    keys = plain.rotated(plain.keys).half().float()
    return Prefix(keys, plain.values.half().float(), positions, ROPE, plain.importance)


@pytest.fixture(scope="module")
def training() -> list[Prefix]:
    return [prefix(seed, 300) for seed in range(1, 7)]


@pytest.fixture(scope="module")
def other() -> Prefix:
    return prefix(99, 251)


def raw_bytes(prefix: Prefix) -> int:
    return 2 * 2 * prefix.keys.numel()


def error(prefix: Prefix, stored: Stored) -> float:
    keys = (stored.keys - prefix.keys).square().sum() / prefix.keys.square().sum()
    values = (stored.values - prefix.values).square().sum() / prefix.values.square().sum()
    return float(keys + values)


@pytest.mark.parametrize("family", FAMILIES)
def test_error_falls_with_the_budget(family: str, training: list[Prefix], other: Prefix) -> None:
    made = FAMILIES[family]()
    stored = [coder.calibrate(training).code(other) for coder in made]
    sizes = [s.size for s in stored]
    errors = [error(other, s) for s in stored]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]
    assert len({coder.name for coder in made}) == len(made)


@pytest.mark.parametrize("tokens", [1, 10, 37])
@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_of_odd_token_counts_and_determinism(
    family: str, tokens: int, training: list[Prefix]
) -> None:
    short = prefix(5, tokens)
    first, again = (FAMILIES[family]()[1].calibrate(training).code(short) for _ in range(2))
    assert first.keys.shape == first.values.shape == short.keys.shape
    assert first.keys.dtype == first.values.dtype == torch.float32
    assert torch.isfinite(first.keys).all()
    assert torch.isfinite(first.values).all()
    assert first.size == again.size
    assert torch.equal(first.keys, again.keys)
    assert torch.equal(first.values, again.values)


@pytest.mark.parametrize("share", [0.04, 0.08, 0.13])
def test_kvtc_spends_its_budget(share: float, training: list[Prefix], other: Prefix) -> None:
    stored = kvtc.Kvtc(share).calibrate(training).code(other)
    assert stored.size == pytest.approx(share * raw_bytes(other), rel=0.1)


def test_kvtc_decodes_what_deflate_holds() -> None:
    rng = np.random.default_rng(3)
    coefficients = rng.standard_normal((37, 100)).astype(np.float32)
    groups = [kvtc.Group(0, 16, "fp8"), kvtc.Group(16, 32, "int4"), kvtc.Group(48, 100, "int2")]
    exponents = np.full(100, 3, np.int32)
    payload = kvtc.encode(coefficients, groups, exponents)
    assert len(zlib.decompress(payload[4:])) == 37 * 16 + 37 * 8 + 37 * 4 + 37 * 13 + 37 * 4
    seen = kvtc.decode(payload, 37, groups, exponents)
    # A second passage changes nothing: the codes came back as they were.
    assert np.allclose(
        kvtc.decode(kvtc.encode(seen, groups, exponents), 37, groups, exponents), seen
    )
    gaps = np.abs(seen - coefficients)
    spread = np.ptp(coefficients[:, 16:32], axis=1, keepdims=True)
    assert (gaps[:, :16] <= np.abs(coefficients[:, :16]) / 16 + 1e-3).all()
    assert (gaps[:, 16:32] <= spread / 30 + 1e-2).all()
    assert not seen[:, 32:48].any()


@pytest.mark.parametrize("bits", [2, 4])
def test_kvtc_packs_and_unpacks(bits: int) -> None:
    codes = np.random.default_rng(4).integers(0, 1 << bits, 101).astype(np.uint8)
    packed = kvtc.pack(codes, bits)
    assert len(packed) == -(-101 * bits // 8)
    assert np.array_equal(kvtc.unpack(packed, bits, 101), codes)


def test_kvtc_allocates_the_least_error() -> None:
    rng = np.random.default_rng(5)
    deviations = np.repeat([40.0, 4.0, 0.4], 16).astype(np.float32)
    coefficients = rng.standard_normal((64, 48)).astype(np.float32) * deviations
    plan = kvtc.Plan(coefficients, np.zeros(48, np.int32))
    assert plan.groups(0) == []
    assert [group.kind for group in plan.groups(128)] == ["fp8"]
    for bits in (64, 96, 128, 200, 300, 384):
        groups = plan.groups(bits)
        spent = sum(
            (g.stop - g.start) * {"int2": 2, "int4": 4, "fp8": 8}[g.kind] + 32 * (g.kind != "fp8")
            for g in groups
        )
        assert spent <= bits
        assert groups[0].start == 0


def test_the_range_coder_returns_its_symbols_near_their_entropy() -> None:
    rng = np.random.default_rng(6)
    contexts, rows = 24, 1500
    widths = np.linspace(0.3, 20, contexts)
    codes = np.rint(rng.standard_normal((rows, contexts)) * widths).astype(np.int32)
    codes[7, 3], codes[9, 20] = 500, -32768
    symbols, escapes = cachegen.to_symbols(codes)
    assert escapes.tolist() == [500, -32768]
    counts = np.stack([np.bincount(column, minlength=256) for column in symbols.T])
    tables = cachegen.Tables.of(counts, 8)
    assert (tables.frequencies.sum(axis=1) == 1 << 14).all()
    payload = cachegen.encode(symbols, tables)
    decoded = cachegen.decode(payload, rows, tables)
    assert np.array_equal(decoded, symbols)
    assert np.array_equal(cachegen.from_symbols(decoded, escapes), codes)
    chances = tables.frequencies[np.arange(contexts), symbols] / (1 << 14)
    entropy = float(-np.log2(chances).sum()) / 8
    # Of its 4 bytes, a lane's last state fills one with symbols on the average.
    assert len(payload) == pytest.approx(entropy + 3 * 512, rel=0.005)


def test_the_range_coder_takes_any_number_of_symbols() -> None:
    tables = cachegen.Tables.of(np.ones((5, 256), np.int64), 5)
    for rows in (0, 1, 103):
        symbols = np.random.default_rng(rows).integers(0, 256, (rows, 5))
        payload = cachegen.encode(symbols, tables)
        assert np.array_equal(cachegen.decode(payload, rows, tables), symbols)


def test_sizes_of_fixed_formats(training: list[Prefix]) -> None:
    short = prefix(5, 37)
    vectors = 2 * LAYERS * 37 * HEADS
    assert mustafar.Mustafar(0.5, 16).code(short).size == vectors * (4 + 2 * 16)
    assert mustafar.Mustafar(0.7, 4).code(short).size == vectors * (4 + 5 + 4)
    coded = cskv.Cskv(1 / 4, 4).calibrate(training).code(short)
    assert coded.size == 2 * LAYERS * 16 * (37 / 2 + 2 * 4)  # two groups of tokens


def test_mustafar_keeps_the_largest_of_every_vector(training: list[Prefix]) -> None:
    short = prefix(5, 37)
    stored = mustafar.Mustafar(0.75, 16).code(short)
    kept = stored.keys != 0
    assert (kept.sum(dim=-1) == 8).all()
    assert torch.equal(stored.keys[kept], short.keys[kept])
    least = short.keys.abs().masked_fill(~kept, float("inf")).amin(dim=-1)
    assert (short.keys.abs().masked_fill(kept, 0).amax(dim=-1) <= least).all()


def test_every_module_offers_named_settings() -> None:
    names = [coder.name for module in MODULES for coder in module.coders()]
    assert len(names) == len(set(names)) == 12 + 6 + 11 + 6


def test_one_calibration_serves_all_budgets(training: list[Prefix]) -> None:
    shared = kvtc.Calibration()
    first, second = (kvtc.Kvtc(share, shared).calibrate(training) for share in (0.05, 0.1))
    sides = shared.sides
    assert shared.sides is second.calibrate(training)._shared.sides is sides
    alone = kvtc.Kvtc(0.05).calibrate(training).code(training[0])
    assert torch.equal(first.code(training[0]).values, alone.values)


def test_ranks_of_cskv_share_a_calibration(training: list[Prefix]) -> None:
    shared = cskv.Calibration()
    first, second = (cskv.Cskv(share, 16, shared).calibrate(training) for share in (0.25, 0.5))
    vectors = shared.vectors
    assert second.calibrate(training)._shared.vectors is vectors
    alone = cskv.Cskv(0.25, 16).calibrate(training).code(training[0])
    assert torch.equal(first.code(training[0]).values, alone.values)


def test_training_text_is_held_in_float16_and_seen_in_float32(training: list[Prefix]) -> None:
    held = Training(iter(training))
    assert {prefix.keys.dtype for prefix in held._held} == {torch.float16}
    assert len(held) == len(training)
    for seen, exact in zip(held, training, strict=True):
        assert seen.keys.dtype == seen.values.dtype == torch.float32
        assert torch.equal(seen.keys, exact.keys)
    assert torch.equal(held[1:3][1].values, training[2].values)
    assert torch.equal(held[-1].values, training[-1].values)


@pytest.mark.parametrize("coder", [kvtc.Kvtc(0.1), cachegen.CacheGen(1.0), cskv.Cskv(0.5, 4)])
def test_nothing_is_coded_before_calibration(coder: Coder) -> None:
    with pytest.raises(RuntimeError, match="calibrate first"):
        coder.code(prefix(5, 3))
