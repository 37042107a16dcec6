"""Hosts of namespaces: their addresses, their links, and that nothing of them stays."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.support import hosts
from tests.support.hosts import Link, Network, network
from tests.support.waiting import PATIENCE_S

LACKING = hosts.lacking()
pytestmark = pytest.mark.skipif(bool(LACKING), reason=LACKING)

ECHO = (sys.executable, "-m", "tests.support.echo")
SOON_S = 0.2


@pytest.fixture(scope="module")
def pair() -> Iterator[Network]:
    """`server`, and `near` and `far` from it."""
    with network() as made:
        made.add("server", "near")
        made.add("far", link=Link(delay_s=0.02, loss=0.01))
        talking = made["server"].converse("echo", *ECHO, "serve", environment={})
        assert talking.hear() == "listens\n"
        yield made
        made["server"].end()  # it reads nothing, so that nothing else ends it
        talking.close()


def ask(network: Network, host: str, within_s: float = PATIENCE_S) -> float:
    """Seconds of a byte from this host to the server and back."""
    return float(network[host].run(*ECHO, "ask", "server", str(within_s)))


def test_a_host_has_processes_names_and_memory_of_its_own(pair: Network) -> None:
    near = pair["near"]
    assert near.run("hostname") == "near\n"
    assert near.run("sh", "-c", "echo /dev/shm/*") == "/dev/shm/*\n"
    titles = near.run("ps", "-eo", "args=").splitlines()
    assert not any("echo" in title for title in titles)
    assert (near.files().stat().st_mode & 0o777) == 0o777


def test_a_slow_link_takes_its_time_both_ways(pair: Network) -> None:
    assert ask(pair, "far") >= 2 * 0.02


def test_a_host_that_is_cut_off_says_nothing_until_it_is_healed(pair: Network) -> None:
    ask(pair, "near")
    pair["near"].cut()
    with pytest.raises(AssertionError, match=r"imed out|No route"):
        ask(pair, "near", SOON_S)
    pair["near"].heal()
    assert ask(pair, "near") > 0


def test_nothing_stays_of_a_network_that_failed() -> None:
    made: list[Network] = []

    def fail() -> None:
        with network() as failing:
            made.append(failing)
            failing.add("one")
            failing["one"].start("sleeper", "sleep", "1234")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert not made[0].folder.exists()
    for host in (made[0].switch, made[0]["one"]):
        assert not psutil.pid_exists(host.pid)
