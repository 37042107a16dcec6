"""The commands of `lexico` that call servers, each a function of its options.

They print in one way (`output`), connect in one way (`connection`), name a prompt in one way
(`prompts`), and end with the exit codes of `exits`. Their options are in
`lexico_services.parsers.calls`, so that `lexico --help` need not import this package.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, MutableSequence
from typing import Any, Final

from lexico_client.commands.advice import advised
from lexico_client.commands.exits import Exit, exit_code
from lexico_client.commands.output import Answer, Screen, printable
from lexico_proto.errors import LexicoError

_MODULES: Final = {
    "status": "status",
    "tenants": "tenants",
    "quota": "quota",
    "inspect": "pages",
    "pin": "pages",
    "unpin": "pages",
    "forget": "pages",
    "explain": "explain",
    "put": "files",
    "get": "files",
    "dictionaries": "dictionaries",
    "version": "version",
}
"""Command → the module here that has a function of its name."""
COMMANDS: Final = tuple(_MODULES)


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
        module = importlib.import_module(f"lexico_client.commands.{_MODULES[name]}")
        command: Callable[[argparse.Namespace, Screen], Answer] = getattr(module, name)
        answer = command(options, screen)
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
        sys.stderr.write(f"lexico: {printable(advised(error))}\n")
        return exit_code(error)
