"""The serde `lexico`, which codes objects for LMCache's own L2 adapters, and the way to name it.

LMCache finds a serde by its name once somebody has imported the module that registers it. Nobody
does that for an adapter of LMCache's own: `LMCacheAdapter` stands for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lmcache
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.distributed.l2_adapters.config import get_l2_adapter_config_class
from lmcache.v1.distributed.serde import (
    AsyncSerdeProcessor,
    Deserializer,
    Serializer,
    get_registered_serde_types,
    register_serde_factory,
)

from lexico_client.engines.lmcache._coded import ObjectCoding
from lexico_client.engines.lmcache._config import SerdeConfig
from lexico_client.engines.lmcache._objects import whole_tensor
from lexico_client.engines.lmcache._supported import check_interface, check_version
from lexico_proto.errors import ConfigurationError

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
    from lmcache.v1.memory_management import MemoryObj

NAME = "lexico"

check_version(lmcache.__version__)
check_interface("Serializer", Serializer)
check_interface("Deserializer", Deserializer)


class LexicoSerializer(Serializer):  # type: ignore[misc]
    """Objects to bytes."""

    def __init__(self, coding: ObjectCoding) -> None:
        self._coding = coding

    def serialize(self, src: MemoryObj, dst: MemoryObj, key: ObjectKey) -> int:
        return self._coding.encode(key, whole_tensor(src), memoryview(dst.byte_array).cast("B"))

    def estimate_serialized_size(self, layout_desc: MemoryLayoutDesc) -> int:
        """Of what cannot be coded too: that is refused when it is to be."""
        return sum(
            self._coding.most_bytes(shape, dtype)
            for shape, dtype in zip(layout_desc.shapes, layout_desc.dtypes, strict=True)
        )


class LexicoDeserializer(Deserializer):  # type: ignore[misc]
    """Bytes to objects. What it raises is a miss of all objects that are loaded together."""

    def __init__(self, coding: ObjectCoding) -> None:
        self._coding = coding

    def deserialize(self, src: MemoryObj, dst: MemoryObj, key: ObjectKey) -> None:
        data = memoryview(src.byte_array).cast("B").toreadonly()
        self._coding.decode(key, data, whole_tensor(dst))


class LMCacheAdapter(L2AdapterInterface):  # type: ignore[misc]
    """An adapter of LMCache's own, by which the serde `lexico` is known: `adapter_params` are what
    LMCache would be given without it.

    {"type": "plugin", "module_path": "lexico_client.engines.lmcache",
     "class_name": "LMCacheAdapter",
     "adapter_params": {"type": "resp", "host": "127.0.0.1", "port": 6379},
     "serde": {"type": "lexico", "model": "MODEL", "layout": "side-by-side"}}

    Raises:
        ConfigurationError: no such adapter.
    """

    def __new__(cls, params: dict[str, Any], l1_memory_desc: Any = None) -> Any:
        """The adapter itself, and nothing around it."""
        kind = params.get("type")
        if not isinstance(kind, str):
            raise ConfigurationError("adapter_params: type: missing, the adapter's of LMCache")
        try:
            config = get_l2_adapter_config_class(kind).from_dict(params)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"adapter_params: {error}") from error
        return create_l2_adapter(config, l1_memory_desc)


def create(settings: dict[str, object]) -> AsyncSerdeProcessor:
    """The serde, as LMCache makes it.

    Args:
        settings: what stands beside `"type": "lexico"`.

    Raises:
        ConfigurationError: a setting that cannot be used, naming its key.
        LexicoError: the model or the set that is named cannot be used.
    """
    checked = SerdeConfig.of(settings)
    coding = ObjectCoding(checked)
    return AsyncSerdeProcessor(
        LexicoSerializer(coding), LexicoDeserializer(coding), max_workers=checked.max_workers
    )


if NAME not in get_registered_serde_types():
    register_serde_factory(NAME, create)
