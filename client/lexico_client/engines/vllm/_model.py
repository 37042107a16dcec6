"""What pages of an engine's model belong to, from the engine's own configuration.

Nothing here imports the engine: its objects are read by their attributes. Whatever would make keys
and values other than the model's files and config say is refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from lexico_client._weights_files import fingerprint_files
from lexico_client.engines.vllm._config import ConnectorConfig
from lexico_client.engines.vllm._ranks import check_one_ingress, heads_of_each
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.presets import codec_named
from lexico_codec.spec import CacheSpec
from lexico_codec.tensors import FLOAT8
from lexico_proto.errors import ConfigurationError, LexicoError, Unsupported

_LOADED_AS_IT_IS: Final = ("auto", "hf", "safetensors", "runai_streamer", "fastsafetensors")
"""Load formats that bring the tensors of the files."""
FLOAT8_CACHES: Final = {
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}
"""`kv_cache_dtype` → element type of the cache. Where `fp8` is another one, as on some processors
of AMD, the probe of the layout is not found."""


def spec_of(config: Any, caches: Any, settings: ConnectorConfig) -> CacheSpec:
    """The spec of pages that are stored lossless: what they are coded with is decided later.

    Args:
        config: `VllmConfig`.
        caches: `KVCacheConfig`.
        settings: of the connector.

    Raises:
        Unsupported: a model, or a way to run it, whose caches are not covered.
        ConfigurationError: naming the setting.
    """
    check_engine(config)
    check_policy(config)
    geometry = geometry_of(config.model_config.hf_config, dtype_of(config))
    check_caches(caches, geometry, config.parallel_config)
    check_one_ingress(config, settings.offload)
    return CacheSpec(
        weights=settings.weights_digest() or weights_of(config, settings.where),
        geometry=geometry,
        codec=codec_named("lossless"),
        page_tokens=settings.page_tokens,
        salt=settings.salt,
    )


def check_engine(config: Any) -> None:
    """Refuses ways to run a model that are not covered.

    Raises:
        Unsupported: in one line.
    """
    parallel, model = config.parallel_config, config.model_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise Unsupported(
                f"{name}={getattr(parallel, name)}: ranks hold some of the tokens of a page, which "
                "is not covered; split heads or layers, or leave the connector out"
            )
    if config.speculative_config is not None:
        raise Unsupported("speculative decoding is not covered: leave it or the connector out")
    if getattr(model, "is_encoder_decoder", False):
        raise Unsupported("encoder-decoder models are not covered")


def dtype_of(config: Any) -> str:
    """Element type of an engine's caches.

    Raises:
        Unsupported: another than the model's own, e4m3fn and e5m2, or not the same in all layers
            and processes.
    """
    model, caches = config.model_config, config.cache_config
    if caches.cache_dtype in ("auto", *_names(model.dtype)):
        return str(model.dtype).removeprefix("torch.")
    if caches.cache_dtype not in FLOAT8_CACHES:
        raise Unsupported(
            f"kv_cache_dtype={caches.cache_dtype}: only caches of the model's own dtype, and "
            f"{', '.join(FLOAT8_CACHES)}, are covered"
        )
    if getattr(caches, "calculate_kv_scales", False):
        raise Unsupported(
            "calculate_kv_scales: each process divides keys and values by scales of its own"
        )
    if skipped := getattr(caches, "kv_cache_dtype_skip_layers", None):
        raise Unsupported(
            f"kv_cache_dtype_skip_layers={','.join(skipped)}: only caches of one dtype are covered"
        )
    return FLOAT8_CACHES[caches.cache_dtype]


def check_policy(config: Any) -> None:
    """Refuses a failure policy that would fail requests.

    Raises:
        ConfigurationError: naming the setting.
    """
    policy = config.kv_transfer_config.kv_load_failure_policy
    if policy != "recompute":
        raise ConfigurationError(
            f"kv_load_failure_policy={policy}: a page that is lost would fail its request; give "
            '"kv_load_failure_policy": "recompute" beside "kv_connector"'
        )


def check_caches(caches: Any, geometry: Geometry, parallel: Any) -> None:
    """Refuses caches other than one group of full attention with the heads that a rank holds.

    Raises:
        Unsupported: in one line.
    """
    groups = caches.kv_cache_groups
    kinds = sorted({type(group.kv_cache_spec).__name__ for group in groups})
    if len(groups) != 1 or kinds != ["FullAttentionSpec"]:
        raise Unsupported(
            f"{len(groups)} groups of caches, {', '.join(kinds)}: only models whose layers all "
            "have full attention are covered"
        )
    spec, layers = groups[0].kv_cache_spec, groups[0].layer_names
    if getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None):
        raise Unsupported("layers with a sliding window or chunks are not covered")
    # With a pipeline each rank has the layers of its stage, and the scheduler those of one rank.
    held = geometry.layers if parallel.pipeline_parallel_size == 1 else len(layers)
    heads = heads_of_each(geometry, parallel.tensor_parallel_size)
    dtype = str(spec.dtype).removeprefix("torch.")
    if dtype == "uint8" and geometry.torch_dtype in FLOAT8:
        dtype = geometry.dtype
    found = (len(layers), spec.num_kv_heads, spec.head_size, dtype)
    wanted = (held, heads, geometry.head_dim, geometry.dtype)
    value_size = getattr(spec, "head_size_v", None) or spec.head_size
    if found != wanted or value_size != spec.head_size:
        raise Unsupported(
            f"the engine keeps layers, KV heads, head dimension and dtype {found}, values of "
            f"{value_size}; the model's config says {wanted}"
        )


def weights_of(config: Any, where: str) -> bytes:
    """Fingerprint of the files that the engine loaded.

    Args:
        config: `VllmConfig`.
        where: the settings are given, for messages.

    Raises:
        Unsupported: weights that are not those of the files.
        ConfigurationError: no files.
    """
    model, load = config.model_config, config.load_config
    hint = f"; give `weights` in {where} if you know what they are"
    form = str(getattr(load.load_format, "value", load.load_format))
    if form not in _LOADED_AS_IT_IS:
        raise Unsupported(f"load_format={form}: the weights are not those of the files{hint}")
    own = getattr(model.hf_config, "quantization_config", None)
    if model.quantization is not None and own is None:
        raise Unsupported(f"quantization={model.quantization}: done while loading{hint}")
    if getattr(model, "hf_overrides", None):
        raise Unsupported(f"hf_overrides: the model's config is not that of the files{hint}")
    try:
        return fingerprint_files(_folder(model.model, model.revision))
    except LexicoError as error:
        raise type(error)(f"{error.message}{hint}") from error


def _folder(model: str, revision: str | None) -> Path:
    if os.path.isdir(model):
        return Path(model)
    from huggingface_hub import snapshot_download  # the engine's own way; nothing is asked

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{model}: no folder, and no snapshot of a hub ({error})"
        ) from error


def _names(dtype: Any) -> tuple[str, ...]:
    name = str(dtype).removeprefix("torch.")
    return (name, "half") if name == "float16" else (name,)
