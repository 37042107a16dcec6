"""`LexicoL2Adapter`: what LMCache's server loads as an L2 adapter of type `plugin`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lmcache
from lmcache.lmcache_native import Bitmap
from lmcache.logging import init_logger
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.platform import create_event_notifier

from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.lmcache._config import AdapterConfig
from lexico_client.engines.lmcache._log import LOG
from lexico_client.engines.lmcache._objects import whole_tensor
from lexico_client.engines.lmcache._pages import Pages
from lexico_client.engines.lmcache._store import Layouts, Object, ObjectStore
from lexico_client.engines.lmcache._supported import check_interface, check_version
from lexico_client.engines.lmcache._tasks import Tasks
from lexico_proto.errors import Unavailable
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_REQUESTS, ENGINE_TOKENS, PROCESS

if TYPE_CHECKING:
    from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
    from lmcache.v1.memory_management import MemoryObj

init_logger(LOG.name)  # its handler writes where LMCache writes
check_version(lmcache.__version__)
check_interface("L2AdapterInterface", L2AdapterInterface)


class LexicoL2Adapter(L2AdapterInterface):  # type: ignore[misc]
    """Stores objects of LMCache's MP server with the service, and loads them from there.

    Raises:
        ConfigurationError: a setting that cannot be used, naming its key.
        LexicoError: the model that is named cannot be used.
    """

    def __init__(self, params: dict[str, Any], **kwargs: Any) -> None:
        """
        Args:
            params: `adapter_params`.
            kwargs: what else LMCache tells; none of it is needed.
        """
        super().__init__(max_capacity_bytes=0)  # the service has bounds of its own
        settings = AdapterConfig.of(params)
        pages = Pages(settings)
        self._settings = settings
        self._service = Service(settings.client(), "lmcache", LOG)
        self._counts = Counts(LOG)
        self._objects = ObjectStore(pages, self._service.client, settings, self._counts)
        self._notifiers = [create_event_notifier() for _ in range(3)]
        self._fds: list[int] = [each.fileno() for each in self._notifiers]
        stored, found, loaded = (each.notify for each in self._notifiers)
        counts = self._counts
        self._stores: Tasks[L2StoreResult] = Tasks("store", stored, counts)
        self._finds: Tasks[Bitmap] = Tasks("match", found, counts)
        self._loads: Tasks[Bitmap] = Tasks("load", loaded, counts)
        LOG.info(
            "shares objects: codec=%s layout=%s reload=%s offload=%s",
            settings.codec,
            settings.layout or "by shape",
            settings.reload,
            settings.offload or "nowhere",
        )

    def get_store_event_fd(self) -> int:
        return self._fds[0]

    def get_lookup_and_lock_event_fd(self) -> int:
        return self._fds[1]

    def get_load_event_fd(self) -> int:
        return self._fds[2]

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        async def store() -> L2StoreResult:
            if self._settings.offload is None:
                raise Unavailable("no `offload` address was given: nothing is stored")
            return L2StoreResult(*await self._objects.store(_objects(keys, objects)))

        failed, seconds = L2StoreResult(False, 0), self._settings.offload_seconds
        return self._stores.run(self._service, store(), failed, seconds)

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        return self._stores.take_all()

    def submit_lookup_and_lock_task(
        self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]
    ) -> int:
        async def find() -> Bitmap:
            return _bitmap(await self._objects.find(keys, _layouts(group_layout_descs)))

        failed, seconds = Bitmap(len(keys)), self._settings.match_seconds
        return self._finds.run(self._service, find(), failed, seconds)

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        return self._finds.take(task_id)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Nothing was locked: an object that leaves the store before it is loaded is a miss."""

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        async def load() -> Bitmap:
            return _bitmap(await self._objects.load(_objects(keys, objects)))

        failed, seconds = Bitmap(len(keys)), self._settings.load_seconds
        return self._loads.run(self._service, load(), failed, seconds)

    def query_load_result(self, task_id: int) -> Bitmap | None:
        return self._loads.take(task_id)

    def report_status(self) -> dict[str, Any]:
        """What LMCache's `/status` shows."""
        families = (ENGINE_REQUESTS, ENGINE_TOKENS, ENGINE_PAGES)
        counted = PROCESS.snapshot()
        return {
            "is_healthy": not self._service.closed,
            "type": type(self).__name__,
            "reload": self._settings.reload,
            "offload": self._settings.offload,
            "codec": self._settings.codec,
            "stores_under_way": self._stores.under_way,
            "loads_under_way": self._loads.under_way,
            "held_bytes": self._objects.held_bytes,
            "counted": {
                " ".join((family.name, *labels)): number
                for family in families
                for labels, number in counted.get(family, {}).items()
                if number
            },
        }

    def close(self) -> None:
        """Waits for stores, `drain_seconds` at most, and ends all else; then nobody reads or writes
        any object."""
        seconds = self._settings.drain_seconds
        self._service.close(self._drained(seconds), seconds + 1.0)
        for tasks in (self._stores, self._finds, self._loads):
            tasks.close()
        for notifier in self._notifiers:
            notifier.close()

    async def _drained(self, seconds: float) -> None:
        if not await self._objects.drained(seconds):
            LOG.warning("ends before all is stored: stores=%d", self._objects.stores_under_way)


def _bitmap(bits: list[bool]) -> Bitmap:
    bitmap = Bitmap(len(bits))
    for place, bit in enumerate(bits):
        if bit:
            bitmap.set(place)
    return bitmap


def _objects(keys: list[ObjectKey], objects: list[MemoryObj]) -> list[Object]:
    """
    Raises:
        Unsupported: an object that is not one tensor.
    """
    return [(key, whole_tensor(each)) for key, each in zip(keys, objects, strict=True)]


def _layouts(descs: dict[int, MemoryLayoutDesc]) -> Layouts:
    """Of the groups whose objects are one tensor."""
    return {
        group: (tuple(desc.shapes[0]), desc.dtypes[0])
        for group, desc in descs.items()
        if len(desc.shapes) == 1
    }
