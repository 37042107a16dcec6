"""What the ingress makes of the ways in which a call to an encoder ends."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from ray.serve._private.common import ReplicaState
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
)
from ray.serve.handle import DeploymentHandle

from lexico_proto import errors
from lexico_proto.metrics import ENCODER_RETRIES, Metrics
from lexico_services.offload.encoder_pools import RayEncoders, near_first
from lexico_worker.page_encoder import Outcome, PageDone, PageJob
from tests.support.services import prompt

DONE = PageDone(Outcome.STORED, 5)


class Handle:
    """Stands for a deployment handle: answers, raises or waits, call by call."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.cancelled = 0
        self.jobs: list[PageJob] = []
        self.encode = self

    def remote(self, job: PageJob, placed: Any) -> Any:
        self.jobs.append(job)
        return Response(self, self.outcomes.pop(0))


class Response:
    """Stands for a deployment response."""

    def __init__(self, handle: Handle, outcome: Any) -> None:
        self.handle, self.outcome = handle, outcome

    def __await__(self) -> Any:
        return self._run().__await__()

    async def _run(self) -> Any:
        if self.outcome is None:
            await asyncio.Event().wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.handle.cancelled += 1


def job() -> PageJob:
    made = prompt()
    return PageJob(b"s" * 16, made.spec, 0, made.keys[0])


def died() -> Exception:
    return ray.exceptions.ActorDiedError()


async def test_an_answer_is_passed_on() -> None:
    assert await RayEncoders(Handle(DONE)).encode(job(), "ref") == DONE


async def test_an_error_of_our_tree_keeps_its_class() -> None:
    handle = Handle((errors.NonFiniteCache.reason, "page 3"))
    with pytest.raises(errors.NonFiniteCache, match="page 3"):
        await RayEncoders(handle).encode(job(), "ref")
    with pytest.raises(errors.InternalError):
        await RayEncoders(Handle(("no such reason", ""))).encode(job(), "ref")


@pytest.mark.parametrize(
    "death",
    [
        died(),
        ray.exceptions.ActorUnavailableError("gone", None),
        DeploymentUnavailableError(None),  # type: ignore[arg-type]
    ],
)
async def test_one_death_is_tried_again_by_the_same_owner(death: Exception) -> None:
    handle, metrics = Handle(death, DONE), Metrics()
    assert await RayEncoders(handle, metrics).encode(job(), "ref") == DONE
    assert metrics.snapshot() == {ENCODER_RETRIES: {(): 1}}
    first, second = handle.jobs
    assert first.owner == second.owner  # else the dead one's lease would keep the page out


async def test_two_deaths_are_an_error() -> None:
    with pytest.raises(errors.EncoderLost) as caught:
        await RayEncoders(Handle(died(), died())).encode(job(), "ref")
    assert caught.value.__cause__ is None


async def test_a_full_queue_is_busy_and_not_tried_again() -> None:
    handle = Handle(BackPressureError(1, 1), DONE)
    with pytest.raises(errors.Busy):
        await RayEncoders(handle).encode(job(), "ref")
    assert len(handle.jobs) == 1


async def test_cancelling_cancels_the_call() -> None:
    handle = Handle(None)
    task = asyncio.create_task(RayEncoders(handle).encode(job(), "ref"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.cancelled == 1


@pytest.mark.parametrize(
    ("said", "running"),
    [
        ({"lexico": {"Encoder": {ReplicaState.RUNNING: 3, ReplicaState.STARTING: 1}}}, 3),
        ({"lexico": {"Encoder": {}}}, 0),
        ({}, None),  # Serve knows of nothing
        (RayServeException("no controller"), None),
        (TimeoutError(), None),
    ],
    ids=["three", "none", "unknown", "an error", "no answer"],
)
async def test_encoders_that_run_are_those_of_serve(
    monkeypatch: pytest.MonkeyPatch, said: Any, running: int | None
) -> None:
    def status() -> Any:
        if isinstance(said, Exception):
            raise said
        applications = {
            app: SimpleNamespace(
                deployments={
                    name: SimpleNamespace(replica_states=states)
                    for name, states in deployments.items()
                }
            )
            for app, deployments in said.items()
        }
        return SimpleNamespace(applications=applications)

    monkeypatch.setattr(serve, "status", status)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(app_name="lexico"))
    assert await RayEncoders(Handle(), Metrics()).running() == running


def test_encoders_of_the_same_node_come_first() -> None:
    """By Ray Serve's own handle, whose option is not in its documentation."""
    routers: list[Any] = []

    def create_router(**options: Any) -> Any:
        routers.append(options["handle_options"])
        return object()

    create: Any = create_router  # whose type Ray does not name in public
    handle: Any = DeploymentHandle("Encoder", "lexico", _create_router=create)
    assert near_first(handle) is handle
    assert [each._prefer_local_routing for each in routers] == [True]
