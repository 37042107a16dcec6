"""Commands that call running servers. What they do is in `lexico_client.commands`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

CALL_S: Final = 10.0
LONG_S: Final = 120.0
"""Seconds that a command waits for an answer, where it is not told."""
LOOK_S: Final = 1.0
"""Seconds between the two looks of `status`."""


def add_call_commands(commands: Any) -> None:
    """Everything from `status` to `version`."""
    status = _command(commands, "status", "what the servers are doing", many=True)
    status.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="look again and again (every 2 seconds) until Ctrl-C",
    )
    status.add_argument(
        "--interval",
        type=float,
        default=LOOK_S,
        metavar="SECONDS",
        help="between the two looks that rates are made of (1); 0 for one look, without rates",
    )

    inspect = _command(commands, "inspect", "which pages of a prompt are stored, and how old")
    what = inspect.add_mutually_exclusive_group(required=True)
    _prompt_options(inspect, what)
    what.add_argument("--namespace", metavar="HEX", help="all of a model and codec, counted")

    explain = _command(commands, "explain", "why a prompt is found, or not")
    _prompt_options(explain, explain.add_mutually_exclusive_group(required=True))
    explain.add_argument("--against", type=Path, metavar="MODEL", help="another folder or spec")

    put = _command(commands, "put", "send a cache file", offload=True, wait=LONG_S)
    put.add_argument("file", type=Path, metavar="FILE", help="cache file, .safetensors")

    get = _command(
        commands, "get", "write what is stored of a prompt into a cache file", wait=LONG_S
    )
    _prompt_options(get, get.add_mutually_exclusive_group(required=True))
    get.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="to write, .safetensors"
    )

    _dictionaries(commands)
    _command(commands, "tenants", "what each tenant has stored and may have (role operator)")
    _command(commands, "quota", "what this tenant has stored and pinned, and what it may have")

    pin = _command(commands, "pin", "keep the stored pages of a prompt", wait=LONG_S)
    _prompt_options(pin, pin.add_mutually_exclusive_group(required=True))
    pin.add_argument("--label", default="", help="for people to read, in `lexico quota`")

    unpin = _command(commands, "unpin", "let pinned pages expire as others do", wait=LONG_S)
    unpin.add_argument("pin", metavar="PIN", help="as `lexico quota` lists it")

    forget = _command(commands, "forget", "remove pages, for good", wait=LONG_S)
    what = forget.add_mutually_exclusive_group(required=True)
    _prompt_options(forget, what)
    what.add_argument("--namespace", metavar="HEX", help="all of a model and codec")
    what.add_argument("--everything", action="store_true", help="all of the tenant")

    version = _command(commands, "version", "what is installed here", offload=True)
    version.add_argument("--servers", action="store_true", help="ask the servers for theirs too")


def _dictionaries(commands: Any) -> None:
    dictionaries = commands.add_parser("dictionaries", help="list, fetch and publish sets")
    actions = dictionaries.add_subparsers(required=True, metavar="ACTION", dest="action")
    _command(actions, "list", "those that this tenant can use", name="dictionaries")
    fetch = _command(actions, "fetch", "write one into a file", name="dictionaries", wait=LONG_S)
    fetch.add_argument("digest", metavar="DIGEST", help="as `list` has it")
    fetch.add_argument("--out", type=Path, required=True, metavar="FILE", help="to write")
    register = _command(
        actions, "register", "make one known to the service", name="dictionaries", wait=LONG_S
    )
    register.add_argument("file", type=Path, metavar="FILE", help="set, as `lexico train` makes it")
    register.add_argument(
        "--for",
        dest="for_model",
        type=Path,
        metavar="MODEL",
        help="have nodes of this model take it: a model folder, or spec as JSON (role admin)",
    )
    back = _command(
        actions, "take-back", "publish none for a model any more", name="dictionaries", wait=LONG_S
    )
    back.add_argument("model", type=Path, metavar="MODEL", help="model folder, or spec as JSON")
    for each in (register, back):
        each.add_argument(
            "--any-weights",
            action="store_true",
            help="also for other weights of this shape, for which there is none of their own",
        )
        each.add_argument("--shared", action="store_true", help="for every tenant (role operator)")


def _command(
    commands: Any,
    word: str,
    about: str,
    *,
    name: str = "",
    many: bool = False,
    offload: bool = False,
    wait: float = CALL_S,
) -> argparse.ArgumentParser:
    """A parser with the options that all of them have.

    Args:
        commands: where it goes.
        word: that is typed.
        about: what it does.
        name: of the command in `lexico_client.commands`; by default the word.
        many: whether it takes several servers of each kind.
        offload: whether it speaks to an offload server too.
        wait: default of `--timeout`.
    """
    parser: argparse.ArgumentParser = commands.add_parser(word, help=about)
    parser.set_defaults(command="call", call=name or word, extra="client")
    add_servers(parser, many=many, offload=offload, wait=wait)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def add_servers(
    parser: argparse.ArgumentParser, *, many: bool = False, offload: bool = False, wait: float
) -> None:
    """How a command reaches servers. Arguments as of `_command`."""
    servers = parser.add_argument_group("servers")
    how: dict[str, Any] = {"action": "append"} if many else {}
    several = "; several are possible" if many else ""
    servers.add_argument(
        "--reload",
        metavar="HOST:PORT",
        help=f"the reload server (LEXICO_RELOAD, or 127.0.0.1:7412){several}",
        **how,
    )
    if offload or many:
        servers.add_argument(
            "--offload",
            metavar="HOST:PORT",
            help=f"the offload server (LEXICO_OFFLOAD, or 127.0.0.1:7411){several}",
            **how,
        )
    servers.add_argument(
        "--bearer-file", type=Path, metavar="FILE", help="the token alone (or LEXICO_TOKEN)"
    )
    servers.add_argument("--tls", action="store_true", help="speak TLS; gRPC's own authorities")
    for part, what in (
        ("ca", "authorities of the servers: speak TLS"),
        ("certificate", "this caller's, for servers that ask"),
        ("key", "its private key"),
    ):
        servers.add_argument(f"--tls-{part}", type=Path, metavar="FILE", help=f"PEM: {what}")
    servers.add_argument("--tls-server-name", metavar="NAME", help="in the servers' certificate")
    parser.add_argument(
        "--timeout",
        type=float,
        default=wait,
        metavar="SECONDS",
        help=f"longest wait for an answer ({wait:g})",
    )


def _prompt_options(parser: argparse.ArgumentParser, what: Any) -> None:
    """Which prompt: `--prompt` or `--model`, in the group `what`, and what goes with the latter."""
    what.add_argument(
        "--prompt", type=Path, metavar="FILE", help="cache file, or JSON that names its pages"
    )
    what.add_argument("--model", type=Path, metavar="MODEL", help="model folder, or spec as JSON")
    with_model = parser.add_argument_group("with --model")
    with_model.add_argument("--tokens", type=Path, metavar="FILE", help="token ids of the prompt")
    with_model.add_argument("--text", type=Path, metavar="FILE", help="the prompt, as text")
    with_model.add_argument("--inputs", type=Path, metavar="FILE", help="JSON: digests as hex")
    with_model.add_argument("--codec", default="", help="of a model folder (balanced)")
    with_model.add_argument(
        "--dtype", default="", help="of the cache (that of its config); float8_e4m3fn, say, for fp8"
    )
    with_model.add_argument("--page-tokens", type=int, metavar="TOKENS", help="of a page (64)")
    with_model.add_argument("--lora", default="", help="identity of the adapter")
    with_model.add_argument("--salt", default="", help="what the pages are kept apart by")
