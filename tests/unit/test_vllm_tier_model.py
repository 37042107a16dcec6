"""What the tier refuses at start, and what its chunks belong to."""

from __future__ import annotations

import json
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from lexico_client import fingerprint_files
from lexico_client.engines.vllm.tier import _supported
from lexico_client.engines.vllm.tier._config import TierConfig, tier_settings
from lexico_client.engines.vllm.tier._model import TierModel, model_of
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_proto.errors import ConfigurationError, LexicoError, Unsupported
from tests.support import vllm_tier_interface
from tests.support.saved_model import save_tiny
from tests.support.vllm_tiers import engine_told, told
from tests.unit.test_vllm_config import config as vllm_config

HERE = {"reload": "127.0.0.1:7412", "codec": "lossless"}
TINY = Geometry(layers=2, kv_heads=2, head_dim=8, dtype="float32")
VOUCHED = {"weights": "ab" * 32, "layout": "heads-first"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def made(folder: Path, engine: dict[str, Any] | None = None, **changes: Any) -> TierModel:
    """With the connector of ours, which tells of the engine."""
    settings = TierConfig.of({**HERE, **changes.pop("settings", {})})
    own = engine or {}
    here = {key: own.pop(key) for key in ("device", "lora", "algorithm") if key in own}
    return model_of(
        told(folder, TINY, **changes), engine_told(vllm_config(folder, **own), **here), settings
    )


def test_chunks_belong_to_the_files(folder: Path) -> None:
    model = made(folder)
    assert model.base.weights == fingerprint_files(folder)
    assert model.base.geometry == geometry_of(AutoConfig.from_pretrained(folder), "float32")
    assert (model.base.page_tokens, model.base.codec.name) == (32, "lossless")
    assert (model.shape.layout, model.shape.places) == ("heads-first", (0, 1))
    assert made(folder, settings={"salt": "x"}).base.namespace != model.base.namespace


def test_layers_count_by_their_numbers(folder: Path) -> None:
    spec = told(folder, TINY)
    spec.groups[0].layer_names = spec.groups[0].layer_names[::-1]
    engine = engine_told(vllm_config(folder))
    assert model_of(spec, engine, TierConfig.of(HERE)).shape.places == (1, 0)


def test_ranks_that_split_heads_share_with_one(folder: Path) -> None:
    ranks: dict[str, Any] = {
        "parallel__tp_size": 2,
        "parallel__world_size": 2,
        "canonical_layout": True,
    }
    model = made(folder, **ranks)
    assert model.base == made(folder).base
    assert model.shape.heads == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parallel__pp_size": 2}, "pp_size=2"),
        ({"parallel__dcp_size": 2}, "dcp_size=2"),
        ({"parallel__world_size": 2}, "world_size=2, of which tp_size=1"),
        ({"parallel__tp_size": 2, "parallel__world_size": 2}, 'give "canonical_layout": true'),
        (
            {"canonical_layout": True, "parallel__is_parallelism_agnostic": False},
            "blocks have none",
        ),
        ({"replicated_layout": True}, "no hybrid or latent"),
        ({"groups": ()}, "0 groups of caches"),
        ({"worker_kv_bytes_per_block": 4160}, "blocks of 4160 bytes: .*padded, quantised"),
        ({"block_tokens": 4}, "chunks of 8 tokens: .*block_size"),
        ({"cache__blocks_per_chunk": 257}, "chunks of 4112 tokens"),
        ({"kv_cache_layout": "BLHNC"}, "kv_cache_layout=BLHNC"),
    ],
)
def test_chunks_that_hold_no_whole_pages(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        made(folder, **changes)


def test_layers_that_the_model_does_not_have(folder: Path) -> None:
    """A drafter's, say."""
    spec = told(folder, TINY)
    spec.groups[0].layer_names = (*spec.groups[0].layer_names, "model.layers.2.attn")
    with pytest.raises(Unsupported, match=r"layers \[0, 1, 2\]"):
        model_of(spec, engine_told(vllm_config(folder)), TierConfig.of(HERE))


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"algorithm": "xxhash"}, "prefix_caching_hash_algo=xxhash: .*sha256_cbor"),
        ({"lora": object()}, "adapters_by_path"),
        ({"load__load_format": "dummy"}, "load_format=dummy"),
        ({"model__quantization": "fp8"}, "quantization=fp8: .*secondary_tiers: LexicoTier"),
        ({"model__hf_overrides": {"rope_theta": 1.0}}, "hf_overrides"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"cache__cache_dtype": "fp8_inc"}, "kv_cache_dtype=fp8_inc"),
        ({"cache__cache_dtype": "fp8"}, "blocks of 4096 bytes: .*float8_e4m3fn have 1024"),
    ],
)
def test_engines_whose_hashes_do_not_say_what_a_block_is(
    folder: Path, engine: dict[str, Any], said: str
) -> None:
    with pytest.raises((Unsupported, ConfigurationError), match=said) as refused:
        made(folder, engine=engine)
    assert "\n" not in str(refused.value)


def test_a_failure_policy_is_not_asked_for_and_adapters_may_be_known_by_path(folder: Path) -> None:
    engine = vllm_config(folder)
    engine.kv_transfer_config.kv_load_failure_policy = "fail"
    settings = TierConfig.of({**HERE, "adapters_by_path": True})
    model_of(told(folder, TINY), engine_told(engine, lora=object()), settings)


def test_a_tier_that_is_told_nothing_needs_the_users_word(folder: Path) -> None:
    for given in ({}, {"weights": "ab" * 32}, {"layout": "heads-first"}):
        with pytest.raises(ConfigurationError, match="LexicoOffloadingConnector"):
            model_of(told(folder, TINY), None, TierConfig.of({**HERE, **given}))
    model = model_of(told(folder, TINY), None, TierConfig.of({**HERE, **VOUCHED}))
    assert model.base.weights == bytes.fromhex("ab" * 32)
    hub = told("some/model", TINY)
    with pytest.raises(ConfigurationError, match="model: some/model is no folder"):
        model_of(hub, None, TierConfig.of({**HERE, **VOUCHED}))
    own = TierConfig.of({**HERE, **VOUCHED, "model": str(folder)})
    assert model_of(hub, None, own).base == model.base


def test_a_cache_in_eight_bits_takes_the_connector_of_ours(folder: Path) -> None:
    """Which sees whether its elements were divided by scales."""
    eight = replace(TINY, dtype="float8_e4m3fn")
    named = told(folder, eight, model__dtype="fp8")
    engine = engine_told(vllm_config(folder, cache__cache_dtype="fp8"))
    model = model_of(named, engine, TierConfig.of(HERE))
    own = geometry_of(AutoConfig.from_pretrained(folder), "float8_e4m3fn")
    assert (model.base.geometry, model.shape.dtype) == (own, torch.float8_e4m3fn)
    with pytest.raises(Unsupported, match=r"kv_cache_dtype=fp8: .* take LexicoOffloadingConnector"):
        model_of(named, None, TierConfig.of({**HERE, **VOUCHED}))


def test_a_model_that_takes_pictures_is_refused(folder: Path) -> None:
    engine = engine_told(vllm_config(folder))

    class Whole:
        model_type = "pictures"

        def get_text_config(self, decoder: bool) -> object:
            return AutoConfig.from_pretrained(folder)

    engine.model_config.hf_config = Whole()
    with pytest.raises(Unsupported, match="pictures: a model that takes more than text"):
        model_of(told(folder, TINY), engine, TierConfig.of(HERE))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({}, "secondary_tiers: LexicoTier: reload: missing"),
        ({**HERE, "codek": "near"}, "codek: unknown"),
        ({**HERE, "layout": "mine"}, "layout: 'mine' is none of heads-first"),
        ({**HERE, "locality": "HERE"}, "locality: 'HERE'"),
        ({**HERE, "adapters_by_path": 1}, "adapters_by_path: 1: true or false"),
    ],
)
def test_settings_that_cannot_be_used(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        TierConfig.of(extra)


def test_tiers_are_a_list() -> None:
    for wrong in ({"type": "LexicoTier"}, "LexicoTier", 5):
        with pytest.raises(ConfigurationError, match="secondary_tiers: a list"):
            tier_settings({"secondary_tiers": wrong})


def test_only_tiers_of_ours_are_looked_at() -> None:
    entry = {"type": "LexicoTier", "module_path": "lexico_client.engines.vllm", "backpressure": {}}
    extra = {"secondary_tiers": [{"type": "fs", "root_dir": "/x"}, {**entry, **HERE}]}
    assert tier_settings(extra) == [TierConfig.of(HERE)]
    assert tier_settings({}) == []


class Base:
    """A class of vLLM's that has moved."""

    def lookup(self, key: Any) -> None: ...


def test_an_interface_that_moved_is_refused_by_name() -> None:
    moved = type("SecondaryTierManager", (Base,), {})
    job = make_dataclass("TransferJob", ["keys", "chunk_ids"])
    with pytest.raises(Unsupported, match=r"submit_store is gone.*; TransferJob.job_id is gone$"):
        _supported.check_tier_interface((moved,), (job,))
    with pytest.raises(Unsupported) as refused:
        _supported.check_tier_interface((moved,), ())
    assert "TransferJob" not in str(refused.value), "what is not asked about is not missed"


def test_every_method_of_ours_is_recorded() -> None:
    recorded = json.loads(_supported.INTERFACE.read_text())
    assert recorded["told"] == {
        name: list(parts) for name, parts in vllm_tier_interface.TOLD.items()
    }
    for name, (file, ours) in vllm_tier_interface.CLASSES.items():
        mine = {
            each
            for each in vllm_tier_interface.overridden(file, ours)
            if each == "__init__" or not each.startswith("_")
        }
        assert mine == set(recorded["classes"][name]["methods"])
        assert set(recorded["classes"][name]["abstract"]) <= mine


def test_errors_are_ours(folder: Path) -> None:
    """Whatever the engine is, it ends with one line of our tree."""
    with pytest.raises(LexicoError):
        model_of(told(folder, TINY, groups=()), None, TierConfig.of({**HERE, **VOUCHED}))
    assert torch.float32 == TINY.torch_dtype
