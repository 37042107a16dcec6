"""Settings from options, environment and files: what wins, and what is refused with its place."""

from __future__ import annotations

import re
import stat
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_proto.errors import ConfigurationError
from lexico_services import serve as serve_module
from lexico_services.cli import main
from lexico_services.ending import Ending
from lexico_services.reload import child as child_module
from lexico_services.settings import Settings
from lexico_services.settings.schema import SETTINGS, TABLES
from lexico_services.settings.values import NotAValue, from_environment, from_file, to_toml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lexico.toml"


def settings_of(
    file: Path, text: str, environment: dict[str, str] | None = None, **options: Any
) -> Settings:
    file.write_text(text)
    given = {key.replace("__", "."): value for key, value in options.items()}
    return Settings.of(given, file, environment or {})


def refused(file: Path, text: str, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        settings_of(file, text, environment).check()
    message = caught.value.message
    assert "\n" not in message
    return message


def test_defaults_are_those_of_the_dataclasses() -> None:
    made = Settings.of({}, None, {})
    made.check()
    for table, (cls, elsewhere) in TABLES.items():
        for field in fields(cls):
            if field.name not in elsewhere:
                assert (
                    made.value(f"{table}.{field.name}") == SETTINGS[f"{table}.{field.name}"].default
                )
    assert made.listen_offload.port == 7411
    assert made.listen_reload.port == 7412
    assert made.encoder("unix:///s").store_url == "unix:///s"


def test_files_and_environment_fill_every_setting(file: Path) -> None:
    text = "[listen]\ndrain_s = 3\n[reload]\nmax_pages = 7\nport = 0\n[store]\npage_ttl_s = 60\n"
    made = settings_of(
        file, text, {"LEXICO_OFFLOAD__PAGES_AHEAD": "5", "LEXICO_STORE": "unix:///x"}
    )
    assert made.listen_reload.drain_s == 3.0
    assert made.reload.max_pages == 7
    assert made.listen_reload.port == 0
    assert made.reload.page_ttl_s == made.encoder("unix:///x").page_ttl_s == 60.0
    assert made.offload.pages_ahead == 5
    assert made.store_url == "unix:///x"


def test_options_win_over_both(file: Path) -> None:
    made = settings_of(
        file,
        "[listen]\nhost = '::1'\n",
        {"LEXICO_LISTEN__HOST": "127.0.0.2"},
        listen__host="127.0.0.3",
    )
    assert made.listen_offload.host == "127.0.0.3"


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("encoder.num_cpus", float("nan"), "encoder.num_cpus: nan must be a finite number"),
        ("store.page_ttl_s", float("inf"), "store.page_ttl_s: inf must be a finite number"),
        ("store.url", "", "store.url: must be a text that is not empty"),
        ("listen.host", "", "listen.host: '' must be a text that is not empty"),
    ],
)
def test_options_are_checked_as_files_are(key: str, value: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"option for {named}")):
        Settings.of({key: value}, None, {})


def test_file_and_environment_must_not_contradict_each_other(file: Path) -> None:
    environment = {"LEXICO_LISTEN__HOST": "127.0.0.2"}
    message = refused(file, "[listen]\nhost = '::1'\n", environment)
    assert str(file) in message
    assert "listen.host" in message
    assert "LEXICO_LISTEN__HOST" in message
    assert settings_of(file, "[listen]\nhost = '127.0.0.2'\n", environment).listen_offload.host


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[listn]\nhost = 'x'\n", ["listn", "did you mean listen?"]),
        ("[listen]\nhots = 'x'\n", ["listen.hots", "did you mean host?"]),
        ("[listen]\nport = 1\n", ["listen.port", "is no setting"]),
        ("listen = 3\n", ["listen must be a table"]),
        ("[listen]\nhost = 3\n", ["listen.host = 3", "must be a text"]),
        ("[listen]\nhost = ''\n", ["listen.host", "not empty"]),
        ("[listen]\ndrain_s = '3'\n", ["listen.drain_s = '3'", "must be a number"]),
        ("[listen]\ndrain_s = true\n", ["listen.drain_s = True", "must be a number"]),
        ("[listen]\ndrain_s = inf\n", ["listen.drain_s", "finite"]),
        ("[listen]\ndrain_s = nan\n", ["listen.drain_s", "finite"]),
        ("[listen]\nallow_anonymous = 1\n", ["listen.allow_anonymous = 1", "true or false"]),
        ("[reload]\nmax_pages = 1.5\n", ["reload.max_pages = 1.5", "whole number"]),
        ("[reload]\nmax_pages = false\n", ["reload.max_pages = False", "whole number"]),
        ("[reload]\nmax_pages = [1]\n", ["reload.max_pages = [1]"]),
        ("[reload]\nmax_pages = 0\n", ["max_pages", "reload.max_pages in"]),
        ("[reload]\nmax_buffered_bytes = '1 MB'\n", ["reload.max_buffered_bytes", "384 MiB"]),
        ("[log]\nlevel = 'loud'\n", ["log.level = 'loud'", "debug, info"]),
        ("[listen]\nhost = 'a'\nhost = 'b'\n", ["no TOML", "line 3"]),
        ("[listen]\nhost = 'a'\n[listen]\nhost = 'b'\n", ["no TOML", "line 3"]),
        ("[listen\n", ["no TOML", "line 1"]),
        (f"[reload]\nport = {'9' * 5000}\n", ["no TOML", "digits"]),
        ('["a\\nb"]\nx = 1\n', [r"'a\nb' is no table"]),
        ('[listen]\n"a\\u001b[31m" = 1\n', [r"listen.'a\x1b[31m' is no setting"]),
        ("[offload]\nport = 70000\n", ["port 70000", "offload.port in"]),
        ("[reload]\nport = -1\n", ["port -1", "reload.port in"]),
        ("[store]\npage_ttl_s = 0\n", ["page_ttl_s is 0.0", "store.page_ttl_s in"]),
        ("[store]\ntimeout_s = 1e18\n", ["store.timeout_s", "0.001 to 315360000 seconds"]),
        ("[store]\npage_ttl_s = 1e-308\n", ["store.page_ttl_s", "0.001 to"]),
        (f"[reload]\nmax_pages = {'9' * 400}\n", ["reload.max_pages", "64 bits"]),
        (f"[reload]\nmax_stream_s = {'9' * 400}\n", ["reload.max_stream_s", "a number"]),
        ("[encoder]\nnum_cpus = -1\n", ["num_cpus", "encoder.num_cpus in"]),
        ("[encoder]\nthreads = -1\n", ["threads", "encoder.threads in"]),
        ("[ray]\nnum_cpus = -1\n", ["num_cpus", "ray.num_cpus in"]),
    ],
)
def test_bad_files_are_refused_by_file_and_key(file: Path, text: str, named: list[str]) -> None:
    message = refused(file, text)
    assert str(file) in message
    for words in named:
        assert words in message


def test_files_that_cannot_be_read(file: Path, tmp_path: Path) -> None:
    for path in (file, tmp_path):
        with pytest.raises(ConfigurationError, match=re.escape(str(path))):
            Settings.of({}, path, {})
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="no TOML"):
        Settings.of({}, file, {})
    file.write_text("# " + "x" * (1 << 20))
    with pytest.raises(ConfigurationError, match="no file of settings"):
        Settings.of({}, file, {})


@pytest.mark.parametrize(
    ("variable", "text", "named"),
    [
        ("LEXICO_LISTEN__HOTS", "x", "did you mean LEXICO_LISTEN__HOST"),
        ("LEXICO_LISTEN__DRAIN_S", "soon", "must be a number"),
        ("LEXICO_LISTEN__DRAIN_S", "nan", "finite"),
        ("LEXICO_RELOAD__MAX_PAGES", "1.5", "whole number"),
        ("LEXICO_LISTEN__ALLOW_ANONYMOUS", "maybe", "true or false"),
        ("LEXICO_LISTEN__HOST", " ", "not empty"),
        ("LEXICO_STORE__TIMEOUT_S", "1e18", "315360000 seconds"),
        ("LEXICO_RELOAD__MAX_PAGES", "9" * 400, "64 bits"),
    ],
)
def test_bad_variables_are_refused_by_name(variable: str, text: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(named)) as caught:
        Settings.of({}, None, {variable: text})
    assert variable in caught.value.message


def test_what_kubernetes_puts_into_the_environment_is_none_of_ours() -> None:
    services = {
        "LEXICO_RELOAD_PORT": "tcp://10.0.0.1:7412",
        "LEXICO_RELOAD_SERVICE_HOST": "10.0.0.1",
        "LEXICO_STORE_PORT_6379_TCP_ADDR": "10.0.0.2",
    }
    assert Settings.of({}, None, {**services, "LEXICO_KERNEL": "naive"}).listen_reload.port == 7412


def test_a_url_with_a_password_is_never_shown(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEXICO_STORE", raising=False)
    file.write_text("[store]\nurl = 'redis://:hunter2@127.0.0.1/0'\n")
    assert main(["config", "--config", str(file)]) == 0
    shown = capsys.readouterr()
    assert "hunter2" not in shown.out + shown.err
    assert f'url = "***"  # {file}' in shown.out
    file.write_text("[store]\nurl = ['redis://:hunter2@127.0.0.1/0']\n")
    assert main(["config", "--config", str(file)]) == 2
    assert "hunter2" not in capsys.readouterr().err


def test_one_line_and_exit_code_2(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("[reload]\nmax_pagse = 3\n")
    for command in ("serve", "offload-server", "reload-server", "config"):
        assert main([command, "--config", str(file)]) == 2
        said = capsys.readouterr().err
        assert said == (
            f"lexico: {file}: reload.max_pagse is no setting; did you mean max_pages?\n"
        )


@pytest.mark.parametrize("text", ["1e9", "384 MiB", "", "9" * 5000])
def test_a_size_that_is_none_is_named_with_its_option(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--max-inflight-mib", text])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "--max-inflight-mib" in last
    assert last.endswith("is no whole number of MiB")


@pytest.mark.parametrize("command", ["serve", "offload-server"])
def test_a_token_file_is_read_before_anything_is_started(
    command: str,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def started(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(serve_module, "reachable_store", started)
    monkeypatch.setattr(serve_module, "offload_server", started)
    missing = ["--token-file", str(file), "--store", "redis://127.0.0.1"]
    assert main([command, *missing]) == 2
    assert capsys.readouterr().err.startswith(f"lexico: token file {file}: ")


def test_a_child_gets_every_setting_by_a_file_of_its_own(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}

    class Process:
        def __init__(self, command: list[str], **options: Any) -> None:
            config = Path(command[command.index("--config") + 1])
            started["mode"] = stat.S_IMODE(config.stat().st_mode)
            started["settings"] = Settings.of({}, config, options["env"])
            started["command"] = command

        def terminate(self) -> None:
            """Ended."""

        def wait(self, timeout: float) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setenv("LEXICO_LISTEN__DRAIN_S", "9")
    monkeypatch.setenv("LEXICO_STORE", "redis://elsewhere")
    file.write_text(
        "[listen]\nhost = '127.0.0.1'\ntoken_file = '/t\"o'\n"
        "[reload]\nmax_pages = 11\nmax_buffered_bytes = '1 GiB'\n[store]\ntimeout_s = 1.5\n"
    )
    parent = Settings.of({}, file).with_store("redis://:pass@127.0.0.1/1")
    child_module.ReloadChild(parent).stop(Ending(drain_s=1))
    child: Settings = started["settings"]
    assert started["mode"] == 0o600
    assert not any("pass" in word for word in started["command"])
    assert child.store_url == "redis://:pass@127.0.0.1/1"
    assert {key: given.value for key, given in child.given.items()} == {
        key: given.value for key, given in parent.given.items()
    }
    assert child.listen_reload == parent.listen_reload
    assert child.reload == parent.reload
    assert child.store == parent.store


def test_encoders_that_scale_never_have_fewer_than_are_kept(file: Path) -> None:
    made = settings_of(file, "", encoder__min_replicas=3)
    assert made.encoder("unix:///s").max_replicas == 3
    made = settings_of(file, "", encoder__min_replicas=3, encoder__max_replicas=0)
    assert made.encoder("unix:///s").max_replicas == 3
    message = refused(file, "[encoder]\nmin_replicas = 3\nmax_replicas = 2\n")
    assert "encoder.max_replicas in" in message


def test_the_example_loads_and_names_every_setting() -> None:
    example = ROOT / "examples" / "lexico.toml"
    made = Settings.of({}, example, {})
    made.check()
    text = example.read_text()
    for key, setting in SETTINGS.items():
        assert re.search(rf"^(# )?{setting.name} = ", text, re.M), f"{key} is not in {example.name}"
    assert {k: g.value for k, g in made.given.items() if k != "store.url"} == {
        k: g.value for k, g in Settings.of({}, None, {}).given.items() if k != "store.url"
    }


def test_every_setting_is_documented() -> None:
    documented = (ROOT / "docs" / "settings.md").read_text()
    for key, setting in SETTINGS.items():
        assert f"`{key}`" in documented, f"{key} stands nowhere in docs/settings.md"
        assert setting.variable == "LEXICO_STORE" or setting.variable.startswith("LEXICO_")


numbers = st.integers() | st.just(10**400) | st.floats()
scalars = st.none() | st.booleans() | numbers | st.text(max_size=20)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


@given(st.sampled_from(sorted(SETTINGS)), values)
def test_whatever_a_file_holds_is_a_value_or_none(key: str, value: Any) -> None:
    setting = SETTINGS[key]
    try:
        read = from_file(setting, value)
    except NotAValue:
        return
    again = tomllib.loads(f"x = {to_toml(read)}")["x"]
    assert from_file(setting, again) == read


@given(st.sampled_from(sorted(SETTINGS)), st.text(max_size=30))
def test_whatever_a_variable_holds_is_a_value_or_none(key: str, text: str) -> None:
    setting = SETTINGS[key]
    try:
        read = from_environment(setting, text)
    except NotAValue:
        return
    assert from_file(setting, read if not isinstance(read, Path) else str(read)) == read
