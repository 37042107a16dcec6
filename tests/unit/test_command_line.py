"""The command line as a whole: its page, its names, and what shells complete."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lexico_client import commands
from lexico_services.cli import _COMMANDS, main
from lexico_services.parsers.command_line import SHELLS, make_parser
from tests.support import cli_page
from tests.support.cli_shapes import SHAPES
from tests.support.waiting import PATIENCE_S

CALLS = ("--reload", "--bearer-file", "--tls", "--tls-ca", "--timeout", "--json")


def parsers(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    inner = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    for action in inner:
        for name, child in action.choices.items():
            yield from parsers(child, (*path, name))
    if not inner:
        yield path, parser


def test_the_page_is_written_from_the_code() -> None:
    assert cli_page.PAGE.read_text() == cli_page.page(), "python -m tests.support.cli_page"


def test_every_call_has_the_options_of_all() -> None:
    called = set()
    for path, parser in parsers(make_parser(frozenset())):
        command, call = parser.get_default("command"), parser.get_default("call")
        assert command in _COMMANDS, path
        if command == "call":
            called.add(call)
            assert set(CALLS) <= set(parser._option_string_actions), path
    assert called == set(commands.COMMANDS)


def test_every_command_has_json() -> None:
    """But the one that prints a script. Those that start servers say where they listen."""
    without = {
        path
        for path, parser in parsers(make_parser(frozenset()))
        if "--json" not in parser._option_string_actions
    }
    assert without == {("completion",)}


def test_every_document_has_a_shape() -> None:
    paths = {" ".join(path) for path, _ in parsers(make_parser(frozenset()))}
    assert paths - SHAPES.keys() == {"completion"}


def test_every_option_says_what_it_is() -> None:
    for path, parser in parsers(make_parser()):
        for action in parser._actions:
            assert action.help, (path, action.dest)


def test_secrets_are_no_options() -> None:
    for path, parser in parsers(make_parser(frozenset())):
        for option in parser._option_string_actions:
            assert not {"token", "password", "secret"} & set(option.strip("-").split("-")[-1:]), (
                path,
                option,
            )


def test_json_of_the_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "lexico.toml"
    file.write_text('[store]\nurl = "redis://:secret@there:6379/0"\n[listen]\ndrain_s = 3\n')
    assert main(["config", "--config", str(file), "--json"]) == 0
    said = capsys.readouterr().out
    found = json.loads(said)
    assert found["listen.drain_s"] == {"value": 3.0, "source": str(file)}
    assert found["store.url"]["value"] == "***"
    assert "secret" not in said


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    typed = " ".join(f"'{word}'" for word in ("lexico", *words))
    program = (
        f"source '{script}'; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; "
        "_shtab_lexico; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    return done.stdout.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    for word in ("inspect", "dictionaries", "bearer"):
        assert word in said
    if shell != "bash":
        return
    script = tmp_path / "lexico.bash"
    script.write_text(said)
    assert completed(script, "in") == ["inspect"]
    assert completed(script, "dictionaries", "") == [
        *("list", "fetch", "register", "take-back"),
    ]
    assert completed(script, "quota", "--tls-c") == ["--tls-ca", "--tls-certificate"]
    assert completed(script, "completion", "") == ["bash", "zsh", "fish"]
    (tmp_path / "cache.safetensors").touch()
    begun = str(tmp_path / "cache")
    assert completed(script, "put", "--json", begun) == [f"{begun}.safetensors"]
