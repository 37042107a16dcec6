"""What the connector refuses at start: settings, models, ways to run them, and releases of vLLM."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import make_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from lexico_client import InMemoryTransport, fingerprint_files
from lexico_client.engines._coding import coding_of
from lexico_client.engines._service import Service
from lexico_client.engines.vllm import _supported
from lexico_client.engines.vllm._coded import set_at_hand
from lexico_client.engines.vllm._config import ConnectorConfig
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._model import spec_of
from lexico_client.engines.vllm._ranks import Rank, rank_of
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.sets.dictionary import AtomSet
from lexico_proto.errors import ConfigurationError, LexicoError, Unsupported
from tests.support import vllm_interface
from tests.support.client_fixtures import small_dictionary
from tests.support.saved_model import save_tiny
from tests.support.vllm_ranks import rank_caches, rank_config

HERE = {"reload": "127.0.0.1:7412", "codec": "lossless"}
FP8 = {"cache__cache_dtype": "fp8"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


class FullAttentionSpec(SimpleNamespace):
    """As vLLM calls it: of one rank."""


class MLAAttentionSpec(SimpleNamespace):
    """Another kind."""


def caches(kind: Any = FullAttentionSpec, layers: int = 2, groups: int = 1, **changes: Any) -> Any:
    fields = {"num_kv_heads": 2, "head_size": 8, "dtype": torch.float32, "sliding_window": None}
    names = [f"model.layers.{i}.self_attn.attn" for i in range(layers)]
    group = SimpleNamespace(layer_names=names, kv_cache_spec=kind(**{**fields, **changes}))
    return SimpleNamespace(kv_cache_groups=[group] * groups)


def config(folder: Path, **changes: Any) -> Any:
    """A `VllmConfig`; changes are `part__field`."""
    made = SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        model_config=SimpleNamespace(
            model=str(folder),
            revision=None,
            hf_config=AutoConfig.from_pretrained(folder),
            dtype=torch.float32,
            quantization=None,
            hf_overrides={},
        ),
        load_config=SimpleNamespace(load_format="auto"),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        kv_transfer_config=SimpleNamespace(kv_load_failure_policy="recompute"),
        speculative_config=None,
    )
    for name, value in changes.items():
        part, _, field = name.partition("__")
        setattr(getattr(made, f"{part}_config") if field else made, field or part, value)
    return made


def test_the_identity_is_that_of_every_engine_that_loads_the_folder(folder: Path) -> None:
    spec = spec_of(config(folder), caches(), ConnectorConfig.of(HERE))
    assert spec.weights == fingerprint_files(folder)
    assert spec.geometry == geometry_of(AutoConfig.from_pretrained(folder), "float32")
    assert (spec.codec.name, spec.dictionary) == ("lossless", b"")
    salted = ConnectorConfig.of({**HERE, "salt": "x", "page_tokens": 32})
    assert spec_of(config(folder), caches(), salted).namespace != spec.namespace


@pytest.mark.parametrize(
    ("asked", "found"),
    [("fp8", "float8_e4m3fn"), ("fp8_e4m3", "float8_e4m3fn"), ("fp8_e5m2", "float8_e5m2")],
)
def test_a_cache_in_eight_bits_has_pages_of_its_own(folder: Path, asked: str, found: str) -> None:
    """vLLM says that its elements are bytes; what the model computes in counts for nothing."""
    own = spec_of(config(folder), caches(), ConnectorConfig.of(HERE))
    for dtype in (torch.float32, torch.bfloat16):
        made = config(folder, cache__cache_dtype=asked, model__dtype=dtype)
        spec = spec_of(made, caches(dtype=torch.uint8), ConnectorConfig.of(HERE))
        assert spec.geometry == replace(own.geometry, dtype=found)
        assert spec.namespace != own.namespace
    with pytest.raises(Unsupported, match="'uint8'"):
        spec_of(config(folder), caches(dtype=torch.uint8), ConnectorConfig.of(HERE))


def test_a_dictionary_set_is_a_file_or_a_digest(folder: Path, tmp_path: Path) -> None:
    made = small_dictionary(layers=2, head_dim=8, kv_heads=2)
    file = tmp_path / "set.safetensors"
    made.save(file)
    for given in (str(file), made.digest.hex()):
        settings = ConnectorConfig.of({**HERE, "codec": "lexico", "dictionary": given})
        spec = spec_of(config(folder), caches(), settings)
        with closing(Service(settings.client(InMemoryTransport()), "vllm", LOG)) as service:
            coding = coding_of(service, settings, spec, str(folder), known_positions=True)
        assert coding.spec(spec).dictionary == made.digest
        found = set_at_hand(settings, spec)
        assert isinstance(found, AtomSet) is (given == str(file))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({}, "reload: missing"),
        ({"reload": "nowhere"}, "reload: .*host:port"),
        ({"reload": 7412}, "reload: 7412: text"),
        ({**HERE, "offload": "x"}, "offload: "),
        ({**HERE, "ofload": "h:1"}, "ofload: unknown; there are reload, offload"),
        ({**HERE, "page_tokens": 0}, "page_tokens: 0 is outside"),
        ({**HERE, "page_tokens": True}, "page_tokens: True: an integer"),
        ({**HERE, "recent_tokens": "64"}, "recent_tokens: '64': an integer"),
        ({**HERE, "match_seconds": 0}, "match_seconds: a positive"),
        ({**HERE, "load_seconds": 10**400}, "load_seconds: a positive .* 1000000 at most"),
        ({**HERE, "load_seconds": float("nan")}, "load_seconds: a positive"),
        ([], "an object with keys"),
        ({**HERE, "match_seconds": "2"}, "match_seconds: '2': a number"),
        ({**HERE, "staging_bytes": -1}, "staging_bytes: -1 is outside"),
        ({**HERE, "threads": 0}, "threads: 0"),
        ({**HERE, "tls": 1}, "tls: 1: true or false"),
        ({**HERE, "codec_config": []}, "codec_config: .*an object"),
        ({**HERE, "weights": "zz"}, "weights: 'zz' is no digest"),
        ({**HERE, "weights": "00"}, "weights: 1 bytes"),
        ({**HERE, "salt": "x" * 300}, "salt: "),
        ({**HERE, "salt": "\ud800"}, "salt: .*UTF-8"),
        ({**HERE, "tls_ca": "\ud800"}, "tls_ca: .*UTF-8"),
        ({**HERE, "token_file": "a\0b"}, "token_file: .*NUL"),
        ({**HERE, "page_tokens": 1.5}, "page_tokens: 1.5: an integer"),
        ({**HERE, "without_set": "guess"}, "without_set: without_set='guess': lossless or refuse"),
        ({**HERE, "sets_seconds": 0}, "sets_seconds: a positive"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_its_key(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"kv_connector_extra_config: {said}") as refused:
        ConnectorConfig.of(extra)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"token_file": "/nowhere"}, "token_file: /nowhere cannot be read"),
        ({"tls_ca": "/nowhere"}, "tls_ca, tls_certificate, tls_key: "),
        ({"tls_certificate": "/nowhere"}, "belong together"),
    ],
)
def test_files_that_are_not_there_are_named(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        ConnectorConfig.of({**HERE, **extra}).client()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"codec": "zip"}, "codec: codec 'zip'"),
        ({"codec": "near", "without_set": "refuse"}, "codec: preset near needs a set trained with"),
        ({"codec": "lexico", "dictionary": "zz"}, "dictionary: 'zz' is no digest"),
    ],
)
def test_a_codec_that_cannot_serve_the_model_is_named(
    folder: Path, extra: dict[str, Any], said: str
) -> None:
    settings = ConnectorConfig.of({**HERE, **extra})
    spec = spec_of(config(folder), caches(), settings)
    with (
        closing(Service(settings.client(InMemoryTransport()), "vllm", LOG)) as service,
        pytest.raises(ConfigurationError, match=said),
    ):
        coding_of(service, settings, spec, str(folder), known_positions=True)
    if settings.without_set == "lossless":  # else there is a set to be asked for
        with pytest.raises(ConfigurationError, match=said):
            set_at_hand(settings, spec)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parallel__decode_context_parallel_size": 2}, "decode_context.*some of the tokens"),
        ({"parallel__prefill_context_parallel_size": 2}, "prefill_context"),
        ({"parallel__tensor_parallel_size": 3}, "tensor_parallel_size=3: 2 KV heads cannot"),
        ({"speculative": None, "speculative_config": object()}, "speculative"),
        ({"cache__cache_dtype": "fp8_inc"}, "kv_cache_dtype=fp8_inc: .* fp8, fp8_e4m3, fp8_e5m2"),
        ({"cache__cache_dtype": "fp8_per_token_head"}, "kv_cache_dtype=fp8_per_token_head"),
        ({"cache__cache_dtype": "bfloat16"}, "kv_cache_dtype=bfloat16: only .* the model's own"),
        ({**FP8, "cache__calculate_kv_scales": True}, "calculate_kv_scales: .* of its own"),
        ({**FP8, "cache__kv_cache_dtype_skip_layers": ["0", "1"]}, "skip_layers=0,1: .* one dtype"),
        (FP8, r"\(2, 2, 8, 'float32'\).* says \(2, 2, 8, 'float8_e4m3fn'\)"),
        ({"model__is_encoder_decoder": True}, "encoder-decoder"),
        ({"kv_transfer__kv_load_failure_policy": "fail"}, '"kv_load_failure_policy": "recompute"'),
        ({"load__load_format": "dummy"}, "load_format=dummy"),
        ({"model__quantization": "fp8"}, "quantization=fp8: done while loading"),
        ({"model__hf_overrides": {"rope_theta": 1}}, "hf_overrides"),
        ({"model__model": "no/such-model"}, "no snapshot of a hub"),
    ],
)
def test_ways_to_run_a_model_that_are_not_covered_are_refused_in_one_line(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(LexicoError, match=said) as refused:
        spec_of(config(folder, **changes), caches(), ConnectorConfig.of(HERE))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("tensor", "pipeline", "held"),
    [
        (1, 1, caches()),
        (2, 1, caches(num_kv_heads=1)),
        (4, 1, caches(num_kv_heads=1)),
        (1, 2, caches(layers=1)),
        (2, 2, caches(layers=1, num_kv_heads=1)),
    ],
)
def test_ranks_have_the_identity_of_the_whole_model(
    folder: Path, tensor: int, pipeline: int, held: Any
) -> None:
    whole = spec_of(config(folder), caches(), ConnectorConfig.of(HERE))
    ranks = config(
        folder,
        parallel__tensor_parallel_size=tensor,
        parallel__pipeline_parallel_size=pipeline,
    )
    assert spec_of(ranks, held, ConnectorConfig.of(HERE)) == whole


def test_a_rank_with_other_heads_than_its_share_is_refused(folder: Path) -> None:
    ranks = config(folder, parallel__tensor_parallel_size=2)
    with pytest.raises(Unsupported, match="KV heads"):
        spec_of(ranks, caches(), ConnectorConfig.of(HERE))


def test_ranks_send_to_one_ingress(folder: Path) -> None:
    several = ConnectorConfig.of({**HERE, "offload": "ipv4:10.0.0.1:7411,10.0.0.2:7411"})
    spec_of(config(folder), caches(), several)
    ranks = config(folder, parallel__tensor_parallel_size=2)
    with pytest.raises(ConfigurationError, match=r"offload: .* 2 ranks must send .* to one"):
        spec_of(ranks, caches(num_kv_heads=1), several)


@pytest.mark.parametrize(
    ("kv_heads", "tensor", "pipeline", "rank", "heads", "sends"),
    [
        (8, 1, 1, 0, range(0, 8), True),
        (8, 4, 1, 3, range(6, 8), True),
        (8, 4, 2, 5, range(2, 4), True),  # of the second stage
        (2, 4, 1, 0, range(0, 1), True),
        (2, 4, 1, 1, range(0, 1), False),
        (2, 4, 1, 2, range(1, 2), True),
        (1, 3, 1, 2, range(0, 1), False),
    ],
)
def test_a_rank_knows_its_heads(
    kv_heads: int, tensor: int, pipeline: int, rank: int, heads: range, sends: bool
) -> None:
    stage = range(3, 7) if rank >= tensor else range(0, 3)
    whole = Geometry(7 if pipeline == 2 else 3, kv_heads, 8)
    found = rank_of(rank_config(tensor, pipeline, rank), rank_caches(stage, len(heads)), whole)
    assert found == Rank(stage, heads, sends)


def test_layers_of_a_rank_follow_one_another() -> None:
    made = rank_caches(range(3), 1)
    del made.kv_cache_groups[0].layer_names[1]
    with pytest.raises(Unsupported, match=r"layers \[0, 2\]"):
        rank_of(rank_config(1, 2, 0), made, Geometry(4, 1, 8))


def test_given_weights_are_taken_for_what_was_loaded(folder: Path) -> None:
    settings = ConnectorConfig.of({**HERE, "weights": "ab" * 32})
    changed = config(folder, load__load_format="dummy", model__model="no/such-model")
    assert spec_of(changed, caches(), settings).weights == b"\xab" * 32


@pytest.mark.parametrize(
    "made",
    [
        caches(groups=2),
        caches(MLAAttentionSpec),
        caches(sliding_window=512),
        caches(attention_chunk_size=64),
        caches(layers=1),
        caches(num_kv_heads=1),
        caches(head_size=16),
        caches(head_size_v=16),
        caches(dtype=torch.bfloat16),
    ],
    ids=["hybrid", "mla", "window", "chunks", "layers", "heads", "dim", "values", "dtype"],
)
def test_caches_that_are_not_covered_are_refused(folder: Path, made: Any) -> None:
    with pytest.raises(Unsupported) as refused:
        spec_of(config(folder), made, ConnectorConfig.of(HERE))
    assert "\n" not in str(refused.value)


def test_releases_before_the_interface_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    for version in ("0.31.2", "0.9.0", "dev"):
        with pytest.raises(Unsupported, match=version):
            _supported.check_version(version)
    _supported.check_version("0.32.1+cpu")
    assert not caplog.records
    _supported.check_version("0.33.0")
    assert "newer than 0.32" in caplog.text


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


def test_an_interface_that_moved_is_refused_by_the_name_of_the_method() -> None:
    _supported.check_interface(base())
    for changes, said in (
        ({"wait_for_save": None}, "wait_for_save is gone"),
        ({"get_finished": ["self", "ids"]}, r"get_finished\(self, ids\) was \(self, finished"),
    ):
        with pytest.raises(Unsupported, match=said):
            _supported.check_interface(base(**changes))
    newer = base()
    newer.__abstractmethods__ |= {"prefetch"}  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match="prefetch is new"):
        _supported.check_interface(newer)


def test_a_field_that_moved_is_refused_by_its_name() -> None:
    """It would be missed in the middle of a step; or a request's picture would not be seen."""
    recorded = json.loads(_supported.INTERFACE.read_text())["told"]
    assert "mm_features" in recorded["Request"]

    def told(**gone: str) -> list[type]:
        made = []
        for name, parts in recorded.items():
            fields = [part for part in parts if part != gone.get(name)]
            if name == "Request":  # no dataclass: its constructor sets them
                lines = "".join(f"\n  self.{part} = None" for part in fields)
                namespace: dict[str, Any] = {}
                exec(f"class {name}:\n def __init__(self):{lines}", namespace)
                made.append(namespace[name])
            else:
                made.append(make_dataclass(name, fields))
        return made

    _supported.check_told(told())
    for name, part in (("SchedulerOutput", "preempted_req_ids"), ("Request", "prompt_embeds")):
        with pytest.raises(Unsupported, match=rf"{name}\.{part} is gone"):
            _supported.check_told(told(**{name: part}))
    with pytest.raises(Unsupported, match="Request is gone"):
        _supported.check_told(told()[:-1])


def test_what_is_read_of_a_request_and_a_step_is_recorded() -> None:
    recorded = json.loads(_supported.INTERFACE.read_text())["told"]
    assert {name: tuple(parts) for name, parts in recorded.items()} == vllm_interface.TOLD
    read = set(vllm_interface.read_of("request", "Request"))
    assert read <= set(recorded["Request"])
    assert set(vllm_interface.read_of("step", "Step")) <= set(recorded["SchedulerOutput"])


def test_every_method_of_the_connector_that_vllm_has_is_recorded() -> None:
    recorded = json.loads(_supported.INTERFACE.read_text())
    ours = set(vllm_interface.overridden())
    assert set(recorded["abstract"]) <= ours
    assert set(recorded["methods"]) - ours == set(vllm_interface.CALLED)
    unknown = {name for name in ours - set(recorded["methods"]) if not name.startswith("_")}
    assert unknown == {"requires_kv_delivery"}  # a property
