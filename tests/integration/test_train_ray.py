"""`lexico train` on a Ray cluster: the same bytes, workers that die, runs that are stopped."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support import ray_cluster
from tests.support.ray_cluster import Cluster
from tests.support.saved_model import letters, save_tiny
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster.start() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text.txt").write_text(letters(5 * 1024 + 100))
    return save_tiny(folder)


def line(model: Path, out: Path, *more: str) -> list[str]:
    words = ["train", "--model", str(model), "--text", str(model / "text.txt"), "--out", str(out)]
    few = ["--atoms", "16", "--sparsity", "2", "--vectors", "3000", "--workers", "2"]
    return [sys.executable, "-m", "lexico_services", *words, *few, "--device", "cpu", *more]


def workers(cluster: Cluster) -> list[psutil.Process]:
    """Processes that are, or are about to be, busy with a training run."""
    found = []
    for process in psutil.Process(cluster.pid).children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::TrainingWorker"):
                found.append(process)
    return found


def wait_until_dismissed(cluster: Cluster) -> None:
    wait_until(lambda: not workers(cluster), "the workers' end", lambda: workers(cluster))


def test_bytes_are_those_of_this_machine(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    both = ("--codec", "lexico-residual", "--codec", "lexico-packed")
    (tmp_path / "here").mkdir()
    alone = subprocess.run(
        line(model, tmp_path / "here" / "set.safetensors", *both),
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr
    state = ("--state", str(tmp_path / "state"))
    whole = line(model, tmp_path / "set.safetensors", *both, *state)
    process = subprocess.Popen(
        [*whole, "--ray-address", cluster.address],
        env=cluster.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: workers(cluster), "a worker")[0].kill()  # whatever it was at
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    names = ("set-residual.safetensors", "set-packed.safetensors")
    made = {name: (tmp_path / "here" / name).read_bytes() for name in names}
    assert {name: (tmp_path / name).read_bytes() for name in names} == made
    wait_until_dismissed(cluster)

    # What the cluster left undone this machine does.
    (tmp_path / "set-packed.safetensors").unlink()
    (tmp_path / "state" / "lexico-packed" / "01.key.safetensors").unlink()
    (tmp_path / "state" / "lexico-packed" / "samples" / "progress.json").write_text('{"windows":1}')
    again = subprocess.run(whole, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert {name: (tmp_path / name).read_bytes() for name in names} == made


def program(cluster: Cluster, folder: Path, items: list[object], ordered: bool = True) -> list[str]:
    """The command that has the cluster do chores."""
    words = [cluster.address, str(folder), json.dumps(items), "yes" if ordered else "no"]
    return [sys.executable, "-m", "tests.support.training_work", *words]


def ask(cluster: Cluster, folder: Path, items: list[object], ordered: bool = True) -> object:
    """What the cluster makes of chores."""
    done = subprocess.run(
        program(cluster, folder, items, ordered),
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_an_item_whose_worker_died_is_done_by_another(cluster: Cluster, tmp_path: Path) -> None:
    assert ask(cluster, tmp_path, [1, 2, "once", 3, 4, 5]) == [-1, -2, 0, -3, -4, -5]
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize(
    ("item", "error", "said"),
    [
        ("die", "Unavailable", "3 training workers died with the same item"),
        ("refuse", "InvalidInput", "such an item"),
        ("break", "InternalError", "OSError: such a machine"),
    ],
)
def test_errors_come_from_the_cluster(
    cluster: Cluster, tmp_path: Path, item: str, error: str, said: str
) -> None:
    found = ask(cluster, tmp_path, [1, item, 2], ordered=False)
    assert isinstance(found, list)
    assert found[0] == error
    assert said in found[1]
    wait_until_dismissed(cluster)


def test_results_as_they_are_done(cluster: Cluster, tmp_path: Path) -> None:
    found = ask(cluster, tmp_path, list(range(9)), ordered=False)
    assert sorted(found) == sorted(-n for n in range(9))  # type: ignore[call-overload]
    assert ask(cluster, tmp_path, []) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_ends_its_workers(
    cluster: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        program(cluster, tmp_path, ["slow", 1, "slow"]),
        env=cluster.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells' `&` ignores it
    )
    try:
        wait_until((tmp_path / "slow").exists, "a worker at work")
        assert workers(cluster)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) != 0
    finally:
        process.kill()
        process.wait()
    wait_until_dismissed(cluster)


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "no cluster answers"), ("nowhere", "HOST:PORT")],
)
def test_a_cluster_that_is_not_there(address: str, said: str, model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        line(model, tmp_path / "set.safetensors", "--ray-address", address),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_the_cluster_lacks(cluster: Cluster) -> None:
    program = (
        "from lexico_worker.ray_runtime import RayConfig\n"
        "from lexico_lab.training.ray_pool import RayPool\n"
        "from tests.support.training_work import Chores\n"
        f"pool = RayPool(RayConfig(address={cluster.address!r}), 'cuda')\n"
        "pool.start()\n"
        "try:\n    list(pool.map(Chores(None), [1]))\n"
        "finally:\n    pool.stop()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "ConfigurationError: device cuda: the Ray cluster has no GPU" in done.stderr
