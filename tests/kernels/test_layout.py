"""Groups as rows and back, components in their places: compiled against plain, by every ISA."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.geometry import Pairing, Rope
from lexico_codec.kernels import library
from lexico_codec.kernels.layout.rows import arrange, gather, scatter
from lexico_codec.kernels.layout.sparse import Sparse
from lexico_codec.kernels.library import ISA_VARIABLE
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.rope import Turn, rotate, turn_at
from lexico_proto.errors import ConfigurationError, ShapeMismatch

needs_library = pytest.mark.skipif(not library.available(), reason="the library is not compiled")

# dtype: (atol, rtol)
TOLERANCES = {
    torch.float32: (1e-5, 1e-5),
    torch.float16: (1e-5, 1e-3),
    torch.bfloat16: (1e-4, 8e-3),
}
SHAPES = [
    pytest.param(shape, id="L{}-T{}-H{}-D{}-pairs{}".format(*shape))
    for shape in [(1, 1, 1, 1, 0), (2, 33, 3, 64, 32), (3, 7, 5, 80, 13), (1, 100, 2, 7, 3)]
]


@pytest.fixture(params=library.supported() if library.available() else ())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    return str(request.param)


def rope_of(pairs: int, pairing: Pairing) -> Rope:
    return Rope(tuple(1.0 / (1 + i) for i in range(pairs)), pairing, 1.25)


def turn_of(tokens: int, pairs: int, pairing: Pairing, *, inverse: bool = False) -> Turn | None:
    if not pairs:
        return None
    return turn_at(torch.arange(90, 90 + tokens), rope_of(pairs, pairing), inverse=inverse)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@needs_library
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_equal_the_twins(
    isa: str, shape: tuple[int, ...], dtype: torch.dtype, pairing: Pairing
) -> None:
    layers, tokens, heads, dim, pairs = shape
    wider = drawn(layers, 2, tokens + 4, heads + 1, dim, dtype=dtype)
    group = wider[:, :, 4:, :heads]  # of strides
    means = drawn(2 * layers, heads * dim, seed=1)
    off = turn_of(tokens, pairs, pairing, inverse=True)
    rows = gather(TableMemory.over(group), means, off, kernel="compiled")
    torch.testing.assert_close(
        rows, gather(TableMemory.over(group), means, off, kernel="naive"), atol=1e-5, rtol=0
    )
    on, (atol, rtol) = turn_of(tokens, pairs, pairing), TOLERANCES[dtype]
    for given_as in (torch.float32, torch.bfloat16):
        given_rows = rows.to(given_as)
        made = [torch.full_like(wider, float("nan")) for _ in range(2)]
        for whole, kernel in zip(made, ("compiled", "naive"), strict=True):
            memory = TableMemory.over(whole[:, :, 4:, :heads])
            scatter(given_rows, means, on, memory, kernel=kernel)
        torch.testing.assert_close(made[0], made[1], atol=atol, rtol=rtol, equal_nan=True)
        assert int(made[0].isnan().sum()) == wider.numel() - group.numel()
    back = torch.empty_like(group)
    scatter(rows, means, on, TableMemory.over(back), kernel="compiled")
    torch.testing.assert_close(back, group, atol=max(atol, 1e-5), rtol=rtol)


@pytest.mark.parametrize("kernel", ["compiled", "naive"])
def test_keys_alone_are_turned(kernel: str) -> None:
    if kernel == "compiled" and not library.available():
        pytest.skip("the library is not compiled")
    rope, positions = rope_of(4, "half"), torch.arange(90, 95)
    plain = drawn(2, 2, 5, 3, 10)
    group = plain.clone()
    for layer in group:
        layer[0] = rotate(layer[0], positions, rope)
    off = turn_of(5, 4, "half", inverse=True)
    rows = gather(TableMemory.over(group), torch.zeros(4, 30), off, kernel=kernel)
    torch.testing.assert_close(rows, plain.reshape(4, 5, 30), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("kernel", ["compiled", "naive"])
def test_wild_rows_stay_in_range(kernel: str, dtype: torch.dtype) -> None:
    if kernel == "compiled" and not library.available():
        pytest.skip("the library is not compiled")
    rows = drawn(2, 9, 2 * 32)
    rows[:, 3, ::5] = float("nan")
    rows[:, 4, ::3], rows[:, 5, ::3] = float("inf"), -float("inf")
    rows[:, 6] *= 3e38
    out = torch.empty(1, 2, 9, 2, 32, dtype=dtype)
    scatter(rows, torch.zeros(2, 64), turn_of(9, 16, "half"), TableMemory.over(out), kernel=kernel)
    assert bool(out.isfinite().all())
    sane = torch.empty(1, 2, 1, 2, 32, dtype=dtype)
    one = turn_of(1, 16, "half")
    scatter(rows[:, :1].clone(), torch.zeros(2, 64), one, TableMemory.over(sane), kernel=kernel)
    torch.testing.assert_close(out[:, :, :1], sane)


@needs_library
@pytest.mark.parametrize("value", [0.0, -0.0, 6e-8, 5.96e-8, -3e-5, 6.1e-5, 1.0009, -65504.0])
def test_halves_are_read_exactly(isa: str, value: float) -> None:
    group = torch.full((1, 2, 1, 1, 19), value, dtype=torch.float16)
    rows = gather(TableMemory.over(group), torch.zeros(2, 19), None, kernel="compiled")
    assert torch.equal(rows, group.float().view(2, 1, 19))


@settings(deadline=None, max_examples=80)
@given(
    tokens=st.integers(1, 300),
    components=st.integers(0, 90),
    count=st.integers(0, 90),
    sparsity=st.integers(0, 3),
    width=st.integers(0, 40),
    quick=st.booleans(),
    seed=st.integers(0, 99),
)
@needs_library
def test_components_find_their_places(
    tokens: int, components: int, count: int, sparsity: int, width: int, quick: bool, seed: int
) -> None:
    count, length = min(count, components), components + 7
    values = drawn(sparsity + count, tokens, seed=seed)
    scales = drawn(tokens, seed=seed + 1).exp()
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(0, 11, (sparsity, tokens), generator=generator)
    sparse = Sparse(indices, drawn(width, 11, seed=seed + 2), 4.0)
    places = torch.randperm(length, generator=generator)[:components].int()
    dtype = torch.bfloat16 if quick else torch.float32
    made, plain = (
        arrange(values, scales, sparse, places, length, dtype, kernel=kernel)[places.long()]
        for kernel in ("compiled", "naive")
    )
    rtol = 8e-3 if quick else 1e-6
    torch.testing.assert_close(made, plain, atol=1e-5, rtol=rtol)
    assert not bool(made[count:].any())
    expected = values[sparsity:].double()
    for k in range(sparsity):
        reach = min(width, count)
        expected[:reach] += 4 * values[k].double() * sparse.atoms[:reach].double()[:, indices[k]]
    expected = (expected * scales).to(dtype)
    torch.testing.assert_close(made[:count], expected, atol=1e-4, rtol=rtol)


def test_what_does_not_fit_is_refused() -> None:
    group = torch.zeros(1, 2, 3, 1, 4)
    with pytest.raises(ShapeMismatch, match="means"):
        gather(TableMemory.over(group), torch.zeros(2, 5), None)
    with pytest.raises(ShapeMismatch, match="means"):
        gather(TableMemory.over(group), torch.zeros(2, 4, dtype=torch.float64), None)
    with pytest.raises(ShapeMismatch, match="rows"):
        scatter(torch.zeros(2, 2, 4), torch.zeros(2, 4), None, TableMemory.over(group))
    with pytest.raises(ConfigurationError, match="kernel"):
        gather(TableMemory.over(group), torch.zeros(2, 4), None, kernel="quick")


@needs_library
def test_the_default_dtype_does_not_matter() -> None:
    """Models are loaded under another one, process-wide."""
    group, means = drawn(1, 2, 5, 2, 8), drawn(2, 16)
    rows = gather(TableMemory.over(group), means, None, kernel="compiled")
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(gather(TableMemory.over(group), means, None, kernel="compiled"), rows)
    finally:
        torch.set_default_dtype(before)


def test_wild_rows_of_a_large_scale_are_finite() -> None:
    rope = Rope(tuple(1.0 / (1 + i) for i in range(16)), "half", 100.0)
    rows = torch.full((2, 9, 64), float("inf"))
    for kernel in ("naive", "compiled") if library.available() else ("naive",):
        out = torch.empty(1, 2, 9, 2, 32)
        scatter(
            rows,
            torch.zeros(2, 64),
            turn_at(torch.arange(9), rope),
            TableMemory.over(out),
            kernel=kernel,
        )
        assert bool(out.isfinite().all())
