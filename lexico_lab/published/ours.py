"""The codecs of this project as `bench.quality` compares them, each through real frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch

from bench.fidelity import PAGE_TOKENS
from lexico_codec.codecs import ResidualCodec
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.sets.choose import at_hand
from lexico_codec.sets.dictionary import DictionarySet, TransformSet
from lexico_codec.sets.transform import QUALITIES
from lexico_codec.spec import CacheSpec, make_spec

HEADLINE: Final = "lexico-residual balanced"
STEPS: Final = (0.05, 0.12, 0.2, 0.35, 0.7, 1.5, 3.0)
"""Of codec lexico-residual, beside its qualities: in steps of balanced."""
SPARSITIES: Final = (2, 4, 8, 12, 16)
PACKED: Final = (*({"sparsity": s} for s in (2, 4, 8, 12, 16)), {"sparsity": 24, "tolerance": 0.3})
ADAPTIVE: Final = ({"tolerance": 0.2}, {"tolerance": 0.2, "added": 184}, {"tolerance": 0.1})


@dataclass(frozen=True)
class Frames:
    """A codec of ours, through the frames that would lie in the store."""

    name: str
    spec: CacheSpec
    dictionary: DictionarySet


def all_of(model: Any) -> Iterator[Frames]:
    """Every codec at its settings, for SmolLM2-135M."""
    paper, packed = load_builtin("smollm2-135m"), load_builtin("smollm2-135m-packed")
    for sparsity in SPARSITIES:
        yield frames(model, f"lexico s={sparsity}", "lexico", {"sparsity": sparsity}, paper)
    for config in ADAPTIVE:
        said = " ".join(f"{name}={value}" for name, value in config.items())
        yield frames(model, f"lexico-adaptive s=8 {said}", "lexico-adaptive", config, paper)
    for parameters in PACKED:
        said = " ".join(f"{name}={value}" for name, value in parameters.items())
        name = f"lexico-packed {said.replace('sparsity', 's')}"
        yield frames(model, name, "lexico-packed", parameters, packed)
    yield from residual(model)


def residual(model: Any) -> Iterator[Frames]:
    """Codec lexico-residual: the qualities, and steps around them."""
    dictionary = load_builtin("smollm2-135m-residual")
    codec = "lexico-residual"
    for quality in QUALITIES:
        yield frames(model, f"{codec} {quality}", codec, {"quality": quality}, dictionary)
    balanced = at_hand(ResidualCodec(), dictionary, TransformSet).transform.steps["balanced"]
    for step in STEPS:
        yield frames(model, f"{codec} step={step}", codec, {"step": step * balanced}, dictionary)


def frames(
    model: Any, name: str, codec: str, config: dict[str, Any], dictionary: DictionarySet
) -> Frames:
    """A codec with these parameters, in the pages of the comparison."""
    spec = make_spec(
        weights=bytes(32),
        geometry=geometry_of(model.config, torch.float16),
        codec=codec,
        codec_config=json.dumps(config),
        dictionary=dictionary.digest,
        page_tokens=PAGE_TOKENS,
    )
    return Frames(name, spec, dictionary)
