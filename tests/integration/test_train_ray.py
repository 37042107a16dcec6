"""`lexico train` on a Ray cluster: the same bytes, workers that die, runs that are stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lexico_services.cli import main
from tests.support import ray_cluster
from tests.support.ray_cluster import Cluster
from tests.support.saved_model import letters, save_tiny
from tests.support.training_work import Foreman, foreman
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster.start() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def joined(cluster: Cluster) -> Iterator[Foreman]:
    with foreman(cluster.address, cluster.environment) as joined:
        yield joined


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "text.txt").write_text(letters(5 * 1024 + 100))
    return save_tiny(folder)


def words(model: Path, out: Path, *more: str) -> list[str]:
    """Of `lexico`, for a process of its own or for `main`."""
    words = ["train", "--model", str(model), "--text", str(model / "text.txt"), "--out", str(out)]
    few = ["--atoms", "16", "--sparsity", "2", "--vectors", "3000"]
    return [*words, *few, "--device", "cpu", *more]


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


def test_bytes_are_those_of_this_machine(
    cluster: Cluster, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("--codec", "lexico-residual", "--codec", "lexico-packed")
    (tmp_path / "here").mkdir()
    here = words(model, tmp_path / "here" / "set.safetensors", *both, "--workers", "1")
    assert main(here) == 0, capsys.readouterr().err
    more = ("--workers", "2", "--state", str(tmp_path / "state"))
    whole = [sys.executable, "-m", "lexico_services"]
    whole += words(model, tmp_path / "set.safetensors", *both, *more)
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


def test_an_item_whose_worker_died_is_done_by_another(joined: Foreman, tmp_path: Path) -> None:
    assert joined.ask(tmp_path, [1, 2, "once", 3, 4, 5]) == [-1, -2, 0, -3, -4, -5]
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
    cluster: Cluster, joined: Foreman, tmp_path: Path, item: str, error: str, said: str
) -> None:
    kind, message = joined.ask(tmp_path, [1, item, 2], ordered=False)
    assert kind == error
    assert said in str(message)
    wait_until_dismissed(cluster)


def test_results_as_they_are_done(joined: Foreman, tmp_path: Path) -> None:
    found = joined.ask(tmp_path, list(range(9)), ordered=False)
    assert sorted(found) == sorted(-n for n in range(9))  # type: ignore[type-var]
    assert joined.ask(tmp_path, []) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_ends_its_workers(
    cluster: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    with foreman(cluster.address, cluster.environment) as stopped:
        stopped.begin(tmp_path, ["slow", 1, "slow"])
        wait_until((tmp_path / "slow").exists, "a worker at work")
        assert workers(cluster)
        stopped.process.send_signal(number)
        assert stopped.process.wait(PATIENCE_S) != 0
    wait_until_dismissed(cluster)


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "no cluster answers"), ("nowhere", "HOST:PORT")],
)
def test_a_cluster_that_is_not_there(
    address: str, said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(model, tmp_path / "set.safetensors", "--ray-address", address)) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_the_cluster_lacks(joined: Foreman, tmp_path: Path) -> None:
    found = joined.ask(tmp_path, [1], device="cuda")
    assert found == ["ConfigurationError", "device cuda: the Ray cluster has no GPU"]
