"""lexico-residual: a sparse code of each token, then a learned transform of what it leaves.

The smallest code at equal quality. A token's keys (before RoPE) and values of all layers become
components that matter alike and do not depend on one another (`lexico_codec.sets.transform`). A few
atoms of a universal dictionary, found by matching pursuit, take their strongest shape off; the rest
is quantised with one step, where a level that saves more bits than its error is worth may be
smaller than the nearest one, and entropy coded with static tables (`kernels.entropy`). Tokens that
others attend to get a finer step. Tokens and bands of components tell how strong they are
(`energies`), so that tables fit text of any kind.

Sinks and single tokens that are like nothing the set was made from are stored exactly. Where a page
has many of those the set is refused: it was made for other weights.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

import numpy as np
import torch
from torch import Tensor

from lexico_codec.codecs.codec import SINK_TOKENS, Codec, Place, leading_sinks, tables_of
from lexico_codec.codecs.lossless import LosslessCodec
from lexico_codec.codecs.residual import energies
from lexico_codec.codecs.residual.header import Header, bands_of, header_bytes
from lexico_codec.codecs.residual.positions import find_position, position_bytes, read_position
from lexico_codec.codecs.residual.sinks import sinks_among
from lexico_codec.geometry import Geometry
from lexico_codec.kernels.entropy import coder as entropy
from lexico_codec.kernels.entropy.levels import choose_levels
from lexico_codec.kernels.entropy.streams import Streams
from lexico_codec.kernels.layout import rows as layout
from lexico_codec.kernels.layout.sparse import Sparse
from lexico_codec.kernels.pursuit.coding import encode as pursue
from lexico_codec.kernels.synthesis import compiled as synthesis
from lexico_codec.kernels.synthesis.compiled import Laid
from lexico_codec.memory import CacheMemory
from lexico_codec.rope import Turn, turn_at
from lexico_codec.sets.choose import at_hand
from lexico_codec.sets.dictionary import DictionarySet, TransformSet
from lexico_codec.sets.transform import (
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
)
from lexico_proto.metrics import EXACT_TOKENS, PROCESS

_GIVEN, _FOUND = "given", "found"
_TYPICAL_BITS: Final = {"near": 0.9, "balanced": 0.4, "small": 0.25}  # a value, for estimates
_LARGEST: Final = 2.0**29  # of a level: further out it stays there
_OUTLYING: Final = 16.0  # times what is expected
_UNFIT: Final = 3.0  # times what is expected; all but a few are within 1.6
_FEW, _FRACTION = 4, 0.25  # tokens of a page that may be either


@dataclass(frozen=True)
class ResidualCodec(Codec):
    """Body: where positions are found, that of the first token, u32; then a header
    (`residual.header`), exact tokens without loss, entropy coded levels."""

    name: ClassVar[str] = "lexico-residual"
    codec_id: ClassVar[int] = 7
    needs_dictionary: ClassVar[bool] = True
    later: ClassVar[frozenset[str]] = frozenset({"sinks", "positions"})

    quality: str = "balanced"
    """near, balanced or small: the step that was calibrated for a KL of about 0.005, 0.02, 0.05."""
    step: float | None = None
    """A step of one's own, in the units of the set; None for that of the quality."""
    run_layers: int = 0
    """Layers that are coded together, as the set has it; 0 for all of the model or shard."""
    sinks: int = SINK_TOKENS
    """First tokens of the sequence that are stored exactly: 4, or 0 to store tokens exactly that
    look like attention sinks (`residual.sinks`)."""
    positions: str = "given"
    """`given`: of each page's place. `found`: where no page knows its place, from its keys
    (`residual.positions`); then `sinks` is 0, since none knows whether it has the first tokens."""

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
        if self.sinks not in (0, SINK_TOKENS) or isinstance(self.sinks, bool | float):
            raise ConfigurationError(f"{self.name}: sinks={self.sinks!r} is not 0 or {SINK_TOKENS}")
        if self.positions not in (_GIVEN, _FOUND):
            raise ConfigurationError(
                f"{self.name}: positions={self.positions!r} is not {_GIVEN} or {_FOUND}"
            )
        if self.positions == _FOUND and self.sinks:
            raise ConfigurationError(f"{self.name}: positions={_FOUND} goes with sinks=0")

    def without_positions(self) -> Self:
        """Finds the position of each page."""
        return replace(self, positions=_FOUND, sinks=0)

    def check_geometry(self, geometry: Geometry) -> None:
        """The layers must divide into runs."""
        if self.run_layers and geometry.layers % self.run_layers:
            raise ConfigurationError(
                f"{self.name}: {geometry.layers} layers are no runs of {self.run_layers}"
            )

    def for_set(self, dictionary: DictionarySet, geometry: Geometry) -> Self:
        """How many layers are coded together is the set's to say, where the user has not."""
        transform, codec = at_hand(self, dictionary, TransformSet).transform, self
        if self.run_layers == 0 and transform.run_layers != geometry.layers:
            codec = replace(codec, run_layers=transform.run_layers)
        layers = codec.run_layers or geometry.layers
        self._run(transform, 0, layers, geometry.kv_heads, geometry.head_dim)
        return codec

    def group_layers(self, geometry: Geometry) -> int:
        """A run is a frame."""
        return self.run_layers or geometry.layers

    def sink_tokens(self, first_token: int, tokens: int) -> int:
        """Those of the first tokens of the sequence that lie in the page."""
        return leading_sinks(first_token, tokens, self.sinks)

    def encoded_bytes(self, geometry: Geometry, tokens: int) -> int:
        """By what the qualities take of SmolLM2."""
        values = tokens * 2 * geometry.kv_heads * geometry.head_dim
        return math.ceil(values * _TYPICAL_BITS[self.quality] / 8)

    def _encode(self, source: CacheMemory, place: Place, dictionary: DictionarySet | None) -> bytes:
        """Codes the tokens behind the sinks, all layers of the group together.

        Raises:
            UnknownDictionary: no set.
            DictionaryMismatch: a set without a transform, of another shape, or for other weights.
        """
        transform, run = self._transform(dictionary, place, source.shape)
        on, tokens = source.device, source.tokens
        sinks = self.sink_tokens(place.first_token, tokens)
        tokens -= sinks
        if not tokens:
            return _exact(source.read(), place)
        step, means, position = self._step(transform), transform.means_of(run, on), b""
        if self.positions == _FOUND:
            place = self._found(source, place, means)
            position = position_bytes(place.first_token)
        turn = _turn(place, sinks, tokens, on, inverse=True)
        rows = layout.gather(source.tables.behind(sinks), means, turn)
        components = transform.components(run, rows.mT)
        gains = transform.gains_of(run, components)
        header, classes, unfit = _measured(transform, run, step, components, gains)
        outliers = _outliers(transform, run, step, components, classes, header, unfit)
        self._check_fit(outliers | unfit, dictionary)
        if bool(outliers.any()):
            PROCESS.counter(EXACT_TOKENS).add(int(outliers.sum()))
        if not self.sinks:
            outliers = outliers | sinks_among(source.read()[:, 1])
        if bool(outliers.any()):
            components[:, outliers.to(on)] = 0
            gains[outliers.to(on)] = GAINS[0]
            header, classes, _ = _measured(transform, run, step, components, gains)
            header = replace(header, exact=outliers)
        offsets = header.offsets
        finer = torch.exp2(gains.float() / CLASSES_AN_OCTAVE) / step
        count = _coded(classes, offsets)
        s, width = transform.sparsity, transform.atoms.shape[2]
        values = components[: max(count - s, width)] * finer
        values = values.clamp_(-_LARGEST, _LARGEST).cpu()
        if not bool(values.sum().isfinite()):  # of numbers beyond float32 on the way
            values = torch.nan_to_num(values)
        live = classes[:s, None] + offsets >= 0  # [s, tokens]
        indices, coefficients = _sparse(transform, run, values, live)
        values = values[: max(count - s, 0)]
        values.clamp_(-_LARGEST, _LARGEST)  # clamped coefficients leave more than there was
        levels = choose_levels(values, classes[s : s + len(values)], offsets, transform.tables)
        rows = torch.cat([coefficients, levels])
        body = entropy.encode(rows, classes[: len(rows)], offsets, transform.tables)
        stored = torch.cat([torch.ones(sinks, dtype=torch.bool), header.exact])
        exact = b""
        if bool(stored.any()):
            exact = _exact(source.read()[:, :, stored.to(on)], place)
        head = replace(header, indices=indices).pack(transform)
        return b"".join([position, head, exact, body])

    def _decode(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        target: CacheMemory,
        shape: tuple[int, ...],
    ) -> None:
        """Reconstructs what is wanted: sinks exact.

        Every component of a token has a part in every layer and head: all are decoded, and put back
        together for the layers and heads that are wanted.
        """
        transform, run = self._transform(dictionary, place, shape)
        on, tokens = target.device, shape[2]
        sinks = self.sink_tokens(place.first_token, tokens)
        tokens -= sinks
        if not tokens:
            if len(_read_exact(body, place, target, shape)):
                raise DamagedFrame("residual body: more than its sinks")
            return
        if self.positions == _FOUND:
            first, body = read_position(body)
            place = replace(place, first_token=first)
        step = self._step(transform)
        bands = bands_of(transform, run, step)
        start = header_bytes(transform, bands, tokens)
        if len(body) < start:
            raise DamagedFrame(f"residual body of {len(body)} bytes: {start} come first")
        header = Header.unpack(body, transform, bands, tokens)
        kept, rest = sinks + int(np.count_nonzero(header.exact.numpy())), body[start:]
        if kept:
            stored = torch.cat([torch.ones(sinks, dtype=torch.bool), header.exact])
            exact = torch.empty(*target.shape[:2], kept, *target.shape[3:], dtype=target.dtype)
            own = CacheMemory.over(
                exact, first_layer=target.first_layer, first_head=target.first_head
            )
            rest = _read_exact(rest, place, own, (*shape[:2], kept, *shape[3:]))
        classes, offsets = header.classes(transform, run, step), header.offsets
        count = _coded(classes, offsets)
        scales = (torch.exp2(-header.gains.float() / CLASSES_AN_OCTAVE) * step).to(on)
        used = min(transform.sparsity, count)
        atoms = transform.atoms_as_columns(run, on)
        sparse = Sparse(header.indices.T[:used].to(on), atoms, COEFFICIENT_STEPS)
        places, length = transform.places(run, on), transform.rows
        wanted, dim = tables_of(target.layers), shape[4]
        columns = slice(target.heads.start * dim, target.heads.stop * dim)
        means = transform.means_of(run, on)[wanted.start : wanted.stop, columns]
        turn, memory = _turn(place, sinks, tokens, on), target.tables.behind(sinks)
        if transform.restores(memory):
            streams = Streams.of(rest, classes[:count], offsets, transform.tables)
            arranged = synthesis.arranged(streams, scales, sparse, places, length)
            laid = Laid(means, turn, memory)
            transform.restore(run, arranged, count - used, wanted, columns, laid)
        else:
            coded = (classes[:count], offsets, transform.tables, tokens)
            values, dtype = entropy.decode(rest, *coded, device=on), transform.product_dtype(on)
            dense = layout.arrange(values, scales, sparse, places, length, dtype)
            rows = transform.restored(run, dense, count - used, wanted, columns)
            layout.scatter(rows, means, turn, memory)
        if kept:
            target.write_tokens(stored, exact)

    def _check_fit(self, unfit: Tensor, dictionary: DictionarySet | None) -> None:
        """Refuses a set that was made for other weights than those of the cache."""
        if int(unfit.sum()) > max(_FEW, len(unfit) * _FRACTION) and dictionary is not None:
            raise DictionaryMismatch(
                f"codec {self.name}: {int(unfit.sum())} of {len(unfit)} tokens are nothing "
                f"like what the dictionary set of {dictionary.info.model} was made from; train "
                f"one for these weights with `lexico train --codec {self.name}`"
            )

    def _found(self, source: CacheMemory, place: Place, means: Tensor) -> Place:
        """The place with the position that the page's keys tell."""
        position = 0 if place.rope is None else find_position(source.tables, means, place.rope)
        return replace(place, first_token=position)

    def _step(self, transform: Transform) -> float:
        return transform.steps[self.quality] if self.step is None else float(self.step)

    def _transform(
        self, dictionary: DictionarySet | None, place: Place, shape: tuple[int, ...]
    ) -> tuple[Transform, int]:
        transform = at_hand(self, dictionary, TransformSet).transform
        layers, _, _, heads, dim = shape
        if place.first_head:
            raise DictionaryMismatch(
                f"codec {self.name}: codes all KV heads together, not a shard from head "
                f"{place.first_head} on; use codec lexico-packed for tensor-parallel shards"
            )
        return transform, self._run(transform, place.first_layer, layers, heads, dim)

    def _run(self, transform: Transform, first: int, layers: int, heads: int, dim: int) -> int:
        """Which run of the set a layer group is."""
        try:
            return check_run(transform, first, layers, heads, dim)
        except ShapeMismatch as error:
            raise DictionaryMismatch(f"codec {self.name}: {error.message}") from error


def _measured(
    transform: Transform, run: int, step: float, components: Tensor, gains: Tensor
) -> tuple[Header, Tensor, Tensor]:
    """The header of a page without atoms and outliers; its classes; which tokens are unfit, far
    stronger than any that the set was made from, `[tokens]` bool.
    """
    on, tokens = components.device, len(gains)
    measured = energies.measure(components, transform.deviations_on(run, on), step)
    none = torch.zeros(tokens, dtype=torch.bool)
    no_atoms = torch.zeros(tokens, 0, dtype=torch.int64)
    header = Header(none, gains.cpu(), measured.tokens.cpu(), measured.bands.cpu(), no_atoms)
    return header, header.classes(transform, run, step), ~(measured.ratios <= _UNFIT).cpu()


def _outliers(
    transform: Transform,
    run: int,
    step: float,
    components: Tensor,
    classes: Tensor,
    header: Header,
    unfit: Tensor,
) -> Tensor:
    """Tokens that the set would lose much of, to be stored exactly: `[tokens]` bool.

    What is not coded should hold no more than the set expects. A token where it holds many times
    that, and more than all quantisation costs, is an outlier. So is an unfit one with a level
    beyond the largest.
    """
    on, s, least = components.device, transform.sparsity, int(header.offsets.min())
    finer = torch.exp2(header.gains.float() / CLASSES_AN_OCTAVE).to(on) / step
    beyond = ~(components.abs().amax(0) * finer <= _LARGEST).cpu() & unfit  # NaN too
    coded = classes[s:] + least >= 0
    if bool(coded.all()):
        return beyond
    first = int(coded.to(torch.uint8).argmin())  # all before it are coded
    lost = (classes[s + first :, None] + header.offsets < 0).to(on)  # [C - first, tokens]
    found = (components[first:] * finer * lost).square().sum(0)
    expected = (transform.deviations_on(run, on)[first:, None] * finer * lost).square().sum(0)
    most = torch.clamp(_OUTLYING * expected, min=len(components) / 12)
    return beyond | ~(found <= most).cpu()


def _exact(tokens: Tensor, place: Place) -> bytes:
    """Tokens as codec lossless has them, after their length."""
    body = LosslessCodec().encode(tokens, place, None)
    return struct.pack("<I", len(body)) + bytes(body)


def _read_exact(
    body: memoryview, place: Place, target: CacheMemory, shape: tuple[int, ...]
) -> memoryview:
    """Fills the tokens that are stored as they are; what follows them."""
    size = struct.unpack_from("<I", body)[0] if len(body) >= 4 else len(body)
    if len(body) < 4 + size:
        raise DamagedFrame(f"residual body of {len(body)} bytes ends within its exact tokens")
    LosslessCodec().decode(body[4 : 4 + size], place, None, target, shape)
    return body[4 + size :]


def _coded(classes: Tensor, offsets: Tensor) -> int:
    """How many rows there are until nothing is coded any more."""
    coded = np.flatnonzero(classes.numpy() >= -int(offsets.max()))
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
