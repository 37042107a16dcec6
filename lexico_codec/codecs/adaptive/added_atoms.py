"""Atoms that a frame adds to its dictionaries: how they are rounded, stored and read.

A component is a level of few bits; a row of levels is divided by its norm in float32. Levels are
small integers, so that norms are exact, and encoder and every decoder see the same atom.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lexico_codec.bitpack import pack, packed_bytes, padding_is_zero, unpack
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_proto.errors import DamagedFrame

LEAST_BITS: Final = 2
MOST_BITS: Final = 8
MOST_ADDED: Final = 255
"""Atoms a table may add: a count fits one byte."""

_STRETCHES: Final = (1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0)
"""What is tried beyond the scale at which a row's largest component is the largest level: with few
bits it pays to clip outliers."""


def to_levels(rows: Tensor, bits: int) -> Tensor:
    """The rows' directions in levels: at the scale, among a few, that turns each row least.

    Args:
        rows: `[..., m]` float32, finite.
        bits: of a level, its sign among them.

    Returns:
        `[..., m]` int8; zeros where a row is zero, or so small that its square is.
    """
    most = (1 << (bits - 1)) - 1
    scaled = rows * (most / rows.abs().amax(-1, keepdim=True).clamp_min(1e-30))
    best = torch.zeros_like(rows)
    highest = rows.new_zeros(rows.shape[:-1])
    for stretch in _STRETCHES:
        levels = (scaled * stretch).round().clamp(-most, most)
        cosines = (levels * scaled).sum(-1) / levels.norm(dim=-1).clamp_min(1)
        better = cosines > highest
        best = torch.where(better[..., None], levels, best)
        highest = torch.where(better, cosines, highest)
    return best.to(torch.int8)


def directions(levels: Tensor) -> Tensor:
    """Levels as atoms, `[..., m]` float32 of unit norm; a row of zeros stays zero."""
    rows = levels.float()
    return rows / rows.square().sum(-1, keepdim=True).sqrt().clamp_min(1)


def joined(atoms: Atoms, added: Sequence[Tensor]) -> Atoms:
    """Every dictionary with its added atoms behind its own.

    Args:
        atoms: the dictionaries.
        added: for each `[n, m]` float32 of unit norm, n >= 0, on the same device.
    """
    parts: list[Tensor] = []
    starts = [0]
    for table, more in enumerate(added):
        parts += [atoms.dictionary(table), more]
        starts.append(starts[-1] + atoms.sizes[table] + len(more))
    return Atoms(torch.cat(parts), tuple(starts))


class _Workspace(threading.local):
    """A thread's copy of the dictionaries it decoded with last, room behind each."""

    source: Tensor | None = None
    starts: tuple[int, ...] = ()
    whole: Atoms | None = None


_WORKSPACE = _Workspace()


def joined_for_now(atoms: Atoms, added: Sequence[Tensor], most: int) -> Atoms:
    """As `joined`, to reconstruct from before the thread's next call, and not to code with.

    On the CPU the dictionaries are copied once a thread: a page has few atoms to add, and a
    model's dictionaries take longer to copy than a page to decode. Rows behind what a table adds
    hold anything.

    Args:
        atoms, added: see `joined`. most: atoms that a table may add.
    """
    if atoms.stack.device.type != "cpu":  # a kernel may still read what another stream's call wrote
        return joined(atoms, added)
    mine = _WORKSPACE
    room = max(most, *(len(rows) for rows in added))
    if mine.whole is None or mine.source is not atoms.stack or mine.starts != (*atoms.starts, room):
        with torch.inference_mode(False):  # what is made within it could not be written to outside
            spare = atoms.stack.new_zeros(room, atoms.m)
            mine.whole = joined(atoms, [spare] * atoms.tables)
        mine.source, mine.starts = atoms.stack, (*atoms.starts, room)
    for rows, end in zip(added, mine.whole.starts[1:], strict=True):
        mine.whole.stack[end - room : end - room + len(rows)] = rows
    return mine.whole


def write(levels: Sequence[Tensor], bits: int) -> bytes:
    """Counts, then levels as one run of bits: docs/format.md, lexico-adaptive.

    Args:
        levels: of each table `[n, m]` int8, n <= 255, on the CPU.
        bits: of a level.
    """
    counts = bytes(len(rows) for rows in levels)
    numbers = torch.cat(list(levels)).flatten().numpy().astype(np.int64) + (1 << (bits - 1))
    return counts + pack(numbers.astype(np.uint64), np.full(len(numbers), bits, np.int64))


def read(
    body: memoryview, tables: int, m: int, bits: int, most: int, wanted: range | None = None
) -> tuple[list[int], Tensor, memoryview]:
    """What `write` wrote, and what follows it.

    Args:
        body: begins with the counts.
        tables: dictionaries of the frame. m: components of an atom.
        bits: of a level.
        most: atoms that a table may add.
        wanted: consecutive tables whose atoms are made; None for all.

    Returns:
        Atoms of each table; those of the wanted ones, `[n, m]` float32 of unit norm; the rest of
        the body.

    Raises:
        DamagedFrame: a count over `most`, an atom without direction, or a body too short.
    """
    if len(body) < tables:
        raise DamagedFrame(f"body of {len(body)} bytes: counts of added atoms alone are {tables}")
    counts = list(body[:tables])
    used = sum(counts) * m * bits
    size = packed_bytes(used)
    if max(counts) > most:
        raise DamagedFrame(f"{max(counts)} added atoms, the codec allows {most}")
    if len(body) < tables + size:
        raise DamagedFrame(f"body of {len(body)} bytes: added atoms alone are {size}")
    run = body[tables : tables + size]
    if not padding_is_zero(run, used):
        raise DamagedFrame("bits behind the last added atom")
    wanted = wanted or range(tables)
    first, count = sum(counts[: wanted.start]), sum(counts[wanted.start : wanted.stop])
    atoms = directions(_levels(run, first * m, count * m, bits).view(-1, m))
    if not bool(atoms.any(1).all()):
        raise DamagedFrame("an added atom is zero")
    return counts, atoms, body[tables + size :]


def _levels(run: memoryview, first: int, count: int, bits: int) -> Tensor:
    """Some levels of a run, `[count]` float32."""
    begin, passed = divmod(first * bits, 8)
    if 8 % bits == 0:  # whole levels in every byte: many times faster
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        end = begin + packed_bytes(passed + count * bits)
        parts = np.frombuffer(run[begin:end], np.uint8)[:, None] >> shifts
        whole = (parts & ((1 << bits) - 1)).reshape(-1)[passed // bits :][:count]
        numbers = whole.astype(np.float32)
    else:
        numbers = unpack(run, np.full(first + count, bits, np.int64))[first:].astype(np.float32)
    return torch.from_numpy(numbers - np.float32(1 << (bits - 1)))
