"""The dictionary set: key and value atoms of every layer of one model, as one safetensors artefact.

The artefact holds the tensors `layers.00.key.atoms` and `layers.00.value.atoms` (`[N, head_dim]`,
rows of unit norm; N may differ from tensor to tensor) and one metadata entry `lexico`: canonical
JSON (sorted keys, no spaces) of `SetInfo` (`set_info`). Format 1 has fp16 atoms and nothing else.
Format 2 may have int8 atoms, `layers.00.key.mean` and so on, and families of further tensors
(`set_families`). Format 3 has a transform (family `residual`, see `transform`) in place of layers'
tensors. Equal content gives equal bytes. The set's name everywhere is the BLAKE2b-256 of those
bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.sets.families import parse_families
from lexico_codec.sets.info import SetInfo, parse_document, parse_info
from lexico_codec.sets.tensors import (
    MAX_ATOMS,
    MAX_HEAD_DIM,
    PARTS,
    LayerTensors,
    Part,
    SetShape,
    parse_layers,
    refuse,
    tensor_name,
)
from lexico_proto.errors import (
    ConfigurationError,
    DictionaryMismatch,
    InvalidInput,
    UnknownDictionary,
)

__all__ = [
    "MAX_ARTEFACT_BYTES",
    "MAX_ATOMS",
    "MAX_HEAD_DIM",
    "PARTS",
    "DictionarySet",
    "Part",
    "builtin_sets",
    "canonical_json",
    "find_builtin",
    "load_builtin",
    "write_atomically",
]

MAX_ARTEFACT_BYTES: Final = 64 << 20

_METADATA_KEY: Final = "lexico"


@dataclass(frozen=True, slots=True, eq=False)
class DictionarySet:
    """Dictionaries of every layer. Make one with `build`, `load` or `load_builtin`."""

    layers: int
    """Layers of the model."""
    head_dim: int
    """Components of a vector, m."""
    info: SetInfo
    digest: bytes
    """BLAKE2b-256 of the artefact, 32 bytes."""
    _artefact: bytes
    _atoms: dict[torch.device, Atoms]  # keys' before values' of each layer; a device's when asked
    _means: dict[torch.device, Tensor]  # in the same order; empty for a set without
    _families: dict[str, Any]

    @classmethod
    def build(
        cls,
        layers: Sequence[tuple[Tensor, Tensor]],
        info: SetInfo,
        means: Sequence[tuple[Tensor, Tensor]] | None = None,
        further: Mapping[str, Tensor] | None = None,
    ) -> DictionarySet:
        """A set from tensors; format 1 where nothing needs format 2.

        Args:
            layers: (key atoms, value atoms) `[N, head_dim]` a layer. int8 atoms are stored as they
                are, all others are rounded to fp16. Empty where there is a transform.
            info: what the set was made for.
            means: (key mean, value mean) `[kv_heads, head_dim]` a layer, rounded to fp16: keys are
                then coded before RoPE. None for a set whose keys are coded as they lie.
            further: tensors of families (`set_families`), by name.

        Raises:
            InvalidInput: what `load` would refuse.
        """
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in (further or {}).items()
        }
        if not layers:
            transformed = tensors.get("residual.means")
            count = 0 if transformed is None else len(transformed) // 2
            text = canonical_json({"format": 3, "layers": count, **asdict(info)})
            return cls.load(save(tensors, {_METADATA_KEY: text}))
        for what, pairs in (("atoms", layers), ("mean", means or ())):
            for i, pair in enumerate(pairs):
                for part, tensor in zip(PARTS, pair, strict=True):
                    stored = tensor if tensor.dtype == torch.int8 else tensor.half()
                    tensors[tensor_name(i, part, what)] = stored.detach().cpu().contiguous()
        plain = means is None and not further
        plain = plain and all(tensor.dtype == torch.float16 for tensor in tensors.values())
        version = 1 if plain else 2
        text = canonical_json({"format": version, "layers": len(layers), **asdict(info)})
        return cls.load(save(tensors, {_METADATA_KEY: text}))

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes) -> DictionarySet:
        """Reads an artefact from a file or from bytes, which need not be trusted.

        Raises:
            InvalidInput: not a dictionary set, or over a cap (64 MiB, 512 layers, 16384 atoms,
                head_dim 512).
            ConfigurationError: a file that cannot be read.
        """
        data = source if isinstance(source, bytes) else _read(Path(source))
        if len(data) > MAX_ARTEFACT_BYTES:
            refuse(f"{len(data)} bytes, at most {MAX_ARTEFACT_BYTES} are read")
        try:
            parsed = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
            header = data[8 : 8 + int.from_bytes(data[:8], "little")]
            text = json.loads(header)["__metadata__"][_METADATA_KEY]
            document, version = parse_document(text)
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise InvalidInput(f"dictionary set: not a safetensors artefact of ours ({e})") from e
        info, count = parse_info(document)
        views = {name: dict(view) for name, view in parsed}
        if version == 1:
            _check_format_1(views)
        of_layers = {name: view for name, view in views.items() if name.startswith("layers.")}
        rest = {name: view for name, view in views.items() if name not in of_layers}
        parts = LayerTensors([], None)
        if version == 3:
            dim = _dim_of_transform(views)
        else:
            parts = parse_layers(of_layers, count, info.kv_heads)
            dim = parts.atoms[0].shape[1]
        if (version == 3) == bool(of_layers) or (version != 3 and "residual.means" in views):
            refuse("a transform stands alone, in format 3")
        families = parse_families(rest, SetShape(count, info.kv_heads, dim))
        if len(info.held_out) not in (0, count):
            refuse("held_out must name every layer or none")
        if parts.atoms and not 1 <= info.sparsity <= min(min(t.shape) for t in parts.atoms):
            refuse(f"sparsity {info.sparsity} is 0, or exceeds the atoms or head_dim")
        digest = hashlib.blake2b(data, digest_size=32).digest()
        cpu = torch.device("cpu")
        stacked = {}
        if parts.atoms:
            starts = tuple(accumulate((len(table) for table in parts.atoms), initial=0))
            stacked[cpu] = Atoms.of(torch.cat(parts.atoms), starts)
        means = {} if parts.means is None else {cpu: parts.means}
        return cls(count, dim, info, digest, data, stacked, means, families)

    def serves(self, codec: str) -> bool:
        """Whether the set is one for the codec of that name."""
        if self.family("residual") is not None:
            return codec == "lexico-residual"
        if self.unrotated:
            return codec == "lexico-packed"
        return codec in ("lexico", "lexico-adaptive")

    @property
    def unrotated(self) -> bool:
        """Whether the set is of keys before RoPE, with means to remove from them and the values."""
        return bool(self._means)

    @property
    def errors(self) -> Tensor | None:
        """`[layers, 2, S + 1]` float32 or None: what is left of a table after s = 0..S atoms.

        Mean squared error, weighted by how much the layer's keys or values matter; it never grows
        with s. Do not write to it.
        """
        found: Tensor | None = self.family("packed")
        return found

    def family(self, name: str) -> Any:
        """What the parser of a family of tensors made of them, or None where there are none."""
        return self._families.get(name)

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
        if not self._atoms:
            refuse("has a transform and no dictionaries of layers")
        place = torch.device(device)
        if place not in self._atoms:
            whole = self._atoms[torch.device("cpu")]
            self._atoms[place] = Atoms.of(whole.stack.to(place), whole.starts)
        return self._atoms[place].narrow(2 * first_layer, 2 * layers)

    def _check_layers(self, first: int, layers: int) -> None:
        if not 0 <= first <= first + layers <= self.layers or layers == 0:
            refuse(f"no layers {first}+{layers} in a set of {self.layers} layers")

    def to_bytes(self) -> bytes:
        """The artefact, byte for byte what `digest` names."""
        return self._artefact

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the artefact, whole or not at all.

        Raises:
            ConfigurationError: the path cannot be written.
        """
        write_atomically(Path(path), self._artefact)

    def check_fits(self, layers: int, head_dim: int) -> None:
        """Refuses a model that the set was not made for.

        Raises:
            DictionaryMismatch: another layer count or head_dim.
        """
        if (self.layers, self.head_dim) != (layers, head_dim):
            raise DictionaryMismatch(
                f"dictionary set of {self.info.model} has {self.layers} layers of head_dim "
                f"{self.head_dim}, the model has {layers} of {head_dim}"
            )


def builtin_sets() -> tuple[str, ...]:
    """Names of the sets that ship with the package, sorted."""
    folder = resources.files("lexico_codec") / "sets"
    names = (entry.name for entry in folder.iterdir())
    return tuple(
        sorted(n.removesuffix(".safetensors") for n in names if n.endswith(".safetensors"))
    )


@functools.cache
def load_builtin(name: str) -> DictionarySet:
    """The set of that name which ships with the package.

    Raises:
        UnknownDictionary: no such set.
    """
    if name not in builtin_sets():
        known = ", ".join(builtin_sets()) or "none"
        raise UnknownDictionary(f"no built-in dictionary set {name!r}; there are: {known}")
    entry = resources.files("lexico_codec") / "sets" / f"{name}.safetensors"
    return DictionarySet.load(entry.read_bytes())


def find_builtin(digest: bytes) -> DictionarySet | None:
    """The shipped set with that digest, if there is one."""
    sets = (load_builtin(name) for name in builtin_sets())
    return next((found for found in sets if found.digest == digest), None)


def canonical_json(document: object) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal documents give equal text."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes through a temporary file, so that a reader sees all of it or the former file.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as f:
            temporary = f.name
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as e:
        raise ConfigurationError(f"{path}: cannot write ({e.strerror or e})") from e
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _dim_of_transform(views: dict[str, dict[str, Any]]) -> int:
    sizes = views.get("residual.means", {}).get("shape", ())
    if len(sizes) != 3 or not 1 <= sizes[2] <= MAX_HEAD_DIM:
        refuse(f"residual.means must be [2 layers, kv_heads, head_dim], head_dim 1..{MAX_HEAD_DIM}")
    return int(sizes[2])


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            return f.read(MAX_ARTEFACT_BYTES + 1)
    except OSError as e:
        raise ConfigurationError(f"{path}: cannot read ({e.strerror or e})") from e


def _check_format_1(views: dict[str, dict[str, Any]]) -> None:
    """What was no set before format 2 came is none now."""
    if not all(n.endswith(".atoms") and view["dtype"] == "F16" for n, view in views.items()):
        refuse("format 1 has F16 atoms and nothing else")
