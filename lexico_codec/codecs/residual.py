"""lexico-residual: a sparse code of each token, then a learned transform of what it leaves.

The smallest code at equal quality. A token's keys (before RoPE) and values of all layers become
components that matter alike and do not depend on one another (`lexico_codec.transform`). A few
atoms of a universal dictionary, found by matching pursuit, take their strongest shape off; the rest
is quantised with one step, where a level that saves more bits than its error is worth may be
smaller than the nearest one, and entropy coded with static tables (`kernels.entropy`). Tokens that
others attend to get a finer step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from lexico_codec.bitpack import pack, packed_bytes, unpack
from lexico_codec.codecs.abc import Codec, Place, leading_sinks
from lexico_codec.dictionary import DictionarySet
from lexico_codec.geometry import Geometry
from lexico_codec.kernels import encode as pursue
from lexico_codec.kernels import entropy, layout
from lexico_codec.kernels.levels import choose_levels
from lexico_codec.rope import Turn, turn_at
from lexico_codec.tensors import bytes_of, tensor_from
from lexico_codec.transform import (
    CLASSES_AN_OCTAVE,
    COEFFICIENT_STEPS,
    GAINS,
    QUALITIES,
    Transform,
    check_run,
)
from lexico_proto.errors import (
    ConfigurationError,
    DamagedFrame,
    DictionaryMismatch,
    ShapeMismatch,
    UnknownDictionary,
)

_TYPICAL_BITS: Final = {"near": 0.9, "balanced": 0.4, "small": 0.25}  # a value, for estimates
_LARGEST: Final = 2.0**29  # of a level: further out it stays there


@dataclass(frozen=True)
class ResidualCodec(Codec):
    """Body: sinks, gains of tokens in four bits each, indices of atoms, entropy coded levels."""

    name: ClassVar[str] = "lexico-residual"
    codec_id: ClassVar[int] = 4
    needs_dictionary: ClassVar[bool] = True

    quality: str = "balanced"
    """near, balanced or small: the step that was calibrated for a KL of about 0.005, 0.02, 0.05."""
    step: float | None = None
    """A step of one's own, in the units of the set; None for that of the quality."""
    run_layers: int = 0
    """Layers that are coded together, as the set has it; 0 for all of the model or shard."""

    def __post_init__(self) -> None:
        if self.quality not in QUALITIES:
            raise ConfigurationError(
                f"{self.name}: quality={self.quality!r} is none of {', '.join(QUALITIES)}"
            )
        number = isinstance(self.step, int | float) and not isinstance(self.step, bool)
        if self.step is not None and not (number and 0 < self.step < math.inf):
            raise ConfigurationError(f"{self.name}: step={self.step!r} is no positive number")
        whole = isinstance(self.run_layers, int) and not isinstance(self.run_layers, bool)
        if not whole or self.run_layers < 0:
            raise ConfigurationError(f"{self.name}: run_layers={self.run_layers!r} is no count")

    def check_geometry(self, geometry: Geometry) -> None:
        """The layers must divide into runs."""
        if self.run_layers and geometry.layers % self.run_layers:
            raise ConfigurationError(
                f"{self.name}: {geometry.layers} layers are no runs of {self.run_layers}"
            )

    def group_layers(self, geometry: Geometry) -> int:
        """A run is a frame."""
        return self.run_layers or geometry.layers

    def sink_tokens(self, first_token: int, tokens: int) -> int:
        """Those of the first four tokens of the sequence that lie in the page."""
        return leading_sinks(first_token, tokens)

    def encoded_bytes(self, geometry: Geometry, tokens: int) -> int:
        """By what the qualities take of SmolLM2."""
        values = tokens * 2 * geometry.kv_heads * geometry.head_dim
        return math.ceil(values * _TYPICAL_BITS[self.quality] / 8)

    def encode(self, group: Tensor, place: Place, dictionary: DictionarySet | None) -> bytes:
        """Codes the tokens behind the sinks, all layers of the group together."""
        transform, run = self._transform(dictionary, place, group)
        sinks = self.sink_tokens(place.first_token, group.shape[2])
        exact = bytes_of(group[:, :, :sinks])
        tokens = group.shape[2] - sinks
        if not tokens:
            return bytes(exact)
        step = self._step(transform)
        coded = group[:, :, sinks:]
        turn = _turn(place, sinks, tokens, group.device, inverse=True)
        rows = layout.gather(coded, transform.means_of(run, group.device), turn)
        components = transform.components(run, rows.mT)
        gains = transform.gains_of(run, components)
        finer = torch.exp2(gains.float() / CLASSES_AN_OCTAVE) / step
        gains = gains.cpu()
        classes = transform.classes(run, step)
        count = _coded(classes, gains)
        s, width = transform.sparsity, transform.atoms.shape[2]
        values = components[: max(count - s, width)] * finer
        values = values.clamp_(-_LARGEST, _LARGEST).cpu()
        if not bool(values.sum().isfinite()):  # of numbers beyond float32 on the way
            values = torch.nan_to_num(values)
        live = classes.long()[:s, None] + gains.long() >= 0  # [s, tokens]
        indices, coefficients = _sparse(transform, run, values, live)
        values = values[: max(count - s, 0)]
        values.clamp_(-_LARGEST, _LARGEST)  # clamped coefficients leave more than there was
        levels = choose_levels(values, classes[s : s + len(values)], gains, transform.tables)
        rows = torch.cat([coefficients, levels])
        body = entropy.encode(rows, classes[: len(rows)], gains, transform.tables)
        return b"".join([exact, _nibbles(gains), _packed(indices, transform), body])

    def decode(
        self, body: memoryview, place: Place, dictionary: DictionarySet | None, out: Tensor
    ) -> None:
        """Reconstructs the group into `out`: sinks exact."""
        transform, run = self._transform(dictionary, place, out)
        layers, _, tokens, heads, dim = out.shape
        sinks = self.sink_tokens(place.first_token, tokens)
        exact_bytes = 2 * layers * sinks * heads * dim * out.dtype.itemsize
        tokens -= sinks
        index_bits = tokens * transform.sparsity * _index_bits(transform)
        head = exact_bytes + (tokens + 1) // 2
        start = head + packed_bytes(index_bits)
        if len(body) < start or (not tokens and len(body) > start):
            raise DamagedFrame(f"residual body of {len(body)} bytes: {start} come first")
        exact = tensor_from(body[:exact_bytes], out.dtype, (layers, 2, sinks, heads, dim))
        with torch.no_grad():
            out[:, :, :sinks].copy_(exact)
        if not tokens:
            return
        gains = _gains(body[exact_bytes:head], tokens)
        indices = _indices(body[head:start], tokens, transform)
        step = self._step(transform)
        classes = transform.classes(run, step)
        count = _coded(classes, gains)
        values = entropy.decode(
            body[start:], classes[:count], gains, transform.tables, tokens, device=out.device
        )
        on = out.device
        scales = (torch.exp2(-gains.float() / CLASSES_AN_OCTAVE) * step).to(on)
        used = min(transform.sparsity, count)
        columns = transform.atoms_as_columns(run, on)
        sparse = layout.Sparse(indices.T[:used].to(on), columns, COEFFICIENT_STEPS)
        places, dtype = transform.places(run, on), transform.product_dtype(on)
        arranged = layout.arrange(values, scales, sparse, places, transform.rows, dtype)
        rows = transform.restored(run, arranged, count - used)
        turn = _turn(place, sinks, tokens, on)
        layout.scatter(rows, transform.means_of(run, on), turn, out[:, :, sinks:])

    def _step(self, transform: Transform) -> float:
        return transform.steps[self.quality] if self.step is None else float(self.step)

    def _transform(
        self, dictionary: DictionarySet | None, place: Place, group: Tensor
    ) -> tuple[Transform, int]:
        if dictionary is None:
            raise UnknownDictionary(f"codec {self.name}: no dictionary set was given")
        transform: Transform | None = dictionary.family("residual")
        if transform is None:
            raise DictionaryMismatch(
                f"codec {self.name}: the dictionary set of {dictionary.info.model} has no "
                f"transform; make one with `lexico train --codec {self.name}`"
            )
        layers, _, _, heads, dim = group.shape
        if place.first_head:
            raise DictionaryMismatch(
                f"codec {self.name}: codes all KV heads together, not a shard from head "
                f"{place.first_head} on; use codec lexico-packed for tensor-parallel shards"
            )
        try:
            return transform, check_run(transform, place.first_layer, layers, heads, dim)
        except ShapeMismatch as error:
            raise DictionaryMismatch(f"codec {self.name}: {error.message}") from error


def _coded(classes: Tensor, gains: Tensor) -> int:
    """How many rows there are until nothing is coded any more."""
    coded = (classes + int(gains.max()) >= 0).nonzero()
    return int(coded[-1]) + 1 if len(coded) else 0


def _turn(
    place: Place, sinks: int, tokens: int, device: torch.device, *, inverse: bool = False
) -> Turn | None:
    """What RoPE does to the keys behind the sinks, or what undoes it."""
    if place.rope is None:
        return None
    first = place.first_token + sinks
    positions = torch.arange(first, first + tokens, device=device)
    return turn_at(positions, place.rope, inverse=inverse)


def _sparse(transform: Transform, run: int, values: Tensor, coded: Tensor) -> tuple[Tensor, Tensor]:
    """Atoms of every token, taken off `values`: indices `[tokens, s]`, levels `[s, tokens]`.

    Args:
        values: `[C, tokens]` in steps. coded: `[s, tokens]`, whether a coefficient has a class: the
            level of one that has none is 0.
    """
    tokens, s = values.shape[1], transform.sparsity
    if not s:
        return torch.zeros(tokens, 0, dtype=torch.int64), torch.zeros(0, tokens, dtype=torch.int32)
    atoms = transform.atoms[run]
    width = atoms.shape[1]
    codes = pursue(values[:width].T, transform.dictionary(run, values.device), s)
    indices = codes.indices.long()
    levels = (codes.coefficients / COEFFICIENT_STEPS).round().clamp(-_LARGEST, _LARGEST)
    levels *= coded.T
    for k in range(s):
        values[:width] -= (atoms[indices[:, k]] * (COEFFICIENT_STEPS * levels[:, k, None])).T
    return indices, levels.T.to(torch.int32).contiguous()


def _index_bits(transform: Transform) -> int:
    return max(0, transform.atoms.shape[1] - 1).bit_length()


def _packed(indices: Tensor, transform: Transform) -> bytes:
    numbers = indices.flatten().numpy().astype(np.uint64)
    return pack(numbers, np.full(len(numbers), _index_bits(transform), np.int64))


def _indices(run: memoryview, tokens: int, transform: Transform) -> Tensor:
    count = tokens * transform.sparsity
    widths = np.full(count, _index_bits(transform), np.int64)
    spare = -int(widths.sum()) % 8
    if spare and run[-1] >> (8 - spare):
        raise DamagedFrame("residual body: bits behind the last index")
    found = torch.from_numpy(unpack(run, widths).astype(np.int64)).view(tokens, transform.sparsity)
    if bool((found >= max(1, transform.atoms.shape[1])).any()):
        raise DamagedFrame("residual body: an index outside the atoms")
    return found


def _nibbles(gains: Tensor) -> bytes:
    """Four bits a token, the first token's low; the last four of an odd number are zero."""
    codes = (gains.to(torch.int64) - GAINS[0]).to(torch.uint8)
    even = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
    return bytes((even[:, 0] | even[:, 1] << 4).numpy())


def _gains(nibbles: memoryview, tokens: int) -> Tensor:
    codes = np.frombuffer(nibbles, np.uint8)
    both = np.stack([codes & 15, codes >> 4], 1).reshape(-1)
    if tokens % 2 and both[-1]:
        raise DamagedFrame("residual body: bits behind the last gain")
    return torch.from_numpy(both[:tokens].astype(np.int8) + np.int8(GAINS[0]))
