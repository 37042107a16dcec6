"""What shells complete `lexico` by: scripts that shtab makes of the parsers.

They are printed once, by `lexico completion`: no process starts when somebody presses Tab.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

from lexico_proto.errors import ConfigurationError
from lexico_services.parsers.command_line import make_parser
from lexico_services.parsers.lab import LAB


def script(shell: str) -> str:
    """The script of one shell.

    Args:
        shell: bash, zsh or fish.
    """
    parser = _parser()
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    made: str = shtab.complete(parser, shell)
    return made if made.endswith("\n") else made + "\n"


def _parser() -> argparse.ArgumentParser:
    """With the options of the lab where what they take is installed."""
    full = frozenset[str]()
    for name in LAB:
        try:
            make_parser(frozenset({name}))
        except ConfigurationError:
            continue
        full |= {name}
    return make_parser(full)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
