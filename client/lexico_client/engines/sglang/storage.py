"""`LexicoStorage`: what SGLang loads by `--hicache-storage-backend dynamic`, one a scheduler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import sglang
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
)
from sglang.srt.runtime_context import get_context
from torch import Tensor

from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.sglang._config import StorageConfig
from lexico_client.engines.sglang._log import LOG
from lexico_client.engines.sglang._model import EngineArgs, base_spec, check_engine, folder_of
from lexico_client.engines.sglang._pages import HostPages
from lexico_client.engines.sglang._storage import Page, StorageSide, hash_of
from lexico_client.engines.sglang._supported import check_interface, check_version
from lexico_codec.memory import CacheMemory
from lexico_proto.errors import LexicoError, Unavailable, Unsupported
from lexico_proto.metrics import PROCESS

try:
    from sglang.srt.mem_cache.hicache_storage import STORAGE_BATCH_SIZE
except ImportError:  # then every question is taken for a prompt's last
    STORAGE_BATCH_SIZE = sys.maxsize

if TYPE_CHECKING:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageExtraInfo

check_version(sglang.__version__)
check_interface(HiCacheStorage, (HiCacheStorageConfig,))


class LexicoStorage(HiCacheStorage):  # type: ignore[misc]
    """Shares the pages of an SGLang engine's host pool.

    Raises:
        ConfigurationError: a setting that cannot be used, naming its key.
        Unsupported: a model, or a way to run it, whose caches are not covered.
    """

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict[str, Any]) -> None:
        """
        Args:
            storage_config: what SGLang tells: ranks, and the extra config.
            kwargs: of the factory; nothing is in it.
        """
        self._settings = StorageConfig.of(storage_config.extra_config or {})
        self._args = EngineArgs.of(get_context().config_leaf)
        check_engine(self._args, storage_config)
        self._counts = Counts(LOG, PROCESS)
        self._service = Service(self._settings.client(), "sglang", LOG)
        self._show: Callable[[], None] = _nothing
        if storage_config.enable_storage_metrics:
            from lexico_client.engines.sglang._metrics import shown_by_process

            self._show = shown_by_process().update
        self._pages: HostPages | None = None
        self._side: StorageSide | None = None

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """With this the engine's memory is known, and what its pages belong to."""
        super().register_mem_pool_host(mem_pool_host)
        settings = self._settings
        base = base_spec(self._args, mem_pool_host, settings)
        self._pages = HostPages.of(mem_pool_host, base.geometry.torch_dtype)
        self._side = side = StorageSide.of(
            base, settings, self._service, self._counts, str(folder_of(self._args, settings))
        )
        LOG.info(
            "shares prompt caches: namespace=%s codec=%s page_tokens=%d layout=%s reload=%s "
            "offload=%s",
            side.spec.namespace.hex(),
            side.spec.codec.name,
            base.page_tokens,
            mem_pool_host.layout,
            settings.reload,
            settings.offload or "nowhere",
        )

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """
        Raises:
            Unsupported: a second pool: of a model whose layers do not all have full attention.
        """
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if host_pool is not self.mem_pool_host:
            raise Unsupported(
                f"host pool {host_pool_name}: only models whose layers all have full attention "
                "are covered"
            )

    # Pages in the pool, without a copy: `"interface_v1": 1`

    def batch_get_v1(
        self,
        keys: list[str],
        host_indices: Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        return self._answered("load", keys, lambda: self._in_pool(keys, host_indices))

    def batch_set_v1(
        self,
        keys: list[str],
        host_indices: Tensor,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> list[bool]:
        return self._answered("store", keys, lambda: self._in_pool(keys, host_indices))

    # Pages by themselves, which SGLang copies to and from its pool

    def batch_get(
        self,
        keys: list[str],
        target_locations: Sequence[Tensor] | None = None,
        target_sizes: Any = None,
    ) -> list[Tensor | None]:
        if self._pages is None:
            return [None] * len(keys)
        pages = self._pages
        room = list(target_locations or (pages.room() for _ in keys))
        found = self._answered("load", keys, lambda: [pages.flat(each) for each in room])
        return [each if came else None for each, came in zip(room, found, strict=True)]

    def get(
        self, key: str, target_location: Tensor | None = None, target_sizes: Any = None
    ) -> Tensor | None:
        return self.batch_get([key], None if target_location is None else [target_location])[0]

    def batch_set(
        self,
        keys: list[str],
        values: Sequence[Tensor] | None = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        given = list(values or ())
        found = self._answered("store", keys, lambda: [self._layout.flat(each) for each in given])
        return all(found)

    def set(
        self,
        key: str,
        value: Tensor | None = None,
        target_location: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        return self.batch_set([key], None if value is None else [value])

    # Both

    def batch_exists(
        self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> int:
        """Leading pages that are stored, whatever comes before them.

        SGLang asks for all pages of a prompt that it lacks, so many at a time: fewer than that are
        the prompt's last. Of as many it is not known.
        """
        return self._exists(keys, newest=len(keys) < STORAGE_BATCH_SIZE)

    def exists(self, key: str) -> bool:
        return self._exists([key], newest=False) == 1

    def _exists(self, keys: list[str], *, newest: bool) -> int:
        try:
            return self._known.exists([hash_of(key) for key in keys], newest=newest)
        except LexicoError as error:
            self._counts.warn("match", error)
            return 0
        finally:
            self._show()

    def clear(self) -> None:
        """Finds nothing any more that was stored before, by anybody: SGLang is asked for this when
        weights were changed in place. What is stored stays, for other engines."""
        self._known.forget()

    def close(self) -> None:
        """Ends what runs; SGLang calls it when the backend is detached."""
        self._service.close()

    def _answered(
        self, what: str, keys: Sequence[str], memories: Callable[[], Sequence[CacheMemory]]
    ) -> list[bool]:
        """Which pages were loaded or stored. Never raises: that would end SGLang's thread."""
        try:
            pages = [
                Page(hash_of(key), memory) for key, memory in zip(keys, memories(), strict=True)
            ]
            side = self._known
        except Exception as error:  # noqa: BLE001 - see above
            self._counts.warn(what, error)
            return [False] * len(keys)
        found = side.load(pages) if what == "load" else side.store(pages)
        self._show()
        return found

    def _in_pool(self, keys: Sequence[str], host_indices: Tensor) -> list[CacheMemory]:
        return self._layout.pages(host_indices, len(keys))

    @property
    def _layout(self) -> HostPages:
        if self._pages is None:
            raise Unavailable("SGLang has registered no host pool yet")
        return self._pages

    @property
    def _known(self) -> StorageSide:
        if self._side is None:
            raise Unavailable("SGLang has registered no host pool yet")
        return self._side


def _nothing() -> None:
    """Where nobody is shown what is counted."""
