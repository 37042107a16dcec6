"""`lexico doctor` fails where a start would, and leaves everything as it was."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from lexico_proto.errors import ConfigurationError
from lexico_services.address_file import check_claim, claimed
from lexico_services.cli import main
from lexico_services.doctor import neighbours
from lexico_services.doctor.finding import State
from lexico_services.settings import Settings


def settings(**given: Any) -> Settings:
    return Settings.of({name.replace("__", "."): value for name, value in given.items()}, None, {})


@pytest.mark.parametrize(
    "url",
    [
        "memory://",
        "embedded:///proc/nope",
        "embedded://host/",
        "embedded://?maxmemory=zz",
        "embedded:///tmp/" + "x" * 120,
        "embedded://?server=/nope",
    ],
)
def test_a_store_that_a_start_would_refuse(url: str) -> None:
    (found,) = neighbours.store(settings(store__url=url), shared=True)
    assert (found.name, found.state) == ("store", State.FAIL)


def test_an_embedded_store_is_looked_at_and_nothing_is_left(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    (found,) = neighbours.store(settings(store__url=f"embedded://{deep}"), shared=True)
    assert found.state is State.OK
    assert not list(tmp_path.iterdir())
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o700)
    (found,) = neighbours.store(settings(store__url=f"embedded://{kept}"), shared=True)
    assert found.state is State.OK
    assert not list(kept.iterdir())
    kept.chmod(0o777)
    (found,) = neighbours.store(settings(store__url=f"embedded://{kept}"), shared=True)
    assert found.state is State.FAIL


def test_a_store_of_one_process_serves_a_reload_server_alone() -> None:
    (found,) = neighbours.store(settings(store__url="memory://"), shared=False)
    assert found.state is State.OK


@pytest.mark.parametrize(
    ("name", "options", "environment"),
    [
        ("address file", ["--address-file", "/nope/x"], {}),
        ("address file", ["--address-file", "/tmp"], {}),
        ("metrics", [], {"LEXICO_METRICS__ADDRESS": "127.0.0.1:{taken}"}),
        ("settings", [], {"LEXICO_TRACING__ENDPOINT": "collector"}),
        ("settings", [], {"LEXICO_STORE__TIMEOUT_S": "1e18"}),
        ("settings", [], {"LEXICO_STORE__PAGE_TTL_S": "1e-308"}),
    ],
)
def test_what_a_start_would_refuse_fails_here(
    name: str,
    options: list[str],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value.format(taken=taken.getsockname()[1]))
        ports = ["--offload-port", "0", "--reload-port", "0"]
        assert main(["doctor", *ports, *options, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found if each["state"] == "fail"] == [name]


def test_a_drain_file_that_nobody_can_touch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEXICO_OFFLOAD__DRAIN_FILE", "/nope/drain")
    main(["doctor", "--offload-port", "0", "--reload-port", "0"])
    assert "warn drain file" in capsys.readouterr().out


def test_the_look_at_an_address_file_leaves_all_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "address.json"
    check_claim(file)
    assert not list(tmp_path.iterdir())
    file.write_text("left by a server that was killed")
    check_claim(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    file.unlink()
    with claimed(file), pytest.raises(ConfigurationError, match="another server"):
        check_claim(file)
