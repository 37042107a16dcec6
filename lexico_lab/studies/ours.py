"""The codecs of this project as studies compare them, on SmolLM2-135M, each through real frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch

from lexico_codec.codecs import ResidualCodec
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.sets.choose import at_hand
from lexico_codec.sets.dictionary import TransformSet
from lexico_codec.sets.transform import QUALITIES
from lexico_lab.evaluation.ways import Way, way_of
from lexico_lab.studies.texts import SPLIT

PAPER_SET: Final = "smollm2-135m"
PACKED_SET: Final = "smollm2-135m-packed"
RESIDUAL_SET: Final = "smollm2-135m-residual"
HEADLINE: Final = "lexico-residual balanced"
STEPS: Final = (0.05, 0.12, 0.2, 0.35, 0.7, 1.5, 3.0)
"""Of codec lexico-residual, beside its qualities: in steps of balanced."""
SPARSITIES: Final = (2, 4, 8, 12, 16)

Config = dict[str, Any]

PACKED: Final[tuple[Config, ...]] = (
    *({"sparsity": s} for s in SPARSITIES),
    {"sparsity": 24, "tolerance": 0.3},
)
ADAPTIVE: Final[tuple[Config, ...]] = (
    {"tolerance": 0.2},
    {"tolerance": 0.2, "added": 184},
    {"tolerance": 0.1},
)


def all_of(model: Any) -> Iterator[Way]:
    """Every codec at its settings."""
    paper, packed = load_builtin(PAPER_SET), load_builtin(PACKED_SET)
    geometry, page = stored_geometry(model), SPLIT.page_tokens
    for sparsity in SPARSITIES:
        config = {"sparsity": sparsity}
        yield way_of(f"lexico s={sparsity}", "lexico", config, geometry, page, paper)
    for config in ADAPTIVE:
        name = f"lexico-adaptive s=8 {_said(config)}"
        yield way_of(name, "lexico-adaptive", config, geometry, page, paper)
    for config in PACKED:
        name = f"lexico-packed {_said(config).replace('sparsity', 's')}"
        yield way_of(name, "lexico-packed", config, geometry, page, packed)
    yield from residual(model)


def residual(model: Any) -> Iterator[Way]:
    """Codec lexico-residual: the qualities, and steps around them."""
    dictionary, codec = load_builtin(RESIDUAL_SET), "lexico-residual"
    geometry, page = stored_geometry(model), SPLIT.page_tokens
    for quality in QUALITIES:
        config: Config = {"quality": quality}
        yield way_of(f"{codec} {quality}", codec, config, geometry, page, dictionary)
    balanced = at_hand(ResidualCodec(), dictionary, TransformSet).transform.steps["balanced"]
    for step in STEPS:
        config = {"step": step * balanced}
        yield way_of(f"{codec} step={step}", codec, config, geometry, page, dictionary)


def stored_geometry(model: Any) -> Geometry:
    """Of the cache that studies store: float16, whatever the model runs in."""
    return geometry_of(model.config, torch.float16)


def _said(config: Config) -> str:
    return " ".join(f"{name}={value}" for name, value in config.items())
