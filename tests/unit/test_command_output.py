"""How commands print: plain, on a terminal, as JSON."""

from __future__ import annotations

import io
import json
import sys

import pytest

from lexico_client.commands.advice import advised
from lexico_client.commands.exits import MEANINGS, Exit, exit_code
from lexico_client.commands.output import Answer, Screen, Table, part_of, size, span
from lexico_proto import errors
from lexico_proto.text import printable

TABLE = Table("Servers", ("address", ">pages"), (("there:1", "12"), ("\x1b[2Jelse\nwhere", "3")))
ANSWER = Answer({"name": "\x1b[2J"}, ("a line\x07", TABLE))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_text_is_in_columns() -> None:
    out = io.StringIO()
    Screen(out, as_json=False).show(ANSWER)
    assert out.getvalue() == (
        "a line�\n\nServers\naddress         pages\nthere:1            12\n�[2Jelse�where      3\n"
    )


def test_json_is_one_document() -> None:
    out = Terminal()
    screen = Screen(out, as_json=True)
    screen.show(ANSWER)
    assert json.loads(out.getvalue()) == ANSWER.document
    assert "\x1b" not in out.getvalue()
    out.truncate(0)
    with screen.redrawn():
        screen.show(ANSWER)
        screen.show(ANSWER)
    assert len(out.getvalue().strip().splitlines()) == 2


def test_a_terminal_is_shown_tables_and_no_codes_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    screen = Screen(out, as_json=False)
    screen.show(ANSWER)
    assert "Servers" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()
    out.truncate(0)
    with screen.redrawn():
        screen.show(ANSWER)
        screen.show(Answer({}, ("another",)))
    assert "another" in out.getvalue()


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_draw_is_shown_each_answer(
    monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    out = Terminal()
    screen = Screen(out, as_json=False)
    with screen.redrawn():
        screen.show(ANSWER)
        screen.show(Answer({}, ("another",)))
    assert out.getvalue().startswith("a line�\n\nServers\n")
    assert out.getvalue().endswith("another\n")
    assert "\x1b" not in out.getvalue()


def test_a_terminal_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    out = Terminal()
    Screen(out, as_json=False).show(ANSWER)
    assert out.getvalue().startswith("a line�\n\nServers\n")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_sizes(count: int, said: str) -> None:
    assert size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (61, "1 min 1 s"),
        (3600 * 5 + 61, "5 h 1 min"),
        (86400 * 3 + 3600, "3 d 1 h"),
    ],
)
def test_spans(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_shares() -> None:
    assert (part_of(1, 4), part_of(1, 0), printable("a\tb")) == ("25 %", "-", "a�b")


def test_every_error_has_a_code_that_is_documented() -> None:
    codes = {name: exit_code(cls("x")) for name, cls in errors.ERRORS.items()}
    assert set(codes.values()) < MEANINGS.keys()
    assert MEANINGS.keys() == set(Exit)
    assert codes["quota-exceeded"] is Exit.REFUSED, "though it is a kind of Busy"
    assert codes["busy"] is codes["circuit-open"] is Exit.NO_ANSWER
    assert codes["shape-mismatch"] is Exit.BAD_INPUT
    assert codes["internal"] is Exit.FAILED


def test_advice_is_one_line() -> None:
    late = advised(errors.DeadlineExpired("no answer\nwithin the deadline"))
    assert late == "no answer within the deadline: try again, or raise --timeout"
    assert advised(errors.Busy("full: try again later")) == "full: try again later"


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("localhost:7412", "does it run there, and does it want TLS (--tls-ca)?"),
        ("cache-0.example:7412", "does it run there, and does it want TLS (--tls-ca)?"),
        ("10.0.0.7:7412", "does it run there?"),
        ("[fd00::a]:7412", "does it run there?"),
    ],
)
def test_of_a_name_with_several_addresses_one_error_is_told(address: str, asked: str) -> None:
    said = "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:7412: refused"
    advice = advised(errors.Unavailable(f"{address}: {said}"))
    assert advice == f"{address}: ipv6:%5B::1%5D:7412: refused: {asked}"
