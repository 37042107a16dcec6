"""The commands of `lexico` that call servers, each a function of its options.

They print in one way (`output`), connect in one way (`connection`), name a prompt in one way
(`prompts`), and end with the exit codes of `exits`. Their options are in
`lexico_services.parsers.calls`, so that `lexico --help` need not import this package.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, MutableSequence
from typing import Any, Final

from lexico_client.commands.advice import advised
from lexico_client.commands.exits import Exit, exit_code
from lexico_client.commands.output import Answer, Screen
from lexico_proto.errors import LexicoError
from lexico_proto.text import one_line

Command = Callable[[argparse.Namespace, Screen], Answer]

COMMANDS: Final = (
    "status",
    "tenants",
    "quota",
    "inspect",
    "pin",
    "unpin",
    "forget",
    "explain",
    "put",
    "get",
    "dictionaries",
    "version",
)


def run(
    name: str, options: argparse.Namespace, documents: MutableSequence[Any] | None = None
) -> int:
    """Runs one of them; its exit code. Errors are one line on standard error.

    Args:
        name: one of `COMMANDS`.
        options: as `lexico_services.parsers.calls` has them.
        documents: where what `--json` prints goes, in place of standard output.
    """
    screen = Screen(sys.stdout, as_json=options.json)
    try:
        answer = _command(name)(options, screen)
        if documents is None:
            screen.show(answer)
        else:
            documents.append(answer.document)
        return answer.code
    except BrokenPipeError:  # whoever read it has seen enough: `| head`
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # or Python would say so when it ends
        os.close(nowhere)
        return Exit.FAILED
    except LexicoError as error:
        sys.stderr.write(f"lexico: {one_line(advised(error))}\n")
        return exit_code(error)


def _command(name: str) -> Command:
    """Imports one of them, and what it needs alone."""
    match name:
        case "status":
            from lexico_client.commands import status

            return status.status
        case "tenants":
            from lexico_client.commands import tenants

            return tenants.tenants
        case "quota":
            from lexico_client.commands import quota

            return quota.quota
        case "inspect" | "pin" | "unpin" | "forget":
            from lexico_client.commands import pages

            return {
                "inspect": pages.inspect,
                "pin": pages.pin,
                "unpin": pages.unpin,
                "forget": pages.forget,
            }[name]
        case "explain":
            from lexico_client.commands import explain

            return explain.explain
        case "put" | "get":
            from lexico_client.commands import files

            return {"put": files.put, "get": files.get}[name]
        case "dictionaries":
            from lexico_client.commands import dictionaries

            return dictionaries.dictionaries
        case "version":
            from lexico_client.commands import version

            return version.version
    raise AssertionError(f"{name} is none of COMMANDS")
