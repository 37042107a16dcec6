"""A model without a dictionary set in a real engine: lossless, until one is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest
from transformers import AutoConfig

from lexico_client import Client, fingerprint_files
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.presets import codec_named
from lexico_codec.spec import CacheSpec
from tests.support.client_fixtures import PATIENT, small_dictionary
from tests.support.engine_prompts import Prompts
from tests.support.vllm_engine import Nursery
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until
from tests.vllm.conftest import LOADED

LOSSY: Final = 512
"""Tokens that are loaded of a prompt of 600 where the newest 64 are not: whole blocks."""


@pytest.fixture
def other(model: Path, tmp_path: Path) -> Path:
    """The model with another rotary embedding: no set that ships fits it."""
    folder = tmp_path / "other"
    folder.mkdir()
    for file in model.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] /= 2
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_set_that_is_published_is_taken_over_without_a_restart(
    nursery: Nursery, fresh: EngineService, prompts: Prompts, other: Path
) -> None:
    base = CacheSpec(
        weights=fingerprint_files(other),
        geometry=geometry_of(AutoConfig.from_pretrained(other), "float32"),
        codec=codec_named("lossless"),
    )
    geometry, ids = base.geometry, prompts.apart[0]
    made = small_dictionary(0, geometry.layers, geometry.head_dim, geometry.kv_heads)
    settings = {**fresh.settings, "codec": "paper", "sets_seconds": 0.01}
    with nursery.engine(settings, model=str(other)) as engine:
        assert nursery.said().count(f"no set for {other} with preset paper: running lossless") == 1
        assert f"lexico train --model {other}" in nursery.said()
        first = engine.generate(ids)
        engine.settle()
        assert fresh.stored(base, ids) == 9

        with Client(
            reload=fresh.settings["reload"], offload=fresh.settings["offload"], timeouts=PATIENT
        ) as client:
            assert "lexico" in client.publish_dictionary(made, base)

        def taken() -> bool:
            engine.generate(prompts.apart[1][:100], max_tokens=1)
            return "set taken for" in nursery.said()

        wait_until(taken, "the set to be taken over")

        engine.reset()
        found = engine.generate(ids)  # of before, bit by bit, and stored as new pages are
        assert (found.tokens, found.cached) == (first.tokens, [LOADED])
        engine.settle()
        now = CacheSpec(
            weights=base.weights,
            geometry=geometry,
            codec=codec_named("paper"),
            dictionary=made.digest,
        )
        assert fresh.stored(now, ids) == 9
        engine.reset()
        assert engine.generate(ids).cached == [LOSSY]
    with nursery.engine(settings, model=str(other)) as engine:  # it has the set from its start
        assert engine.generate(ids).cached == [LOSSY]
