"""A plug-in of pytest that runs LMCache's own tests with our adapter and our serde in the place of
its own: `-p lmcache_own`, in the environment that has LMCache.

Nothing of LMCache's tests is changed or copied into this tree. They make adapters, names and
objects by functions of their modules; these are put in the place of those:

- an adapter of LMCache's, `mock`, is ours, before the service of `LEXICO_OWN`;
- names have the hashes and the model, and objects the shape, that an engine's have;
- serde `fp8` is `lexico`.

What is left out, and why, is in `LEFT_OUT`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Generator
from types import ModuleType
from typing import Any, Final

import lmcache
import pytest
import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.serde import SerdeConfig
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

from lexico_client.engines.lmcache import LexicoL2Adapter
from lexico_client.engines.lmcache import serde as registered  # by which `lexico` is known

LAYERS, ROW = 4, 128
"""Of the model: layers, and components of a token's keys in one."""
TOKENS: Final = 16
"""Of an object, where LMCache's tests name a size that means nothing."""
RANK: Final = 1 << 24 | 1 << 8
LEFT_OUT: Final = {
    "TestBandwidthSimulation": "of `mock` alone",
    "TestEvictionInterface": "LMCache evicts from adapters with a capacity: ours has none",
    "test_create_fp8_accepts_float_max_workers": "settings of ours are integers where they say so",
}
_OWN: Final[dict[str, Any]] = json.loads(os.environ["LEXICO_OWN"])
_NUMBERS: Final = itertools.count()


def adapter(config: object) -> LexicoL2Adapter:
    """Ours, which finds nothing of those before it."""
    return LexicoL2Adapter({**_OWN["adapter"], "salt": f"{next(_NUMBERS)}"})


def key(chunk: int | bytes, model_name: str = "", cache_salt: str = "") -> ObjectKey:
    """The name of a chunk."""
    name = chunk if isinstance(chunk, bytes) else b"%d" % chunk
    return ObjectKey(hashlib.sha256(name).digest(), _OWN["model"], RANK, 0, cache_salt)


def memory(size: int = 256, fill_value: float = 1.0) -> TensorMemoryObj:
    """An object of one shape, whatever the size."""
    content = torch.full(_shape(TOKENS), fill_value)
    described = MemoryObjMetadata(
        shape=content.shape,
        dtype=content.dtype,
        address=0,
        phy_size=content.nbytes,
        fmt=MemoryFormat.KV_2LTD,
        ref_count=1,
        shapes=[content.shape],
        dtypes=[content.dtype],
    )
    return TensorMemoryObj(content.view(-1), described, parent_allocator=None)


def layout(shapes: list[torch.Size], dtypes: list[torch.dtype]) -> MemoryLayoutDesc:
    """Where LMCache's is of no cache: of as many tokens as its first dimension has."""
    ours = [each if len(each) == 4 and each[0] == 2 else _shape(each[0]) for each in shapes]
    return MemoryLayoutDesc(shapes=ours, dtypes=dtypes)


def serde(type: str, kwargs: dict[str, Any] | None = None) -> SerdeConfig:
    """Ours in place of `fp8`; others are what they are."""
    if type != "fp8":
        return SerdeConfig(type=type, kwargs=kwargs or {})
    return SerdeConfig(type=registered.NAME, kwargs=_OWN["serde"])


def _shape(tokens: int) -> torch.Size:
    return torch.Size((2, LAYERS, tokens, ROW))


NAMES: Final[dict[str, Any]] = {
    "MockL2Adapter": adapter,
    "create_object_key": key,
    "make_object_key": key,
    "_object_key": key,
    "_make_key": key,
    "create_memory_obj": memory,
    "_memory_obj": memory,
    "MemoryLayoutDesc": layout,
    "SerdeConfig": serde,
    "_EMPTY_LAYOUT": layout([_shape(TOKENS)], [torch.float32]),
}
"""Of LMCache's test modules → ours."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Some modules skip themselves without a GPU, and need none."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lmcache.torch_dev, "is_available", lambda: True)
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts ours in the place of LMCache's."""
    for module in {item.getparent(pytest.Module).obj for item in items}:  # type: ignore[union-attr]
        _replace(module)
    left = [item for item in items if any(name in item.nodeid for name in LEFT_OUT)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def _replace(module: ModuleType) -> None:
    for name, ours in NAMES.items():
        if hasattr(module, name):
            setattr(module, name, ours)
