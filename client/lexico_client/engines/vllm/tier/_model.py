"""What chunks of an engine's model belong to, from what vLLM's tiering spec says and, where the
connector of ours tells it, from the engine's own configuration.

Nothing here imports the engine: its objects are read by their attributes. Whatever would make keys
and values other than the model's files say, or a chunk hold other than whole pages, is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from lexico_client.engines.vllm._model import check_engine, dtype_of, weights_of
from lexico_client.engines.vllm._ranks import heads_of_each, number_of
from lexico_client.engines.vllm.tier._config import TierConfig
from lexico_client.engines.vllm.tier._layout import ChunkShape, expected
from lexico_codec.geometry import DTYPES, Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.limits import MAX_PAGE_TOKENS
from lexico_codec.presets import codec_named
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import ConfigurationError, Unsupported

MIN_CHUNK_TOKENS: Final = 16
"""Each chunk is a sequence, a call and a value of the store of its own: smaller ones cost more than
they give."""
_HASHES: Final = ("sha256", "sha256_cbor")
"""vLLM's hashes of blocks that no two prompts share."""
CONNECTOR: Final = "LexicoOffloadingConnector"


@dataclass(frozen=True)
class TierModel:
    """What is known of an engine at its start."""

    base: CacheSpec
    """What chunks belong to while they are lossless."""
    shape: ChunkShape
    folder: str
    """Of the model, for messages."""


def model_of(told: Any, engine: Any, settings: TierConfig) -> TierModel:
    """The model whose chunks the tier is given.

    Args:
        told: `OffloadingConfig`.
        engine: `VllmConfig`, or None where nobody tells it.
        settings: of the tier.

    Raises:
        Unsupported: a model, or a way to run it, whose chunks are not covered.
        ConfigurationError: naming the setting.
    """
    if engine is None:
        _check_vouched(settings)
    else:
        check_engine_of_tier(engine, settings)
    check_ranks(told)
    folder, config = _files(told, engine, settings)
    if config.get_text_config(decoder=True) is not config:
        raise Unsupported(
            f"{config.model_type}: a model that takes more than text: callers of vLLM may name "
            "pictures and sound themselves, and its hashes of blocks trust them"
        )
    dtype = told.model.dtype if engine is None else dtype_of(engine)
    if dtype not in DTYPES:
        raise Unsupported(
            f"kv_cache_dtype={dtype}: not covered where nobody tells of the engine: whether keys "
            f"and values are divided by scales cannot be seen; take {CONNECTOR}"
        )
    geometry = geometry_of(config, dtype)
    device = "" if engine is None else str(engine.device_config.device_type)
    layout = expected(settings.layout, told.kv_cache_layout, device)
    shape = _shape(told, geometry, layout)
    base = CacheSpec(
        weights=settings.weights_digest() or weights_of(engine, settings.where),
        geometry=geometry,
        codec=codec_named("lossless"),
        page_tokens=shape.blocks * shape.block_tokens,
        salt=settings.salt,
    )
    return TierModel(base, shape, folder)


def check_engine_of_tier(engine: Any, settings: TierConfig) -> None:
    """Refuses ways to run an engine in which a hash of a block does not say what the block is.

    Args:
        engine: `VllmConfig`.
        settings: of the tier.

    Raises:
        Unsupported, ConfigurationError: in one line.
    """
    check_engine(engine)
    algorithm = engine.cache_config.prefix_caching_hash_algo
    if algorithm not in _HASHES:
        raise Unsupported(
            f"prefix_caching_hash_algo={algorithm}: no cryptographic hash: prompts that differ "
            "could have one name, and each process begins its hashes at random; start with "
            f"--prefix-caching-hash-algo {_HASHES[1]}"
        )
    if engine.lora_config is not None and not settings.adapters_by_path:
        raise ConfigurationError(
            f"{settings.where}: adapters_by_path: vLLM's hashes know a LoRA adapter by its name "
            "and path; give true if these mean the same weights on all nodes that share, or leave "
            "adapters or the tier out"
        )


def check_ranks(told: Any) -> None:
    """Refuses chunks that do not hold all heads and layers of all tokens of one group.

    Args:
        told: `OffloadingConfig`.

    Raises:
        Unsupported: in one line.
    """
    parallel = told.parallel
    for name in ("pp_size", "pcp_size", "dcp_size"):
        if getattr(parallel, name) > 1:
            raise Unsupported(f"{name}={getattr(parallel, name)}: only heads may be split by ranks")
    if parallel.world_size != parallel.tp_size:
        raise Unsupported(f"world_size={parallel.world_size}, of which tp_size={parallel.tp_size}")
    if len(told.groups) != 1 or told.replicated_layout:
        raise Unsupported(
            f"{len(told.groups)} groups of caches, replicated_layout={told.replicated_layout}: "
            "only models whose layers all have full attention are covered, no hybrid or latent "
            "(MLA) ones"
        )
    if parallel.world_size > 1 and not told.canonical_layout:
        raise Unsupported(
            f"tensor_parallel_size={parallel.tp_size}: chunks hold ranks' parts one behind the "
            'other; give "canonical_layout": true in kv_connector_extra_config'
        )
    if told.canonical_layout and not parallel.is_parallelism_agnostic:
        raise Unsupported("canonical_layout: vLLM finds that this model's blocks have none")


def _check_vouched(settings: TierConfig) -> None:
    """
    Raises:
        ConfigurationError: what nobody tells is not given either.
    """
    lacking = [key for key in ("weights", "layout") if not getattr(settings, key)]
    if lacking:
        raise ConfigurationError(
            f"{settings.where}: vLLM tells a tier neither how weights were loaded nor how blocks "
            f'are laid out: start with "kv_connector": "{CONNECTOR}", '
            '"kv_connector_module_path": "lexico_client.engines.vllm", which finds both, or give '
            f"{' and '.join(f'`{key}`' for key in lacking)} if you know them"
        )


def _files(told: Any, engine: Any, settings: TierConfig) -> tuple[str, Any]:
    """Folder of the model, and its config as Hugging Face reads it."""
    if engine is not None:
        return str(engine.model_config.model), engine.model_config.hf_config
    folder = settings.model or told.model.name
    if not os.path.isdir(folder):
        raise ConfigurationError(
            f"{settings.where}: model: {folder} is no folder, and a tier is not told which "
            "revision of it was loaded; give the folder of the model"
        )
    from transformers import AutoConfig  # takes seconds

    try:
        return folder, AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"{settings.where}: model: {folder}: its config cannot be read ({error})"
        ) from error


def _shape(told: Any, geometry: Geometry, layout: str) -> ChunkShape:
    """What a row of the primary tier has, which the bytes that vLLM tells must bear out."""
    group, blocks = told.groups[0], told.cache.blocks_per_chunk
    numbers = [number_of(name) for name in group.layer_names]
    if sorted(numbers) != list(range(geometry.layers)):
        raise Unsupported(
            f"caches of layers {sorted(numbers)}; the model's config has {geometry.layers} layers"
        )
    tokens = blocks * group.tokens_per_block
    if not MIN_CHUNK_TOKENS <= tokens <= MAX_PAGE_TOKENS:
        raise Unsupported(
            f"chunks of {tokens} tokens: each is stored by itself; give block_size or "
            f"blocks_per_chunk in kv_connector_extra_config, for {MIN_CHUNK_TOKENS} to "
            f"{MAX_PAGE_TOKENS} tokens: 64 do well"
        )
    heads = heads_of_each(geometry, told.parallel.tp_size)
    held = geometry.layers * heads * 2 * geometry.head_dim * geometry.torch_dtype.itemsize
    if told.worker_kv_bytes_per_block != group.tokens_per_block * held:
        raise Unsupported(
            f"blocks of {told.worker_kv_bytes_per_block} bytes: {group.tokens_per_block} tokens "
            f"of {geometry.layers} layers, {heads} KV heads of {geometry.head_dim} and "
            f"{geometry.dtype} have {group.tokens_per_block * held}: padded, quantised and latent "
            "caches are not covered"
        )
    places = tuple(numbers.index(number) for number in range(geometry.layers))
    return ChunkShape(
        places,
        blocks,
        group.tokens_per_block,
        geometry.kv_heads,
        geometry.head_dim,
        geometry.torch_dtype,
        layout,
    )
