"""Settings: `adapter_params` of the L2 adapter, and the keys of the serde."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from lexico_client.engines._checked import CheckedSettings
from lexico_client.engines._settings import EngineSettings
from lexico_codec.geometry import DTYPES
from lexico_codec.presets import codec_named
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import DEFAULT_RECENT_TOKENS, salt_bytes
from lexico_codec.tensors import FLOAT8
from lexico_proto.errors import ConfigurationError

_OF_A_LOCK: Final = 0.9
"""Part of LMCache's locks that a call may take: they begin before it."""


@dataclass(frozen=True)
class AdapterConfig(EngineSettings):
    """Checked settings of the L2 adapter.

    Raises:
        ConfigurationError: one line that names the key.
    """

    where: ClassVar[str] = "adapter_params"

    codec: str = "lossless"
    """Preset or codec."""
    recent_tokens: int = DEFAULT_RECENT_TOKENS
    """Newest tokens of a prompt that are computed in any case, where the codec is lossy; rounded up
    to chunks."""
    layout: str = ""
    """How the engine keeps keys and values, a name of `_layout.LAYOUTS`; empty where LMCache has
    them apart."""
    block_tokens: int = 0
    """The engine's block size, for layout `vllm-cpu`."""
    cache_dtype: str = ""
    """`float8_e4m3fn` or `float8_e5m2`, of engines whose caches are in FP8 of scale 1: LMCache does
    not tell which it is, nor scales. Empty: objects in 8 bits are left alone."""
    model: str = ""
    """The engine's name of the model; others are left alone. Empty for any that is found by its
    name, as a folder or as a snapshot of a hub."""
    folder: str | None = None
    """Where the files of `model` are, if its name does not say it."""
    l1_read_ttl_seconds: float = 300.0
    l1_write_ttl_seconds: float = 600.0
    """The server's options of these names. LMCache locks objects for so long while they are stored
    and loaded; then it may put others in their place."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_model(self)
        self._told("codec", codec_named, self.codec, self.codec_config)
        self._check_range("recent_tokens", 1, None)
        for lock in ("l1_read_ttl_seconds", "l1_write_ttl_seconds"):
            self._check_seconds(lock)
        for call, lock in (("offload", "l1_read_ttl"), ("load", "l1_write_ttl")):
            seconds, locked = getattr(self, f"{call}_seconds"), getattr(self, f"{lock}_seconds")
            if not seconds <= _OF_A_LOCK * locked:
                option = f"--{lock.replace('_', '-')}-seconds"
                raise self._bad(
                    f"{call}_seconds",
                    f"{seconds:g}: LMCache locks an object for {locked:g} s, and then may put "
                    f"another in its place; give {_OF_A_LOCK * locked:g} at most, or a longer "
                    f"{option} to the server and {lock}_seconds here",
                )


@dataclass(frozen=True)
class SerdeConfig(CheckedSettings):
    """Checked settings of the serde, which calls no service.

    Raises:
        ConfigurationError: one line that names the key.
    """

    where: ClassVar[str] = "serde"

    codec: str = "lossless"
    """Preset or codec."""
    codec_config: Mapping[str, Any] | None = None
    """Parameters of a codec; a preset has its own."""
    dictionary: str | None = None
    """File of a dictionary set."""
    weights: str | None = None
    """Fingerprint of the weights as hex, in place of hashing the model's files."""
    salt: str = ""
    """Whatever else objects shall be kept apart by."""
    layout: str = ""
    block_tokens: int = 0
    cache_dtype: str = ""
    model: str = ""
    folder: str | None = None
    """These five as of the adapter."""
    max_workers: int = 1
    """Threads that code and decode."""
    padded_to: float = 1.0
    """Part of an object's bytes to which all are filled up, since adapters take back no fewer bytes
    than they ask for; what does not fit is not stored. 0 for as many as there are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("max_workers", 1, 64)
        if not 0 <= self.padded_to <= 2:
            raise self._bad("padded_to", "a part of 1, such as 0.8; or 0")
        self._told("salt", salt_bytes, self.salt)
        _check_model(self)

    def weights_digest(self) -> bytes | None:
        """The fingerprint that was given."""
        return None if self.weights is None else self.digest_of("weights", self.weights)

    def dictionary_file(self) -> DictionarySet | None:
        """The set that was given.

        Raises:
            ConfigurationError: it is no file.
            LexicoError: the file is no set.
        """
        if self.dictionary is None:
            return None
        if not os.path.isfile(self.dictionary):
            raise self._bad(
                "dictionary", f"{self.dictionary} is no file; the serde asks no service for a set"
            )
        return DictionarySet.load(self.dictionary)


def _check_model(settings: AdapterConfig | SerdeConfig) -> None:
    """Refuses what cannot be a block size, and what names files and not whose they are."""
    if settings.block_tokens < 0:
        raise ConfigurationError(f"{settings.where}: block_tokens: {settings.block_tokens} < 0")
    if settings.cache_dtype and DTYPES.get(settings.cache_dtype) not in FLOAT8:
        raise ConfigurationError(
            f"{settings.where}: cache_dtype: {settings.cache_dtype!r} is none of float8_e4m3fn, "
            "float8_e5m2; leave it out where caches are not in FP8"
        )
    for key in ("folder", "weights"):
        if getattr(settings, key) is not None and not settings.model:
            raise ConfigurationError(
                f"{settings.where}: {key}: give `model` with it, the engine's name of the model"
            )
    if settings.weights is not None:
        settings.weights_digest()
