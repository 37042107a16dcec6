"""How commands print: tables for people, JSON for programs.

On a terminal, with rich installed, tables have colour and fit its width; else they are plain text
in columns. `--json` prints one document, whose shape is in docs/reference/cli.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TextIO

from lexico_client.commands.exits import Exit
from lexico_proto.text import printable

_GAP: Final = "  "


@dataclass(frozen=True)
class Table:
    """Rows of short texts. Columns whose name begins with `>` are aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> Iterator[str]:
        """As plain text."""
        heads = [column.removeprefix(">") for column in self.columns]
        rows = [[printable(cell) for cell in row] for row in (heads, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        if self.title:
            yield printable(self.title)
        for row in rows:
            cells = zip(row, widths, self.columns, strict=True)
            yield _GAP.join(
                cell.rjust(width) if column.startswith(">") else cell.ljust(width)
                for cell, width, column in cells
            ).rstrip()


Part = Table | str


@dataclass(frozen=True)
class Answer:
    """What a command has to say."""

    document: Any
    """As JSON; `shapes` has its shape."""
    parts: tuple[Part, ...] = ()
    """For people: tables, and lines of text."""
    code: int = Exit.DONE


class Screen:
    """Where answers go."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        """
        Args:
            stream: standard output.
            as_json: whether documents are printed.
        """
        self._stream = stream
        self._as_json = as_json
        self._console = None if as_json or not stream.isatty() else _console(stream)
        self._live: Any = None
        self._indent: int | None = 1

    def show(self, answer: Answer) -> None:
        """Prints an answer; within `redrawn` in the place of the former one."""
        if self._as_json:
            self._write(json.dumps(answer.document, indent=self._indent))
        elif self._console is None:
            self._write("\n\n".join(_plain(answer.parts)))
        elif self._live is not None:
            self._live.update(_rich(answer.parts), refresh=True)
        else:
            self._console.print(_rich(answer.parts))

    @contextmanager
    def redrawn(self) -> Iterator[None]:
        """Draws answers over each other where there is a terminal. Elsewhere each follows the one
        before it; documents are then a line each.
        """
        if self._console is None:
            self._indent = None
            yield
            return
        from rich.live import Live

        with Live(console=self._console, screen=True, auto_refresh=False) as self._live:
            yield

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def size(count: float) -> str:
    """Bytes, such as `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def span(seconds: float) -> str:
    """A time, such as `3 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60)} s"
    hours = minutes // 60
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def part_of(count: float, whole: float) -> str:
    """A share, such as `25 %`; a dash of nothing."""
    return f"{100 * count / whole:.0f} %" if whole else "-"


def _plain(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Table):
            yield "\n".join(part.lines())
        else:
            yield "\n".join(map(printable, part.split("\n")))


def _console(stream: TextIO) -> Any:
    with suppress(ModuleNotFoundError):
        from rich.console import Console

        made = Console(file=stream, highlight=False)
        # Nothing can be drawn over what is there (TERM=dumb): rich would show nothing at all.
        return None if made.is_dumb_terminal else made
    return None


def _rich(parts: Iterable[Part]) -> Any:
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn: list[Any] = []
    for part in parts:
        if drawn:
            drawn.append(Text(""))
        if isinstance(part, str):
            drawn.append(Text("\n".join(map(printable, part.split("\n")))))
            continue
        table = RichTable(box=None, pad_edge=False, header_style="dim", title_justify="left")
        if part.title:
            table.title = Text(printable(part.title), style="bold")
        for column in part.columns:
            right = column.startswith(">")
            name = column.removeprefix(">")
            table.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in part.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        drawn.append(table)
    return Group(*drawn)
