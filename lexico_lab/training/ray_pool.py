"""Workers of a training run on a Ray cluster.

A worker is an actor that sets the work up once and does one item at a time. Items and results go
through Ray's object store, so no file system is shared; few of them are there at a time. An item
whose worker died goes to another one.
"""

from __future__ import annotations

import importlib.util
import logging
import pickle
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic

from lexico_lab.training.device import device_for
from lexico_lab.training.pool import Item, Result, Work
from lexico_proto.errors import (
    ConfigurationError,
    InternalError,
    LexicoError,
    Unavailable,
    from_wire,
)
from lexico_worker.ray_runtime import RayConfig, RayRuntime

_log = logging.getLogger(__name__)

_TRIES: Final = 3  # of an item, and of starting a worker
_START_S: Final = 120.0  # without a worker that runs; loading the model comes after
_LOOK_S: Final = 1.0  # between looks at the clock
_END: Final = object()


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of our tree on its way from a worker: Ray would wrap it."""

    status: int
    reason: str
    message: str

    @classmethod
    def of(cls, error: LexicoError) -> Failure:
        """What makes the same error again."""
        return cls(error.status, error.reason, error.message)

    def error(self) -> LexicoError:
        """That error."""
        return from_wire(self.status, self.reason, self.message)


class TrainingWorker:
    """One worker, in a process of its own."""

    def __init__(self, work: Work[Any, Any], device: str) -> None:
        self._work, self._device = work, device
        self._do: Any = None

    def up(self) -> None:
        """Returns once the process runs."""

    def begin(self) -> Failure | None:
        """Sets the work up."""
        import torch

        try:
            torch.set_num_threads(self._work.threads)
            self._do = self._work.begin(device_for(self._device))
        except LexicoError as error:
            return Failure.of(error)
        except Exception as error:  # noqa: BLE001 - whoever trains must hear of it
            return _defect(error)
        return None

    def do(self, item: Any) -> Any:
        """The result of an item, or `Failure`."""
        try:
            return self._do(item)
        except LexicoError as error:
            return Failure.of(error)
        except Exception as error:  # noqa: BLE001 - see above
            return _defect(error)


def _defect(error: Exception) -> Failure:
    return Failure.of(InternalError(f"a worker failed: {type(error).__name__}: {error}"))


class RayPool:
    """A `Pool` of the workers that a cluster has room for."""

    def __init__(
        self, config: RayConfig, device: str | None = None, workers: int | None = None
    ) -> None:
        """
        Args:
            config: which Ray.
            device: cpu, or cuda for a GPU a worker; None for GPUs where the cluster has any.
            workers: most of them; None for as many as there are GPUs, or CPUs over the work's
                threads.
        """
        self._runtime = RayRuntime(config)
        self._device, self._workers = device, workers

    def start(self) -> None:
        """Joins the cluster, or starts one.

        Raises:
            ModuleNotFoundError: Ray is not installed.
            ConfigurationError: see `RayRuntime.start`.
        """
        if importlib.util.find_spec("ray") is None:  # before the address is tried
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        self._runtime.start()

    def stop(self) -> None:
        """Leaves it; what was started there ends."""
        self._runtime.stop()

    @property
    def shares_files(self) -> bool:
        """No: workers may be on other machines."""
        return False

    def map(
        self, work: Work[Item, Result], items: Iterable[Item], *, ordered: bool = True
    ) -> Generator[Result, None, None]:
        """See `Pool`.

        Raises:
            ConfigurationError: the cluster has no room for any worker.
            Unavailable: no worker starts, or several die with the same item, or Ray fails.
            InternalError: work or an item that cannot be pickled.
        """
        source = iter(items)
        crew: _Crew[Item, Result] = _Crew(work, *self._room(work.threads))
        try:
            yield from crew.results(source, ordered)
        finally:
            crew.dismiss()

    def _room(self, threads: int) -> tuple[int, str]:
        """How many workers there will be, and on which device."""
        import ray

        with _errors_of_ray("its machines"):
            nodes = ray.nodes()
        machines = [node["Resources"] for node in nodes if node["Alive"]]
        gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
        on_gpus = gpus > 0 if self._device is None else self._device.startswith("cuda")
        if on_gpus and not gpus:
            raise ConfigurationError(f"device {self._device}: the Ray cluster has no GPU")
        count = gpus if on_gpus else sum(int(m.get("CPU", 0)) // threads for m in machines)
        if not count:
            raise ConfigurationError(
                f"no machine of the Ray cluster has {threads} CPUs, which a worker takes as this "
                "process does; OMP_NUM_THREADS sets the number"
            )
        return min(count, self._workers or count), "cuda" if on_gpus else "cpu"


class _Phase(Enum):
    """What a worker is called to."""

    UP = "up"
    BEGIN = "begin"
    DO = "do"


@dataclass(slots=True)
class _Job:
    """An item, and how it fared."""

    number: int
    item: Any
    """Reference into the object store."""
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class _Call:
    """What a worker is at."""

    worker: Any
    phase: _Phase
    job: _Job | None = None


class _Crew(Generic[Item, Result]):
    """Workers for one `map`."""

    def __init__(self, work: Work[Item, Result], count: int, device: str) -> None:
        self._work, self._count, self._device = work, count, device
        self._workers: list[Any] = []
        self._idle: list[Any] = []
        self._running: dict[Any, _Call] = {}
        self._again: list[_Job] = []
        self._working = 0
        self._failed_starts = 0

    def results(self, source: Iterator[Item], ordered: bool) -> Iterator[Result]:
        """See `Pool.map`."""
        finished: dict[int, Result] = {}
        drawn, given, more = 1, 0, True
        deadline = time.monotonic() + _START_S
        first = self._draw(source, 0)
        if first is None:
            return
        self._again.append(first)
        for _ in range(self._count):
            self._hire()
        while True:
            while self._idle and self._again:
                self._give(self._again.pop())
            while more and self._idle and (not ordered or drawn < given + 2 * self._count):
                job = self._draw(source, drawn)
                if job is None:
                    more = False
                    break
                drawn += 1
                self._give(job)
            if not more and not self._working and not self._again:
                break
            finished.update(self._look())
            if self._up():
                deadline = time.monotonic() + _START_S
            elif time.monotonic() > deadline:
                raise Unavailable(
                    f"no worker started on the Ray cluster within {_START_S:.0f} s: its CPUs or "
                    "GPUs may be taken, or machines lost; the state folder keeps what is done"
                )
            while finished and (not ordered or given in finished):
                yield finished.pop(given if ordered else next(iter(finished)))
                given += 1

    def dismiss(self) -> None:
        """Ends all workers. Those of a cluster that is gone are gone, whatever it answers."""
        for worker in self._workers:
            _kill(worker)
        self._workers.clear()
        self._running.clear()

    def _up(self) -> bool:
        """Whether any worker runs."""
        calls = self._running.values()
        return bool(self._idle) or any(call.phase is not _Phase.UP for call in calls)

    def _hire(self) -> None:
        import ray

        options = {"num_cpus": self._work.threads, "num_gpus": 0}
        if self._device == "cuda":
            options = {"num_cpus": 1, "num_gpus": 1}
        with _errors_of_ray("a new worker"):
            actor: Any = ray.remote(TrainingWorker)
            worker = actor.options(**options).remote(self._work, self._device)
            self._workers.append(worker)
            self._running[worker.up.remote()] = _Call(worker, _Phase.UP)

    def _draw(self, source: Iterator[Item], number: int) -> _Job | None:
        import ray

        item = next(source, _END)
        if item is _END:
            return None
        with _errors_of_ray("an item"):
            return _Job(number, ray.put(item))

    def _give(self, job: _Job) -> None:
        worker = self._idle.pop()
        self._working += 1
        with _errors_of_ray("an item"):
            self._running[worker.do.remote(job.item)] = _Call(worker, _Phase.DO, job)

    def _look(self) -> dict[int, Result]:
        """Waits a little for calls to end; the results of those that did."""
        import ray

        results: dict[int, Result] = {}
        with _errors_of_ray("results"):
            ready, _ = ray.wait(list(self._running), timeout=_LOOK_S)
        for reference in ready:
            call = self._running.pop(reference)
            self._working -= call.job is not None
            try:
                with _errors_of_ray("a result", but=_recoverable()):
                    value = ray.get(reference)
            except _recoverable() as error:
                self._replace(call, error)
                continue
            if isinstance(value, Failure):
                raise value.error()
            if call.job is not None:
                results[call.job.number] = value
            self._go_on(call)
        return results

    def _go_on(self, call: _Call) -> None:
        """What comes after a call that ended well."""
        if call.phase is _Phase.UP:
            with _errors_of_ray("a new worker"):
                self._running[call.worker.begin.remote()] = _Call(call.worker, _Phase.BEGIN)
            return
        self._failed_starts = 0
        self._idle.append(call.worker)

    def _replace(self, call: _Call, error: Exception) -> None:
        """Takes another worker for one that is gone, and its item back."""
        _log.warning("training_worker=lost phase=%s", call.phase.value)
        self._workers.remove(call.worker)
        _kill(call.worker)  # a lost result leaves its worker running
        if call.job is None:
            self._failed_starts += 1
            if self._failed_starts >= _TRIES:
                raise Unavailable(
                    f"{_TRIES} training workers died while they started, perhaps for want of "
                    f"memory: {_last_line(error)}"
                ) from error
        else:
            call.job.deaths += 1
            if call.job.deaths >= _TRIES:
                raise Unavailable(
                    f"{_TRIES} training workers died with the same item, perhaps for want of "
                    f"memory; the state folder keeps what is done: {_last_line(error)}"
                ) from error
            self._again.append(call.job)
        self._hire()


def _recoverable() -> tuple[type[Exception], ...]:
    """What another worker may not suffer."""
    from ray import exceptions

    return (
        exceptions.RayActorError,  # the process or its machine died, or cannot be reached
        exceptions.ObjectLostError,  # the machine that held a result died
        exceptions.OutOfMemoryError,  # Ray killed the process to save the machine
    )


@contextmanager
def _errors_of_ray(what: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What Ray raises as errors of our tree.

    Args:
        what: what Ray was to do it with.
        but: errors that stay as they are.

    Raises:
        Unavailable: Ray fails, or its client lost the cluster.
        InternalError: what is sent cannot be pickled.
    """
    from ray.exceptions import ObjectStoreFullError, RayError

    try:
        yield
    except but:
        raise
    except ObjectStoreFullError as error:
        raise Unavailable(
            f"Ray, {what}: its object store is full; start Ray with more --object-store-memory: "
            f"{_last_line(error)}"
        ) from error
    except (RayError, ConnectionError) as error:
        raise Unavailable(f"Ray, {what}: {_last_line(error)}") from error
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise InternalError(f"Ray, {what}: cannot be sent ({_last_line(error)})") from error


def _last_line(error: Exception) -> str:
    """Of what an error says: Ray puts tracebacks of workers before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _kill(worker: Any) -> None:
    """Ends a worker. Where that fails, another error says why, and this one must not hide it."""
    import ray

    try:
        ray.kill(worker)
    except Exception as error:  # noqa: BLE001 - whatever a dead cluster gives
        _log.warning("training_worker=not_ended error=%s", type(error).__name__)
