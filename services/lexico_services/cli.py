"""The `lexico` command: from options and environment to configuration, and nothing else.

What a command runs is imported when it runs: each needs other optional packages, and `--help` none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TextIO

from lexico_proto.errors import ConfigurationError, LexicoError
from lexico_proto.text import one_line
from lexico_services import process
from lexico_services.parsers.command_line import make_parser
from lexico_services.parsers.extras import needs
from lexico_services.parsers.lab import LAB

if TYPE_CHECKING:
    from lexico_lab.training.pool import Pool
    from lexico_services.settings import Settings

DEFAULT_STORE = "embedded://"
STORE_URL: Final = "store.url"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; docs/reference/cli.md has the exit codes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = make_parser(LAB & frozenset(arguments[:1])).parse_args(arguments)
        with needs(options.extra):
            return _COMMANDS[options.command](options)
    except LexicoError as error:
        process.say(sys.stderr, f"lexico: {one_line(error.message)}\n")
        return 2 if error.status == 3 else 1
    except KeyboardInterrupt:
        return 130


def _settings(options: argparse.Namespace, default_store: str | None = None) -> Settings:
    """The settings in force; from here on the process logs as they say."""
    from lexico_services.settings import Settings

    given = {key: value for key, value in vars(options).items() if "." in key}
    settings = Settings.of(given, options.config)
    if default_store is not None and settings.value(STORE_URL) is None:
        settings = settings.with_store(default_store)
    process.log_to_stderr(settings.log_level, settings.log_format)
    return settings


def _serve(options: argparse.Namespace) -> int:
    settings = _settings(options, DEFAULT_STORE)
    from lexico_services import serve

    return serve.run_all(settings, options.address_file, _to_programs(options))


def _offload_server(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from lexico_services import serve

    return serve.run_offload(settings, options.address_file, _to_programs(options))


def _reload_server(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from lexico_services.reload.run import run_reload

    return run_reload(settings, options.address_file, options.parent, _to_programs(options))


def _to_programs(options: argparse.Namespace) -> TextIO | None:
    return process.alone_on_stdout() if options.json else None


def _doctor(options: argparse.Namespace) -> int:
    from lexico_services.doctor import report

    found = report.examine(
        lambda: _settings(options), options.part, DEFAULT_STORE, options.address_file
    )
    return report.told(found, as_json=options.json, write=partial(process.say, sys.stdout))


def _config(options: argparse.Namespace) -> int:
    settings = _settings(options, DEFAULT_STORE)
    settings.check()
    if options.json:
        shown = json.dumps(settings.as_document(), indent=1) + "\n"
    else:
        shown = settings.as_toml(secrets=False, sources=True)
    process.say(sys.stdout, shown)
    return 0


def _size(options: argparse.Namespace) -> int:
    from lexico_services import size_command

    process.say(sys.stdout, f"{size_command.run(options)}\n")
    return 0


def _call(options: argparse.Namespace) -> int:
    process.end_by_interrupt()
    from lexico_client import commands

    return commands.run(options.call, options)


def _completion(options: argparse.Namespace) -> int:
    from lexico_services.completion import script

    process.say(sys.stdout, script(options.shell))
    return 0


def _train(options: argparse.Namespace) -> int:
    process.end_by_interrupt()
    process.log_to_stderr(options.log_level)
    from lexico_lab.training.options import run as train

    if (options.shared or options.any_weights) and not options.register:
        raise ConfigurationError("--shared and --any-weights go with --register")
    alone = options.json and options.ray_address  # Ray prints what its workers say
    out = process.alone_on_stdout() if alone else sys.stdout
    with _training_pool(options) as pool:
        trained = train(options, pool)
    if not options.json:
        process.say(out, f"{trained.shown}\n")
    registered: list[Any] = []
    code = _registered(options, registered) if options.register else 0
    if options.json:
        document = {"sets": trained.document, "registered": registered}
        process.say(out, json.dumps(document, indent=1) + "\n")
    return code


def _registered(options: argparse.Namespace, documents: list[Any]) -> int:
    """Publishes what was trained. What is refused here is in its file all the same.

    Args:
        options: of the command.
        documents: what is said of each goes here, where `--json` asks for it.
    """
    with needs("client"):
        from lexico_client import commands
    from lexico_lab.models import files_of
    from lexico_lab.training.options import settings_of

    folder = files_of(options.model)
    for made in settings_of(options, elsewhere=bool(options.ray_address)):
        asked = {"action": "register", "file": made.out, "for_model": folder}
        registering = argparse.Namespace(**vars(options) | asked)
        code = commands.run("dictionaries", registering, documents if options.json else None)
        if code:
            again = f"lexico dictionaries register {made.out} --for {folder}"
            again += " --any-weights" * options.any_weights + " --shared" * options.shared
            process.say(sys.stderr, f"lexico: the set is in {made.out}: once mended, {again}\n")
            return code
    return 0


@contextmanager
def _training_pool(options: argparse.Namespace) -> Iterator[Pool | None]:
    """Workers of the cluster that was given."""
    if not options.ray_address:
        yield None
        return
    with needs("worker"):
        from lexico_lab.training.ray_pool import RayPool
        from lexico_worker.ray_runtime import RayConfig

        pool = RayPool(RayConfig(address=options.ray_address), options.device, options.workers)
        pool.start()
    try:
        yield pool
    finally:
        pool.stop()


def _eval(options: argparse.Namespace) -> int:
    process.end_by_interrupt()
    process.log_to_stderr(options.log_level)
    from lexico_lab.evaluation.options import run as evaluate

    process.say(sys.stdout, evaluate(options) + "\n")
    return 0


_COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "serve": _serve,
    "offload-server": _offload_server,
    "reload-server": _reload_server,
    "doctor": _doctor,
    "config": _config,
    "size": _size,
    "call": _call,
    "train": _train,
    "eval": _eval,
    "completion": _completion,
}
