"""Objects of LMCache as pages: where keys and values lie, whose they are, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from lexico_client import fingerprint_files
from lexico_client.engines._counts import Counts
from lexico_client.engines.lmcache import _pages, _supported
from lexico_client.engines.lmcache._config import AdapterConfig, SerdeConfig
from lexico_client.engines.lmcache._layout import layout_of
from lexico_client.engines.lmcache._log import LOG
from lexico_client.engines.lmcache._pages import Page, Pages
from lexico_client.engines.lmcache._tasks import Tasks
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.keys import page_keys
from lexico_proto.errors import ConfigurationError, LexicoError, Unsupported
from tests.support import lmcache_interface
from tests.support.lmcache_fakes import (
    BLOCK_TOKENS,
    HEAD_DIM,
    OBJECTS,
    key_of,
    keys_first,
    page_of,
    side_by_side,
)
from tests.support.saved_model import save_tiny

HERE = {"reload": "127.0.0.1:7412"}
TWO_RANKS = 2 << 24 | 2 << 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pages() -> Pages:
    return Pages(AdapterConfig.of(HERE))


def identity(page: Page) -> bytes:
    return page_keys(page.spec, page.token_ids, page.inputs)[0]


@pytest.mark.parametrize("tokens", [8, 24, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", OBJECTS)
def test_every_layout_gives_the_same_keys_and_values(
    kind: str, dtype: torch.dtype, tokens: int
) -> None:
    name, made = OBJECTS[kind]
    layout = layout_of(name, BLOCK_TOKENS)
    page = page_of(tokens, layers=3, tokens=tokens, heads=5, dtype=dtype)
    found = made(page)
    shape = layout.read_shape(found.shape, HEAD_DIM)
    assert (shape.layers, shape.tokens, shape.kv_heads) == (3, tokens, 5)
    read = layout.pages(found, shape)
    assert torch.equal(read, page)
    assert (read.untyped_storage().data_ptr() == found.untyped_storage().data_ptr()) is (
        layout.in_place
    )
    target = torch.full_like(found, float("nan"))
    room = layout.room(target, shape)
    room.copy_(page)
    if not layout.in_place:
        layout.put(room, target, shape)
    assert torch.equal(target, found)


def test_an_object_of_another_layout_is_refused_and_not_read() -> None:
    for name, shape in (
        ("", (2, 24, 32)),
        ("", (1, 2, 24, 32)),
        ("", (2, 2, 24, 33)),
        ("side-by-side", (2, 2, 24, 32)),
        ("side-by-side", (2, 24, 24)),
        ("vllm-cpu", (2, 20, 32)),
        ("vllm-cpu", (2, 0, 32)),
        ("keys-first", ()),
    ):
        with pytest.raises(Unsupported, match="the setting `layout` is one of keys-first") as told:
            layout_of(name, BLOCK_TOKENS).read_shape(shape, HEAD_DIM)
        assert "\n" not in str(told.value)
    with pytest.raises(ConfigurationError, match="layout: 'rows' is none of"):
        layout_of("rows", 0)
    with pytest.raises(ConfigurationError, match="block_tokens: layout vllm-cpu needs"):
        layout_of("vllm-cpu", 0)


def test_a_page_is_of_the_models_files_(folder: Path, pages: Pages) -> None:
    page = pages.page(key_of(str(folder)), keys_first(page_of()).shape, torch.float32)
    spec = page.spec
    assert spec.weights == fingerprint_files(folder)
    assert spec.geometry == geometry_of(AutoConfig.from_pretrained(folder), "float32")
    assert (spec.codec.name, spec.page_tokens) == ("lossless", 24)
    assert len(page.token_ids) == 24
    assert not page.token_ids.any()


def test_whatever_makes_objects_differ_makes_pages_differ(folder: Path, pages: Pages) -> None:
    shape = keys_first(page_of()).shape
    made = [
        pages.page(key_of(str(folder)), shape, torch.float32),
        pages.page(key_of(str(folder), 1), shape, torch.float32),
        pages.page(key_of(str(folder), cache_salt="a"), shape, torch.float32),
        pages.page(key_of(str(folder), cache_salt="b"), shape, torch.float32),
        pages.page(key_of(str(folder)), shape, torch.bfloat16),
        pages.page(key_of(str(folder)), (2, 2, 48, 16), torch.float32),
        pages.page(key_of(str(folder), kv_rank=TWO_RANKS), shape, torch.float32),
        pages.page(key_of(str(folder), kv_rank=TWO_RANKS | 1 << 16), shape, torch.float32),
        Pages(AdapterConfig.of({**HERE, "salt": "a"})).page(
            key_of(str(folder)), shape, torch.float32
        ),
    ]
    assert len({identity(page) for page in made}) == len(made)
    again = pages.page(key_of(str(folder)), shape, torch.float32)
    assert identity(again) == identity(made[0])


def test_objects_in_eight_bits_are_of_the_type_that_is_named(folder: Path, pages: Pages) -> None:
    """LMCache has a vLLM's as bytes: which of the types they are, and of which scale, it does not
    tell."""
    shape, key = keys_first(page_of()).shape, key_of(str(folder))
    found = {}
    for name in ("float8_e4m3fn", "float8_e5m2"):
        told = Pages(AdapterConfig.of({**HERE, "cache_dtype": name}))
        page = told.page(key, shape, torch.uint8)
        assert page.spec.geometry.dtype == name
        assert identity(told.page(key, shape, getattr(torch, name))) == identity(page)
        usual = told.page(key, shape, torch.bfloat16)
        assert identity(usual) == identity(pages.page(key, shape, torch.bfloat16))
        found[name] = identity(page)
        other = torch.float8_e5m2 if name == "float8_e4m3fn" else torch.float8_e4m3fn
        with pytest.raises(Unsupported, match="`cache_dtype` of which type"):
            told.page(key, shape, other)
    assert len(set(found.values())) == 2


def test_one_layout_or_another_is_the_same_page(folder: Path, pages: Pages) -> None:
    packed = Pages(AdapterConfig.of({**HERE, "layout": "side-by-side"}))
    key = key_of(str(folder))
    one = pages.page(key, keys_first(page_of()).shape, torch.float32)
    other = packed.page(key, side_by_side(page_of()).shape, torch.float32)
    assert identity(one) == identity(other)


def test_the_parts_of_a_model_that_ranks_hold_are_kept_apart(folder: Path, pages: Pages) -> None:
    part = page_of(heads=1)
    page = pages.page(key_of(str(folder), kv_rank=TWO_RANKS), keys_first(part).shape, torch.float32)
    assert page.is_slice
    assert page.spec.geometry.kv_heads == 1
    with pytest.raises(Unsupported, match="an object of 2 layers, 1 KV heads"):
        pages.page(key_of(str(folder)), keys_first(part).shape, torch.float32)


@pytest.mark.parametrize(
    ("changes", "shape", "dtype", "said"),
    [
        ({"object_group_id": 1}, None, None, "object group 1: only models"),
        ({"chunk_hash": b"x" * 8}, None, None, "of 8 bytes .* --hash-algorithm blake3"),
        ({"chunk_hash": b"x" * 16}, None, None, "of 16 bytes .* --hash-algorithm blake3"),
        ({"chunk_hash": b""}, None, None, "of 0 bytes"),
        ({}, None, torch.float64, "an object of torch.float64: only float32"),
        ({}, None, torch.uint8, "an object of torch.uint8: .* in FP8, .* `cache_dtype`"),
        ({}, None, torch.float8_e4m3fn, "an object of torch.float8_e4m3fn: .* `cache_dtype`"),
        ({}, None, torch.float8_e4m3fnuz, "float8"),
        ({}, (2, 3, 24, 16), None, "an object of 3 layers"),
        ({}, (2, 2, 24, 24), None, "3 KV heads"),
        ({}, (2, 2, 5000, 16), None, "at most 4096 tokens"),
        ({"kv_rank": TWO_RANKS}, (2, 2, 24, 32), None, "4 KV heads"),
        ({"kv_rank": TWO_RANKS}, (2, 3, 24, 8), None, "3 layers"),
        ({"model_name": "no/such-model"}, None, None, "no/such-model: no folder, and no snap"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_one_line(
    folder: Path, pages: Pages, changes: dict[str, Any], shape: Any, dtype: Any, said: str
) -> None:
    shape = shape or keys_first(page_of()).shape
    for _ in range(2):  # what is known of a model is kept
        with pytest.raises(LexicoError, match=said) as refused:
            pages.page(key_of(str(folder), **changes), shape, dtype or torch.float32)
        assert "\n" not in str(refused.value)


def test_hashes_that_begin_at_random_are_refused(
    folder: Path, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType(_pages._VLLM_HASHES)
    monkeypatch.setitem(sys.modules, _pages._VLLM_HASHES, module)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    asked = (key_of(str(folder)), keys_first(page_of()).shape, torch.float32)
    pages.page(*asked)  # vLLM is imported, and makes no hashes
    module.NONE_HASH = b"random"  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match="or with PYTHONHASHSEED=0 everywhere"):
        pages.page(*asked)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    pages.page(*asked)
    monkeypatch.delenv("PYTHONHASHSEED")
    module.DEFAULT_NONE_HASH_SEED = "fixed"  # type: ignore[attr-defined]
    pages.page(*asked)


def test_a_model_that_is_named_is_looked_at_when_the_server_starts(folder: Path) -> None:
    named = {**HERE, "model": "served", "folder": str(folder), "weights": "ab" * 32}
    pages = Pages(AdapterConfig.of(named))
    shape = keys_first(page_of()).shape
    assert pages.page(key_of("served"), shape, torch.float32).spec.weights == b"\xab" * 32
    with pytest.raises(Unsupported, match="not the one that `model` names, served"):
        pages.page(key_of(str(folder)), shape, torch.float32)
    with pytest.raises(ConfigurationError, match="no folder, and no snapshot"):
        Pages(AdapterConfig.of({**HERE, "model": "no/such-model"}))


def test_a_model_whose_files_change_under_its_name_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMCache tells the name alone: pages of the one would be stored as the other's."""
    monkeypatch.setattr(_pages, "_LOOK_EVERY_S", 0.0)
    folder, shape = save_tiny(tmp_path / "m"), keys_first(page_of()).shape
    key, weights = key_of(str(folder)), folder / "model.safetensors"
    pages = Pages(AdapterConfig.of(HERE))
    before = pages.page(key, shape, torch.float32)
    kept = weights.read_bytes()
    weights.unlink()
    assert identity(pages.page(key, shape, torch.float32)) == identity(before)
    weights.write_bytes(kept[:-4] + bytes(4))
    os.utime(weights, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(Unsupported, match=r"files changed .* start the server again"):
            pages.page(key, shape, torch.float32)
    after = Pages(AdapterConfig.of(HERE)).page(key, shape, torch.float32)
    assert identity(after) != identity(before)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({}, "reload: missing"),
        ({**HERE, "lay_out": "x"}, "lay_out: unknown; there are reload"),
        ({**HERE, "cache_dtype": "fp8"}, "cache_dtype: 'fp8' is none of float8_e4m3fn"),
        ({**HERE, "cache_dtype": "bfloat16"}, "cache_dtype: 'bfloat16' is none of"),
        ({**HERE, "folder": "/f"}, "folder: give `model` with it"),
        ({**HERE, "weights": "ab" * 32}, "weights: give `model` with it"),
        ({**HERE, "block_tokens": -1}, "block_tokens: -1 < 0"),
        ({**HERE, "layout": 4}, "layout: 4: text"),
        ({**HERE, "codec": "balancd"}, "codec: codec 'balancd': this build has presets"),
        ({**HERE, "codec_config": {"sparsity": 8}}, "codec: "),
        (
            {**HERE, "codec": "lexico", "codec_config": {"sparsty": 8}},
            "codec: codec lexico: its parameters are",
        ),
        ({**HERE, "load_seconds": 10**400}, "load_seconds: a positive"),
        ({**HERE, "l1_read_ttl_seconds": 10**400}, "l1_read_ttl_seconds: a positive"),
        (
            {**HERE, "offload_seconds": 300},
            "offload_seconds: 300: LMCache locks an object for 300 s",
        ),
        ({**HERE, "load_seconds": 541}, "load_seconds: 541: .* give 540 at most"),
        (
            {**HERE, "l1_read_ttl_seconds": 60},
            "offload_seconds: 120: .*longer --l1-read-ttl-seconds",
        ),
    ],
)
def test_a_bad_setting_of_the_adapter_names_its_key(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"adapter_params: {said}"):
        AdapterConfig.of(extra)


def test_calls_take_no_longer_than_lmcache_locks_their_objects() -> None:
    """Later another object may lie where one is read or written."""
    longer = {"offload_seconds": 600, "load_seconds": 600}
    made = AdapterConfig.of(
        {**HERE, **longer, "l1_read_ttl_seconds": 700, "l1_write_ttl_seconds": 700}
    )
    assert made.offload_seconds == made.load_seconds == 600


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"reload": "h:1"}, "reload: unknown; there are codec"),
        ({"padded_to": 3}, "padded_to: a part of 1"),
        ({"padded_to": "all"}, "padded_to: 'all': a number"),
        ({"max_workers": 0}, "max_workers: 0"),
        ({"folder": "/f"}, "folder: give `model` with it"),
        ({"model": "m", "weights": "zz"}, "weights: 'zz' is no digest"),
        ({"salt": "x" * 300}, "salt: "),
    ],
)
def test_a_bad_setting_of_the_serde_names_its_key(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"serde: {said}"):
        SerdeConfig.of(extra)


def test_releases_before_the_interface_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    for version in ("0.5.5", "0.4.9", "dev"):
        with pytest.raises(Unsupported, match=version):
            _supported.check_version(version)
    _supported.check_version("0.5.7")
    assert not caplog.records
    _supported.check_version("0.6.0")
    assert "newer than 0.5.6" in caplog.text


def base(name: str, **changes: Any) -> type:
    """A class with the methods that were recorded."""
    recorded = json.loads(_supported.INTERFACE.read_text())["classes"][name]
    namespace: dict[str, Any] = {}
    methods = {**recorded["methods"], **changes}
    for method, parameters in methods.items():
        if parameters is not None:
            exec(f"def {method}({', '.join(parameters)}): ...", namespace)
    made = type("Base", (), {each: namespace[each] for each, p in methods.items() if p is not None})
    made.__abstractmethods__ = frozenset(recorded["abstract"])  # type: ignore[attr-defined]
    return made


def test_an_interface_that_moved_is_refused_by_the_name_of_the_method() -> None:
    for name in lmcache_interface.OURS:
        _supported.check_interface(name, base(name))
    for changes, said in (
        ({"submit_unlock": None}, "submit_unlock is gone"),
        ({"submit_lookup_and_lock_task": ["self", "keys"]}, r"was \(self, keys, group_layout_d"),
    ):
        with pytest.raises(Unsupported, match=said):
            _supported.check_interface("L2AdapterInterface", base("L2AdapterInterface", **changes))
    newer = base("Serializer")
    newer.__abstractmethods__ |= {"serialize_batch"}  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match=r"Serializer .*serialize_batch is new"):
        _supported.check_interface("Serializer", newer)


@pytest.mark.parametrize("name", lmcache_interface.OURS)
def test_every_method_of_ours_is_recorded_and_takes_what_lmcache_gives(name: str) -> None:
    recorded = json.loads(_supported.INTERFACE.read_text())["classes"][name]
    ours = {each for each in lmcache_interface.overridden(name) if not each.startswith("_")}
    assert set(recorded["abstract"]) <= ours == set(recorded["methods"])
    for method, parameters in recorded["methods"].items():
        assert lmcache_interface.parameters(name, method) == parameters


def test_a_result_is_fetched_once_and_told_of() -> None:
    told: list[int] = []
    tasks: Tasks[str] = Tasks("load", lambda: told.append(1), Counts(LOG))
    other: Tasks[str] = Tasks("load", lambda: told.append(2), Counts(LOG))
    first, second, third = tasks.begin("f"), tasks.begin("f"), other.begin("f")
    assert len({first, second, third}) == 3
    assert (tasks.take(first), tasks.under_way) == (None, 2)
    tasks.end(second, "b")
    tasks.end(first, "a")
    other.end(third, "c")
    assert told == [1, 1, 2]
    assert (tasks.take(first), tasks.take(first), tasks.under_way) == ("a", None, 0)
    assert (tasks.take_all(), tasks.take_all()) == ({second: "b"}, {})
    last = tasks.begin("f")
    tasks.close()
    tasks.end(last, "d")
    assert (told, tasks.take(last)) == ([1, 1, 2], None)
