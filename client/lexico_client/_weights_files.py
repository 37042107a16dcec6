"""The identity of weights as they lie on disk: what every engine that loads a folder agrees on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import xxhash

from lexico_client._config_meaning import meaning
from lexico_client._fingerprint_cache import FingerprintCache, default_folder, sampled
from lexico_proto.errors import ConfigurationError, Unsupported
from lexico_proto.limits import DIGEST_BYTES

_INDEX: Final = "model.safetensors.index.json"
_WHOLE: Final = "model.safetensors"
_PART: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MAX_HEADER_BYTES: Final = 100_000_000  # as in the safetensors library
_MAX_JSON_BYTES: Final = 64 << 20
_CHUNK_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class FileTensor:
    """A tensor as a safetensors file has it."""

    dtype: str
    """As the format calls it, for example `BF16`."""
    shape: tuple[int, ...]
    content: str
    """XXH3-128 of its bytes, as hex."""


@dataclass(frozen=True)
class WeightsFiles:
    """The weights of one model on disk."""

    files: tuple[Path, ...]
    tensors: Mapping[str, FileTensor]
    """By name; empty for GGUF, whose tensors are not looked at one by one."""
    fingerprint: bytes
    """What `fingerprint_files` gives."""


def fingerprint_files(
    path: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None
) -> bytes:
    """Fingerprint of a model's weights as they lie on disk, 32 bytes: `CacheSpec.weights`.

    A folder of safetensors counts by its tensors, whatever files hold them: name, dtype, shape and
    the XXH3-128 of the bytes of each, and the entries of config.json that keys and values depend
    on. GGUF counts by the bytes of its file or files, whatever their names. Other files, such as
    tokenizers, do not matter. The hash of a file is kept in the user's cache folder until its
    device, inode, size, times or a sample of its bytes change. Writes of a few numbers through a
    memory map may leave all of these as they are: a file of weights is replaced, not written to.

    Two engines that load the same folder agree. What an engine does while loading (another dtype,
    quantisation, an adapter) is not in it: the dtype of the cache is in the geometry, the rest goes
    into `lora` or `salt`.

    Args:
        path: a model folder, such as a snapshot of the Hugging Face hub, or one weights file in it.
        cache_dir: where hashes are kept, in place of the user's cache folder.

    Raises:
        ConfigurationError: no such path, a file that cannot be read or changes meanwhile, or one
            that is no safetensors file.
        Unsupported: a folder with an adapter in it, with several models, or with none in these
            formats.
    """
    return read_weights(Path(path), None if cache_dir is None else Path(cache_dir)).fingerprint


def read_weights(path: Path, cache_dir: Path | None = None) -> WeightsFiles:
    """The weights at a path; raises as `fingerprint_files`."""
    cache = FingerprintCache(default_folder() if cache_dir is None else cache_dir)
    try:
        folder, files = _files_of(path)
        if files[0].suffix == ".gguf":
            return _read_gguf(files, cache)
        return _read_safetensors(folder, files, cache)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read ({error.strerror or error})") from error


def _files_of(path: Path) -> tuple[Path, tuple[Path, ...]]:
    """The folder, and the files that hold the weights."""
    if path.is_file():
        if path.suffix == ".gguf":
            return path.parent, _gguf_parts(path)
        if path.suffix == ".safetensors":
            return path.parent, (path,)
        raise Unsupported(f"{path}: neither safetensors nor GGUF")
    if not path.is_dir():
        raise ConfigurationError(f"{path}: no such file or folder")
    if (path / "adapter_config.json").exists():
        raise Unsupported(f"{path} holds an adapter: give the folder of the model alone")
    if (path / _INDEX).is_file():
        names = _json_object(path / _INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise ConfigurationError(f"{path / _INDEX}: no weight_map")
        parts = sorted({str(name) for name in names.values()})
        if any(Path(part).name != part for part in parts):
            raise ConfigurationError(f"{path / _INDEX}: names files of another folder")
        if _WHOLE not in parts and all((path / name).is_file() for name in (_WHOLE, *parts)):
            # transformers loads the whole, other engines what the index names.
            raise Unsupported(f"{path} holds two models, {_WHOLE} and that of {_INDEX}: remove one")
        return path, tuple(path / part for part in parts)
    if (path / _WHOLE).is_file():
        return path, (path / _WHOLE,)
    found = tuple(sorted(path.glob("*.safetensors")))
    if found:
        return path, found
    ggufs = sorted(path.glob("*.gguf"))
    models = {_gguf_parts(gguf) for gguf in ggufs}
    if len(models) > 1:
        raise Unsupported(f"{path} holds {len(models)} GGUF models: name the file of one")
    if models:
        return path, models.pop()
    raise Unsupported(f"{path}: neither safetensors nor GGUF in it")


def _gguf_parts(path: Path) -> tuple[Path, ...]:
    part = _PART.fullmatch(path.name)
    if part is None:
        return (path,)
    stem, _, count = part.groups()
    parts = tuple(
        path.with_name(f"{stem}-{index:05}-of-{count}.gguf") for index in range(1, int(count) + 1)
    )
    missing = [each.name for each in parts if not each.is_file()]
    if missing:
        raise ConfigurationError(f"{path.parent}: {missing[0]} is missing")
    return parts


def _read_gguf(files: tuple[Path, ...], cache: FingerprintCache) -> WeightsFiles:
    entries = sorted(entry for file in files for entry in _entries(file, cache, _gguf_entries, 2))
    return WeightsFiles(files, {}, _fingerprint("gguf", entries, {}))


def _read_safetensors(
    folder: Path, files: tuple[Path, ...], cache: FingerprintCache
) -> WeightsFiles:
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"{folder}: config.json is missing")
    try:
        config = meaning(_json_object(folder / "config.json"))
    except RecursionError as error:
        raise ConfigurationError(f"{folder}: config.json is nested too deep") from error
    tensors: dict[str, FileTensor] = {}
    for file in files:
        for name, dtype, shape, content in _entries(file, cache, _safetensors_entries, 4):
            tensor = FileTensor(dtype, tuple(shape), content)
            if tensors.setdefault(name, tensor) != tensor:
                raise Unsupported(f"{folder}: two tensors of the name {name}: name one file")
    entries = [
        [name, each.dtype, list(each.shape), each.content] for name, each in sorted(tensors.items())
    ]
    return WeightsFiles(files, tensors, _fingerprint("safetensors", entries, config))


def _fingerprint(kind: str, entries: list[list[Any]], config: Mapping[str, Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"lexico-files")
    for document in (kind, config, *entries):
        # Not `canonical_json`: configs of models may hold NaN and infinity.
        line = json.dumps(document, sort_keys=True, separators=(",", ":"))
        digest.update(line.encode() + b"\n")
    return digest.digest()


_Reader = Callable[[Path, IO[bytes], int], list[list[Any]]]


def _entries(file: Path, cache: FingerprintCache, read: _Reader, width: int) -> list[list[Any]]:
    """What a file holds, in entries of so many values."""
    with file.open("rb", buffering=0) as stream:
        before = os.fstat(stream.fileno())
        sample = sampled(stream.fileno(), before.st_size)
        known = cache.get(before, sample)
        if known is not None and _is_sound(known, width):
            entries: list[list[Any]] = known
            return entries
        entries = read(file, stream, before.st_size)
        after = os.fstat(stream.fileno())
        moved = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
        if moved or sampled(stream.fileno(), before.st_size) != sample:
            raise ConfigurationError(f"{file} was written to while it was read: try again")
    cache.put(
        before, sample, entries
    )  # not `after`: a time of writing may have been set back meanwhile
    return entries


def _is_sound(entries: Any, width: int) -> bool:
    return isinstance(entries, list) and all(
        isinstance(entry, list) and len(entry) == width for entry in entries
    )


def _gguf_entries(file: Path, stream: IO[bytes], size: int) -> list[list[Any]]:
    if stream.read(4) != b"GGUF":
        raise ConfigurationError(f"{file}: no GGUF file")
    return [[size, _hash(file, stream, 0, size)]]


def _safetensors_entries(file: Path, stream: IO[bytes], size: int) -> list[list[Any]]:
    """Name, dtype, shape and hash of each tensor; the format: safetensors README, "Format"."""
    head = stream.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
    if length > min(_MAX_HEADER_BYTES, size - 8):
        raise ConfigurationError(f"{file}: no safetensors file")
    try:
        header = json.loads(_exactly(file, stream, length))
        header.pop("__metadata__", None)
        entries = []
        for name, about in header.items():
            first, last = about["data_offsets"]
            if not 0 <= first <= last <= size - 8 - length:
                raise ConfigurationError(f"{file}: {name} ends outside the file")
            content = _hash(file, stream, 8 + length + first, last - first)
            entries.append([name, str(about["dtype"]), [int(n) for n in about["shape"]], content])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigurationError(f"{file}: no safetensors file ({error})") from error
    return entries


def _hash(file: Path, stream: IO[bytes], start: int, length: int) -> str:
    found, memory = xxhash.xxh3_128(), memoryview(bytearray(min(_CHUNK_BYTES, length)))
    stream.seek(start)
    while length:
        count = stream.readinto(memory[:length])  # type: ignore[attr-defined]
        if not count:
            raise ConfigurationError(f"{file} ends early")
        found.update(memory[:count])
        length -= count
    return found.hexdigest()


def _exactly(file: Path, stream: IO[bytes], length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = stream.read(length - len(data))
        if not piece:
            raise ConfigurationError(f"{file} ends early")
        data += piece
    return bytes(data)


def _json_object(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        text = file.read(_MAX_JSON_BYTES + 1)
    try:
        document = json.loads(text) if len(text) <= _MAX_JSON_BYTES else None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: no JSON ({error})") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: no JSON object")
    return document
