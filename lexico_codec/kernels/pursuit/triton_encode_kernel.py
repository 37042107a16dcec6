"""Triton functions of the fused encoder: a program codes tiles of BM vectors, all steps at once.

Names follow the README of this folder: r is the residual, q a direction, T the triangle of
`atom_k = Σ_i T[i, k] q_i`, a an amplitude. Scratch lives in global memory and belongs to one
program: registers hold no array that a step could index.
"""

# Triton functions are typed by Triton, not by Python.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

DEPENDENT = tl.constexpr(1e-5)  # least ||q||² of a new direction, as in naive.py
CODED = tl.constexpr(4e-12)  # squared relative residual that is rounding only
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def power_of_two(exponent):
    """2^exponent for -126..127, exactly."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def half_exponent(square):
    """e with sqrt(square) in [2^e, 2^(e+1))."""
    return ((square.to(tl.int32, bitcast=True) >> 23) - 127) >> 1


@triton.jit
def to_e4m3(scaled):
    """E4M3 bits of numbers up to 448, to nearest even: no cast, sm_80 has none."""
    bits = scaled.to(tl.int32, bitcast=True)
    low = bits & 0x7FFFFFFF
    normal = ((low + 0x7FFFF + ((low >> 20) & 1)) >> 20) - (120 << 3)  # bias 127 to 7
    tiny = (tl.abs(scaled) + 16384.0).to(tl.int32, bitcast=True) & 0xFF  # ulp of 2^14 is 2^-9
    return tl.where(low < 0x3C800000, tiny, normal) | ((bits >> 24) & 0x80)  # 2^-6


@triton.jit
def strongest_in_tile(score, keep, BM: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr):
    """`[BM]` int32 that sort as the row's largest |score|, its column in the low bits."""
    # Accumulators lie so that columns 8 i + 2 lane + pair differ within a thread in i and pair
    # alone: that part of the column is an immediate, the lane's part joins after the maximum.
    bits = tl.reshape(score.to(tl.int32, bitcast=True), [BM, BN // 8, 4, 2])
    i = tl.arange(0, BN // 8)[None, :, None, None]
    pair = tl.arange(0, 2)[None, None, None, :]
    column = i * 8 + pair
    if ASM:
        key = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xEA;", "=r,r,r,r", [bits, keep, column],
            dtype=tl.int32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        key = (bits & keep) | column
    key = tl.reshape(tl.permute(key, (0, 2, 1, 3)), [BM, 4, BN // 4])
    lane = tl.max(key, axis=2)  # [BM, 4]
    return tl.max(lane | (tl.arange(0, 4) * 2)[None, :], axis=1)


@triton.jit
def strongest(
    operand, scored, atoms, keep,
    BM: tl.constexpr, BN: tl.constexpr, MP: tl.constexpr, CACHE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """`[BM]` the best of a dictionary's atoms for each row of `operand` [BM, MP]."""
    column = tl.arange(0, BN)
    component = tl.arange(0, MP)
    best = tl.full([BM], -1, tl.int32)
    first = tl.zeros([BM], tl.int32)
    for start in range(0, atoms, BN):
        # Columns past the end are copies of the last atom, so none of them can win wrongly.
        row = tl.minimum(start + column, atoms - 1)
        at = row[:, None] * MP + component[None, :]
        tile = tl.load(scored + at, cache_modifier=CACHE)  # [BN, MP]
        score = tl.dot(operand, tl.trans(tile))  # [BM, BN] float32
        top = strongest_in_tile(score, keep, BM, BN, ASM)  # [BM]
        wins = top > best
        best = tl.where(wins, top, best)
        first = tl.where(wins, start, first)
    return tl.minimum(first + (best & (BN - 1)), atoms - 1)


@triton.jit
def load_rows(
    x, offset, x_column, cosines, sines, angle, turning, rope_inverse, mean, factor, live, m, pairs,
    MP: tl.constexpr, ROPE: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """Prepared vectors `[rows, MP]` float32: un-rotated, minus the mean, times the scale."""
    component = tl.arange(0, MP)[None, :]
    inside = live[:, None] & (component < m)
    source = x + offset[:, None]
    wide = component.to(tl.int64)  # a transposed view's columns lie far apart
    v = tl.load(source + wide * x_column, mask=inside, other=0.0).to(tl.float32)
    if ROPE > 0:
        if ROPE == 1:
            second = component >= pairs
            pair = tl.where(second, component - pairs, component)
            partner = tl.where(second, component - pairs, component + pairs)
        else:
            second = (component & 1) == 1
            pair = component >> 1
            partner = component ^ 1
        turns = inside & (component < turning)
        other = tl.load(source + partner.to(tl.int64) * x_column, mask=turns, other=0.0).to(
            tl.float32
        )
        where = angle[:, None] + pair
        cosine = tl.load(cosines + where, mask=turns, other=1.0) * rope_inverse
        sine = tl.load(sines + where, mask=turns, other=0.0) * rope_inverse
        v = tl.where(turns, v * cosine + tl.where(second, -sine, sine) * other, v)
    if MEAN:
        v -= tl.load(mean + component, mask=inside, other=0.0)
    return v * factor[:, None]


@triton.jit
def begin(
    v, at, line, residuals, operands, limits, marks, fault, tolerance_squared,
    BM: tl.constexpr, HB: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Writes the state of some rows before the first step; how many of them are to be coded."""
    # Norms near 1 by a power of two, which is exact: squares neither overflow nor vanish.
    largest = tl.max(tl.abs(v), axis=1)  # [HB]
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) - 126
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    v *= power_of_two(-exponent)[:, None]
    square = tl.sum(v * v, axis=1)
    limit = tl.maximum(tolerance_squared, CODED) * square
    active = square > limit
    operand = v * power_of_two(NORM - half_exponent(square))[:, None]
    tl.store(residuals + at, v)
    tl.store(operands + at, operand.to(operands.dtype.element_ty))
    tl.store(limits + line, tl.where(active, limit, INFINITY))
    tl.store(marks + line, exponent)
    tl.store(marks + BM + line, tl.zeros([HB], tl.int32))
    tl.store(fault + tl.zeros([HB], tl.int32), 1, mask=~(square < INFINITY))
    return tl.sum(active.to(tl.int32), axis=0)


@triton.jit
def orthogonalise(
    k, line, at, component, stack, sparsity,
    residuals, operands, directions, triangles, amplitudes, winners, limits, marks,
    BM: tl.constexpr, HB: tl.constexpr, MP: tl.constexpr, SP: tl.constexpr,
    AHEAD: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Takes the winners of step k into the codes of some rows; how many of them go on."""
    limit = tl.load(limits + (k & 1) * BM + line)  # [HB]
    active = limit < INFINITY
    kept = active[:, None]
    another = tl.full([HB], k + 1, tl.int32) < sparsity
    needed = kept & another[:, None]  # by the next step
    winner = tl.load(winners + line * SP + k)
    r = tl.load(residuals + at)  # early: it arrives while q is made
    q = tl.load(stack + winner[:, None] * MP + component, mask=kept, other=0.0)  # [HB, MP]
    t = tl.zeros([HB, MP], tl.float32)  # column k of T, in the layout of q: no exchange in the loop
    for i in tl.range(0, k, num_stages=AHEAD):  # modified Gram-Schmidt
        former = tl.load(directions + i * (BM * MP) + at, mask=kept, other=0.0).to(tl.float32)
        overlap = tl.sum(former * q, axis=1)
        q -= overlap[:, None] * former
        t = tl.where(component == i, overlap[:, None], t)
    square = tl.sum(q * q, axis=1)
    active = active & (square > DEPENDENT)
    rho = tl.sqrt(tl.where(active, square, 1.0))
    q *= tl.where(active, 1.0 / rho, 0.0)[:, None]
    amplitude = tl.sum(q * r, axis=1)
    r -= amplitude[:, None] * q
    square = tl.sum(r * r, axis=1)
    operand = r * power_of_two(NORM - half_exponent(square))[:, None]
    tl.store(directions + k * (BM * MP) + at, q.to(directions.dtype.element_ty), mask=needed)
    tl.store(residuals + at, r, mask=needed)
    tl.store(operands + at, operand.to(operands.dtype.element_ty), mask=needed)
    t = tl.where(component == k, rho[:, None], t)
    row_of_t = triangles + k * (BM * SP) + line[:, None] * SP
    tl.store(row_of_t + component, t, mask=component < SP)
    tl.store(amplitudes + line * SP + k, amplitude)
    tl.store(marks + BM + line, tl.zeros([HB], tl.int32) + (k + 1), mask=active)
    active = active & (square > limit)
    tl.store(limits + ((k + 1) & 1) * BM + line, tl.where(active, limit, INFINITY))
    return tl.sum(active.to(tl.int32), axis=0)


@triton.jit
def solve(
    steps, line, step, count, triangles, amplitudes, BM: tl.constexpr, SP: tl.constexpr
):  # fmt: skip
    """Coefficients `[BM, SP]` by back substitution in T g = a."""
    g = tl.load(amplitudes + line[:, None] * SP + step, mask=step < count[:, None], other=0.0)
    for back in range(0, steps):
        k = steps - 1 - back
        column = triangles + k * (BM * SP) + line[:, None] * SP
        t = tl.load(column + step, mask=(k < count)[:, None], other=0.0)  # [BM, SP]
        here = step == k
        diagonal = tl.where(k < count, tl.sum(tl.where(here, t, 0.0), axis=1), 1.0)
        solved = tl.sum(tl.where(here, g, 0.0), axis=1) / diagonal
        g = tl.where(here, solved[:, None], g - t * solved[:, None])
    return g


# Integers that take many values: a specialised copy for each kind would cost seconds to compile.
_GENERAL = [
    *("x_table", "x_token", "x_head", "x_column", "tables", "rows", "heads", "m", "pairs"),
    *("sparsity", "keep"),
]


@triton.jit(
    do_not_specialize=_GENERAL, do_not_specialize_on_alignment=["x", "turned", "mean", "scale"]
)
def encode_kernel(
    # vectors [tables, tokens, heads, m] and their strides
    x, x_table, x_token, x_head, x_column,
    # preparation: [tokens, pairs], the same, [tables] 0 or 1, 1 / scale of the rope,
    # [tables, heads, m], [tables, heads]
    cosines, sines, turned, rope_inverse, mean, scale,
    # atoms [sum of N, MP] to score with and in float32, and where each table's begin
    scored, stack, starts,
    # codes, and one int32 that is set where something was not finite
    indices, coefficients, counts, exponents, fault,
    # scratch of each program: [BM, MP], [BM, MP], [s, BM, MP], [s, BM, SP], [BM, SP], [BM, SP],
    # [2, BM], [2, BM]
    residuals, operands, directions, triangles, amplitudes, winners, limits, marks,
    # rows = tokens * heads; keep: the bits of a score that are not the column's
    tables, rows, heads, m, pairs, sparsity, tolerance_squared, keep,
    BM: tl.constexpr, BN: tl.constexpr, HB: tl.constexpr, MP: tl.constexpr, SP: tl.constexpr,
    AHEAD: tl.constexpr, CACHE: tl.constexpr,
    ROPE: tl.constexpr, MEAN: tl.constexpr, SCALE: tl.constexpr,
    QUANTISED: tl.constexpr, NORM: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Codes tiles of BM rows of a table until none is left; see the README of this folder."""
    program = tl.program_id(0).to(tl.int64)
    component = tl.arange(0, MP)[None, :]
    part = tl.arange(0, HB)
    line = tl.arange(0, BM)
    step = tl.arange(0, SP)[None, :]
    residuals += program * BM * MP
    operands += program * BM * MP
    directions += program * sparsity * BM * MP
    triangles += program * sparsity * BM * SP
    amplitudes += program * BM * SP
    winners += program * BM * SP
    limits += program * 2 * BM  # read and written in turns: a slow warp may still read
    marks += program * 2 * BM  # exponents of the norms, then counts
    row_tiles = tl.cdiv(rows, BM)

    for job in range(tl.program_id(0), tables * row_tiles, tl.num_programs(0)):
        table = (job // row_tiles).to(tl.int64)
        first_row = (job % row_tiles).to(tl.int64) * BM
        first_atom = tl.load(starts + table)
        atoms = (tl.load(starts + table + 1) - first_atom).to(tl.int32)
        own_scored = scored + first_atom * MP
        own_stack = stack + first_atom * MP
        turning = 0  # leading components that RoPE turned
        if ROPE > 0:
            turning = 2 * pairs * tl.load(turned + table).to(tl.int32)

        tl.debug_barrier()  # the job before has read its scratch
        active = 0  # rows still to be coded
        for top in range(0, BM, HB):
            row = first_row + top + part  # [HB]
            live = row < rows
            token = row // heads
            head = row % heads
            factor = tl.full([HB], 1.0, tl.float32)
            if SCALE:
                factor = tl.load(scale + table * heads + head, mask=live, other=1.0)
            v = load_rows(
                x, table * x_table + token * x_token + head * x_head, x_column,
                cosines, sines, token * pairs, turning, rope_inverse,
                mean + ((table * heads + head) * m)[:, None], factor, live, m, pairs,
                MP, ROPE, MEAN,
            )  # fmt: skip
            at = (top + part)[:, None] * MP + component
            active += begin(
                v, at, top + part, residuals, operands, limits, marks, fault, tolerance_squared,
                BM, HB, NORM,
            )  # fmt: skip

        k = 0
        while (k < sparsity) & (active > 0):
            tl.debug_barrier()  # the operands are written
            operand = tl.load(operands + line[:, None] * MP + component)  # [BM, MP]
            winner = strongest(operand, own_scored, atoms, keep, BM, BN, MP, CACHE, ASM)  # [BM]
            tl.store(winners + line * SP + k, winner)
            tl.debug_barrier()
            active = 0
            for top in range(0, BM, HB):  # in parts: q and r of a whole tile would spill
                at = (top + part)[:, None] * MP + component
                active += orthogonalise(
                    k, top + part, at, component, own_stack, sparsity,
                    residuals, operands, directions, triangles, amplitudes, winners, limits, marks,
                    BM, HB, MP, SP, AHEAD, NORM,
                )  # fmt: skip
            k += 1

        tl.debug_barrier()
        row = first_row + line
        live = row < rows
        count = tl.load(marks + BM + line)
        g = solve(k, line, step, count, triangles, amplitudes, BM, SP)
        g *= power_of_two(tl.load(marks + line))[:, None]
        coded = step < count[:, None]
        index = tl.load(winners + line[:, None] * SP + step, mask=coded, other=0)
        largest = tl.max(tl.abs(g), axis=1)
        tl.store(fault + tl.zeros([BM], tl.int32), 1, mask=~(largest < INFINITY))
        target = table * rows + row
        at = target[:, None] * sparsity + step
        inside = live[:, None] & (step < sparsity)
        tl.store(indices + at, index.to(indices.dtype.element_ty), mask=inside)
        tl.store(counts + target, count.to(counts.dtype.element_ty), mask=live)
        if QUANTISED:  # as quantise.to_e4m3: the largest into (224, 448]
            bits = largest.to(tl.int32, bitcast=True)
            shift = 9 + 126 - (bits >> 23) - ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)
            shift = tl.where(bits > 0, tl.minimum(shift, 127), 0)
            code = to_e4m3(g * power_of_two(shift)[:, None])
            tl.store(coefficients + at, code.to(tl.uint8), mask=inside)
            tl.store(exponents + target, shift.to(tl.int8), mask=live)
        else:
            tl.store(coefficients + at, g, mask=inside)
