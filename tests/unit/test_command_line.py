"""The command line as a whole: its page, its names, and what shells complete."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from lexico_client import commands
from lexico_services.cli import _COMMANDS, main
from lexico_services.parsers.command_line import SHELLS, make_parser
from tests.support import cli_page
from tests.support.cli_shapes import SHAPES
from tests.support.waiting import PATIENCE_S
from tests.unit.test_documents import DOCUMENTS

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


def typed_in(document: str) -> Iterator[list[str]]:
    """Our commands in the blocks of a document, without what a shell does with them."""
    for line in re.sub(r"\\\n", " ", document).splitlines():
        if re.match(r"( {4})?lexico [a-z-]+( |$)", line):
            words = shlex.split(line, comments=True)[1:]
            yield list(takewhile(lambda word: not re.match(r"[|>&]|2>", word), words))


def test_commands_of_documents_can_be_typed() -> None:
    parser, seen = make_parser(), 0
    for path in DOCUMENTS:
        if path == cli_page.PAGE or path.name == "CHANGELOG.md":
            continue
        for words in typed_in(path.read_text()):
            seen += 1
            try:
                parser.parse_args(words)
            except SystemExit:
                pytest.fail(f"{path}: lexico {shlex.join(words)}")
    assert seen > 30


def test_options_that_documents_name_are_there() -> None:
    known = {
        (*path, option)
        for path, parser in parsers(make_parser())
        for option in parser._option_string_actions
    }
    named = set()
    for path in DOCUMENTS:
        for text in re.findall(r"`lexico ([^`\n]*)`", path.read_text()):
            words = text.split()
            command = tuple(takewhile(lambda word: re.fullmatch(r"[a-z][a-z-]*", word), words))
            options = {word.partition("=")[0] for word in words if word.startswith("--")}
            if command:
                named |= {(path.name, *command[:2], option) for option in options}
    lost = [each for each in named if each[1:] not in known and (each[1], each[-1]) not in known]
    assert named
    assert lost == []


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
