"""What the backend of SGLang refuses at start: settings, models, ways to run them, releases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import AutoConfig, LlavaConfig

from lexico_client import fingerprint_files
from lexico_client.engines.sglang import _supported
from lexico_client.engines.sglang._config import SGLANGS, StorageConfig
from lexico_client.engines.sglang._metrics import Shown
from lexico_client.engines.sglang._model import EngineArgs, base_spec, check_engine
from lexico_client.engines.sglang._storage import hash_of
from lexico_codec.hf_geometry import geometry_of
from lexico_proto.errors import ConfigurationError, InvalidInput, LexicoError, Unsupported
from lexico_proto.metrics import ENGINE_PAGES, Metrics
from tests.support import sglang_interface
from tests.support.saved_model import save_tiny
from tests.support.sglang_pools import HostPool, started_with

HERE = {"reload": "127.0.0.1:7412", "codec": "lossless"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def arguments(folder: Path, **changes: Any) -> EngineArgs:
    return EngineArgs.of(started_with(folder, **changes).__getitem__)


def told(**changes: Any) -> Any:
    """`HiCacheStorageConfig`, of one rank that holds the model."""
    fields = {
        "tp_size": 1,
        "pp_size": 1,
        "attn_cp_size": 1,
        "dcp_size": 1,
        "is_mla_model": False,
        "tp_lcm_size": None,
    }
    return SimpleNamespace(**{**fields, **changes})


def pool(**changes: Any) -> HostPool:
    """That of the tiny model."""
    return HostPool(**{"layer_num": 2, "head_num": 2, "head_dim": 8, **changes})


def test_the_identity_is_of_the_folder(folder: Path) -> None:
    spec = base_spec(arguments(folder), pool(), StorageConfig.of(HERE))
    assert spec.weights == fingerprint_files(folder)
    assert spec.geometry == geometry_of(AutoConfig.from_pretrained(folder), "float32")
    assert (spec.codec.name, spec.page_tokens) == ("lossless", 16)
    salted = StorageConfig.of({**HERE, "salt": "x"})
    assert base_spec(arguments(folder), pool(), salted).namespace != spec.namespace
    halved = base_spec(arguments(folder), pool(dtype=torch.bfloat16), StorageConfig.of(HERE))
    assert halved.geometry.dtype == "bfloat16"


def test_a_folder_may_be_given_where_the_engine_names_another(folder: Path) -> None:
    settings = StorageConfig.of({**HERE, "model": str(folder)})
    spec = base_spec(arguments(folder, model_path="no/such-model"), pool(), settings)
    assert spec.weights == fingerprint_files(folder)


def test_keys_of_sglangs_own_are_passed_over() -> None:
    settings = StorageConfig.of({**HERE, **dict.fromkeys(SGLANGS, 1)})
    assert settings.reload == HERE["reload"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({}, "reload: missing"),
        ({"reload": "nowhere"}, "reload: .*host:port"),
        ({**HERE, "ofload": "h:1"}, "ofload: unknown; there are reload, offload"),
        ({**HERE, "page_tokens": 64}, "page_tokens: unknown"),
        ({**HERE, "concurrent_pages": 0}, "concurrent_pages: 0 is outside 1..256"),
        ({**HERE, "concurrent_pages": "8"}, "concurrent_pages: '8': an integer"),
        ({**HERE, "model": 7}, "model: 7: text"),
        ({**HERE, "without_set": "no"}, "without_set"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_its_key(extra: dict[str, Any], said: str) -> None:
    where = "hicache_storage_backend_extra_config"
    with pytest.raises(ConfigurationError, match=f"{where}: {said}") as refused:
        StorageConfig.of(extra)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tp_size": 2}, "tp_size=2: only an engine of one rank"),
        ({"pp_size": 4}, "pp_size=4"),
        ({"attn_cp_size": 2}, "attn_cp_size=2"),
        ({"dcp_size": 2}, "dcp_size=2"),
        ({"is_mla_model": True}, "latent"),
        ({"tp_lcm_size": 8}, "tp_lcm_size=8"),
    ],
)
def test_ranks_and_latent_caches_are_refused_in_one_line(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    check_engine(arguments(folder), told())
    with pytest.raises(Unsupported, match=said) as refused:
        check_engine(arguments(folder), told(**changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speculative_algorithm": "EAGLE"}, "speculative_algorithm=EAGLE"),
        ({"disaggregation_mode": "decode"}, "disaggregation_mode=decode"),
        ({"kv_cache_dtype": "mxfp8"}, "kv_cache_dtype=mxfp8: .* fp8_e4m3, fp8_e5m2, are covered"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "kv_cache_dtype=fp8_e4m3: a host pool of float32"),
        (
            {"kv_cache_dtype": "fp8_e5m2", "quantization": "w8a8_fp8"},
            "fp8_e5m2: quantised weights may bring scales",
        ),
        (
            {"kv_cache_dtype": "fp8_e4m3", "quantization_param_path": "scales.json"},
            "quantization_param_path: only caches of scale 1",
        ),
        ({"load_format": "dummy"}, "load_format=dummy"),
        ({"quantization": "fp8"}, "quantization=fp8: done while loading"),
        ({"json_model_override_args": '{"rope_theta": 1}'}, "json_model_override_args"),
        ({"model_path": "no/such-model"}, "no snapshot of a hub"),
    ],
)
def test_ways_to_run_a_model_that_are_not_covered_are_refused_in_one_line(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    def start(args: EngineArgs) -> None:
        check_engine(args, told())
        base_spec(args, pool(), StorageConfig.of(HERE))

    with pytest.raises(LexicoError, match=said) as refused:
        start(arguments(folder, **changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "found"), [("fp8_e4m3", "float8_e4m3fn"), ("fp8_e5m2", "float8_e5m2")]
)
def test_a_cache_in_eight_bits_has_pages_of_its_own(
    folder: Path, asked: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang's pool has its elements as bytes."""
    own = base_spec(arguments(folder), pool(), StorageConfig.of(HERE))
    args = arguments(folder, kv_cache_dtype=asked)
    spec = base_spec(args, pool(dtype=torch.uint8), StorageConfig.of(HERE))
    assert spec.geometry == replace(own.geometry, dtype=found)
    assert spec.namespace != own.namespace
    with pytest.raises(Unsupported, match="a cache of uint8"):
        base_spec(arguments(folder), pool(dtype=torch.uint8), StorageConfig.of(HERE))
    monkeypatch.setattr("torch.version.hip", "7.0")
    with pytest.raises(Unsupported, match="on ROCm it may be another type"):
        base_spec(args, pool(dtype=torch.uint8), StorageConfig.of(HERE))


def test_given_weights_are_taken_for_what_was_loaded(folder: Path) -> None:
    settings = StorageConfig.of({**HERE, "weights": "ab" * 32})
    assert base_spec(arguments(folder, load_format="dummy"), pool(), settings).weights == (
        b"\xab" * 32
    )


@pytest.mark.parametrize("changes", [{"layer_num": 3}, {"head_num": 1}, {"head_dim": 16}])
def test_a_pool_that_is_not_the_models_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="the host pool keeps"):
        base_spec(arguments(folder), pool(**changes), StorageConfig.of(HERE))


def test_pages_of_single_tokens_are_refused(folder: Path) -> None:
    with pytest.raises(Unsupported, match=r"page_size=1: .*--page-size 64"):
        base_spec(arguments(folder), pool(page_size=1), StorageConfig.of(HERE))


def test_arguments_that_are_gone_are_named() -> None:
    def read(name: str) -> str:
        raise ValueError(f"{name!r} is not a config leaf")

    with pytest.raises(Unsupported, match=r"not those of 0\.5\.23: 'model_path' is not"):
        EngineArgs.of(read)


def test_a_pool_of_another_type_is_refused(folder: Path) -> None:
    with pytest.raises(Unsupported, match="a cache of float8_e4m3fnuz"):
        base_spec(arguments(folder), pool(dtype=torch.float8_e4m3fnuz), StorageConfig.of(HERE))


def test_a_model_that_takes_pictures_is_refused(tmp_path: Path) -> None:
    LlavaConfig(text_config={"model_type": "llama"}).save_pretrained(tmp_path)
    settings = StorageConfig.of({**HERE, "weights": "ab" * 32})
    with pytest.raises(Unsupported, match="llava: a model that takes more than text"):
        base_spec(arguments(tmp_path), pool(), settings)


def test_a_key_is_a_hash_as_hex() -> None:
    assert hash_of("ab" * 32) == b"\xab" * 32
    with pytest.raises(InvalidInput, match="a hash as hex is expected"):
        hash_of("ab" * 32 + "_model_0_1")


def test_releases_before_the_interface_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    for version in ("0.5.22", "0.4.9", "dev"):
        with pytest.raises(Unsupported, match=version):
            _supported.check_version(version)
    _supported.check_version("0.5.23")
    assert not caplog.records
    _supported.check_version("0.5.24.post1")
    assert "newer than 0.5.23" in caplog.text


def base(**changes: Any) -> type:
    """A class with the methods that were recorded."""
    recorded = json.loads(_supported.INTERFACE.read_text())
    methods = {**recorded["methods"], **changes}
    namespace: dict[str, Any] = {}
    for name, parameters in methods.items():
        if parameters is not None:
            exec(f"def {name}({', '.join(parameters)}): ...", namespace)
    made = type("Base", (), {name: namespace[name] for name, p in methods.items() if p is not None})
    made.__abstractmethods__ = frozenset(recorded["abstract"])  # type: ignore[attr-defined]
    return made


def telling(fields: list[str]) -> type:
    """A dataclass that has no other fields."""
    from dataclasses import make_dataclass

    return make_dataclass("HiCacheStorageConfig", fields)


def test_an_interface_that_moved_is_refused_by_the_name_of_what_moved() -> None:
    (fields,) = json.loads(_supported.INTERFACE.read_text())["told"].values()
    _supported.check_interface(base(), [telling(fields)])
    for changes, said in (
        ({"batch_get_v1": None}, "batch_get_v1 is gone"),
        ({"exists": ["self", "name"]}, r"exists\(self, name\) was \(self, key\)"),
    ):
        with pytest.raises(Unsupported, match=said):
            _supported.check_interface(base(**changes), [telling(fields)])
    with pytest.raises(Unsupported, match=r"HiCacheStorageConfig\.tp_size is gone"):
        _supported.check_interface(base(), [telling([f for f in fields if f != "tp_size"])])
    newer = base()
    newer.__abstractmethods__ |= {"prefetch"}  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match="prefetch is new and must be there"):
        _supported.check_interface(newer, [telling(fields)])


def test_what_was_recorded_is_what_the_backend_has() -> None:
    recorded = json.loads(_supported.INTERFACE.read_text())
    ours = set(sglang_interface.overridden())
    assert set(recorded["methods"]) <= ours
    assert set(recorded["abstract"]) <= ours
    assert {name: tuple(fields) for name, fields in recorded["told"].items()} == (
        sglang_interface.TOLD
    )
    beside = {name for name in ours - set(recorded["methods"]) if not name.startswith("_")}
    assert beside == {"close"}


def test_counters_are_shown_beside_sglangs_own() -> None:
    registry, metrics = CollectorRegistry(), Metrics()
    shown = Shown(metrics, registry)
    metrics.counter(ENGINE_PAGES, "sent").add(3)
    shown.update()
    metrics.counter(ENGINE_PAGES, "sent").add(2)
    shown.update()
    shown.update()
    assert registry.get_sample_value(ENGINE_PAGES.name, {"outcome": "sent"}) == 5
