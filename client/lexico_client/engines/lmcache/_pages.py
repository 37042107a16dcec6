"""Objects of LMCache as pages: what they belong to, and what stands for their tokens.

LMCache names a chunk by a hash over all tokens up to its end. It tells neither the token ids nor
where in a prompt the chunk stands. So each chunk is a page that is a sequence of its own, and its
codec finds where it lies or needs not know it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_client._weights_files import fingerprint_files
from lexico_client.engines._hashed import hashed_pages
from lexico_client.engines.lmcache._config import AdapterConfig, SerdeConfig
from lexico_client.engines.lmcache._layout import Layout, ObjectShape, layout_of
from lexico_codec.codecs.lossless import LosslessCodec
from lexico_codec.geometry import DTYPES, Geometry
from lexico_codec.inputs import PageInputs
from lexico_codec.limits import MAX_PAGE_TOKENS
from lexico_codec.spec import CacheSpec, salt_bytes
from lexico_proto.errors import ConfigurationError, LexicoError, Unsupported
from lexico_proto.limits import DIGEST_BYTES

HASH_BYTES: Final = 32
"""Of blake3 and of sha256, which LMCache can be told to use. What it falls back to has 8, what is
fast and no cryptographic hash has 16."""
_LOOK_EVERY_S: Final = 5.0
"""Between two looks at a model's files: an engine takes longer to start."""
_FILES: Final = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.gguf")
"""Of a model's folder, those that say what its keys and values are."""
_SCHEME: Final = "lmcache"
_VLLM_HASHES: Final = "vllm.v1.core.kv_cache_utils"
"""Where LMCache has its hashes begin, unless they are blake3: at random without `_SEED`, in
releases that have no `_FIXED_SEED`."""
_SEED: Final = "PYTHONHASHSEED"
_FIXED_SEED: Final = "DEFAULT_NONE_HASH_SEED"
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


class ObjectKey(Protocol):
    """LMCache's name of an object."""

    @property
    def chunk_hash(self) -> bytes: ...
    @property
    def model_name(self) -> str: ...
    @property
    def kv_rank(self) -> int: ...
    @property
    def object_group_id(self) -> int: ...
    @property
    def cache_salt(self) -> str: ...


@dataclass(frozen=True)
class Page:
    """One object as a page."""

    spec: CacheSpec
    """While there is no set for the model: codec lossless."""
    token_ids: npt.NDArray[np.uint32]
    """As many as the chunk has, all zero."""
    inputs: PageInputs
    """What stands for them: a digest of the hash."""
    shape: ObjectShape
    is_slice: bool
    """Whether it is a rank's part of the model."""
    folder: str
    """Where the model's files are."""

    def elements(self, tensor: Tensor) -> Tensor:
        """The object's tensor in the element type of its cache: a view."""
        return tensor.view(self.spec.geometry.torch_dtype)


@dataclass(frozen=True)
class _Model:
    """What is known of a model by its files."""

    folder: str
    weights: bytes
    config: Any
    geometries: dict[torch.dtype, Geometry]
    files: Mapping[str, tuple[int, ...]]
    """What they were when they were read; none where a fingerprint was given."""

    def geometry(self, dtype: torch.dtype) -> Geometry:
        """Of the whole model."""
        if dtype not in self.geometries:
            from lexico_codec.hf_geometry import geometry_of  # transformers takes seconds

            self.geometries[dtype] = geometry_of(self.config, _NAMES[dtype])
        return self.geometries[dtype]


class Pages:
    """Makes pages of objects. Any thread may call it; the first call for a model may hash its
    files, which takes as long as to read them."""

    def __init__(self, settings: AdapterConfig | SerdeConfig) -> None:
        """
        Raises:
            ConfigurationError: naming the setting.
            LexicoError: the model that was named cannot be used.
        """
        self._settings = settings
        self.layout: Layout = layout_of(settings.layout, settings.block_tokens)
        self._reading = threading.Lock()
        self._lock = threading.Lock()
        self._models: dict[str, _Model | LexicoError] = {}
        self._looked: dict[str, float] = {}
        """When a model's files were last looked at."""
        self._specs: dict[tuple[Any, ...], CacheSpec] = {}
        if settings.model:
            self.model(settings.model)

    def page(self, key: ObjectKey, shape: Sequence[int], dtype: torch.dtype) -> Page:
        """The page of an object.

        Args:
            key: its name.
            shape, dtype: of its tensor.

        Raises:
            Unsupported, ConfigurationError: an object that cannot be shared, in one line.
        """
        if key.object_group_id != 0:
            raise Unsupported(
                f"object group {key.object_group_id}: only models whose layers all have full "
                "attention are covered"
            )
        _check_hash(key.chunk_hash)
        dtype = self._element_type(dtype)
        model = self.model(key.model_name)
        whole = model.geometry(dtype)
        found = self.layout.read_shape(shape, whole.head_dim)
        _check_slice(key.kv_rank, found, whole)
        spec = self._spec(model, whole, found, key.cache_salt)
        scheme = f"{_SCHEME} {key.kv_rank:08x}"
        token_ids, inputs = hashed_pages(scheme, [key.chunk_hash], found.tokens)
        return Page(spec, token_ids, inputs, found, is_slice(key.kv_rank), model.folder)

    def _element_type(self, dtype: torch.dtype) -> torch.dtype:
        """Of the cache that an object of a type is of."""
        given = DTYPES.get(self._settings.cache_dtype)
        if given is not None and dtype in (torch.uint8, given):
            return given
        if dtype.itemsize == 1:
            raise Unsupported(
                f"an object of {dtype}: where engines have caches in FP8, of scale 1, say with "
                "`cache_dtype` of which type"
            )
        if dtype not in _NAMES:
            raise Unsupported(f"an object of {dtype}: only {', '.join(DTYPES)} can be stored")
        return dtype

    def knows(self, name: str) -> bool:
        """Whether a model's files were looked at, and lately."""
        return name in self._models and time.monotonic() - self._looked[name] < _LOOK_EVERY_S

    def model(self, name: str) -> _Model:
        """What is known of a model.

        Args:
            name: as the engine was started with it.

        Raises:
            LexicoError: it is not the one that was named, or cannot be used.
        """
        if not self.knows(name):  # who knows it does not wait for who reads another
            with self._reading:
                if not self.knows(name):
                    try:
                        found = self._models.get(name)
                        if found is None:
                            self._models[name] = self._read(name)
                        elif isinstance(found, _Model):
                            self._check_same(name, found)
                    except LexicoError as error:
                        self._models[name] = error
                    self._looked[name] = time.monotonic()
        known = self._models[name]
        if isinstance(known, LexicoError):
            raise type(known)(known.message)
        return known

    def _read(self, name: str) -> _Model:
        settings = self._settings
        if settings.model and name != settings.model:
            raise Unsupported(f"model {name} is not the one that `model` names, {settings.model}")
        folder = _folder(settings.folder or name)
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(f"{folder}: its config cannot be read ({error})") from error
        if (weights := settings.weights_digest()) is not None:
            return _Model(str(folder), weights, config, {}, {})
        files = _stamped(folder)  # before they are read
        return _Model(str(folder), fingerprint_files(folder), config, {}, files)

    def _check_same(self, name: str, model: _Model) -> None:
        """
        Raises:
            Unsupported: the engines of that name have other weights by now, or will have.
        """
        try:
            folder = _folder(self._settings.folder or name)
            files = _stamped(folder)
        except (OSError, ConfigurationError):
            return
        # No engine starts with files that are gone.
        moved = str(folder) != model.folder or bool(files.items() - model.files.items())
        if model.files and moved:
            raise Unsupported(
                f"model {name}: its files changed since this server read them, and LMCache has one "
                "name for the caches of both: start the server again, with engines of one of them"
            )

    def _spec(
        self, model: _Model, whole: Geometry, shape: ObjectShape, cache_salt: str
    ) -> CacheSpec:
        key = (model.weights, whole.dtype, shape, cache_salt)
        with self._lock:
            if key not in self._specs:
                if len(self._specs) > 1024:  # as many callers as there are salts
                    self._specs.clear()
                self._specs[key] = CacheSpec(
                    weights=model.weights,
                    geometry=replace(whole, layers=shape.layers, kv_heads=shape.kv_heads),
                    codec=LosslessCodec(),
                    page_tokens=shape.tokens,
                    salt=_salt(self._settings.salt, cache_salt),
                )
            return self._specs[key]


def _stamped(folder: Path) -> dict[str, tuple[int, ...]]:
    """What tells of a change of a model's files: the name of each, and what it is.

    Raises:
        OSError: one cannot be looked at.
    """
    found = ((file, file.stat()) for name in _FILES for file in folder.glob(name))
    return {file.name: (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns) for file, at in found}


def _check_hash(chunk_hash: bytes) -> None:
    """
    Raises:
        Unsupported: prompts that differ could have one name, or equal ones have two.
    """
    if len(chunk_hash) != HASH_BYTES:
        raise Unsupported(
            f"a chunk hash of {len(chunk_hash)} bytes is of no cryptographic hash: prompts that "
            "differ could have one name; start LMCache with --hash-algorithm blake3"
        )
    hashes = sys.modules.get(_VLLM_HASHES)
    begun = hasattr(hashes, "NONE_HASH") and not hasattr(hashes, _FIXED_SEED)
    if begun and not os.environ.get(_SEED):
        raise Unsupported(
            "LMCache's chunk hashes begin with a random number of this process, so no other finds "
            f"them; start LMCache with --hash-algorithm blake3, or with {_SEED}=0 everywhere"
        )


def is_slice(kv_rank: int) -> bool:
    """Whether the ranks of an engine hold parts of a model: LMCache's rank begins with how many
    there are."""
    return kv_rank >> 24 > 1


def _check_slice(kv_rank: int, shape: ObjectShape, whole: Geometry) -> None:
    """
    Raises:
        Unsupported: an object that holds neither the model nor a rank's part of it.
    """
    mine, all_of_it = (shape.layers, shape.kv_heads), (whole.layers, whole.kv_heads)
    fits = (
        shape.layers <= whole.layers and whole.kv_heads % shape.kv_heads == 0
        if is_slice(kv_rank)
        else mine == all_of_it
    )
    if not fits or shape.tokens > MAX_PAGE_TOKENS:
        raise Unsupported(
            f"an object of {mine[0]} layers, {mine[1]} KV heads and {shape.tokens} tokens; the "
            f"model has {all_of_it[0]} layers and {all_of_it[1]} KV heads, and a page at most "
            f"{MAX_PAGE_TOKENS} tokens"
        )


def _folder(name: str) -> Path:
    """
    Raises:
        ConfigurationError: no folder, and nothing that was downloaded.
    """
    if os.path.isdir(name):
        return Path(name)
    from huggingface_hub import snapshot_download  # as engines find it; nothing is asked

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{name}: no folder, and no snapshot of a hub; give `model`, the engine's name of it, "
            f"and `folder`, where its files are ({error})"
        ) from error


def _salt(configured: str, cache_salt: str) -> bytes:
    """The configured salt alone, or a digest of it and the request's."""
    own = salt_bytes(configured)
    if not cache_salt:
        return own
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"lexico-lmc-salt")
    for part in (own, cache_salt.encode(errors="surrogatepass")):
        digest.update(struct.pack("<Q", len(part)) + part)
    return digest.digest()
