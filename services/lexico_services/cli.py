"""The `lexico` command: from options and environment to configuration, and nothing else.

What a command runs is imported when it runs: each needs other optional packages, and `--help` none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lexico_proto.errors import ConfigurationError, LexicoError
from lexico_services import process

if TYPE_CHECKING:
    from lexico_lab.training.pool import Pool
    from lexico_services.settings import Settings

DEFAULT_STORE = "embedded://"
PARTS: Final = ("serve", "offload-server", "reload-server")
"""Commands that a start can be looked at of."""
OFFLOAD_PORT: Final = "offload.port"
RELOAD_PORT: Final = "reload.port"
STORE_URL: Final = "store.url"

_LEVEL: Final[dict[str, Any]] = {
    "type": str.lower,
    "choices": ("debug", "info", "warning", "error"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; exit code 0, 2 for a setting that cannot be used, 1 for other failures."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(arguments[:1]).parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        with _needs(options.extra):
            return command(options)
    except LexicoError as error:
        process.say(sys.stderr, f"lexico: {error.message}\n")
        return 2 if error.status == 3 else 1
    except KeyboardInterrupt:
        return 130


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Names the extra to install where an optional package is missing.

    Raises:
        ConfigurationError: a package is missing that is not ours.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package.startswith("lexico_"):
            raise  # a defect of ours, for which there is nothing to install
        raise ConfigurationError(
            f"needs {package}: pip install 'lexico-offload[{extra}]'"
        ) from error


def _parser(command: Sequence[str]) -> argparse.ArgumentParser:
    """
    Args:
        command: the first argument, if there is one: `explain`, `train` and `eval` bring their own
            options, which are slow to import.
    """
    parser = argparse.ArgumentParser(
        prog="lexico", description="Share prefilled KV caches between inference nodes."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    everything = commands.add_parser("serve", help="start everything on this machine")
    everything.set_defaults(command=_serve, extra="service")
    _service_options(everything)
    _option(everything, "--offload-port", OFFLOAD_PORT, type=int, help="0 takes a free one")
    _option(everything, "--reload-port", RELOAD_PORT, type=int, help="0 takes a free one")
    _offload_options(everything)

    offload = commands.add_parser("offload-server", help="start ingress and encoders (Ray)")
    offload.set_defaults(command=_offload_server, extra="service")
    _service_options(offload)
    _option(offload, "--port", OFFLOAD_PORT, type=int, help="0 takes a free one")
    _offload_options(offload)

    reload = commands.add_parser("reload-server", help="start reload and dictionaries (no Ray)")
    reload.set_defaults(command=_reload_server, extra="reload")
    _service_options(reload)
    _option(reload, "--port", RELOAD_PORT, type=int, help="0 takes a free one")
    reload.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)

    doctor = commands.add_parser("doctor", help="look at what a start needs, and start nothing")
    doctor.set_defaults(command=_doctor, extra="reload")
    doctor.add_argument("--part", choices=PARTS, default=PARTS[0], help="whose start")
    doctor.add_argument("--json", action="store_true", help="one document in place of lines")
    _service_options(doctor)
    _option(doctor, "--offload-port", OFFLOAD_PORT, type=int, help="of the ingress")
    _option(doctor, "--reload-port", RELOAD_PORT, type=int, help="of the reload server")
    _offload_options(doctor)

    settings = commands.add_parser("config", help="show the settings that are in force")
    settings.set_defaults(command=_config, extra="reload")
    _config_option(settings)

    explaining = commands.add_parser("explain", help="say why a prompt is found, or not")
    explaining.set_defaults(command=_explain, extra="hf")
    if command == ["explain"]:
        with _needs("client"):
            from lexico_client.explain_command import add_arguments as add_explain_arguments
        add_explain_arguments(explaining)
    _pages_parser(commands)

    training = commands.add_parser("train", help="learn a dictionary set for a model")
    training.set_defaults(command=_train, extra="train")
    training.add_argument("--log-level", **_LEVEL, default="warning")
    if command == ["train"]:
        with _needs("train"):
            from lexico_lab.training.options import add_arguments
        add_arguments(training)
        training.add_argument("--ray-address", default="", help="join this cluster")

    evaluation = commands.add_parser("eval", help="report what codecs do to a model's predictions")
    evaluation.set_defaults(command=_eval, extra="train")
    evaluation.add_argument("--log-level", **_LEVEL, default="warning")
    if command == ["eval"]:
        with _needs("train"):
            from lexico_lab.evaluation.options import add_arguments as add_eval_arguments
        add_eval_arguments(evaluation)
    return parser


def _pages_parser(commands: Any) -> None:
    pages = commands.add_parser("pages", help="count, pin and forget what is stored")
    actions = pages.add_subparsers(required=True, metavar="ACTION", dest="action")
    usage = actions.add_parser("usage", help="what is stored and allowed, and what goes first")
    usage.add_argument("--json", action="store_true", help="for programs")
    pin = actions.add_parser("pin", help="keep the pages of a prompt")
    unpin = actions.add_parser("unpin", help="let them expire as others do")
    unpin.add_argument("--pin", required=True, metavar="HEX", help="as `usage` lists it")
    forget = actions.add_parser("forget", help="remove pages, for good")
    what = forget.add_mutually_exclusive_group(required=True)
    what.add_argument("--namespace", metavar="HEX", help="all of a model and codec")
    what.add_argument("--everything", action="store_true", help="all of the tenant")
    _prompt_option(what)
    _prompt_option(pin, required=True)
    pin.add_argument("--label", default="", help="for people to read, in `usage`")
    for action in (usage, pin, unpin, forget):
        action.add_argument("--server", required=True, help="HOST:PORT of a reload server")
        action.add_argument("--seconds", type=float, default=120.0, help="longest wait")
        for name in ("ca", "certificate", "key"):
            action.add_argument(f"--tls-{name}", type=Path, metavar="FILE", help="PEM, for TLS")
        action.set_defaults(command=_pages, extra="reload")


def _prompt_option(parser: Any, **kind: Any) -> None:
    parser.add_argument(
        "--prompt", type=Path, metavar="FILE", help="JSON with its namespace and page_keys", **kind
    )


def _option(parser: argparse.ArgumentParser, name: str, key: str, **kind: Any) -> None:
    """An option that gives a setting. One that is left out leaves it to the other sources."""
    parser.add_argument(name, dest=key, default=argparse.SUPPRESS, **kind)


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")


def _service_options(parser: argparse.ArgumentParser) -> None:
    _config_option(parser)
    parser.add_argument("--address-file", type=Path, help="write the addresses here as JSON")
    _option(parser, "--host", "listen.host", help="address to listen on")
    _option(parser, "--token-file", "listen.token_file", type=Path, help="lines of tenant:token")
    _option(
        parser, "--policy-file", "listen.policy_file", type=Path, help="lifetimes and quotas, TOML"
    )
    _option(
        parser,
        "--allow-anonymous",
        "listen.allow_anonymous",
        action="store_true",
        help="listen beyond loopback without tokens: everybody there is one tenant",
    )
    _option(parser, "--tls-certificate", "tls.certificate", type=Path, help="PEM: speak TLS alone")
    _option(parser, "--tls-key", "tls.key", type=Path, help="PEM: its private key")
    _option(
        parser, "--tls-client-ca", "tls.client_ca", type=Path, help="PEM: ask clients for theirs"
    )
    _option(parser, "--drain-seconds", "listen.drain_s", type=float, help="for running calls")
    _option(
        parser, "--health-address", "listen.health_address", help="HOST:PORT of plaintext health"
    )
    _option(
        parser, "--store", "store.url", help="URL of the page store (environment: LEXICO_STORE)"
    )
    _option(parser, "--page-ttl-seconds", "store.page_ttl_s", type=float, help="life of a page")
    _option(parser, "--log-level", "log.level", **_LEVEL)


def _offload_options(parser: argparse.ArgumentParser) -> None:
    _option(parser, "--start-seconds", "listen.start_s", type=float, help="for Ray and servers")
    _option(
        parser,
        "--max-inflight-mib",
        "offload.max_inflight_bytes",
        type=_mebibytes,
        help="raw page bytes held at a time",
    )
    _option(parser, "--encoders", "encoder.min_replicas", type=int, help="encoders kept running")
    _option(
        parser,
        "--max-encoders",
        "encoder.max_replicas",
        type=int,
        help="more than --encoders scales",
    )
    _option(parser, "--encoder-cpus", "encoder.num_cpus", type=float, help="Ray CPUs of an encoder")
    _option(
        parser,
        "--encoder-gpus",
        "encoder.num_gpus",
        type=float,
        help="Ray GPUs of an encoder (default: 1 where there is any, else 0)",
    )
    _option(parser, "--ray-address", "ray.address", help="join this cluster")


def _mebibytes(text: str) -> int:
    return int(text) << 20


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

    return serve.run_all(settings, options.address_file)


def _offload_server(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from lexico_services import serve

    return serve.run_offload(settings, options.address_file)


def _reload_server(options: argparse.Namespace) -> int:
    settings = _settings(options)
    from lexico_services.reload.run import run_reload

    return run_reload(settings, options.address_file, options.parent)


def _doctor(options: argparse.Namespace) -> int:
    from lexico_services.doctor import report

    found = report.examine(lambda: _settings(options), options.part, DEFAULT_STORE)
    return report.told(found, as_json=options.json, write=partial(process.say, sys.stdout))


def _config(options: argparse.Namespace) -> int:
    settings = _settings(options, DEFAULT_STORE)
    settings.check()
    process.say(sys.stdout, settings.as_toml(secrets=False, sources=True))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from lexico_client.explain_command import run as explain

    sys.stdout.write(explain(options) + "\n")
    return 0


def _pages(options: argparse.Namespace) -> int:
    from lexico_services import pages_command

    sys.stdout.write(pages_command.run(options) + "\n")
    return 0


def _train(options: argparse.Namespace) -> int:
    process.end_by_interrupt()
    process.log_to_stderr(options.log_level)
    from lexico_lab.training.options import run as train

    with _training_pool(options) as pool:
        process.say(sys.stdout, train(options, pool) + "\n")
    return 0


@contextmanager
def _training_pool(options: argparse.Namespace) -> Iterator[Pool | None]:
    """Workers of the cluster that was given."""
    if not options.ray_address:
        yield None
        return
    with _needs("worker"):
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
