"""The metadata of a dictionary set, read from an artefact that need not be trusted."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

from lexico_codec.geometry import Rope
from lexico_codec.limits import MAX_KV_HEADS, MAX_LAYERS, MAX_METADATA_BYTES, MAX_SPARSITY
from lexico_codec.sets import FORMATS
from lexico_codec.sets.tensors import refuse
from lexico_proto.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class SetInfo:
    """What the set was made for and how."""

    model: str
    """Name of the model as it was given to `lexico train`."""
    kv_heads: int
    """Heads whose vectors share one dictionary."""
    rope: dict[str, Any]
    """Rotary embedding of the model (frequencies, pairing, scale). Keys are coded after it, or
    before it where the set has means or a transform. Empty for a model without one, and in a set
    that does not say."""
    sparsity: int
    """Atoms a vector that the set was trained for; with a transform, atoms a token, or 0."""
    training: dict[str, Any]
    """Seed, vectors, batch and the other settings of the run."""
    corpus_digest: str
    """BLAKE2b-256 of the token ids, as hex."""
    held_out: list[dict[str, float]]
    """Per layer `{"key": e, "value": e}`: mean relative error on held-out vectors."""
    command: str
    """The command that made the set."""

    def rotary_embedding(self) -> Rope | None:
        """`rope` as the geometry has it; None where it is empty.

        Raises:
            InvalidInput: what the set says is no rotary embedding.
        """
        if not self.rope:
            return None
        try:
            return Rope(**{**self.rope, "inv_freq": tuple(self.rope["inv_freq"])})
        except (KeyError, TypeError, ValueError, InvalidInput) as error:
            raise InvalidInput(f"dictionary set of {self.model}: rope ({error})") from error


def parse_document(text: str) -> tuple[dict[str, Any], int]:
    """The metadata without its format, and the format.

    Raises:
        InvalidInput: too long, no JSON object, or of no format of ours.
        ValueError: no JSON.
    """
    if len(text) > MAX_METADATA_BYTES:
        refuse(f"metadata over {MAX_METADATA_BYTES} bytes")
    document = json.loads(text)
    if not isinstance(document, dict):
        refuse("metadata is not a JSON object")
    version = document.pop("format", None)
    if isinstance(version, int) and version > FORMATS[-1]:
        refuse(
            f"format {version} is of a newer version of lexico, this one reads 1, 2 and 3: update "
            "it, or train a set with `lexico train`"
        )
    if version not in FORMATS or isinstance(version, bool | float):
        refuse("format is none of 1, 2 and 3")
    return document, int(version)


def parse_info(document: dict[str, Any]) -> tuple[SetInfo, int]:
    """What `parse_document` gives as a `SetInfo`, and how many layers the set has.

    Raises:
        InvalidInput: another field than ours, or one that is not as it must be.
    """
    count = document.pop("layers", None)
    if not _is_count(count, MAX_LAYERS):
        refuse(f"layers must be 1..{MAX_LAYERS}")
    if set(document) != {f.name for f in fields(SetInfo)}:
        refuse("metadata has other fields than ours")
    for name, kind in (("model", str), ("corpus_digest", str), ("command", str), ("rope", dict)):
        if not isinstance(document[name], kind):
            refuse(f"{name} must be a {kind.__name__}")
    if not isinstance(document["training"], dict):
        refuse("training must be a dict")
    atoms = document["sparsity"]
    if not _is_count(document["kv_heads"], MAX_KV_HEADS) or not (
        _is_count(atoms, MAX_SPARSITY) or (isinstance(atoms, int) and atoms == 0)
    ):
        refuse(f"kv_heads must be 1..{MAX_KV_HEADS} and sparsity 0..{MAX_SPARSITY}")
    errors = document["held_out"]
    if not isinstance(errors, list) or not all(_is_error_pair(e) for e in errors):
        refuse("held_out must be a list of {key, value} errors")
    return SetInfo(**document), int(count)


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_error_pair(pair: object) -> bool:
    return (
        isinstance(pair, dict)
        and set(pair) == {"key", "value"}
        and all(_is_finite(error) for error in pair.values())
    )


def _is_finite(number: object) -> bool:
    """Whether it is a number that a float holds: JSON has integers of any length."""
    try:
        return isinstance(number, float | int) and math.isfinite(number)
    except OverflowError:
        return False
