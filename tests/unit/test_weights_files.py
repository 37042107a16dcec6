"""Fingerprints of files: a folder's copy has the same, a changed byte another."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import torch
import xxhash
from safetensors.torch import save_file

from lexico_client import _fingerprint_cache, _weights_files, fingerprint_files
from lexico_proto.errors import ConfigurationError, Unsupported

CONFIG = {"model_type": "llama", "rms_norm_eps": 1e-6, "vision": {"hidden_size": 8}}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{i}.weight": torch.randn(5, 7, generator=generator) for i in range(4)}


def write_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    save_file(tensors(), made / "model.safetensors")
    write_config(made)
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_fingerprint_cache, "SETTLED_NS", -(1 << 62))
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were hashed."""
    found: list[str] = []
    real = _weights_files._hash

    def noted(file: Path, *rest: Any) -> str:
        found.append(file.name)
        return real(file, *rest)

    monkeypatch.setattr(_weights_files, "_hash", noted)
    return found


def shard(folder: Path) -> None:
    made = tensors()
    names = sorted(made)
    (folder / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for part, mine in enumerate((names[2:], names[:2]), 1):
        file = f"model-{part:05}-of-00002.safetensors"
        save_file({name: made[name] for name in mine}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(mine, file)
    index = {"weight_map": places, "metadata": {"total_size": 1}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def other_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights-of-may.safetensors")


def beside_the_index(folder: Path) -> None:
    """As Mistral ships them: the same again in a file that no index names."""
    shard(folder)
    save_file(tensors(1), folder / "consolidated.safetensors")


SAME: dict[str, Callable[[Path], object]] = {
    "readme": lambda folder: (folder / "README.md").write_text("about it"),
    "tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "config-of-another-form": lambda folder: (folder / "config.json").write_text(
        json.dumps(dict(reversed(CONFIG.items())), indent=4)
    ),
    "what-does-not-matter": lambda folder: write_config(
        folder, transformers_version="9", attention_dropout=0.5, use_cache=False, eos_token_id=3
    ),
    "shards": shard,
    "another-file-name": other_name,
    "beside-the-index": beside_the_index,
    "metadata": lambda folder: save_file(tensors(), folder / "model.safetensors", {"a": "b"}),
}


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def renamed(folder: Path) -> None:
    made = tensors()
    made["layers.9.weight"] = made.pop("layers.0.weight")
    save_file(made, folder / "model.safetensors")


OTHER: dict[str, Callable[[Path], object]] = {
    "a-byte": flip,
    "a-name": renamed,
    "a-shape": lambda folder: save_file(
        {name: tensor.reshape(7, 5) for name, tensor in tensors().items()},
        folder / "model.safetensors",
    ),
    "a-dtype": lambda folder: save_file(
        {name: tensor.view(torch.int32) for name, tensor in tensors().items()},
        folder / "model.safetensors",
    ),
    "eps": lambda folder: write_config(folder, rms_norm_eps=1e-5),
    "a-config-within": lambda folder: write_config(folder, vision={"hidden_size": 9}),
    "unknown-entry": lambda folder: write_config(folder, colour="red"),
    "another-architecture": lambda folder: write_config(folder, model_type="gemma"),
}


@pytest.mark.parametrize("name", [*SAME, *OTHER])
def test_what_a_fingerprint_depends_on(
    folder: Path, tmp_path: Path, cache: Path, name: str
) -> None:
    before = fingerprint_files(folder, cache_dir=cache)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert fingerprint_files(copy, cache_dir=cache) == before
    (SAME | OTHER)[name](copy)
    assert (fingerprint_files(copy, cache_dir=cache) == before) == (name in SAME)
    assert fingerprint_files(folder, cache_dir=cache) == before
    assert len(before) == 32


def test_a_file_and_its_folder_are_the_same(folder: Path, cache: Path) -> None:
    whole = fingerprint_files(folder, cache_dir=cache)
    assert fingerprint_files(folder / "model.safetensors", cache_dir=cache) == whole
    assert fingerprint_files(str(folder), cache_dir=str(cache)) == whole


def gguf(folder: Path, name: str, body: bytes) -> Path:
    path = folder / name
    path.write_bytes(b"GGUF" + body)
    return path


def test_gguf_counts_by_its_bytes(tmp_path: Path, cache: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    file = gguf(one, "model-q8.gguf", b"weights")
    whole = fingerprint_files(one, cache_dir=cache)
    assert fingerprint_files(file, cache_dir=cache) == whole
    file.rename(one / "other.gguf")
    assert fingerprint_files(one, cache_dir=cache) == whole
    gguf(one, "other.gguf", b"weightz")
    assert fingerprint_files(one, cache_dir=cache) != whole
    gguf(one, "second.gguf", b"weights")
    with pytest.raises(Unsupported, match="2 GGUF models"):
        fingerprint_files(one, cache_dir=cache)


def test_gguf_in_parts(tmp_path: Path, cache: Path) -> None:
    parts = [gguf(tmp_path, f"m-{i:05}-of-00003.gguf", bytes([i])) for i in (1, 2, 3)]
    whole = fingerprint_files(tmp_path, cache_dir=cache)
    assert fingerprint_files(parts[1], cache_dir=cache) == whole
    parts[2].unlink()
    with pytest.raises(ConfigurationError, match=r"m-00003-of-00003\.gguf is missing"):
        fingerprint_files(tmp_path, cache_dir=cache)


def test_a_file_is_read_once(folder: Path, cache: Path, read: list[str]) -> None:
    before = fingerprint_files(folder, cache_dir=cache)
    assert len(read) == 4
    assert fingerprint_files(folder, cache_dir=cache) == before
    assert len(read) == 4
    status = (folder / "model.safetensors").stat()
    flip(folder)
    os.utime(folder / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint_files(folder, cache_dir=cache) != before, "though its time was set back"


def test_a_write_through_a_memory_map_is_noticed(
    folder: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the file system keeps the times, as those in memory do."""
    file = folder / "model.safetensors"
    kept = file.stat()
    monkeypatch.setattr(os, "fstat", lambda _: kept)
    before = fingerprint_files(folder, cache_dir=cache)
    assert fingerprint_files(folder, cache_dir=cache) == before
    assert len(read) == 4
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[-4:] = bytes(byte ^ 1 for byte in mapped[-4:])
    assert fingerprint_files(folder, cache_dir=cache) != before


def test_a_sample_is_of_all_of_a_file(tmp_path: Path) -> None:
    size = 16 * 64 * 1024
    file = tmp_path / "weights"
    file.write_bytes(bytes(size))
    with file.open("r+b", buffering=0) as opened:
        seen = {_fingerprint_cache.sampled(opened.fileno(), size)}
        for part in range(16):
            os.pwrite(opened.fileno(), b"x", part * 64 * 1024 + 4095)
            seen.add(_fingerprint_cache.sampled(opened.fileno(), size))
    assert len(seen) == 17


def test_a_file_that_has_just_changed_is_not_kept(
    folder: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fingerprint_cache, "SETTLED_NS", 1 << 62)
    for _ in range(2):
        fingerprint_files(folder, cache_dir=tmp_path / "cache")
    assert len(read) == 8
    assert not (tmp_path / "cache").exists()


def test_a_file_whose_time_is_set_back_while_it_is_read(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is noticed by its bytes, and nothing is kept of it."""
    file, real = folder / "model.safetensors", _weights_files._safetensors_entries

    def disturbed(*args: Any) -> Any:
        found, status = real(*args), file.stat()
        flip(folder)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        return found

    monkeypatch.setattr(_weights_files, "_safetensors_entries", disturbed)
    with pytest.raises(ConfigurationError, match="was written to while it was read"):
        fingerprint_files(folder, cache_dir=cache)
    assert not list(cache.glob("*"))


def test_two_models_in_a_folder(folder: Path, cache: Path) -> None:
    """Engines do not agree which of them they load."""
    shard(folder)
    save_file(tensors(1), folder / "model.safetensors")
    with pytest.raises(Unsupported, match="holds two models"):
        fingerprint_files(folder, cache_dir=cache)
    assert len(fingerprint_files(folder / "model.safetensors", cache_dir=cache)) == 32


def test_a_cache_that_is_damaged_or_someone_elses(
    folder: Path, cache: Path, read: list[str]
) -> None:
    before = fingerprint_files(folder, cache_dir=cache)
    (kept,) = cache.glob("*.json")
    document = json.loads(kept.read_text())
    other = json.loads(kept.read_text())
    other["found"][0][3] = "0" * 32
    elsewhere = json.loads(kept.read_text()) | {"place": [0] * 5}
    for text in ("", "{", "[]", "null", "5", json.dumps(other), json.dumps(elsewhere),
                 json.dumps(document)[:-20], "\xff" * 100, '{"place": 1}'):  # fmt: skip
        kept.write_text(text)
        read.clear()
        assert fingerprint_files(folder, cache_dir=cache) == before
        assert len(read) == 4
    read.clear()
    assert fingerprint_files(folder, cache_dir=cache) == before
    assert not read


def test_without_a_home(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = fingerprint_files(folder, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: f"~/{name}")
    monkeypatch.chdir(tmp_path)
    assert fingerprint_files(folder) == before
    assert not (tmp_path / "~").exists()


def test_a_folder_that_cannot_be_written(folder: Path, cache: Path, tmp_path: Path) -> None:
    before = fingerprint_files(folder, cache_dir=cache)
    (tmp_path / "file").write_text("in the way")
    assert fingerprint_files(folder, cache_dir=tmp_path / "file") == before
    locked = tmp_path / "locked"
    locked.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    assert fingerprint_files(folder, cache_dir=locked) == before


def test_many_writers(folder: Path, cache: Path) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(fingerprint_files(folder, cache_dir=cache)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(list(cache.iterdir())) == 1, "whole files alone"


def test_the_cache_has_a_bound(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fingerprint_cache, "MAX_FILES", 3)
    for index in range(6):
        fingerprint_files(gguf(tmp_path, f"{index}.gguf", bytes([index])), cache_dir=cache)
    assert len(list(cache.iterdir())) == 3


def header(about: Any, data: bytes = b"1234") -> bytes:
    text = json.dumps(about).encode()
    return len(text).to_bytes(8, "little") + text + data


DAMAGED = {
    "empty": b"",
    "short": b"\1\0",
    "header-beyond-the-file": (1 << 60).to_bytes(8, "little") + b"{}",
    "no-json": (2).to_bytes(8, "little") + b"{[",
    "a-list": header([]),
    "no-offsets": header({"a": {"dtype": "F32", "shape": [1]}}),
    "beyond": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 5]}}),
    "backwards": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}),
    "text-offsets": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}),
    "negative": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 4]}}),
    "deep": len(b"[" * 50000).to_bytes(8, "little") + b"[" * 50000,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_that_are_none(folder: Path, cache: Path, name: str) -> None:
    (folder / "model.safetensors").write_bytes(DAMAGED[name])
    with pytest.raises(ConfigurationError, match=r"model\.safetensors"):
        fingerprint_files(folder, cache_dir=cache)


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def twice(folder: Path) -> None:
    other_name(folder)
    save_file(tensors(1), folder / "again.safetensors")


REFUSED: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "nothing": (lambda folder: (folder / "model.safetensors").unlink(), Unsupported, "neither"),
    "no-folder": (shutil.rmtree, ConfigurationError, "no such file or folder"),
    "no-config": (without_config, ConfigurationError, "config.json is missing"),
    "bad-config": (lambda f: (f / "config.json").write_text("{"), ConfigurationError, "no JSON"),
    "list-config": (lambda f: (f / "config.json").write_text("[]"), ConfigurationError, "object"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), Unsupported, "adapter"),
    "two-of-a-name": (twice, Unsupported, "two tensors of the name"),
    "bad-index": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}'),
        ConfigurationError,
        "another folder",
    ),
    "lost-shard": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}'),
        ConfigurationError,
        "cannot read",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_folders_that_are_refused(folder: Path, cache: Path, name: str) -> None:
    change, error, word = REFUSED[name]
    change(folder)
    with pytest.raises(error, match=word):
        fingerprint_files(folder, cache_dir=cache)


def test_the_hash_is_of_the_bytes_on_disk(folder: Path, cache: Path) -> None:
    found = _weights_files.read_weights(folder, cache).tensors
    for name, tensor in tensors().items():
        content = xxhash.xxh3_128_hexdigest(tensor.numpy().tobytes())
        assert found[name] == _weights_files.FileTensor("F32", (5, 7), content)
