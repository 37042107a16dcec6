"""KVTC (arXiv 2511.01815): PCA over all layers at once, bits by dynamic programming, DEFLATE.

After the paper's abstract and reviews, and the public ports of it (NVIDIA's kernels in Dynamo and
a pull request to SGLang); the paper's own text and code were not at hand. Taken from them: keys
before RoPE, a mean removed, one PCA over all layers and heads for keys and one for values, groups
of 16, 64, 256 or 1024 neighbouring components of type none, int2, int4 or FP8 (E4M3), the types
and sizes chosen by dynamic programming on the squared error, and DEFLATE at the end. An integer
group has one shift and one scale a token (least and largest value); FP8 has none.

Ours, where the sources say nothing or this project's setting asks for it:

- Keys and values get the same share of the budget.
- Every sixth training prefix is kept from the PCA and gives the errors that the dynamic programme
  minimises: with hardly more tokens than dimensions, those of the PCA's own tokens would flatter.
- The paper's ratios are nominal, before DEFLATE; here the nominal budget is set so that a kept
  prefix spends the named share after DEFLATE.
- FP8 components are multiplied by a static power of two, lest the largest overflow (the ports
  cast without). Groups of one component, useless without a scale in FP8, are left out.
- Shifts and scales are float16 (32 bits a token and group) and pass through DEFLATE too. Codes
  lie component by component, which DEFLATE shrinks about 1 % more than token by token.
- Sinks and the recent window, exact in the paper, are the harness's business.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexico_lab.published.coder import Coder, Prefix, Stored

Kind = Literal["int2", "int4", "fp8"]
Floats = NDArray[np.float32]

SHARES: Final = (0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.13, 0.16, 0.20, 0.25)
"""Budgets that are plotted, of the float16 bytes."""

_CELL: Final = 16
"""Components of the smallest group; groups start at its multiples."""
_SIZES: Final = (16, 64, 256, 1024)
_BITS: Final[dict[Kind, int]] = {"int2": 2, "int4": 4, "fp8": 8}
_UNIT: Final = 32
"""Bits in which the dynamic programme counts: shift and scale of a group."""
_RMS: Final = 8.0
"""Root mean square to which FP8 components are brought, to a power of two."""
_ALLOCATION_TOKENS: Final = 192


@dataclass(frozen=True)
class Group:
    """Neighbouring components that are stored alike."""

    start: int
    stop: int
    kind: Kind


def coders() -> list[Coder]:
    """A coder for every budget; they share one calibration."""
    shared = Calibration()
    return [Kvtc(share, shared) for share in SHARES]


class Kvtc(Coder):
    """KVTC at a budget."""

    learns = 150

    def __init__(self, share: float, shared: Calibration | None = None) -> None:
        """Args:
        share: bytes to spend, of the float16 bytes.
        shared: what coders of several budgets learn together.
        """
        self.name = f"KVTC {100 * share:g} %"
        self.share = share
        self._shared = shared or Calibration()
        self._groups: list[list[Group]] = []

    def calibrate(self, training: Sequence[Prefix]) -> Self:
        self._shared.learn(training)
        self._groups = self._shared.groups(self.share)
        return self

    def code(self, prefix: Prefix) -> Stored:
        if not self._groups:
            raise RuntimeError("calibrate first")
        parts, size = [], 0
        for side, groups, rows in zip(self._shared.sides, self._groups, _rows(prefix), strict=True):
            coefficients = side.project(rows, _end(groups))
            payload = encode(coefficients, groups, side.exponents)
            size += len(payload)
            parts.append(side.restore(decode(payload, len(rows), groups, side.exponents)))
        shape = prefix.keys.shape
        keys, values = (_layers(part, shape) for part in parts)
        return Stored(prefix.rotated(keys), values, size)


@dataclass(eq=False)
class Side:
    """What is learned about keys, or values."""

    mean: Tensor
    basis: Tensor
    """`[dims, components]`, orthonormal, by falling variance."""
    exponents: NDArray[np.int32]
    """Of the power of two by which an FP8 component is multiplied."""
    held: Tensor
    """Coefficients of the prefix that sets the nominal budget."""
    plan: Plan

    def project(self, rows: Tensor, components: int) -> Floats:
        """Coefficients of `[tokens, dims]`, the first so many components."""
        found: Floats = ((rows - self.mean) @ self.basis[:, :components]).numpy()
        return found

    def restore(self, coefficients: Floats) -> Tensor:
        """Rows from their leading coefficients."""
        components = coefficients.shape[1]
        return torch.from_numpy(coefficients) @ self.basis[:, :components].T + self.mean


@dataclass(eq=False)
class Calibration:
    """What coders of all budgets learn: PCA and the dynamic programme of keys and of values."""

    sides: list[Side] = field(default_factory=list)
    _training: Sequence[Prefix] | None = None

    def learn(self, training: Sequence[Prefix]) -> None:
        """Learns, unless it has learned from this very text already."""
        if self._training is training:
            return
        every = range(len(training))
        held = list(every[5::6]) or [len(training) - 1]
        fit = [index for index in every if index not in held] or held
        principal = _principal(_rows(training[index]) for index in fit)
        kept = [_rows(training[index]) for index in held]
        self.sides = [
            _learn(mean, basis, [rows[side] for rows in kept])
            for side, (mean, basis) in enumerate(principal)
        ]
        self._training = training

    def groups(self, share: float) -> list[list[Group]]:
        """Groups of keys and of values whose bytes after DEFLATE come closest to the budget."""
        raw = sum(2 * len(side.held) * len(side.mean) for side in self.sides)
        nominal, best, best_gap = share, [side.plan.groups(0.0) for side in self.sides], math.inf
        for _ in range(6):
            bits = [16 * nominal * len(side.mean) for side in self.sides]
            groups = [side.plan.groups(b) for side, b in zip(self.sides, bits, strict=True)]
            spent = sum(
                len(encode(side.held[:, : _end(g)].numpy(), g, side.exponents))
                for side, g in zip(self.sides, groups, strict=True)
            )
            gap = abs(spent / raw - share)
            if gap < best_gap:
                best, best_gap = groups, gap
            if gap < 0.005 * share:
                break
            nominal *= share * raw / spent
        return best


class Plan:
    """The dynamic programme: least squared error of the components for every number of bits."""

    def __init__(self, coefficients: Floats, exponents: NDArray[np.int32]) -> None:
        """Args:
        coefficients: `[tokens, components]` that were not used to learn the PCA.
        exponents: see `Side`.
        """
        self._components = coefficients.shape[1]
        starts = range(0, self._components, _CELL)
        self._options: list[list[tuple[int, int, float, Kind | None]]] = [
            _options(coefficients, exponents, start) for start in starts
        ]
        cells, units = len(starts), math.ceil(self._components * 8 / _UNIT)
        self._error = np.full((cells + 1, units + 1), np.inf)
        self._error[0] = 0.0
        self._choice = np.zeros((cells + 1, units + 1, 2), np.int16)  # cell it came from, option
        for cell in range(cells):
            for number, (stop, cost, error, _) in enumerate(self._options[cell]):
                target = -(-stop // _CELL)
                if cost > units:
                    continue
                reached = self._error[cell, : units + 1 - cost] + error
                better = reached < self._error[target, cost:]
                self._error[target, cost:][better] = reached[better]
                self._choice[target, cost:][better] = (cell, number)

    def groups(self, bits: float) -> list[Group]:
        """The best groups of at most so many bits a token; components in none are dropped."""
        cell, units = len(self._options), min(int(bits // _UNIT), self._error.shape[1] - 1)
        found: list[Group] = []
        while cell:
            start, number = (int(c) for c in self._choice[cell, units])
            stop, cost, _, kind = self._options[start][number]
            if kind is not None:
                found.append(Group(start * _CELL, stop, kind))
            cell, units = start, units - cost
        return found[::-1]


def _options(
    coefficients: Floats, exponents: NDArray[np.int32], start: int
) -> list[tuple[int, int, float, Kind | None]]:
    """Ways on from a component: (end, units of bits, squared error a token, type)."""
    last, tokens = coefficients.shape[1], len(coefficients)
    stop = min(start + _CELL, last)
    cell = coefficients[:, start:stop]
    seen = _from_fp8(_to_fp8(cell, exponents[start:stop]), exponents[start:stop])
    found: list[tuple[int, int, float, Kind | None]] = [
        (stop, 0, float(np.square(cell).sum()) / tokens, None),
        (
            stop,
            -(-8 * (stop - start) // _UNIT),
            float(np.square(cell - seen).sum()) / tokens,
            "fp8",
        ),
    ]
    stops = sorted({min(start + size, last) for size in _SIZES})
    for stop in stops:
        block = coefficients[:, start:stop]
        for kind in ("int2", "int4"):
            bits = _BITS[kind]
            error = float(np.square(block - _from_int(*_to_int(block, bits))).sum()) / tokens
            found.append((stop, 1 + -(-bits * (stop - start) // _UNIT), error, kind))
    return found


def encode(coefficients: Floats, groups: Sequence[Group], exponents: NDArray[np.int32]) -> bytes:
    """Coefficients `[tokens, components]` as bytes: their length, then DEFLATE of the codes."""
    sections: list[bytes] = []
    for group in groups:
        block = coefficients[:, group.start : group.stop]
        if group.kind == "fp8":
            sections.append(_to_fp8(block, exponents[group.start : group.stop]).T.tobytes())
            continue
        codes, least, step = _to_int(block, _BITS[group.kind])
        sections += [least.tobytes(), step.tobytes(), pack(codes.T, _BITS[group.kind])]
    body = zlib.compress(b"".join(sections), 9)
    return struct.pack("<I", len(body)) + body


def decode(
    payload: bytes, tokens: int, groups: Sequence[Group], exponents: NDArray[np.int32]
) -> Floats:
    """Inverse of `encode`, to what the codes hold; dropped components are zero."""
    (length,) = struct.unpack_from("<I", payload)
    body = zlib.decompress(payload[4 : 4 + length])
    found = np.zeros((tokens, _end(groups)), np.float32)
    at = 0
    for group in groups:
        width = group.stop - group.start
        if group.kind == "fp8":
            codes = np.frombuffer(body, np.uint8, tokens * width, at).reshape(width, tokens).T
            block = _from_fp8(codes, exponents[group.start : group.stop])
            at += tokens * width
        else:
            least = np.frombuffer(body, np.float16, tokens, at)
            step = np.frombuffer(body, np.float16, tokens, at + 2 * tokens)
            bits, at = _BITS[group.kind], at + 4 * tokens
            length = -(-tokens * width * bits // 8)
            codes = unpack(body[at : at + length], bits, tokens * width).reshape(width, tokens).T
            block, at = _from_int(codes, least, step), at + length
        found[:, group.start : group.stop] = block
    return found


def pack(codes: NDArray[np.uint8], bits: int) -> bytes:
    """Codes of 2 or 4 bits, in their order, packed from the low bits of a byte on."""
    per_byte = 8 // bits
    padded = np.zeros(-(-codes.size // per_byte) * per_byte, np.uint8)
    padded[: codes.size] = codes.reshape(-1)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1)
    return packed.tobytes()


def unpack(packed: bytes, bits: int, count: int) -> NDArray[np.uint8]:
    """Inverse of `pack`."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    codes = (np.frombuffer(packed, np.uint8)[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(-1)[:count]


def _to_int(
    block: Floats, bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Codes, shifts and scales of a group, one shift and scale a token."""
    most = (1 << bits) - 1
    least = block.min(axis=1).astype(np.float16)
    step = ((block.max(axis=1) - least.astype(np.float32)) / most).astype(np.float16)
    safe = np.where(step > 0, step, np.float16(1)).astype(np.float32)
    codes = np.rint((block - least.astype(np.float32)[:, None]) / safe[:, None])
    return codes.clip(0, most).astype(np.uint8), least, step


def _from_int(
    codes: NDArray[np.uint8], least: NDArray[np.float16], step: NDArray[np.float16]
) -> Floats:
    shift, scale = least.astype(np.float32)[:, None], step.astype(np.float32)[:, None]
    found: Floats = codes * scale + shift
    return found


def _to_fp8(block: Floats, exponents: NDArray[np.int32]) -> NDArray[np.uint8]:
    scaled = torch.from_numpy(np.ldexp(block, exponents)).clamp_(-448, 448)
    codes: NDArray[np.uint8] = scaled.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    return codes


def _from_fp8(codes: NDArray[np.uint8], exponents: NDArray[np.int32]) -> Floats:
    values = torch.from_numpy(codes.copy()).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    found: Floats = np.ldexp(values, -exponents)
    return found


def _learn(mean: Tensor, basis: Tensor, held: Sequence[Tensor]) -> Side:
    """The dynamic programme, on rows kept from the PCA."""
    stride = -(-sum(len(rows) for rows in held) // _ALLOCATION_TOKENS)
    kept = torch.cat([rows[::stride] for rows in held])
    coefficients = ((kept - mean) @ basis).numpy()
    rms = np.sqrt(np.square(coefficients).mean(axis=0)).clip(1e-6)
    exponents = np.rint(np.log2(_RMS / rms)).astype(np.int32)
    return Side(mean, basis, exponents, (held[0] - mean) @ basis, Plan(coefficients, exponents))


def _principal(training: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Mean and principal components `[dims, components]`, by falling variance, of keys and values.

    One pass; what is added up are products of rows with a first guess of the mean taken off.
    """
    count, guesses, sums, grams = 0, list[Tensor](), list[Tensor](), list[Tensor]()
    for both in training:
        if not count:
            guesses = [rows.mean(dim=0) for rows in both]
            sums = [torch.zeros_like(guess, dtype=torch.float64) for guess in guesses]
            grams = [torch.zeros(len(guess), len(guess)) for guess in guesses]
        count += len(both[0])
        for rows, guess, total, gram in zip(both, guesses, sums, grams, strict=True):
            shifted = rows - guess
            total += shifted.sum(dim=0, dtype=torch.float64)
            gram.addmm_(shifted.T, shifted)
    found = []
    for guess, total, gram in zip(guesses, sums, grams, strict=True):
        shift = (total / count).float()
        gram.addr_(shift, shift, alpha=-count)
        found.append((guess + shift, torch.linalg.eigh(gram).eigenvectors.flip(1).contiguous()))
    return found


def _end(groups: Sequence[Group]) -> int:
    return groups[-1].stop if groups else 0


def _rows(prefix: Prefix) -> tuple[Tensor, Tensor]:
    """Un-rotated keys, and values, each `[tokens, layers * kv_heads * head_dim]`."""
    keys, values = (
        side.transpose(0, 1).reshape(side.shape[1], -1)
        for side in (prefix.unrotated_keys(), prefix.values)
    )
    return keys, values


def _layers(rows: Tensor, shape: torch.Size) -> Tensor:
    """`[layers, tokens, kv_heads, head_dim]` from `[tokens, layers * kv_heads * head_dim]`."""
    layers, tokens, heads, head_dim = shape
    return rows.reshape(tokens, layers, heads, head_dim).transpose(0, 1).contiguous()
