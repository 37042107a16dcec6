"""Small random dictionary sets: unit-norm atoms, no training."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from lexico_codec.sets.artefact import artefact_bytes, read_artefact
from lexico_codec.sets.dictionary import AtomSet, DictionarySet
from lexico_codec.sets.info import SetInfo


def set_info(kv_heads: int = 1, sparsity: int = 1) -> SetInfo:
    """What a set says of itself, where a test does not care."""
    return SetInfo(
        model="random",
        kv_heads=kv_heads,
        rope={},
        sparsity=sparsity,
        training={},
        corpus_digest="00" * 32,
        held_out=[],
        command="none: tests/support/dictionaries.py",
    )


def told(made: DictionarySet, **changes: Any) -> DictionarySet:
    """The same set, whose artefact says otherwise of itself."""
    data, info = made.to_bytes(), replace(made.info, **changes)
    version = read_artefact(data).format
    return DictionarySet.load(artefact_bytes(load(data), version, made.layers, info))


def unit_rows(atoms: int, dim: int, seed: int) -> Tensor:
    """Random directions, `[atoms, dim]` float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(atoms, dim, generator=generator), dim=1)


@functools.cache
def random_set(
    layers: int, head_dim: int, atoms: int = 96, seed: int = 0, kv_heads: int = 1
) -> AtomSet:
    """Key and value atoms of every layer; value dictionaries have one atom less, which is legal."""
    return AtomSet.build(
        [
            (
                unit_rows(atoms, head_dim, seed + 2 * layer),
                unit_rows(atoms - 1, head_dim, seed + 2 * layer + 1),
            )
            for layer in range(layers)
        ],
        set_info(kv_heads),
    )
