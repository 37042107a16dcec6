"""Triton functions of attention over sparse codes: what each program does. README.md has the plan.

Rows: the `group * q_len` query rows of a kv head are cut into blocks of ROWS (1, 2 or 4), the last
filled up; `part` counts kv head and row block, kv head first. Scores are in units of log2.
"""

# Triton functions are typed by Triton, not by Python.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# mypy: disable-error-code="assignment, index, attr-defined"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _e4m3(bits):  # without the factor of 256
    wide = bits.to(tl.int16)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)  # the same exponent under fp16's bias
    return half.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _top(tops, splits, ROWS: tl.constexpr):
    """Largest score of each row over all splits, `[ROWS]`; `tops` is at the part's first row."""
    row = tl.arange(0, ROWS)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    for first in range(0, splits, 128):
        at = first + tl.arange(0, 128)
        seen = tl.load(
            tops + row[:, None] * splits + at[None, :], (at < splits)[None, :], float("-inf")
        )
        top = tl.maximum(top, tl.max(seen, 1))
    return top


@triton.jit
def _table(
    query, atoms, table, tile, row_tile, rows, row_blocks, parts, factor,
    N: tl.constexpr, M: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr,
    BN: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products of a tile of atoms with BR query rows, of whatever parts."""
    d = tl.arange(0, BM)
    atom = tile * BN + tl.arange(0, BN)
    row = row_tile * BR + tl.arange(0, BR)  # over all parts
    part = row // ROWS
    local = (part % row_blocks) * ROWS + row % ROWS
    live = (local < rows) & (part < parts)
    at = ((part // row_blocks) * rows + local)[:, None] * M + d[None, :]
    q = tl.load(query + at, live[:, None] & (d < M)[None, :], 0.0).to(tl.float32)  # [BR, BM]
    mask = (atom < N)[:, None] & (d < M)[None, :]
    vectors = tl.load(atoms + atom[:, None] * M + d[None, :], mask, 0.0).to(tl.float32)
    dots = tl.dot(vectors, tl.trans(q), input_precision=PRECISION) * factor  # [BN, BR]
    to = part[None, :].to(tl.int64) * (N * ROWS) + atom[:, None] * ROWS + (row % ROWS)[None, :]
    tl.store(table + to, dots, (atom < N)[:, None] & (part < parts)[None, :])


@triton.jit
def _exact(
    query, keys, values, tops, sums, outs, split, part,
    exact_splits, splits, n, q_len, rows, row_blocks,
    key_head, key_token, value_head, value_token, factor,
    M: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr, BE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention of one part over BE exact tokens: largest score, sum and weighted values."""
    if M % 8 == 0:  # the caller saw to it: says that rows can be read 16 bytes at a time
        key_head, key_token = key_head // 8 * 8, key_token // 8 * 8
        value_head, value_token = value_head // 8 * 8, value_token // 8 * 8
    d = tl.arange(0, BM)
    head = (part // row_blocks).to(tl.int64)
    row = tl.arange(0, 16)  # ROWS of them are real: a product has 16 at least
    local = (part % row_blocks) * ROWS + row
    at = (head * rows + local)[:, None] * M + d[None, :]
    mask = ((row < ROWS) & (local < rows))[:, None] & (d < M)[None, :]
    q = tl.load(query + at, mask, 0.0).to(tl.float32)  # [16, BM]
    t = split * BE + tl.arange(0, BE)
    mask = (t < n)[:, None] & (d < M)[None, :]
    key_at = head * key_head + t[:, None].to(tl.int64) * key_token + d[None, :]
    k = tl.load(keys + key_at, mask, 0.0).to(tl.float32)  # [BE, BM]
    value_at = head * value_head + t[:, None].to(tl.int64) * value_token + d[None, :]
    v = tl.load(values + value_at, mask, 0.0).to(tl.float32)
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * factor  # [BE, 16]
    newest = n - q_len + local % q_len  # the last token a row sees
    scores = tl.where(t[:, None] <= newest[None, :], scores, float("-inf"))
    top = tl.max(scores, 0)
    weights = tl.exp2(scores - tl.where(top == float("-inf"), 0.0, top)[None, :])
    out = tl.dot(
        tl.trans(weights), v, input_precision="tf32x3" if PRECISION == "tf32" else PRECISION
    )  # [16, BM]
    slot = (part * ROWS + row) * splits + (splits - exact_splits + split)
    tl.store(tops + slot, top, row < ROWS)
    tl.store(sums + slot, tl.sum(weights, 0), row < ROWS)
    to = ((part * ROWS + row) * exact_splits + split)[:, None] * M + d[None, :]
    tl.store(outs + to, out, (row < ROWS)[:, None] & (d < M)[None, :])


@triton.jit(
    do_not_specialize=[
        "tiles", "row_tiles", "exact_splits", "splits", "n", "q_len", "rows", "row_blocks",
        "parts", "key_head", "key_token", "value_head", "value_token",
    ]
)  # fmt: skip
def project(
    query, atoms, keys, values, table, tops, sums, outs,
    tiles, row_tiles, exact_splits, splits, n, q_len, rows, row_blocks, parts,
    key_head, key_token, value_head, value_token, factor,
    N: tl.constexpr, M: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr,
    BN: tl.constexpr, BR: tl.constexpr, BE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The first programs: `table[part, atom, row] = q · d`. The others: attention over one split of
    the exact tokens, unnormalised."""
    program = tl.program_id(0)
    if program < tiles * row_tiles:
        _table(
            query, atoms, table, program % tiles, program // tiles, rows, row_blocks, parts,
            factor, N, M, BM, ROWS, BN, BR, PRECISION,
        )  # fmt: skip
    else:
        program -= tiles * row_tiles
        _exact(
            query, keys, values, tops, sums, outs, program % exact_splits, program // exact_splits,
            exact_splits, splits, n, q_len, rows, row_blocks,
            key_head, key_token, value_head, value_token, factor, M, BM, ROWS, BE, PRECISION,
        )  # fmt: skip


@triton.jit(do_not_specialize=["count", "capacity", "splits", "row_blocks", "steps"])
def score(
    table, key_atoms, key_bits, key_exponents, value_exponents, scores, tops, sums,
    count, capacity, splits, row_blocks, steps,
    N: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Scores of `steps * BT` coded tokens, each less its value exponent, with their softmax's top
    and sum. A thread has one token: one gather brings all rows of an atom. The table is to stay in
    the first cache, so codes go round it (".cg")."""
    part = tl.program_id(0)
    split = tl.program_id(1)
    head = (part // row_blocks).to(tl.int64)
    row = tl.arange(0, ROWS)[None, :]
    table += part.to(tl.int64) * (N * ROWS)
    scores += part.to(tl.int64) * count * ROWS
    key_atoms += head * S * capacity
    key_bits += head * S * capacity
    top = tl.full([BT, ROWS], -1e30, tl.float32)  # finite: a thread may have no token
    total = tl.zeros([BT, ROWS], tl.float32)
    for i in range(steps):
        t = (split * steps + i) * BT + tl.arange(0, BT)
        live = t < count
        sums_t = tl.zeros([BT, ROWS], tl.float32)
        for k in tl.static_range(S):
            at = k * capacity.to(tl.int64) + t
            atom = tl.load(key_atoms + at, live, 0, cache_modifier=".cg").to(tl.int32)
            c = _e4m3(tl.load(key_bits + at, live, 0, cache_modifier=".cg"))
            sums_t += c[:, None] * tl.load(table + atom[:, None] * ROWS + row)  # [BT, ROWS]
        key_exponent = tl.load(key_exponents + head * capacity + t, live, 0).to(tl.int32)
        value_exponent = tl.load(value_exponents + head * capacity + t, live, 0).to(tl.float32)
        power = tl.minimum(127 - key_exponent, 254) << 23
        s = sums_t * 256.0 * power.to(tl.float32, bitcast=True)[:, None]
        tl.store(scores + t[:, None] * ROWS + row, s - value_exponent[:, None], live[:, None])
        s = tl.where(live[:, None], s, float("-inf"))
        newer = tl.maximum(top, s)
        total = total * tl.exp2(top - newer) + tl.exp2(s - newer)
        top = newer
    best = tl.max(top, 0)  # [ROWS]
    at = (part * ROWS + tl.arange(0, ROWS)) * splits + split
    tl.store(tops + at, best)
    tl.store(sums + at, tl.sum(total * tl.exp2(top - best[None, :]), 0))


@triton.jit
def _add_close(keep_a, open_a, bare_a, close_a, keep_b, open_b, bare_b, close_b):
    """Lanes a and the lanes b behind them, as one.

    `open` is the sum of the run that is open behind the last lane, and `keep` is 0 if that starts
    within; `close` is what the run that is open before the last lane comes to where it ends there,
    if `bare` still without what is open before the first lane.
    """
    close = close_b + bare_b * open_a
    return keep_a * keep_b, keep_b * open_a + open_b, bare_b * keep_a, close


@triton.jit(
    do_not_specialize=[
        "count", "capacity", "chunks", "chunk_capacity", "blocks", "chunk_blocks", "chunk_tokens",
        "splits", "row_blocks", "per",
    ]
)  # fmt: skip
def weigh(
    scores, tops, value_words, value_bits, bases, weights,
    count, capacity, chunks, chunk_capacity, blocks, chunk_blocks, chunk_tokens, splits,
    row_blocks, per,
    N: tl.constexpr, ROWS: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Sums each run of `per` blocks: `weights[part, chunk, run] = Σ p · coefficient`.

    A lane has RUN entries that follow one another. Runs that start and end within a lane are summed
    in its registers; those over several lanes by a scan over lanes. No run leaves its block, so
    each sum has one writer and no atomics are needed.
    """
    part = tl.program_id(0)
    first = tl.program_id(1) * per
    head = (part // row_blocks).to(tl.int64)
    row = tl.arange(0, ROWS)
    top = _top(tops + part * ROWS * splits, splits, ROWS)[None, :]
    top += tl.zeros([LANES, ROWS], tl.float32)  # laid out like scores, once
    scores += part.to(tl.int64) * count * ROWS
    slots = N + chunk_blocks  # runs of a chunk at most
    lane = tl.arange(0, LANES)
    for block in range(first, tl.minimum(first + per, blocks)):
        chunk = block // chunk_blocks
        place = (head * chunk_capacity + chunk) * (chunk_blocks + 1) + block - chunk * chunk_blocks
        base = tl.load(bases + place)
        if tl.load(bases + place + 1) > base:  # else its entries are all of coefficient 0
            at = (head * capacity + block) * (RUN * LANES) + lane
            words = ()  # all loads come before the first store, which would hold them up
            terms = ()
            own = tl.zeros([LANES], tl.int32)  # runs that start in a lane
            for i in tl.static_range(RUN):
                word = tl.load(value_words + at + i * LANES, cache_modifier=".cg")  # [LANES]
                bits = tl.load(value_bits + at + i * LANES, cache_modifier=".cg")
                token = chunk * chunk_tokens + (word & 0x3FFF).to(tl.int32)
                s = tl.load(scores + token[:, None] * ROWS + row)  # [LANES, ROWS]
                term = tl.exp2(s - top) * (_e4m3(bits) * 256.0)[:, None]
                terms = terms + (term,)  # noqa: RUF005 - Triton unpacks nothing
                words = words + (word,)  # noqa: RUF005
                own += (word < 0).to(tl.int32)
            slot = base + tl.cumsum(own, 0) - own - 1  # of the run that is open before the lane
            out = weights + (part.to(tl.int64) * chunks + chunk) * slots * ROWS
            partial = tl.zeros([LANES, ROWS], tl.float32)
            close = tl.zeros([LANES, ROWS], tl.float32)
            closes = tl.zeros([LANES], tl.int32)
            nth = tl.zeros([LANES], tl.int32)  # of the lane's runs; 0 is the one open before
            for i in tl.static_range(RUN):
                start = words[i] < 0
                end = (words[i] & 0x4000) != 0
                partial = tl.where(start[:, None], 0.0, partial) + terms[i]
                nth += start.to(tl.int32)
                to = (slot + nth)[:, None] * ROWS + row[None, :]
                tl.store(out + to, partial, (end & (nth > 0))[:, None])
                across = end & (nth == 0)
                close = tl.where(across[:, None], partial, close)
                closes += across.to(tl.int32)
            through = tl.broadcast_to((own == 0).to(tl.float32)[:, None], [LANES, ROWS])
            bare = tl.full([LANES, ROWS], 1.0, tl.float32)
            _, _, _, close = tl.associative_scan((through, partial, bare, close), 0, _add_close)
            to = slot[:, None] * ROWS + row[None, :]
            tl.store(out + to, close, (closes > 0)[:, None])


@triton.jit(do_not_specialize=["chunks", "chunk_capacity", "chunk_blocks", "tiles", "row_blocks"])
def gather(
    weights, runs, atoms, outs,
    chunks, chunk_capacity, chunk_blocks, tiles, row_blocks,
    N: tl.constexpr, M: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """`outs[part, tile, row] = Σ weight · atom` over a tile of atoms and all chunks."""
    part = tl.program_id(0)
    tile = tl.program_id(1)
    head = (part // row_blocks).to(tl.int64)
    row = tl.arange(0, ROWS)
    atom = tile * BN + tl.arange(0, BN)
    d = tl.arange(0, BM)
    mask = (atom < N)[:, None] & (d < M)[None, :]
    vectors = tl.load(atoms + atom[:, None] * M + d[None, :], mask, 0.0)
    slots = N + chunk_blocks
    sums = tl.zeros([BN, ROWS], tl.float32)
    for first in range(0, chunks, BC):
        chunk = first + tl.arange(0, BC)[:, None]
        live = (chunk < chunks) & (atom < N)[None, :]  # [BC, BN]
        at = (head * chunk_capacity + chunk) * (N + 1) + atom[None, :]
        run = tl.load(runs + at, live, 0).to(tl.int32)
        number = tl.load(runs + at + 1, live, 0).to(tl.int32) - run
        at = (((part.to(tl.int64) * chunks + chunk) * slots + run) * ROWS)[:, :, None] + row
        for i in tl.static_range(2):  # more only where an atom fills whole blocks
            more = (number > i)[:, :, None]
            sums += tl.sum(tl.load(weights + at + i * ROWS, more, 0.0), 0)
        for i in range(2, tl.max(number)):
            more = (number > i)[:, :, None]
            sums += tl.sum(tl.load(weights + at + i * ROWS, more, 0.0), 0)
    wide = tl.arange(0, 16)  # a product has 16 rows at least
    columns = tl.zeros([BN, 16], tl.float32)
    for i in tl.static_range(ROWS):
        column = tl.sum(tl.where(row[None, :] == i, sums, 0.0), 1)  # [BN]
        columns = tl.where(wide[None, :] == i, column[:, None], columns)
    out = tl.dot(tl.trans(columns), vectors.to(tl.float32), input_precision="tf32x3")  # [16, BM]
    at = ((part * tiles + tile) * ROWS + wide)[:, None] * M + d[None, :]
    tl.store(outs + at, out, (wide < ROWS)[:, None] & (d < M)[None, :])


@triton.jit(do_not_specialize=["tiles", "exact_splits", "splits", "rows", "row_blocks"])
def merge(
    tops, sums, coded_outs, exact_outs, out,
    tiles, exact_splits, splits, rows, row_blocks,
    M: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr, BATCH: tl.constexpr,
):  # fmt: skip
    """One row of the result from the parts that the others left."""
    program = tl.program_id(0)
    part = program // ROWS
    local = (part % row_blocks) * ROWS + program % ROWS
    d = tl.arange(0, BM)
    top = tl.max(_top(tops + program * splits, splits, 1), 0)
    total = tl.zeros([128], tl.float32)
    for first in range(0, splits, 128):
        at = first + tl.arange(0, 128)
        live = at < splits
        seen = tl.load(tops + program * splits + at, live, float("-inf"))
        total += tl.load(sums + program * splits + at, live, 0.0) * tl.exp2(seen - top)
    sums_d = tl.zeros([BM], tl.float32)
    for first in range(0, tiles, BATCH):
        tile = first + tl.arange(0, BATCH)
        at = ((part * tiles + tile) * ROWS + program % ROWS)[:, None] * M + d[None, :]
        mask = (tile < tiles)[:, None] & (d < M)[None, :]
        sums_d += tl.sum(tl.load(coded_outs + at, mask, 0.0), 0)
    for first in range(0, exact_splits, BATCH):
        split = first + tl.arange(0, BATCH)
        live = split < exact_splits
        seen = tl.load(tops + program * splits + splits - exact_splits + split, live, float("-inf"))
        at = (program * exact_splits + split)[:, None] * M + d[None, :]
        mask = live[:, None] & (d < M)[None, :]
        sums_d += tl.sum(tl.load(exact_outs + at, mask, 0.0) * tl.exp2(seen - top)[:, None], 0)
    at = ((part // row_blocks) * rows + local).to(tl.int64) * M + d
    result = sums_d / tl.sum(total, 0)
    tl.store(out + at, result.to(out.dtype.element_ty), d < tl.where(local < rows, M, 0))
