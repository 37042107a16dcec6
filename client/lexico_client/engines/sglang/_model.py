"""What pages of an engine's model belong to, from SGLang's own arguments and its host pool.

Nothing here imports the engine: its objects are read by their attributes. Whatever would make keys
and values other than the model's files say, or a pool hold other than whole pages, is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

import torch

from lexico_client._weights_files import fingerprint_files
from lexico_client.engines.sglang._config import StorageConfig
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.presets import codec_named
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import ConfigurationError, LexicoError, Unsupported

MIN_PAGE_TOKENS: Final = 16
"""Each page is a sequence, a call and a value of the store of its own: smaller ones cost more than
they give."""
_LOADED_AS_IT_IS: Final = ("auto", "safetensors", "pt", "fastsafetensors", "runai_streamer")
"""Load formats that bring the tensors of the files."""
_FLOAT8: Final = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
"""`kv_cache_dtype` → element type of the cache."""
_HINT: Final = "; give `weights` in the extra config if you know what they are"


@dataclass(frozen=True)
class EngineArgs:
    """What SGLang was started with, as it resolved it: fields are named as its arguments."""

    model_path: str
    revision: str | None
    load_format: Any
    quantization: str | None
    kv_cache_dtype: str
    quantization_param_path: str | None
    json_model_override_args: str | None
    speculative_algorithm: str | None
    disaggregation_mode: str | None

    @classmethod
    def of(cls, read: Callable[[str], Any]) -> Self:
        """
        Args:
            read: gives an argument by its name.

        Raises:
            Unsupported: one that is not there.
        """
        try:
            return cls(**{field.name: read(field.name) for field in fields(cls)})
        except (ValueError, AttributeError) as error:
            raise Unsupported(
                f"this sglang's arguments are not those of 0.5.23: {error}"
            ) from error


def check_engine(args: EngineArgs, told: Any) -> None:
    """Refuses ways to run a model that are not covered.

    Args:
        args: of the engine.
        told: `HiCacheStorageConfig`.

    Raises:
        Unsupported: in one line.
    """
    for name in ("tp_size", "pp_size", "attn_cp_size", "dcp_size"):
        if getattr(told, name) > 1:
            raise Unsupported(
                f"{name}={getattr(told, name)}: only an engine of one rank is covered, which holds "
                "whole pages; run one, or leave --hicache-storage-backend out"
            )
    if told.is_mla_model:
        raise Unsupported("a latent (MLA) or compressed cache is not covered yet")
    if told.tp_lcm_size:
        raise Unsupported(f"tp_lcm_size={told.tp_lcm_size}: pages cut by heads are not covered")
    if args.speculative_algorithm:
        raise Unsupported(
            f"speculative_algorithm={args.speculative_algorithm}: not covered: leave it or "
            "--hicache-storage-backend out"
        )
    if args.disaggregation_mode not in (None, "null"):
        raise Unsupported(
            f"disaggregation_mode={args.disaggregation_mode}: nodes of a split engine are not "
            "covered"
        )


def base_spec(args: EngineArgs, pool: Any, settings: StorageConfig) -> CacheSpec:
    """What pages belong to while they are lossless.

    Args:
        args: of the engine.
        pool: the `HostKVCache`.
        settings: of the backend.

    Raises:
        Unsupported: a model or pool that is not covered.
        ConfigurationError: a folder that cannot be read.
    """
    if pool.page_size < MIN_PAGE_TOKENS:
        raise Unsupported(
            f"page_size={pool.page_size}: each page is stored by itself; give --page-size 64, or "
            f"at least {MIN_PAGE_TOKENS}"
        )
    geometry = _geometry(args, pool, settings)
    return CacheSpec(
        weights=settings.weights_digest() or _weights(args, settings),
        geometry=geometry,
        codec=codec_named("lossless"),
        page_tokens=pool.page_size,
        salt=settings.salt,
    )


def folder_of(args: EngineArgs, settings: StorageConfig) -> Path:
    """The folder of the model that was loaded.

    Raises:
        ConfigurationError: there is none.
    """
    model = settings.model or args.model_path
    if os.path.isdir(model):
        return Path(model)
    from huggingface_hub import snapshot_download  # the engine's own way; nothing is asked

    try:
        found = snapshot_download(model, revision=args.revision, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{model}: no folder, and no snapshot of a hub ({error})"
        ) from error
    return Path(found)


def _geometry(args: EngineArgs, pool: Any, settings: StorageConfig) -> Geometry:
    config = _config(args, settings)
    name = _dtype(args, pool, config)
    if config.get_text_config(decoder=True) is not config:
        raise Unsupported(
            f"{config.model_type}: a model that takes more than text: callers of SGLang may name "
            "pictures and sound themselves, and its hashes of pages trust them"
        )
    geometry = geometry_of(config, name)
    found = (pool.layer_num, pool.head_num, pool.head_dim)
    wanted = (geometry.layers, geometry.kv_heads, geometry.head_dim)
    if found != wanted:
        raise Unsupported(
            f"the host pool keeps layers, KV heads and head dimension {found}; the model's config "
            f"says {wanted}"
        )
    return geometry


def _dtype(args: EngineArgs, pool: Any, config: Any) -> str:
    """Element type of the cache. A backend does not see the scales by which keys and values may be
    divided before they are rounded to 8 bits, nor which kind of 8 bits an AMD processor has.
    """
    name = str(pool.dtype).removeprefix("torch.")
    if args.kv_cache_dtype not in _FLOAT8:
        if args.kv_cache_dtype not in ("auto", name):
            raise Unsupported(
                f"kv_cache_dtype={args.kv_cache_dtype}: only caches of the model's own dtype, and "
                f"{', '.join(_FLOAT8)}, are covered"
            )
        return name
    asked = f"kv_cache_dtype={args.kv_cache_dtype}"
    if args.quantization_param_path is not None:
        raise Unsupported(f"{asked}, quantization_param_path: only caches of scale 1 are covered")
    if args.quantization is not None or getattr(config, "quantization_config", None) is not None:
        raise Unsupported(
            f"{asked}: quantised weights may bring scales for the cache, which a storage backend "
            "does not see: only caches of scale 1 are covered"
        )
    if torch.version.hip is not None:
        raise Unsupported(f"{asked}: on ROCm it may be another type of 8 bits, and is not covered")
    if name not in ("uint8", _FLOAT8[args.kv_cache_dtype]):
        raise Unsupported(f"{asked}: a host pool of {name}")
    return _FLOAT8[args.kv_cache_dtype]


def _weights(args: EngineArgs, settings: StorageConfig) -> bytes:
    """Fingerprint of the files that the engine loaded."""
    form = str(getattr(args.load_format, "value", args.load_format))
    if form not in _LOADED_AS_IT_IS:
        raise Unsupported(f"load_format={form}: the weights are not those of the files{_HINT}")
    own = getattr(_config(args, settings), "quantization_config", None)
    if args.quantization is not None and own is None:
        raise Unsupported(f"quantization={args.quantization}: done while loading{_HINT}")
    if args.json_model_override_args not in (None, "", "{}"):
        raise Unsupported(
            f"json_model_override_args: the model's config is not that of the files{_HINT}"
        )
    try:
        return fingerprint_files(folder_of(args, settings))
    except LexicoError as error:
        raise type(error)(f"{error.message}{_HINT}") from error


def _config(args: EngineArgs, settings: StorageConfig) -> Any:
    """As Hugging Face reads it."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder_of(args, settings))
