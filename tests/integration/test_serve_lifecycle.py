"""`lexico serve` from start to end: stopped on the way, short of something, or robbed of a part."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.support.serve_runs import Runs, serve_runs
from tests.support.waiting import wait_until


@pytest.fixture
def start() -> Iterator[Runs]:
    with serve_runs() as runs:
        yield runs


@pytest.mark.parametrize(
    "part",
    ["reload-server", "gcs_server", "raylet/raylet", "ray::ServeController"],
    ids=["reload-server", "gcs", "raylet", "serve"],
)
def test_sigterm_during_the_start_ends_in_order(start: Runs, part: str) -> None:
    run = start()
    run.wait_until_there(part)
    run.process.send_signal(signal.SIGTERM)
    assert run.end_of() == 0, run.said()
    assert not run.address.exists(), "it was up before the signal"
    assert "Traceback" not in run.said()
    assert "SIGTERM received" not in run.said()
    assert run.left() == []


def test_what_ray_lacks_ends_the_start(start: Runs) -> None:
    run = start("--encoder-cpus", "1000")
    assert run.end_of() == 2
    assert "1000 CPU" in run.said().strip().splitlines()[-1]
    assert run.left() == []


def test_rays_session_is_private_and_the_loss_of_the_store_ends_all(
    start: Runs,
) -> None:
    run = start("--log-level", "info")
    run.wait_until_up()
    (folder,) = run.folder.glob("lx-*/ray-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    # Ray's processes that nobody here asks were not started.
    idle = ("log_monitor.py", "monitor.py", "dashboard.py")
    assert [each for each in run.titles() if any(name in each for name in idle)] == []
    (session,) = folder.glob("r/session_2*")
    assert (session / "sockets" / "plasma_store").is_socket()
    logs = [path.read_text() for path in (session / "logs").glob("worker-*.err")]
    assert sum("logger=lexico_worker.deployment encoder=up" in log for log in logs) == 1
    (store,) = (p for p in run.family() if p.name() in ("redis-server", "valkey-server"))
    store.kill()
    assert run.end_of() == 1
    assert "lexico: the embedded store is gone" in run.said()
    assert run.left() == []


def test_the_loss_of_ray_ends_all(start: Runs) -> None:
    run = start()
    run.wait_until_up()
    (gcs,) = (p for p in run.family() if p.name() == "gcs_server")
    gcs.kill()
    assert run.end_of() == 1
    # On a machine that is too busy to end in time, the supervisor says what it did of it as well.
    last = run.said().strip().splitlines()[-1]
    assert last.startswith("lexico: Ray's gcs_server ended by itself")
    # Where the kernel cannot hand them to us, Ray's agents go by themselves within a minute.
    assert run.left() == []


def test_a_closed_terminal_harms_nothing_and_a_service_that_is_killed_leaves_nothing(
    start: Runs,
) -> None:
    run = start("--log-level", "info")
    run.wait_until_up()
    (service,) = psutil.Process(run.process.pid).children()
    run.process.send_signal(signal.SIGHUP)
    done = ["reload=ingress done", "reload=reload server done"]
    wait_until(lambda: all(line in run.said() for line in done), "files read again", run.said)
    second = start("--address-file", str(run.address))
    assert second.end_of() == 2
    assert second.said().splitlines()[-1].startswith("lexico: address file")
    assert run.address.exists()
    run.family()
    service.kill()
    assert run.end_of() == 1
    assert run.said().splitlines()[-1].startswith("lexico: the service was killed by SIGKILL")
    assert not run.address.exists()
    assert run.left() == []


def test_the_loss_of_the_supervisor_ends_all_in_order(start: Runs) -> None:
    run = start("--log-level", "info")
    run.wait_until_up()
    run.family()
    run.process.kill()
    run.end_of()
    assert run.left() == []
    assert "logger=lexico_services.serve stopping" in run.said()
    assert not run.address.exists()
