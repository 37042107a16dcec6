"""The scripts of the component `sentinel`: whom a server follows, and whom a sentinel watches."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

from k8s.checks.rendering import COMPONENTS, base_with
from tests.support.authorities import Authority
from tests.support.sentinel_pods import SentinelPod, SentinelPods, sentinel_pods
from tests.support.store_pods import STORE
from tests.support.waiting import PATIENCE_S, wait_until

SCRIPTS: Final = COMPONENTS / "sentinel"
STORES: Final = [f"lexico-store-{i}.lexico-store" for i in range(3)]
SENTINELS: Final = [f"lexico-sentinel-{i}.lexico-sentinel" for i in range(3)]
S0, S1, S2 = STORES
W0, W1, W2 = SENTINELS


@pytest.mark.timeout(2 * PATIENCE_S)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_sentinels_that_lost_their_state_find_the_primary(tmp_path: Path, tls: bool) -> None:
    """After a failover, and when the primary went together with them."""
    shape = ("cert-manager", "sentinel", "store-tls") if tls else ("sentinel",)
    authority = Authority() if tls else None
    with sentinel_pods(tmp_path, base_with(*shape), authority) as pods:
        pods.sentinels[0].start()
        wait_until(
            lambda: "waiting: no sentinel names a primary" in pods.sentinels[0].log,
            "a sentinel that waits",
        )
        for each in pods.stores:
            each.start(TRIES="1")
        for each in pods.sentinels[1:]:
            each.start()
        first = pods.whole()
        assert [each.found() for each in pods.sentinels] == [[pods.stores[0].port]] * 3

        first.end()
        wait_for_a_failover(pods, first)
        first.start(TRIES="1")
        second = pods.whole()
        assert second is not first

        for each in pods.sentinels:
            each.end()
        for each in pods.sentinels:
            each.start()
        pods.whole()
        assert [each.found()[1:] for each in pods.sentinels] == [[second.port]] * 3

        third = pods.whole()
        for each in (*pods.sentinels, third):
            each.end()
        for each in pods.sentinels:
            each.start()
        wait_for_a_failover(pods, third)  # from a primary that these sentinels never saw
        assert [each.found()[2:] for each in pods.sentinels] == [[third.port]] * 3
        third.start(TRIES="1")
        assert pods.whole() is not third


@pytest.mark.timeout(2 * PATIENCE_S)
def test_a_primary_that_is_back_at_once_takes_no_page_with_it(tmp_path: Path) -> None:
    """Sooner than sentinels miss it: it is empty then, and its replicas would be."""
    with sentinel_pods(tmp_path, base_with("sentinel")) as pods:
        for each in (*pods.stores, *pods.sentinels):
            each.start(TRIES="1")
        first = pods.whole()
        with first.client("operator", STORE["operator-password"]) as client:
            client.set("page", "kept")
            assert client.wait(2, 1000 * round(PATIENCE_S)) == 2
        first.end()
        first.start(TRIES="1")
        second = pods.whole()
        for each in pods.stores:
            with each.client("operator", STORE["operator-password"]) as client:
                assert client.get("page") == "kept", pods.logs
        assert second is not first


def wait_for_a_failover(pods: SentinelPods, gone: SentinelPod) -> None:
    """That all sentinels know of."""
    others = {each.port for each in pods.stores} - {gone.port}
    wait_until(
        lambda: {each.primary() for each in pods.sentinels} < others,
        "a failover",
        lambda: pods.logs,
    )


STUBS: Final = {
    # Says what the file of its host says; nothing to somebody without the TLS that a test asks for.
    # Other questions than whom somebody follows have a file each, and leave a line.
    "valkey-cli": """
host="" last="" of=""
for word; do [ "$last" != -h ] || host=$word; last=$word; done
case "$*" in
  *" info keyspace") of=.keys ;;
  *" sentinel master lexico") of=.state ;;
  *" sentinel failover lexico") of=.failover; echo "$host" >> "$ANSWERS/asked" ;;
esac
test "${TLS:-$1}" = "$1" && cat "$ANSWERS/$host$of" 2>/dev/null
""",
    "valkey-server": 'echo "server $@"\n',
    "valkey-sentinel": 'echo "sentinel $@"\n',
    # Once somebody waits, a primary is there.
    "sleep": 'printf "master\\n0\\n" > "$ANSWERS/lexico-store-1.lexico-store"\n'
    'printf "slave\\nlexico-store-1.lexico-store\\n6379\\nconnected\\n0\\n" '
    '> "$ANSWERS/lexico-store-2.lexico-store"\n'
    'rm -f "$ANSWERS/lexico-store-0.lexico-store"\n',
}


def named(host: str) -> str:
    """A sentinel's answer."""
    return f"{host}\n6379\n"


def follows(host: str) -> str:
    """A replica's answer."""
    return f"slave\n{host}\n6379\nconnected\n100\n"


PRIMARY: Final = "master\n100\n"


class Scripts:
    """Runs them with programs that say what they are given, and files in place of a pod's."""

    def __init__(self, folder: Path, tls: bool = False) -> None:
        self.folder = folder
        self.tls = tls
        for name, text in STUBS.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{text}")
            path.chmod(0o755)
        for name in ("config", "auth", "data", "store", "answers", "start"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "auth" / "sentinel.conf").write_text("sentinel auth-pass lexico x\n")
        (folder / "config" / "sentinel.conf").write_text("# config\n")
        for mount in ("config", "start"):
            (folder / mount / "primary.sh").write_text(self.here("primary.sh"))
        if tls:
            for mount in ("config", "store"):
                (folder / mount / "tls.conf").write_text("# tls\n")

    def here(self, name: str) -> str:
        text = (SCRIPTS / name).read_text().replace("/etc/valkey", str(self.folder))
        return text.replace("/data/", f"{self.folder}/data/")

    def run(self, name: str, pod: str, answers: dict[str, str]) -> tuple[str, str]:
        """What it ends with, and what it said of waiting."""
        for host, text in answers.items():
            (self.folder / "answers" / host).write_text(text)
        environment = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "POD_NAME": pod,
            "ANSWERS": str(self.folder / "answers"),
            **({"TLS": "--tls"} if self.tls else {}),
        }
        command = ["sh", "-c", self.here(name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1], done.stderr


DIFFERENT: Final = f"waiting: stores follow different primaries: {S0}:6379 {S2}:6379"


@pytest.mark.parametrize(
    ("pod", "answers", "primary", "waited"),
    [
        (0, {}, S1, "waiting: nobody answers"),  # not before it asked again
        (1, {S0: PRIMARY}, S0, ""),
        (0, dict.fromkeys(SENTINELS, named(S2)), S2, ""),
        (2, {W1: named(S2)}, S2, ""),
        (2, {S0: follows(S2), S1: follows(S2)}, S2, ""),
        (0, {S1: PRIMARY, S2: follows(S1)}, S1, ""),
        (0, {S1: PRIMARY, S2: follows(S0)}, S1, ""),  # in the midst of a failover
        (0, {W0: named(S0), S1: PRIMARY, S2: follows(S1), S0: follows(S1)}, S1, ""),
        (1, {W0: named(S0), S0: follows(S2), S2: PRIMARY}, S2, ""),  # sentinels that are wrong
        (1, {W0: named("10.0.0.7"), S0: PRIMARY}, S0, ""),
        (1, {W0: "\n", S0: PRIMARY}, S0, ""),
        (1, {S0: PRIMARY, S2: PRIMARY}, S1, DIFFERENT),  # until one is left; see `sleep`
    ],
)
def test_a_server_follows_whom_others_name(
    pod: int, answers: dict[str, str], primary: str, waited: str, tmp_path: Path
) -> None:
    if pod == 1 and waited:  # itself is what `sleep` has appear
        answers, pod = {S0: answers[S0], S1: answers[S2]}, 2
        waited = waited.replace(S2, S1)
    line, said = Scripts(tmp_path).run("start.sh", f"lexico-store-{pod}", answers)
    assert said.strip() == waited
    assert f"/config/valkey.conf --include {tmp_path}/auth/replication.conf" in line
    assert f"--replica-announce-ip {STORES[pod]}" in line
    if primary == STORES[pod]:
        assert "replicaof" not in line
    else:
        assert line.endswith(f"--replicaof {primary} 6379")


TAKES_OVER: Final = "waiting: a replica that has the pages takes over\n"
KEYS: Final = "# Keyspace\ndb0:keys=3,expires=2,avg_ttl=1\n"
TWO_FOLLOW: Final = {W0: named(S0), W1: named(S0), S1: follows(S0), S2: follows(S0)}
OF_PAGES: Final = {**TWO_FOLLOW, f"{S2}.keys": KEYS}


@pytest.mark.parametrize(
    ("answers", "primary", "asked", "waited"),
    [
        (TWO_FOLLOW, S0, [], ""),  # as empty as itself: all is new
        ({**TWO_FOLLOW, f"{S1}.keys": "# Keyspace\n"}, S0, [], ""),
        ({**OF_PAGES, f"{W0}.failover": "OK\n"}, S1, [W0], TAKES_OVER),
        ({**OF_PAGES, f"{W1}.failover": "OK\n"}, S1, [W0, W1], TAKES_OVER),
        ({**OF_PAGES, f"{W1}.state": "flags\nmaster,failover_in_progress\n"}, S1, [], TAKES_OVER),
        ({**OF_PAGES, W0: "", W1: "", f"{W2}.failover": "OK\n"}, S1, SENTINELS, TAKES_OVER),
        # A sentinel alone that was not there as another took over.
        ({W0: named(S0), S1: PRIMARY, S2: follows(S1)}, S1, [], ""),
    ],
)
def test_a_primary_that_comes_back_has_one_with_pages_take_over(
    answers: dict[str, str], primary: str, asked: list[str], waited: str, tmp_path: Path
) -> None:
    line, said = Scripts(tmp_path).run("start.sh", "lexico-store-0", answers)
    assert said == waited
    assert line.endswith(f"--replicaof {primary} 6379") == (primary != S0)
    assert "replicaof" in line or primary == S0
    record = tmp_path / "answers" / "asked"
    assert (record.read_text().split() if record.exists() else []) == asked


@pytest.mark.parametrize("began", [{}, {f"{W0}.failover": "OK\n"}], ids=["refused", "begun"])
def test_where_none_takes_over_the_primary_is_as_before(
    began: dict[str, str], tmp_path: Path
) -> None:
    scripts = Scripts(tmp_path)
    (tmp_path / "bin" / "sleep").write_text("#!/bin/sh\n")
    line, said = scripts.run("start.sh", "lexico-store-0", {**OF_PAGES, **began})
    assert "replicaof" not in line
    assert said == TAKES_OVER
    asked = (tmp_path / "answers" / "asked").read_text().split()
    assert asked == ([W0] if began else SENTINELS * 5)


def test_where_nobody_ever_answers_the_first_is_the_primary(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    (tmp_path / "bin" / "sleep").write_text("#!/bin/sh\n")
    line, said = scripts.run("start.sh", "lexico-store-0", {})
    assert "replicaof" not in line
    assert said == "waiting: nobody answers\n"
    line, _ = scripts.run("start.sh", "lexico-store-1", {})
    assert line.endswith(f"--replicaof {S0} 6379")


NOBODY: Final = "waiting: no sentinel names a primary, nor do two stores follow the same one\n"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    ("answers", "primary", "waited"),
    [
        ({}, S1, NOBODY),
        ({S0: PRIMARY}, S1, NOBODY),  # one alone may be one that came back
        ({S0: PRIMARY, S1: PRIMARY}, S1, NOBODY),
        ({S0: follows(S1), S1: follows(S0), S2: follows(S0)}, S1, NOBODY),
        ({W0: named(S2), W2: named(S1)}, S1, NOBODY),
        ({W0: named(S2)}, S2, ""),
        ({W1: named(S0)}, S1, NOBODY),  # itself
        ({S0: PRIMARY, S1: follows(S0)}, S0, ""),
        ({S1: follows(S2), S0: follows(S2)}, S2, ""),
        ({S0: PRIMARY, S1: follows(S2), S2: PRIMARY}, S2, ""),
        ({W0: named(S0), W2: named(S0), S0: follows(S2), S2: PRIMARY}, S2, ""),
        ({W0: named(S0), W2: named(S2), S0: follows(S2), S2: PRIMARY}, S2, ""),
        ({W0: named("10.0.0.7")}, S1, NOBODY),
    ],
)
def test_a_sentinel_watches_whom_others_know(
    answers: dict[str, str], primary: str, waited: str, tls: bool, tmp_path: Path
) -> None:
    scripts = Scripts(tmp_path, tls)
    file = tmp_path / "data" / "sentinel.conf"
    line, said = scripts.run("sentinel.sh", "lexico-sentinel-1", answers)
    assert (line, said) == (f"sentinel {file}", waited)
    others = [f"sentinel known-replica lexico {each} 6379" for each in STORES if each != primary]
    assert file.read_text().splitlines() == [
        "# config",
        "sentinel auth-pass lexico x",
        f"sentinel announce-ip {W1}",
        f"sentinel monitor lexico {primary} 6379 2",
        *others,
        *(["# tls", "tls-port 26379"] if tls else []),
    ]


def test_a_sentinel_keeps_what_it_found(tmp_path: Path) -> None:
    file = tmp_path / "data" / "sentinel.conf"
    scripts = Scripts(tmp_path)
    file.write_text("# found\n")
    assert scripts.run("sentinel.sh", "lexico-sentinel-1", {}) == (f"sentinel {file}", "")
    assert file.read_text() == "# found\n"


def test_a_probe_asks_over_tls(tmp_path: Path) -> None:
    """The stub answers those alone that begin with what TLS says."""
    ping = Scripts(tmp_path, tls=True).here("ping.sh")
    assert "$tls -e -p 26379 ping" in ping
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "ANSWERS": str(tmp_path / "answers"),
        "TLS": "--tls",
    }
    (tmp_path / "answers" / "pong").write_text("PONG\n")
    command = ["sh", "-c", ping.replace(" -e ", " -h pong ")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "PONG\n"


def test_scripts_know_every_server() -> None:
    """As many as there are."""
    made = dict(
        re.findall(r'^(stores|sentinels)="(.*)"$', (SCRIPTS / "primary.sh").read_text(), re.M)
    )
    rendering = base_with("sentinel")
    for kind, port in (("store", 6379), ("sentinel", 26379)):
        found = rendering.find("StatefulSet", f"lexico-{kind}")
        assert found is not None
        name, spec = found["metadata"]["name"], found["spec"]
        assert made[f"{kind}s"].split() == [
            f"{name}-{i}.{spec['serviceName']}:{port}" for i in range(spec["replicas"])
        ]
