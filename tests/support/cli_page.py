"""docs/reference/cli.md, out of the parsers, the exit codes and the shapes of documents.

python -m tests.support.cli_page    # writes it
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from lexico_client.commands.exits import MEANINGS
from lexico_services.parsers.command_line import make_parser
from tests.support.cli_shapes import SHAPES

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
_TOP: Final = """# The command `lexico`

Every command with its options, exit codes and JSON. This page is written from the parsers by
`python -m tests.support.cli_page`, and a test compares them.

## What all calls have in common

Commands that call servers (`status` to `version`) reach them in one way:

- **Where**: `--reload` and `--offload`, else `LEXICO_RELOAD` and `LEXICO_OFFLOAD`, else loopback.
- **Who**: the token in `LEXICO_TOKEN`, or in the file of `--bearer-file`, which holds the token
  alone. It is never on the command line, where others could read it.
- **TLS**: `--tls-ca` names the authorities of the servers, `--tls` takes those that gRPC comes
  with. `--tls-certificate` and `--tls-key` show a certificate.
- **Which prompt**: `--prompt FILE`, or `--model` with `--tokens` or `--text`. The file is a
  [cache file](../format.md#cache-files), or JSON: `{"spec": ..., "token_ids": [...]}`, with
  `"inputs"` where more than token ids reached the model, or `{"namespace": HEX, "page_keys":
  [HEX, ...]}`. The spec is that of `lexico_codec.spec_text.spec_to_json`.
- **Roles** ([tenants](../tenants.md#who-is-calling)): `inspect`, `quota`, `pin`, `unpin` and
  `forget` need `admin`, and are about the tenant of the token alone. `tenants` needs `operator`.
  `status` shows an `operator` whole servers and every tenant, an `admin` its own tenant's numbers
  and nothing else. The others need the roles of the calls that they make.
- **Output**: on a terminal tables, with colour if `rich` is installed (extra `cli`); else plain
  columns. With `--json` one document on standard output, whose shape is below. Errors are one
  line on standard error, and say what to do.

| exit code | after |
|---|---|"""

_AFTER_CODES: Final = """
A command that starts servers has [codes of its own](../operations.md#processes), as has [`lexico
doctor`](../lifecycle.md#doctor). `get` writes what there is and ends with 3 where that is not the
whole prompt; `inspect` ends with 3 where a page is absent. `status` ends with the code of the
first server that did not answer, and shows the others.

## Completion in shells

The extra `cli` has `lexico completion`, which prints a script for a shell, and so is the one
command without `--json`. No process starts when you press Tab.

    lexico completion bash > ~/.local/share/bash-completion/completions/lexico
    lexico completion zsh > "${fpath[1]}/_lexico"
    lexico completion fish > ~/.config/fish/completions/lexico.fish

## Smoke test

    lexico put prompt.safetensors
    lexico inspect --prompt prompt.safetensors
    lexico get --prompt prompt.safetensors --out back.safetensors
    cmp prompt.safetensors back.safetensors

With codec `raw` or `lossless` the files are equal, byte by byte, if the first one holds full
pages alone. `HuggingFaceCache.saved(ids, cache).write("prompt.safetensors")` makes one of a
model's cache, and `lexico_client.cache_file.CacheFile` of any tensors.
"""


def lines() -> Iterator[str]:
    """Of the page."""
    yield _TOP
    for code, meaning in MEANINGS.items():
        yield f"| {code.value} | {meaning} |"
    yield _AFTER_CODES
    parser = make_parser()
    for command, about, inner in _commands(parser):
        yield f"## lexico {command}\n"
        yield f"{about[:1].upper()}{about[1:]}.\n"
        yield from _options(inner)
        if command in SHAPES:
            yield "With `--json`:\n"
            yield from _shape(SHAPES[command], 1)
            yield ""


def page() -> str:
    """The page."""
    return "\n".join(lines()).rstrip() + "\n"


def _commands(
    parser: argparse.ArgumentParser, prefix: str = ""
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        about = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, inner in action.choices.items():
            if any(isinstance(each, argparse._SubParsersAction) for each in inner._actions):
                yield from _commands(inner, f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}", about[name], inner


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield "| option | what |"
    yield "|---|---|"
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        yield f"| `{_typed(action)}` | {_meant(action)} |"
    yield ""


def _typed(action: argparse.Action) -> str:
    value = ""
    if action.nargs != 0:
        value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        if action.choices is not None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        elif "." in action.dest:  # it gives a setting
            value = action.dest.rpartition(".")[2].upper()
        value = f"[{value}]" if action.nargs == "?" else value
    return " ".join(filter(None, (", ".join(action.option_strings), value)))


def _meant(action: argparse.Action) -> str:
    text = ((action.help or "") % vars(action)).replace("|", "\\|")
    needed = "; needed" if action.required and action.option_strings else ""
    setting = f" (`{action.dest}`)" if "." in action.dest else ""
    return f"{text}{setting}{needed}"


def _shape(shape: Any, depth: int) -> Iterator[str]:
    """As indented text: what Markdown shows as code."""
    pad = "    " + "  " * (depth - 1)
    if isinstance(shape, list):
        yield f"{pad}a list of"
        yield from _shape(shape[0], depth + 1)
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            if isinstance(inner, str):
                yield f"{pad}{key}: {inner}"
            elif isinstance(inner, list):
                said = isinstance(inner[0], str)
                yield f"{pad}{key}: list of {inner[0]}" if said else f"{pad}{key}: list of"
                if not said:
                    yield from _shape(inner[0], depth + 1)
            else:
                yield f"{pad}{key}:"
                yield from _shape(inner, depth + 1)
    else:
        yield f"{pad}{shape}"


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
