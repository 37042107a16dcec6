"""What the demo shows: its steps while it runs, and one screen of results."""

from __future__ import annotations

import re
import sys
import textwrap
import time
from typing import Any, Final

from rich.console import Console
from rich.table import Table

_WIDTH: Final = 100
_ANSWER: Final = 84
"""Characters of an answer that are shown."""
NETWORK_BYTES_PER_S: Final = 1e9 / 8
"""Of the network that the demo does not have: 1 Gbit/s."""


class Steps:
    """One line a step, and the seconds that it took."""

    def __init__(self) -> None:
        self._began = 0.0

    def begin(self, step: str) -> None:
        """Ends the step before, if there is one."""
        self.end()
        self._began = time.perf_counter()
        sys.stdout.write(f"{step} ".ljust(70, "."))
        sys.stdout.flush()

    def end(self) -> None:
        """Completes the line."""
        if self._began:
            sys.stdout.write(f" {time.perf_counter() - self._began:.1f} s\n")
            self._began = 0.0

    def failed(self) -> None:
        """Completes the line of a step that failed."""
        sys.stdout.write(" failed\n")
        self._began = 0.0


def show(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Results of both nodes, as `roles` reports them."""
    console = Console(width=_WIDTH, highlight=False, soft_wrap=False)
    codecs = list(a["offloads"])
    one = next(iter(a["offloads"].values()))
    console.print(
        f"\n[bold]Stored[/bold]: {one['tokens']:,} tokens, whose cache takes "
        f"{_bytes(one['cache bytes'])} ({a['dtype']})"
    )
    stored = _table("", "bytes", "of the cache", "offload")
    for codec, offload in a["offloads"].items():
        stored.add_row(
            codec,
            _bytes(offload["stored bytes"]),
            f"{offload['stored bytes'] / offload['cache bytes']:.1%}",
            f"{offload['seconds']:.1f} s",
        )
    console.print(stored)
    console.print(
        "\n[bold]First token[/bold] on node B, which had never seen the context: "
        "prefilled, or reloaded"
    )
    first = _table("", "tokens", "prefilled", *codecs, *(f"KL {codec}" for codec in codecs))
    for number, asked in enumerate(b["questions"], 1):
        reloads = asked["reloads"]
        first.add_row(
            f"question {number}",
            f"{asked['tokens']:,}",
            f"{asked['seconds']:.2f} s",
            *(
                f"{reloads[codec]['seconds']:.2f} s, {_faster(asked, codec):.1f}x"
                for codec in codecs
            ),
            *(f"{reloads[codec]['KL']:.3f}" for codec in codecs),
        )
    console.print(first)
    console.print(
        "KL is in nats a token over the answer: 0 is the same prediction, and 0.02 hardly differs.",
        style="dim",
    )
    console.print(_on_a_network(b["questions"], codecs), style="dim")
    console.print("\n[bold]Answers[/bold]")
    for number, asked in enumerate(b["questions"], 1):
        console.print(f"{number}  {_last_sentence(asked['question'])}", markup=False)
        _answer(console, "prefilled", asked["answer"])
        for codec in codecs:
            answer = asked["reloads"][codec]["answer"]
            _answer(console, codec, "the same" if answer == asked["answer"] else answer)


def _on_a_network(asked: list[dict[str, Any]], codecs: list[str]) -> str:
    """What bytes that cost nothing here would add elsewhere."""
    most = {
        codec: max(one["reloads"][codec]["received bytes"] for one in asked) for codec in codecs
    }
    added = ", ".join(f"{count / NETWORK_BYTES_PER_S:.2f} s ({it})" for it, count in most.items())
    return f"All of it on loopback: a network of 1 Gbit/s would add {added} for the bytes alone."


def _faster(asked: dict[str, Any], codec: str) -> float:
    return float(asked["seconds"] / asked["reloads"][codec]["seconds"])


def _table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", no_wrap=True)
    return made


def _answer(console: Console, who: str, text: str) -> None:
    short = textwrap.shorten(text, _ANSWER, placeholder=" ...")
    console.print(f"   {who:<10} {short}", markup=False, no_wrap=True, crop=True)


def _last_sentence(text: str) -> str:
    """Of a question of several, the one that asks."""
    *before, last = re.split(r"(?<=[.?!]) ", text)
    return f"... {last}" if before else last


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"
