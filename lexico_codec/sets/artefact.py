"""The artefact of a dictionary set: one safetensors file with one metadata entry, `lexico`.

The entry is canonical JSON of the format, the number of layers and `SetInfo`. Which tensors belong
to which format is the business of the kinds of set (`sets.dictionary`). Equal content gives equal
bytes; a set's name everywhere is their BLAKE2b-256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import safetensors
from safetensors.torch import save
from torch import Tensor

from lexico_codec.canonical import canonical_json
from lexico_codec.sets.info import SetInfo, parse_document, parse_info
from lexico_codec.sets.tensors import View, refuse
from lexico_proto.errors import ConfigurationError, InvalidInput
from lexico_proto.limits import MAX_DICTIONARY_BYTES

_METADATA_KEY: Final = "lexico"


@dataclass(frozen=True, slots=True, eq=False)
class Artefact:
    """What an artefact says, its tensors still as it has them."""

    data: bytes
    format: int
    """1, 2 or 3."""
    layers: int
    info: SetInfo
    views: dict[str, View]

    @property
    def digest(self) -> bytes:
        """BLAKE2b-256 of the bytes, 32 bytes."""
        return hashlib.blake2b(self.data, digest_size=32).digest()


def read_artefact(source: str | os.PathLike[str] | bytes) -> Artefact:
    """The artefact in a file or in bytes, which need not be trusted; its tensors are not checked.

    Raises:
        InvalidInput: no artefact of ours, or one over a cap (64 MiB, 1 MiB of metadata).
        ConfigurationError: a file that cannot be read.
    """
    data = source if isinstance(source, bytes) else _read(Path(source))
    if len(data) > MAX_DICTIONARY_BYTES:
        refuse(f"{len(data)} bytes, at most {MAX_DICTIONARY_BYTES} are read")
    try:
        parsed = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        text = json.loads(header)["__metadata__"][_METADATA_KEY]
        document, version = parse_document(text)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise InvalidInput(f"dictionary set: not a safetensors artefact of ours ({e})") from e
    info, layers = parse_info(document)
    return Artefact(data, version, layers, info, {name: dict(view) for name, view in parsed})


def artefact_bytes(
    tensors: Mapping[str, Tensor], version: int, layers: int, info: SetInfo
) -> bytes:
    """The artefact of these tensors, by name.

    Args:
        tensors: contiguous, on the CPU.
        version: the format.
        layers: of the model.
        info: what the set was made for.
    """
    text = canonical_json({"format": version, "layers": layers, **asdict(info)})
    return bytes(save(dict(tensors), {_METADATA_KEY: text}))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            return f.read(MAX_DICTIONARY_BYTES + 1)
    except OSError as e:
        raise ConfigurationError(f"{path}: cannot read ({e.strerror or e})") from e
