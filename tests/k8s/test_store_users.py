"""New passwords and users of a store that runs, by the command of k8s/README.md and the chart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from k8s.chart.generate import FOLDER
from k8s.checks.rendering import HERE, base_with
from lexico_store import open_store
from tests.support.authorities import Authority
from tests.support.store_pods import STORE, Server, config_of, pod_of, valkey

helm = pytest.importorskip("helm_python", reason="Helm's package is for Linux on x86_64 alone")

COMMAND: Final = re.compile(r"^ *kubectl exec (.*) -- sh -c '(.*acl load)'$", re.MULTILINE)


def documented() -> str:
    """The command that has a server read its users."""
    ((_, command),) = COMMAND.findall((HERE / "README.md").read_text())
    return str(command)


def noted(values: dict[str, Any]) -> str:
    """That of the chart's notes; empty where they have none."""
    with helm.Chart.load(str(FOLDER)) as chart:
        made = chart.render(values, name="lexico", namespace="lexico")
    (notes,) = (text for name, text in made.items() if name.endswith("NOTES.txt"))
    found = COMMAND.findall(notes)
    return found[0][1] if found else ""


def load(server: Server, command: str, folder: Path) -> str:
    """Runs it as in the server's pod."""
    cli = shutil.which("redis-cli")
    assert cli is not None, "redis-cli is not on PATH: run `make test`, or install redis-tools"
    assert "valkey-cli " in command
    command = command.replace("valkey-cli ", f"{cli} -p {server.port} ")
    done = subprocess.run(
        ["sh", "-c", server.here(command)],
        env={**os.environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() + done.stderr.strip()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("source", ["README", "notes"])
def test_a_new_password_reaches_a_store_that_runs(tmp_path: Path, tls: bool, source: str) -> None:
    rendering = base_with(*(("cert-manager", "store-tls") if tls else ()))
    conf = config_of(rendering, "lexico-store-config")
    command = documented() if source == "README" else noted({"store": {"tls": tls}})
    authority = Authority() if tls else None
    with valkey(tmp_path / "one", conf, STORE, authority=authority) as server:
        files, old = server.folder, STORE["password"]
        users = (files / "users.acl").read_text()
        url = f"redis://lexico@127.0.0.1:{server.port}/0?password_file={files / 'password'}"
        if tls:
            url = url.replace("redis:", "rediss:") + f"&ssl_ca_certs={files / 'ca.crt'}"
        with open_store(url) as before:
            before.ping()
            both = users.replace(f">{old}", f">{old} >new-one") + "user guest on >guest +ping\n"
            (files / "users.acl").write_text(both)
            with pytest.raises(redis.AuthenticationError):  # not by itself
                server.client("guest", "guest").ping()
            assert load(server, command, tmp_path) == "OK"
            assert server.client("guest", "guest").ping()
            for password in (old, "new-one"):
                assert server.client("lexico", password).ping()

            (files / "password").write_text("new-one")
            (files / "users.acl").write_text(users.replace(f">{old}", ">new-one"))
            assert load(server, command, tmp_path) == "OK"
            with pytest.raises(redis.AuthenticationError):
                server.client("lexico", old).ping()
            before.ping()
            with open_store(url) as after:
                assert [str(each) for each in after.look()] == []


def test_a_file_that_is_none_changes_nothing(tmp_path: Path) -> None:
    conf = config_of(base_with(), "lexico-store-config")
    with valkey(tmp_path / "one", conf, STORE) as server:
        (server.folder / "users.acl").write_text("user lexico on >x +no-such-command\n")
        assert "no-such-command" in load(server, documented(), tmp_path)
        assert server.client("lexico", STORE["password"]).ping()


def test_a_server_has_the_files_that_the_command_reads() -> None:
    rendering = base_with()
    (container,) = pod_of(rendering, "store").containers
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert f"{mounts['auth']}/operator-password" in documented()
    assert f"{mounts['config']}/tls.conf" in documented()
    (volume,) = (v for v in pod_of(rendering, "store").spec["volumes"] if v["name"] == "auth")
    assert "items" not in volume["secret"]


@pytest.mark.parametrize(
    "values", [{"store": {"kind": "external"}}, {"secrets": {"create": False}}]
)
def test_the_notes_are_silent_where_users_are_not_the_charts(values: dict[str, Any]) -> None:
    assert noted(values) == ""
