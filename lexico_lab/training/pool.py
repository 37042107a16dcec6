"""Who works through the units of a training run: this machine, or a cluster.

A stage hands a pool its work, which every worker sets up once (it loads the model, say), and the
items that the work is done on. Results come back to the process that asked, and it alone writes the
state folder, so a run resumes in the same way whoever worked.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, Protocol, TypeVar

from lexico_proto.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
ItemOf = TypeVar("ItemOf", contravariant=True)
ResultOf = TypeVar("ResultOf", covariant=True)


class Work(Protocol[ItemOf, ResultOf]):
    """What a worker does with each item. It can be pickled, as can items and results."""

    @property
    def threads(self) -> int:
        """Torch threads of one worker. They decide how sums are split, and so the last bits."""
        ...

    def begin(self, device: str) -> Callable[[ItemOf], ResultOf]:
        """Sets a worker up: called once in each, before its first item."""
        ...


class Pool(Protocol):
    """Workers. What `Work` raises comes out of `map` if it is of our tree of errors."""

    @property
    def shares_files(self) -> bool:
        """Whether workers read the paths of this process. If not, items must bring their data."""
        ...

    def map(
        self, work: Work[Item, Result], items: Iterable[Item], *, ordered: bool = True
    ) -> Generator[Result, None, None]:
        """Results of all items.

        Items are drawn as workers become free, so that few are in memory. Closing the iterator
        ends the workers.

        Args:
            work: what is done.
            items: what it is done with.
            ordered: in the order of the items, or else as each is done.

        Raises:
            Unavailable: workers died, more often than an item is tried.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalPool:
    """This process, or processes of it."""

    workers: int = 1
    """Processes; 1 for this one, so that small runs need no start-up."""
    device: str = "cpu"

    @property
    def shares_files(self) -> bool:
        """Yes."""
        return True

    def map(
        self, work: Work[Item, Result], items: Iterable[Item], *, ordered: bool = True
    ) -> Generator[Result, None, None]:
        """See `Pool`."""
        if self.workers > 1:
            yield from self._apart(work, items, ordered)
            return
        with _threads(work.threads):
            do = work.begin(self.device)
            yield from map(do, items)

    def _apart(
        self, work: Work[Item, Result], items: Iterable[Item], ordered: bool
    ) -> Generator[Result, None, None]:
        executor = ProcessPoolExecutor(self.workers, _context(), _set_up, (work, self.device))
        running: list[Future[Result]] = []

        def first() -> Result:
            if not ordered:
                wait(running, return_when=FIRST_COMPLETED)
            done = running[0] if ordered else next(one for one in running if one.done())
            running.remove(done)
            return done.result()

        try:
            for item in items:
                running.append(executor.submit(_do, item))
                if len(running) >= 2 * self.workers:
                    yield first()
            while running:
                yield first()
        except BrokenProcessPool as e:
            raise Unavailable(
                "a process of the run died, perhaps for want of memory; start it again, with fewer "
                "--workers, and it goes on where it was"
            ) from e
        finally:
            # Whoever does not wait for the last result is interrupted, or has no use for the rest.
            if running:
                for worker in list((executor._processes or {}).values()):
                    worker.kill()
            executor.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """How processes begin: as forks of one that has imported torch, and done nothing else. So a run
    imports it once for all stages and workers. Where there is no such way, each imports its own.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch"])
    return context


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_doing: Callable[[Any], Any] | None = None


def _set_up(work: Work[Any, Any], device: str) -> None:
    global _doing
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(work.threads)
    _doing = work.begin(device)


def _end_with_parent() -> None:
    """Or a worker whose parent was killed would wait for work for ever: it holds the other end of
    its queue itself.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _do(item: Any) -> Any:
    if _doing is None:
        raise RuntimeError("a worker without work")
    return _doing(item)
