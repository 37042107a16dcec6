"""The `lexico` command: from options and environment to configuration, and nothing else.

What a command runs is imported when it runs: each needs other optional packages, and `--help` none.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lexico_proto.errors import ConfigurationError, LexicoError
from lexico_services import process
from lexico_services.config import ListenConfig, OffloadConfig, ReloadConfig

if TYPE_CHECKING:
    from lexico_codec.training.pool import Pool
    from lexico_services.offload_server import OffloadServer

DEFAULT_STORE = "embedded://"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; exit code 0, 2 for a setting that cannot be used, 1 for other failures."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(arguments[:1]).parse_args(arguments)
        process.log_to_stderr(options.log_level)
        command: Callable[[argparse.Namespace], int] = options.command
        with _needs(options.extra):
            return command(options)
    except LexicoError as error:
        sys.stderr.write(f"lexico: {error.message}\n")
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
        command: the first argument, if there is one: `train` and `eval` bring their own options,
            which are slow to import.
    """
    parser = argparse.ArgumentParser(
        prog="lexico", description="Share prefilled KV caches between inference nodes."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    everything = commands.add_parser("serve", help="start everything on this machine")
    everything.set_defaults(command=_serve, extra="service")
    _listen_options(everything)
    everything.add_argument("--offload-port", type=int, default=7411, help="0 takes a free one")
    everything.add_argument("--reload-port", type=int, default=7412, help="0 takes a free one")
    _store_option(everything, DEFAULT_STORE)
    _offload_options(everything)

    offload = commands.add_parser("offload-server", help="start ingress and encoders (Ray)")
    offload.set_defaults(command=_offload_server, extra="service")
    _listen_options(offload)
    offload.add_argument("--port", type=int, default=7411, help="0 takes a free one")
    _store_option(offload, None)
    _offload_options(offload)

    reload = commands.add_parser("reload-server", help="start reload and dictionaries (no Ray)")
    reload.set_defaults(command=_reload_server, extra="reload")
    _listen_options(reload)
    reload.add_argument("--port", type=int, default=7412, help="0 takes a free one")
    _store_option(reload, None)
    _ttl_option(reload)
    reload.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)

    training = commands.add_parser("train", help="learn a dictionary set for a model")
    training.set_defaults(command=_train, extra="train")
    _log_option(training)
    if command == ["train"]:
        with _needs("train"):
            from lexico_codec.training.options import add_arguments
        add_arguments(training)
        _ray_option(training)

    evaluation = commands.add_parser("eval", help="report what codecs do to a model's predictions")
    evaluation.set_defaults(command=_eval, extra="train")
    _log_option(evaluation)
    if command == ["eval"]:
        with _needs("train"):
            from lexico_codec.evaluation.run import add_arguments as add_eval_arguments
        add_eval_arguments(evaluation)
    return parser


def _log_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-level", type=str.lower, choices=LOG_LEVELS, default="warning")


def _listen_options(parser: argparse.ArgumentParser) -> None:
    listen = ListenConfig()
    parser.add_argument("--host", default=listen.host, help="address to listen on")
    parser.add_argument("--token-file", type=Path, help="lines of tenant:token")
    parser.add_argument(
        "--allow-anonymous",
        action="store_true",
        help="listen beyond loopback without tokens",
    )
    parser.add_argument("--drain-seconds", type=float, default=listen.drain_s)
    parser.add_argument("--address-file", type=Path, help="write the addresses here as JSON")
    _log_option(parser)


def _store_option(parser: argparse.ArgumentParser, default: str | None) -> None:
    default = os.environ.get("LEXICO_STORE", default)
    parser.add_argument(
        "--store",
        default=default,
        required=default is None,
        help="URL of the page store (environment: LEXICO_STORE)",
    )


def _ttl_option(parser: argparse.ArgumentParser) -> None:
    ttl = ReloadConfig().page_ttl_s
    parser.add_argument("--page-ttl-seconds", type=float, default=ttl, help="life of a page")


def _offload_options(parser: argparse.ArgumentParser) -> None:
    offload = OffloadConfig()
    parser.add_argument("--start-seconds", type=float, default=ListenConfig().start_s)
    _ttl_option(parser)
    parser.add_argument(
        "--max-inflight-mib",
        type=int,
        default=offload.max_inflight_bytes >> 20,
        help="raw page bytes held at a time",
    )
    parser.add_argument("--encoders", type=int, default=1, help="encoders kept running")
    parser.add_argument("--max-encoders", type=int, default=0, help="more than --encoders scales")
    parser.add_argument("--encoder-cpus", type=float, default=0.5, help="Ray CPUs of an encoder")
    parser.add_argument(
        "--encoder-gpus",
        type=float,
        help="Ray GPUs of an encoder (default: 1 where there is any, else 0)",
    )
    _ray_option(parser)


def _ray_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ray-address", default="", help="join this cluster")


def _listen(options: argparse.Namespace, port: int) -> ListenConfig:
    return ListenConfig(
        host=options.host,
        port=port,
        token_file=options.token_file,
        allow_anonymous=options.allow_anonymous,
        drain_s=options.drain_seconds,
        start_s=vars(options).get("start_seconds", ListenConfig.start_s),  # not of reload-server
    )


def _offload_server_at(store_url: str, options: argparse.Namespace, port: int) -> OffloadServer:
    from lexico_services.offload_server import OffloadServer
    from lexico_worker.config import EncoderConfig
    from lexico_worker.ray_runtime import RayConfig

    encoder = EncoderConfig(
        store_url=store_url,
        page_ttl_s=options.page_ttl_seconds,
        min_replicas=options.encoders,
        max_replicas=max(options.encoders, options.max_encoders),
        num_cpus=options.encoder_cpus,
        num_gpus=options.encoder_gpus,
        log_level=options.log_level,
    )
    offload = OffloadConfig(max_inflight_bytes=options.max_inflight_mib << 20)
    ray = RayConfig(address=options.ray_address, start_s=options.start_seconds)
    return OffloadServer(_listen(options, port), offload, encoder, ray)


def _serve(options: argparse.Namespace) -> int:
    from lexico_services import serve

    ports = options.offload_port, options.reload_port
    if ports[0] and ports[0] == ports[1]:
        raise ConfigurationError(f"port {ports[0]} is given twice")
    for port in ports:  # what cannot be used is said before anything is started
        process.take_port(_listen(options, port).host, port)
    reload = ["--host", options.host, "--port", str(options.reload_port)]
    reload += ["--page-ttl-seconds", str(options.page_ttl_seconds)]
    reload += ["--drain-seconds", str(options.drain_seconds), "--log-level", options.log_level]
    if options.token_file is not None:
        reload += ["--token-file", str(options.token_file)]
    if options.allow_anonymous:
        reload += ["--allow-anonymous"]
    return serve.run_all(
        options.store,
        lambda url: _offload_server_at(url, options, options.offload_port),
        reload,
        options.host,
        options.drain_seconds,
        options.start_seconds,
        options.address_file,
    )


def _offload_server(options: argparse.Namespace) -> int:
    from lexico_services import serve

    server = _offload_server_at(options.store, options, options.port)
    return serve.run_offload(server, options.host, options.address_file)


def _reload_server(options: argparse.Namespace) -> int:
    from lexico_services import serve

    if options.store.startswith("memory:"):
        raise ConfigurationError(
            "memory:// lives in one process, so no page could get there: give a URL that encoders "
            "reach too, such as unix:///path or redis://host"
        )
    config = ReloadConfig(page_ttl_s=options.page_ttl_seconds)
    listen = _listen(options, options.port)
    return serve.run_reload(options.store, listen, config, options.address_file, options.parent)


def _train(options: argparse.Namespace) -> int:
    from lexico_codec.training.options import run as train

    with _training_pool(options) as pool:
        sys.stdout.write(train(options, pool) + "\n")
    return 0


@contextmanager
def _training_pool(options: argparse.Namespace) -> Iterator[Pool | None]:
    """Workers of the cluster that was given."""
    if not options.ray_address:
        yield None
        return
    with _needs("worker"):
        from lexico_worker.ray_runtime import RayConfig
        from lexico_worker.training_pool import RayPool

        pool = RayPool(RayConfig(address=options.ray_address), options.device, options.workers)
        pool.start()
    try:
        yield pool
    finally:
        pool.stop()


def _eval(options: argparse.Namespace) -> int:
    from lexico_codec.evaluation.run import run as evaluate

    sys.stdout.write(evaluate(options) + "\n")
    return 0
