"""Cache files: there and back, and nothing but our errors for whatever else a file may be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lexico_client.cache_file import METADATA_KEY, CacheFile
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, Shard, make_spec
from lexico_proto.errors import ConfigurationError, LexicoError, ShapeMismatch, Unsupported
from tests.support.client_fixtures import small_spec

NO_LIMITS = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def cache(spec: CacheSpec, tokens: int, inputs: tuple[bytes, ...] = ()) -> CacheFile:
    g, generator = spec.geometry, torch.Generator().manual_seed(tokens)
    shape = (tokens, g.kv_heads, g.head_dim)
    rows = [torch.randn(shape, generator=generator).to(g.torch_dtype) for _ in range(2 * g.layers)]
    ids = np.arange(tokens, dtype=np.uint32) + (1 << 31)
    return CacheFile(spec, ids, rows[: g.layers], rows[g.layers :], inputs)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "one.safetensors"
    cache(small_spec(), 19, (b"", b"d" * 32)).write(path)
    return path


@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([2, 7, 16]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    tokens=st.integers(0, 21),
    page_tokens=st.integers(1, 8),
    salt=st.text(max_size=8),
)
@NO_LIMITS
def test_what_is_written_is_read(
    tmp_path: Path,
    layers: int,
    heads: int,
    head_dim: int,
    dtype: str,
    tokens: int,
    page_tokens: int,
    salt: str,
) -> None:
    spec = make_spec(
        weights=bytes(range(32)),
        geometry=Geometry(layers, heads, head_dim, dtype),
        codec="raw",
        page_tokens=page_tokens,
        salt=salt,
    )
    made, path = cache(spec, tokens), tmp_path / "one.safetensors"
    made.write(path)
    read = CacheFile.read(path)
    assert read.spec == spec
    assert read.token_ids.tolist() == made.token_ids.tolist()
    for mine, theirs in zip((*made.keys, *made.values), (*read.keys, *read.values), strict=True):
        assert torch.equal(mine, theirs)
    again = tmp_path / "two.safetensors"
    read.write(again)
    assert again.read_bytes() == path.read_bytes()


def test_inputs_and_pages_are_kept(written: Path) -> None:
    read = CacheFile.read(written)
    assert (read.pages, read.tokens, read.inputs) == (2, 19, (b"", b"d" * 32))
    part = read.view()(1, 2)
    assert torch.equal(part.read()[0, 1], read.values[4][8:16])
    leading = read.leading(8)
    assert (leading.pages, leading.inputs) == (1, ())


@given(data=st.data())
@NO_LIMITS
def test_bytes_that_are_altered_are_read_as_something_or_refused(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "one.safetensors"
    if not path.exists():
        cache(small_spec(), 17).write(path)
        (tmp_path / "sound").write_bytes(path.read_bytes())
    raw = bytearray((tmp_path / "sound").read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(header, len(raw)) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.none(), st.integers(0, len(raw))))
    path.write_bytes(bytes(raw[:end]))
    try:
        read = CacheFile.read(path)
    except LexicoError as error:
        said = error.message
    else:
        assert all(len(part) == read.tokens for part in (*read.keys, *read.values))
        said = str(path)
    assert str(path) in said


@given(st.binary(max_size=200))
@NO_LIMITS
def test_any_bytes(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(raw)
    with pytest.raises(LexicoError):
        CacheFile.read(path)


def _less(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    del tensors["layers.3.values"]


def _more(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["layers.5.keys"] = tensors["layers.0.keys"].clone()


def _short(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["token_ids"] = tensors["token_ids"][:-1].clone()


def _wide(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["layers.0.keys"] = tensors["layers.0.keys"].float()


def _negative(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["token_ids"][3] = -1


def _floating(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["token_ids"] = tensors["token_ids"].double()


def _newer(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    about["format"] = 2


def _no_spec(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    del about["spec"]


def _other_spec(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    about["spec"]["geometry"]["kvHeads"] = 7


def _deep(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    about["spec"] = json.loads("[" * 300 + "]" * 300)


def _odd_inputs(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    about["inputs"] = ["00"]


def _no_list(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    about["inputs"] = 7


def _huge(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    about["more"] = "x" * (1 << 20)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_less, "keys and values of 5 layers"),
        (_more, "keys and values of 5 layers"),
        (_short, "must be"),
        (_wide, "layers.0.keys must be F16"),
        (_negative, "token ids"),
        (_floating, "token_ids must be I64"),
        (_newer, "this build reads format 1"),
        (_no_spec, "no cache file of ours"),
        (_other_spec, "one.safetensors"),
        (_deep, "no JSON of a spec"),
        (_odd_inputs, "32 bytes"),
        (_no_list, "no cache file of ours"),
        (_huge, "bytes of metadata"),
    ],
)
def test_files_that_do_not_fit_themselves(
    written: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], said: str
) -> None:
    from safetensors import safe_open

    with safe_open(written, "pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    tensors = load_file(written)
    change(tensors, about)
    save_file(tensors, written, {METADATA_KEY: json.dumps(about)})
    with pytest.raises(LexicoError, match=r"one\.safetensors") as refusal:
        CacheFile.read(written)
    assert said in refusal.value.message


def test_other_safetensors_and_other_places(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(LexicoError, match="no cache file of ours"):
        CacheFile.read(path)
    with pytest.raises(ConfigurationError, match="cannot read"):
        CacheFile.read(tmp_path / "none.safetensors")
    with pytest.raises(ConfigurationError, match="cannot read"):
        CacheFile.read(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot write"):
        cache(small_spec(), 3).write(tmp_path / "no folder" / "x.safetensors")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["weights.safetensors"]


def test_caches_that_are_no_files(tmp_path: Path) -> None:
    spec = small_spec()
    made = cache(spec, 9)
    with pytest.raises(ShapeMismatch, match="keys of 4"):
        CacheFile(spec, made.token_ids, made.keys[:4], made.values)
    with pytest.raises(ShapeMismatch, match="needs"):
        CacheFile(spec, made.token_ids[:5], made.keys, made.values)
    slice_of = make_spec(
        weights=bytes(32),
        geometry=Geometry(1, 1, 8),
        codec="raw",
        shard=Shard(0, 2, 0, 1),
        group_layers=1,
    )
    with pytest.raises(Unsupported):
        CacheFile(slice_of, made.token_ids, made.keys, made.values)
