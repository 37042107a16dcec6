"""What one rank of an engine holds of the model: tensor parallelism splits KV heads, pipeline
parallelism layers. Pages are of the whole model, so an engine of any number of ranks shares them.

Nothing here imports the engine: its objects are read by their attributes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import ConfigurationError, Unsupported


@dataclass(frozen=True)
class Rank:
    """Layers and KV heads of the model."""

    layers: range
    heads: range
    sends: bool = True
    """Whether it sends its slices. Where there are more ranks than KV heads, several hold the same:
    the first of them sends."""

    def of(self, spec: CacheSpec) -> CacheSpec:
        """The spec of its slices, or `spec` where it holds all."""
        return spec.held_by(self.layers, self.heads)


def rank_of(config: Any, caches: Any, geometry: Geometry) -> Rank:
    """The rank of a worker.

    Args:
        config: `VllmConfig` of the worker's process.
        caches: `KVCacheConfig` of the worker.
        geometry: of the whole model.

    Raises:
        Unsupported: layers that do not follow one another, or heads that are split otherwise.
    """
    parallel, group = config.parallel_config, caches.kv_cache_groups[0]
    tensor = parallel.tensor_parallel_size
    heads = heads_of_each(geometry, tensor)
    # vLLM numbers ranks tensor by tensor within a pipeline stage.
    at = parallel.rank % tensor
    same = max(1, tensor // geometry.kv_heads)
    first = at // same * heads
    return Rank(_consecutive(group.layer_names), range(first, first + heads), at % same == 0)


def heads_of_each(geometry: Geometry, tensor: int) -> int:
    """KV heads that each tensor-parallel rank holds.

    Raises:
        Unsupported: the heads cannot be shared out evenly, nor the ranks among the heads.
    """
    total = geometry.kv_heads
    if total % tensor and tensor % total:
        raise Unsupported(
            f"tensor_parallel_size={tensor}: {total} KV heads cannot be shared out evenly"
        )
    return max(1, total // tensor)


def check_one_ingress(config: Any, offload: str | None) -> None:
    """Refuses a list of ingresses for an engine of several ranks: its slices would be spread over
    them, and no page would ever be whole.

    Raises:
        ConfigurationError: naming the key.
    """
    parallel = config.parallel_config
    ranks = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    if ranks > 1 and offload is not None and "," in offload:
        raise ConfigurationError(
            f"kv_connector_extra_config: offload: {offload} are several ingresses, and {ranks} "
            "ranks must send their slices to one: give the address of one"
        )


def number_of(layer: str) -> int:
    """The layer that a name such as `model.layers.3.self_attn.attn` is of: its one number.

    Raises:
        Unsupported: no number, or more than one.
    """
    numbers = [int(part) for part in layer.split(".") if part.isdigit()]
    if len(numbers) != 1:
        raise Unsupported(f"layer {layer}: its name does not say which one it is")
    return numbers[0]


def _consecutive(names: Iterable[str]) -> range:
    numbers = sorted(map(number_of, names))
    found = range(numbers[0], numbers[-1] + 1)
    if numbers != list(found):
        raise Unsupported(f"a rank with layers {numbers}: those of a rank must follow one another")
    return found
