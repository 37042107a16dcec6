"""Dictionary sets: what a codec codes over, made for all layers of one model.

There are two kinds. An `AtomSet` has a dictionary of atoms for the keys and one for the values of
each layer: formats 1 and 2 of the artefact. A `TransformSet` has a learned transform of whole
tokens: format 3. `DictionarySet.load` gives the kind that the bytes are.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from lexico_codec.files import write_atomically
from lexico_codec.geometry import Rope
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.sets.artefact import Artefact, artefact_bytes, read_artefact
from lexico_codec.sets.atom_tensors import (
    ERRORS,
    PARTS,
    Part,
    parse_errors,
    parse_layers,
    tensor_name,
)
from lexico_codec.sets.info import SetInfo
from lexico_codec.sets.tensors import View, refuse
from lexico_codec.sets.transform import Transform
from lexico_codec.sets.transform_tensors import parse_transform
from lexico_proto.errors import DictionaryMismatch

_TRANSFORM = "residual."


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DictionarySet(ABC):
    """What every set has. Make one with `load`, `load_builtin` or a kind's `build`."""

    layers: int
    """Layers of the model."""
    head_dim: int
    """Components of a vector, m."""
    info: SetInfo
    digest: bytes
    """BLAKE2b-256 of the artefact, 32 bytes."""
    _artefact: bytes

    def __repr__(self) -> str:
        """A line: a set has megabytes, which errors and logs would print."""
        kind, digest = type(self).__name__, self.digest.hex()[:16]
        return f"<{kind} {digest} of {self.info.model}: {self.holds}, {self.layers} layers>"

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes) -> Self:
        """Reads an artefact from a file or from bytes, which need not be trusted.

        Returns:
            A set of the kind that the artefact is; of a kind that was asked for, that kind.

        Raises:
            InvalidInput: not a dictionary set, or over a cap (64 MiB, 512 layers, 16384 atoms,
                head_dim 512).
            ConfigurationError: a file that cannot be read.
            DictionaryMismatch: a set of the other kind than the one asked for.
        """
        artefact = read_artefact(source)
        made = TransformSet.parse(artefact) if artefact.format == 3 else AtomSet.parse(artefact)
        if not isinstance(made, cls):
            raise DictionaryMismatch(
                f"the dictionary set of {made.info.model} is {made.holds}: it is for codec "
                f"{' and '.join(made.codecs)}"
            )
        return made

    @property
    @abstractmethod
    def codecs(self) -> tuple[str, ...]:
        """Names of the codecs that the set is for."""

    @property
    @abstractmethod
    def holds(self) -> str:
        """What is in it, for messages: `of keys before RoPE`."""

    def serves(self, codec: str) -> bool:
        """Whether the set is one for the codec of that name."""
        return codec in self.codecs

    @property
    def kv_heads(self) -> int:
        """KV heads of the model."""
        return self.info.kv_heads

    @property
    def rope(self) -> Rope | None:
        """Rotary embedding of the model; None for one without, or where the set does not say.

        Raises:
            InvalidInput: what the set says is none.
        """
        return self.info.rotary_embedding()

    def to_bytes(self) -> bytes:
        """The artefact, byte for byte what `digest` names."""
        return self._artefact

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the artefact, whole or not at all.

        Raises:
            ConfigurationError: the path cannot be written.
        """
        write_atomically(Path(path), self._artefact)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AtomSet(DictionarySet):
    """Dictionaries of atoms of every layer, for codecs that code each vector by itself."""

    errors: Tensor | None
    """`[layers, 2, S + 1]` float32 or None: what is left of a table after s = 0..S atoms.

    Mean squared error, weighted by how much the layer's keys or values matter; it never grows
    with s. Do not write to it.
    """
    _atoms: dict[torch.device, Atoms]  # keys' before values' of each layer; a device's when asked
    _means: dict[torch.device, Tensor]  # in the same order; empty for a set without

    @classmethod
    def build(
        cls,
        layers: Sequence[tuple[Tensor, Tensor]],
        info: SetInfo,
        means: Sequence[tuple[Tensor, Tensor]] | None = None,
        errors: Tensor | None = None,
    ) -> Self:
        """A set from tensors; format 1 where nothing needs format 2.

        Args:
            layers: (key atoms, value atoms) `[N, head_dim]` a layer. int8 atoms are stored as they
                are, all others are rounded to fp16.
            info: what the set was made for.
            means: (key mean, value mean) `[kv_heads, head_dim]` a layer, rounded to fp16: keys are
                then coded before RoPE. None for a set whose keys are coded as they lie.
            errors: as the attribute.

        Raises:
            InvalidInput: what `load` would refuse.
        """
        tensors = {} if errors is None else {ERRORS: errors.detach().cpu().contiguous()}
        for what, pairs in (("atoms", layers), ("mean", means or ())):
            for i, pair in enumerate(pairs):
                for part, tensor in zip(PARTS, pair, strict=True):
                    stored = tensor if tensor.dtype == torch.int8 else tensor.half()
                    tensors[tensor_name(i, part, what)] = stored.detach().cpu().contiguous()
        plain = means is None and all(tensor.dtype == torch.float16 for tensor in tensors.values())
        return cls.load(artefact_bytes(tensors, 1 if plain else 2, len(layers), info))

    @classmethod
    def parse(cls, artefact: Artefact) -> AtomSet:
        """The set that an artefact of format 1 or 2 is.

        Raises:
            InvalidInput: its tensors are not those of such a set.
        """
        info, layers, views = artefact.info, artefact.layers, artefact.views
        if artefact.format == 1:
            _check_format_1(views)
        of_layers = {name: view for name, view in views.items() if name.startswith("layers.")}
        rest = {name: view for name, view in views.items() if name not in of_layers}
        if any(name.startswith(_TRANSFORM) for name in rest):
            refuse("a transform stands alone, in format 3")
        parts = parse_layers(of_layers, layers, info.kv_heads)
        errors = parse_errors(rest, layers)
        _check_held_out(info, layers)
        if not 1 <= info.sparsity <= min(min(table.shape) for table in parts.atoms):
            refuse(f"sparsity {info.sparsity} is 0, or exceeds the atoms or head_dim")
        starts = tuple(accumulate((len(table) for table in parts.atoms), initial=0))
        cpu = torch.device("cpu")
        return AtomSet(
            layers=layers,
            head_dim=parts.atoms[0].shape[1],
            info=info,
            digest=artefact.digest,
            _artefact=artefact.data,
            errors=errors,
            _atoms={cpu: Atoms.of(torch.cat(parts.atoms), starts)},
            _means={} if parts.means is None else {cpu: parts.means},
        )

    @property
    def codecs(self) -> tuple[str, ...]:
        """As of `DictionarySet`."""
        return ("lexico-packed",) if self.unrotated else ("lexico", "lexico-adaptive")

    @property
    def holds(self) -> str:
        """As of `DictionarySet`."""
        return "of keys before RoPE" if self.unrotated else "of keys as RoPE left them"

    @property
    def unrotated(self) -> bool:
        """Whether the set is of keys before RoPE, with means to remove from them and the values."""
        return bool(self._means)

    def means(self, first_layer: int, layers: int, device: torch.device | str = "cpu") -> Tensor:
        """Means of consecutive layers, `[2 * layers, kv_heads, head_dim]` float32, keys' first.

        The copy on a device is kept for the life of the set; do not write to it.

        Raises:
            InvalidInput: layers that the set does not have, or a set without means.
        """
        self._check_layers(first_layer, layers)
        place = torch.device(device)
        if not self._means:
            refuse("has no means: its keys are coded as RoPE left them")
        if place not in self._means:
            self._means[place] = self._means[torch.device("cpu")].to(place)
        return self._means[place][2 * first_layer : 2 * (first_layer + layers)]

    def atoms(self, layer: int, part: Part, device: torch.device | str = "cpu") -> Tensor:
        """One dictionary, shared by the heads of a layer: `[N, head_dim]` float32, unit rows.

        The copy on a device is kept for the life of the set; do not write to it.

        Raises:
            InvalidInput: no such layer or part.
        """
        if part not in PARTS or not 0 <= layer < self.layers:
            refuse(f"no {part} atoms of layer {layer} in a set of {self.layers} layers")
        return self.stack(layer, 1, device).dictionary(PARTS.index(part))

    def stack(self, first_layer: int, layers: int, device: torch.device | str = "cpu") -> Atoms:
        """Dictionaries of consecutive layers, keys' before values' in each.

        The copy on a device is kept for the life of the set; do not write to it.

        Raises:
            InvalidInput: layers that the set does not have.
        """
        self._check_layers(first_layer, layers)
        place = torch.device(device)
        if place not in self._atoms:
            whole = self._atoms[torch.device("cpu")]
            self._atoms[place] = Atoms.of(whole.stack.to(place), whole.starts)
        return self._atoms[place].narrow(2 * first_layer, 2 * layers)

    def _check_layers(self, first: int, layers: int) -> None:
        if not 0 <= first <= first + layers <= self.layers or layers == 0:
            refuse(f"no layers {first}+{layers} in a set of {self.layers} layers")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TransformSet(DictionarySet):
    """A learned transform of a token's keys and values in runs of layers, for lexico-residual."""

    transform: Transform

    @classmethod
    def build(cls, tensors: Mapping[str, Tensor], info: SetInfo) -> Self:
        """A set from tensors.

        Args:
            tensors: those of `sets.transform_tensors`, by their names without `residual.`.
            info: what the set was made for.

        Raises:
            InvalidInput: what `load` would refuse.
        """
        named = {
            f"{_TRANSFORM}{name}": tensor.detach().cpu().contiguous()
            for name, tensor in tensors.items()
        }
        layers = len(tensors["means"]) // 2 if "means" in tensors else 0
        return cls.load(artefact_bytes(named, 3, layers, info))

    @classmethod
    def parse(cls, artefact: Artefact) -> TransformSet:
        """The set that an artefact of format 3 is.

        Raises:
            InvalidInput: its tensors are not those of such a set.
        """
        views = artefact.views
        if any(name.startswith("layers.") for name in views):
            refuse("a transform stands alone, in format 3")
        for name in views:
            if not name.startswith(_TRANSFORM):
                refuse(f"a tensor that is none of ours: {name[:80]!r}")
        named = {name.removeprefix(_TRANSFORM): view for name, view in views.items()}
        transform = parse_transform(named, artefact.layers, artefact.info.kv_heads)
        _check_held_out(artefact.info, artefact.layers)
        return TransformSet(
            layers=artefact.layers,
            head_dim=transform.means.shape[2],
            info=artefact.info,
            digest=artefact.digest,
            _artefact=artefact.data,
            transform=transform,
        )

    @property
    def codecs(self) -> tuple[str, ...]:
        """As of `DictionarySet`."""
        return ("lexico-residual",)

    @property
    def holds(self) -> str:
        """As of `DictionarySet`."""
        return "one with a transform"


def _check_held_out(info: SetInfo, layers: int) -> None:
    if len(info.held_out) not in (0, layers):
        refuse("held_out must name every layer or none")


def _check_format_1(views: dict[str, View]) -> None:
    """What was no set before format 2 came is none now."""
    if not all(n.endswith(".atoms") and view["dtype"] == "F16" for n, view in views.items()):
        refuse("format 1 has F16 atoms and nothing else")
