"""The entropy coder: twin, compiled library and Triton give the same bytes and values, near the
entropy, and damaged bodies do no harm."""

from __future__ import annotations

import math
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.dispatch import KERNEL_VARIABLE
from lexico_codec.kernels.entropy.coder import decode, encode
from lexico_codec.kernels.entropy.tables import (
    LEVEL_LIMIT,
    MAX_CLASSES,
    MAX_SHIFT,
    SYMBOLS,
    TOTAL,
    Tables,
)
from lexico_proto.errors import ConfigurationError, DamagedFrame, InvalidInput, ShapeMismatch

KERNELS = ["naive", *(["compiled"] if library.available() else [])]
ISAS = ["naive", *(library.supported() if library.available() else [])]
needs_library = pytest.mark.skipif(not library.available(), reason="not compiled here")
EXTREMES = [0, 1, -1, 15, -15, 16, -16, 32767, 1 << 15, 1 << 20, LEVEL_LIMIT, -LEVEL_LIMIT]


@pytest.fixture(params=ISAS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The twin, or the library on each instruction set."""
    if request.param == "naive":
        return "naive"
    monkeypatch.setenv(library.ISA_VARIABLE, request.param)
    return "compiled"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Problem:
    levels: Tensor
    classes: Tensor
    offsets: Tensor | None
    tables: Tables

    @property
    def tokens(self) -> int:
        return self.levels.shape[1]

    def encode(self, kernel: str | None = None) -> bytes:
        return encode(self.levels, self.classes, self.offsets, self.tables, kernel=kernel)

    def decode(self, body: bytes, kernel: str | None = None, *, levels: bool = False) -> Tensor:
        given = (self.classes, self.offsets, self.tables, self.tokens)
        return decode(body, *given, levels=levels, kernel=kernel)

    def effective(self) -> Tensor:
        """`[components, tokens]`: the class of each value."""
        by = torch.zeros(self.tokens) if self.offsets is None else self.offsets
        return (self.classes[:, None].int() + by.int()).clamp(max=self.tables.classes - 1)


def gaussian(sigmas: Tensor, shifts: Tensor) -> Tables:
    """What an encoder of normal values would make: sigma in steps, one class each."""
    edges = (torch.arange(-15, 17).double() - 0.5) * 2.0 ** shifts[:, None]
    below = (1 + torch.erf(edges / (sigmas[:, None].double() * math.sqrt(2)))) / 2
    share = below.diff(dim=1)
    share = torch.cat([share, 1 - share.sum(1, keepdim=True)], 1)
    frequencies = (share * TOTAL).round().clamp(1).int()
    most = frequencies.argmax(1, keepdim=True)
    missing = TOTAL - frequencies.sum(1, keepdim=True)
    frequencies.scatter_add_(1, most, missing.int())
    points = torch.arange(16.0) - 0.2 / (1 + torch.arange(16.0))
    return Tables(frequencies, shifts.to(torch.uint8), points.repeat(len(sigmas), 1))


def typical(
    components: int, tokens: int, seed: int, *, shifted: bool, classes: int = 19
) -> Problem:
    """Normal values of falling sigma, 2^3.5 to 2^-5.5 steps, then components that are not coded."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = 2.0 ** (torch.arange(classes) / 2 - 5.5)
    shifts = (sigmas.log2() - 1).floor().clamp(0)
    tables = gaussian(sigmas, shifts)
    of = torch.linspace(classes - 1, -3, components).round().short()
    offsets = None
    if shifted:
        offsets = torch.randint(-2, 3, (tokens,), generator=generator).to(torch.int8)
    made = Problem(torch.zeros(components, tokens).int(), of, offsets, tables)
    e = made.effective()
    noise = torch.randn(components, tokens, generator=generator)
    levels = (noise * sigmas[e.clamp(0).long()]).round().int() * (e >= 0)
    return Problem(levels.int(), of, offsets, tables)


def check(problem: Problem, kernel: str) -> bytes:
    """The kernel gives the twin's bytes, and back what went in."""
    body = problem.encode(kernel)
    assert body == problem.encode("naive")
    assert torch.equal(problem.decode(body, kernel, levels=True), problem.levels)
    made, expected = problem.decode(body, kernel), problem.decode(body, "naive")
    assert torch.equal(made.view(torch.int32), expected.view(torch.int32))
    return body


@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
@pytest.mark.parametrize("tokens", [0, 1, 31, 32, 33, 63, 100, 128, 129, 300])
def test_any_number_of_tokens(kernel: str, tokens: int, shifted: bool) -> None:
    check(typical(37, tokens, tokens, shifted=shifted), kernel)


@pytest.mark.parametrize("components", [0, 1, 2, 63, 200])
def test_any_number_of_components(kernel: str, components: int) -> None:
    check(typical(components, 45, components, shifted=True), kernel)


def test_values_are_points_in_units_of_the_step(kernel: str) -> None:
    tables = Tables(
        torch.full((2, SYMBOLS), TOTAL // SYMBOLS).int(),
        torch.tensor([0, 3], dtype=torch.uint8),
        torch.stack([torch.arange(16.0) ** 1.5 + 7, torch.full((16,), 99.0)]),
    )
    levels = torch.tensor([[0, 1, -1, 15, -15, 16, -16, LEVEL_LIMIT]]).int().repeat(3, 1)
    levels[2] = 0
    problem = Problem(levels, torch.tensor([0, 1, -1]).short(), None, tables)
    values = problem.decode(check(problem, kernel), kernel)
    points = [0.0, 8.0, -8.0, 7 + 15**1.5, -7 - 15**1.5, 16.0, -16.0, float(1 << 30)]
    torch.testing.assert_close(values[0], torch.tensor(points))
    assert torch.equal(values[1], levels[1].float())
    assert not values[2].any()


@pytest.mark.parametrize("symbol", [0, 15, 16, 30, 31])
def test_single_symbols(kernel: str, symbol: int) -> None:
    frequencies = torch.ones(1, SYMBOLS).int()
    frequencies[0, symbol] += TOTAL - SYMBOLS
    tables = Tables(frequencies, torch.zeros(1, dtype=torch.uint8), torch.ones(1, 16))
    for value in (symbol - 15, 3, 77777):  # the likely one, an unlikely one, escapes
        levels = torch.full((50, 70), value).int()
        body = check(Problem(levels, torch.zeros(50).short(), None, tables), kernel)
        if value == symbol - 15 and value < 16:
            assert len(body) < 3 * 4 + 70 * 4 + 80


def test_components_that_are_not_coded_cost_nothing(kernel: str) -> None:
    problem = typical(20, 64, 0, shifted=False)
    more = torch.cat([problem.levels, torch.zeros(500, 64).int()])
    classes = torch.cat([problem.classes, torch.full((500,), -32768).short()])
    wide = Problem(more, classes, None, problem.tables)
    assert len(check(wide, kernel)) == len(problem.encode(kernel))


def test_order_of_classes_does_not_matter(kernel: str) -> None:
    problem = typical(60, 100, 1, shifted=True)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    check(
        Problem(problem.levels[order], problem.classes[order], problem.offsets, problem.tables),
        kernel,
    )


@settings(max_examples=150, deadline=None)
@given(
    components=st.integers(0, 40),
    tokens=st.integers(0, 140),
    classes=st.integers(1, 9),
    offsets=st.sampled_from([None, 0, 1, 5, 127]),
    flat=st.booleans(),
    seed=st.integers(0, 1 << 30),
    isa=st.sampled_from(ISAS),
)
def test_any_problem(
    components: int,
    tokens: int,
    classes: int,
    offsets: int | None,
    flat: bool,
    seed: int,
    isa: str,
) -> None:
    problem = any_problem(components, tokens, classes, offsets, flat, seed)
    with pytest.MonkeyPatch.context() as patch:
        if isa != "naive":
            patch.setenv(library.ISA_VARIABLE, isa)
        check(problem, "naive" if isa == "naive" else "compiled")


def any_problem(
    components: int, tokens: int, classes: int, offsets: int | None, flat: bool, seed: int
) -> Problem:
    """Random tables, classes in no order, values from nothing to the limits."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    if flat:
        frequencies = torch.full((classes, SYMBOLS), TOTAL // SYMBOLS)
    else:
        weights = torch.rand(classes, SYMBOLS, generator=generator) ** 8
        frequencies = (weights / weights.sum(1, keepdim=True) * 4000).long()  # some have none
        frequencies[:, -1] += TOTAL - frequencies.sum(1)
    dtype = torch.uint16 if seed % 2 else torch.int32
    tables = Tables(
        frequencies.to(dtype),
        draw(0, MAX_SHIFT, classes).to(torch.uint8),
        torch.randn(classes, 16, generator=generator),
    )
    of = draw(-3, classes + 2, components).short()
    by = None if offsets is None else draw(-offsets, offsets, tokens).to(torch.int8)
    bare = Problem(torch.zeros(components, tokens).int(), of, by, tables)
    sizes = 2.0 ** draw(0, 30, components, 1)
    levels = ((2 * torch.rand(components, tokens, generator=generator) - 1) * sizes).long()
    extremes = torch.tensor(EXTREMES)[draw(0, len(EXTREMES) - 1, components, tokens)]
    levels = torch.where(draw(0, 9, components, tokens) == 0, extremes, levels)
    levels = levels.clamp(-LEVEL_LIMIT, LEVEL_LIMIT) * (bare.effective() >= 0)
    return Problem(levels.int(), of, by, tables)


@needs_library
@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
def test_thread_counts_give_equal_bytes(shifted: bool) -> None:
    problem = typical(300, 2000, 3, shifted=shifted)
    made = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        body = problem.encode("compiled")
        made.append((body, problem.decode(body, "compiled")))
    assert all(body == made[0][0] for body, _ in made)
    assert all(torch.equal(values, made[0][1]) for _, values in made)


def test_size_is_near_the_entropy() -> None:
    problem = typical(400, 320, 4, shifted=True)
    e = problem.effective()
    live, e = e >= 0, e.clamp(0).long()
    shifts = problem.tables.shifts[e].int()
    high = problem.levels >> shifts
    escaped = high.abs() > 15
    symbols = torch.where(escaped, 31, high + 15).long()
    bits = -(problem.tables.frequencies[e, symbols] / TOTAL).log2() + shifts + 16 * escaped
    ideal = float((bits * live).sum()) / 8
    size = len(problem.encode())
    blocks = 320 // 32
    assert ideal <= size - 4 * 32 * blocks + 2 * 32 * blocks  # 16 bits of a state carry data
    assert size <= ideal * 1.01 + (4 + 2 * 32 + 12) * blocks


# Damage


def mutations(body: bytes, seed: int) -> Iterator[bytes]:
    """Cut, stretched, with flipped bits, with other lengths, shuffled and made up."""
    draw = random.Random(seed)
    yield from (b"", body[:-1], body[:-2], body + b"\0", body + b"\0\0", body * 2)
    for _ in range(12):
        yield body[: draw.randrange(len(body))]
        damaged = bytearray(body)
        for _ in range(draw.choice([1, 1, 2, 20])):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        yield bytes(damaged)
        damaged = bytearray(body)
        first = draw.randrange(len(damaged))
        damaged[first : first + 40] = draw.randbytes(len(damaged[first : first + 40]))
        yield bytes(damaged)
    for length in (0, 1, 127, 128, 1 << 16, 1 << 31, (1 << 32) - 1):
        yield struct.pack("<I", length) + body[4:]
    first, second = struct.unpack("<II", body[:8])
    for moved in (2, -2, 64, 1, second):  # the sum stays
        yield (
            struct.pack("<II", (first + moved) % (1 << 32), (second - moved) % (1 << 32)) + body[8:]
        )
    for fill in (b"\0", b"\xff", b"\x1f"):
        yield body[:12] + fill * (len(body) - 12)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
def test_damage(kernel: str, shifted: bool, seed: int) -> None:
    problem = typical(40, 33 + 10 * seed, seed, shifted=shifted)
    body = problem.encode()
    caught = total = 0
    for damaged in mutations(body, seed):
        if damaged == body:
            continue
        total += 1
        try:
            values = problem.decode(damaged, kernel)
        except DamagedFrame:
            caught += 1
            with pytest.raises(DamagedFrame):
                problem.decode(damaged, "naive")
        else:
            assert bool(values.isfinite().all())
            assert torch.equal(values, problem.decode(damaged, "naive"))
    assert caught >= 0.9 * total


@needs_library
@settings(max_examples=200, deadline=None)
@given(
    words=st.binary(max_size=900),
    tokens=st.integers(1, 70),
    classes=st.lists(st.integers(-2, 5), max_size=30),
    isa=st.sampled_from(ISAS[1:] or [""]),
)
def test_any_bytes(words: bytes, tokens: int, classes: list[int], isa: str) -> None:
    """Streams of sound lengths with any content: what the twin says of them, the library says."""
    blocks = -(-tokens // 32)
    words = words.ljust(4 * tokens, b"\x5a")[: max(4 * tokens, len(words) // 2 * 2)]
    sizes = [4 * min(32, tokens - 32 * block) for block in range(blocks)]
    sizes[0] += len(words) - sum(sizes)
    body = struct.pack(f"<{blocks}I", *sizes) + words
    problem = any_problem(0, tokens, 4, 1, False, len(words))
    of = torch.tensor(classes, dtype=torch.int16)
    results: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.ISA_VARIABLE, isa)
        for kernel in KERNELS:
            try:
                made = decode(
                    body, of, problem.offsets, problem.tables, tokens, levels=True, kernel=kernel
                )
            except DamagedFrame:
                results.append(None)
            else:
                results.append(made.tolist())
    assert results[0] == results[1]


def test_memory_is_bounded_by_the_body(kernel: str) -> None:
    problem = typical(3, 64, 0, shifted=False)
    with pytest.raises(DamagedFrame):
        decode(
            problem.encode(), problem.classes, None, problem.tables, tokens=1 << 50, kernel=kernel
        )


def test_any_buffer_and_address(kernel: str) -> None:
    problem = typical(10, 50, 0, shifted=True)
    body = problem.encode()
    for shift in range(3):
        odd = memoryview(bytearray(shift) + body)[shift:]
        made = decode(
            odd.toreadonly(),
            problem.classes,
            problem.offsets,
            problem.tables,
            50,
            levels=True,
            kernel=kernel,
        )
        assert torch.equal(made, problem.levels)


# Refusals


@pytest.mark.parametrize("value", [1 << 30, -(1 << 30), (1 << 31) - 1, -(1 << 31)])
def test_large_values_are_refused(kernel: str, value: int) -> None:
    problem = typical(4, 40, 0, shifted=False)
    problem.levels[1, 35] = value
    with pytest.raises(InvalidInput):
        problem.encode(kernel)


@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
def test_values_that_would_be_lost_are_refused(kernel: str, shifted: bool) -> None:
    problem = typical(4, 40, 0, shifted=shifted)
    component, token = (problem.effective() < 0).nonzero()[-1]
    problem.levels[component, token] = 1
    with pytest.raises(InvalidInput):
        problem.encode(kernel)


def broken(change: Callable[[Tensor], None], which: int) -> list[Tensor]:
    tables = typical(1, 1, 0, shifted=False).tables
    parts = [tables.frequencies.clone(), tables.shifts.clone(), tables.points.clone()]
    change(parts[which])
    return parts


def test_tables_are_checked() -> None:
    def more(f: Tensor) -> None:
        f[3, 4] += 1

    def none(f: Tensor) -> None:  # the escape must have some
        f[0, 15] += f[0, 31]
        f[0, 31] = 0

    def far(shifts: Tensor) -> None:
        shifts[0] = MAX_SHIFT + 1

    def nan(points: Tensor) -> None:
        points[0, 0] = math.nan

    for change, which in ((more, 0), (none, 0), (far, 1), (nan, 2)):
        with pytest.raises(InvalidInput):
            Tables(*broken(change, which))
    frequencies, shifts, points = broken(lambda _: None, 0)
    for parts in (
        (frequencies.long(), shifts, points),
        (frequencies[:, :31], shifts, points),
        (frequencies, shifts[1:], points),
        (frequencies, shifts.int(), points),
        (frequencies, shifts, points.double()),
        (frequencies, shifts, points[:, :15]),
        (frequencies.sum(), shifts, points),
    ):
        with pytest.raises(ShapeMismatch):
            Tables(*parts)
    many = MAX_CLASSES + 1
    with pytest.raises(InvalidInput):
        Tables(frequencies[:1].repeat(many, 1), shifts[:1].repeat(many), points[:1].repeat(many, 1))
    with pytest.raises(InvalidInput):
        Tables(frequencies[:0], shifts[:0], points[:0])


def test_shapes_are_checked() -> None:
    problem = typical(4, 40, 0, shifted=True)
    levels, classes, offsets, tables = (
        problem.levels,
        problem.classes,
        problem.offsets,
        problem.tables,
    )
    assert offsets is not None
    for wrong in (
        (levels.long(), classes, offsets),
        (levels[:3], classes, offsets),
        (levels, classes.int(), offsets),
        (levels, classes, offsets[1:]),
        (levels, classes, offsets.int()),
    ):
        with pytest.raises(ShapeMismatch):
            encode(*wrong, tables)
    body = problem.encode()
    with pytest.raises(ShapeMismatch):
        decode(body, classes.int(), offsets, tables, 40)
    with pytest.raises(ShapeMismatch):
        decode(body, classes, offsets[1:], tables, 40)
    with pytest.raises(InvalidInput):
        decode(body, classes, None, tables, -1)


def test_the_variable_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = typical(4, 40, 0, shifted=False)
    body = problem.encode()
    for name in ("naive", "triton", ""):  # triton: for what is on the device
        monkeypatch.setenv(KERNEL_VARIABLE, name)
        assert torch.equal(problem.decode(body, levels=True), problem.levels)
    monkeypatch.setenv(KERNEL_VARIABLE, "fortran")
    with pytest.raises(ConfigurationError):
        problem.encode()
    monkeypatch.delenv(KERNEL_VARIABLE)
    monkeypatch.setattr(library, "available", lambda: False)
    assert problem.encode() == body
    with pytest.raises(ConfigurationError):
        problem.encode("compiled")


# Triton's interpreter


def on_triton(problems: list[Problem], dtype: torch.dtype = torch.float32) -> Tensor:
    """All of them, of one set of tables, in one launch."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1 before triton is imported")
    from lexico_codec.kernels.entropy import triton_decode as triton_entropy

    offsets = [problem.offsets for problem in problems if problem.offsets is not None]
    return triton_entropy.decode(
        [problem.encode() for problem in problems],
        torch.stack([problem.classes for problem in problems]),
        torch.cat(offsets) if offsets else None,
        problems[0].tables,
        [problem.tokens for problem in problems],
        device=torch.device("cpu"),
        dtype=dtype,
    )


@pytest.mark.parametrize("shifted", [False, True], ids=["one-class", "offsets"])
@pytest.mark.parametrize("tokens", [(1,), (64, 33), (0, 31, 40)], ids=str)
def test_triton_decodes_many_bodies(tokens: tuple[int, ...], shifted: bool) -> None:
    problems = [typical(25, count, count, shifted=shifted) for count in tokens]
    expected = torch.cat([problem.decode(problem.encode(), "naive") for problem in problems], 1)
    assert torch.equal(on_triton(problems), expected)
    rounded = on_triton(problems, torch.bfloat16).float()
    torch.testing.assert_close(rounded, expected, atol=0, rtol=8e-3)  # one rounding


@pytest.mark.parametrize("seed", range(6))
def test_triton_decodes_any_problem(seed: int) -> None:
    problem = any_problem(12, 50, 5, [None, 2, 127][seed % 3], seed % 2 == 0, seed)
    assert torch.equal(on_triton([problem]), problem.decode(problem.encode(), "naive"))


def test_triton_takes_a_row_of_classes_for_each_body() -> None:
    one = any_problem(9, 40, 4, 1, False, 1)
    other = Problem(one.levels.flip(0), one.classes.flip(0), one.offsets, one.tables)
    expected = [problem.decode(problem.encode()) for problem in (one, other)]
    assert torch.equal(on_triton([one, other]), torch.cat(expected, 1))


def test_triton_refuses_damage() -> None:
    pytest.importorskip("triton")
    problem = typical(8, 40, 0, shifted=True)
    body, caught, total = problem.encode(), 0, 0
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1 before triton is imported")
    from lexico_codec.kernels.entropy import triton_decode as triton_entropy

    for damaged in list(mutations(body, 0))[::3]:
        results: list[object] = []
        for decoder in ("triton", "naive"):
            try:
                if decoder == "triton":
                    made = triton_entropy.decode(
                        [damaged],
                        problem.classes,
                        problem.offsets,
                        problem.tables,
                        [40],
                        device=torch.device("cpu"),
                    )
                else:
                    made = problem.decode(damaged, "naive")
            except DamagedFrame:
                results.append(None)
            else:
                results.append(made.tolist())
        assert results[0] == results[1]
        total, caught = total + 1, caught + (results[0] is None)
    assert caught >= 0.9 * total
