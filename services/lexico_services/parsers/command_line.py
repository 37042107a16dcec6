"""The whole command line."""

from __future__ import annotations

import argparse
from typing import Final

from lexico_services.parsers.calls import add_call_commands
from lexico_services.parsers.lab import LAB, add_lab_commands
from lexico_services.parsers.service import add_service_commands

SHELLS: Final = ("bash", "zsh", "fish")


def make_parser(full: frozenset[str] = LAB) -> argparse.ArgumentParser:
    """
    Args:
        full: of the commands whose options are slow to import, those that get them.

    Raises:
        ConfigurationError: a package that these options take is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="lexico", description="Share prefilled KV caches between inference nodes."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_service_commands(commands)
    add_call_commands(commands)
    add_lab_commands(commands, full)
    completion = commands.add_parser("completion", help="print what a shell completes commands by")
    completion.set_defaults(command="completion", extra="cli")
    completion.add_argument("shell", choices=SHELLS, help="which shell")
    return parser
