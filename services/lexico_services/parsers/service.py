"""Commands that start servers, or look at what a start needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

from lexico_services import size_command

OFFLOAD_PORT: Final = "offload.port"
RELOAD_PORT: Final = "reload.port"
PARTS: Final = ("serve", "offload-server", "reload-server")

LEVEL: Final[dict[str, Any]] = {
    "type": str.lower,
    "choices": ("debug", "info", "warning", "error"),
    "help": "the least that is logged (warning)",
}


def add_service_commands(commands: Any) -> None:
    """`serve`, `offload-server`, `reload-server`, `doctor`, `config` and `size`."""
    everything = commands.add_parser("serve", help="start everything on this machine")
    everything.set_defaults(command="serve", extra="service")
    _server_options(everything)
    _option(everything, "--offload-port", OFFLOAD_PORT, type=int, help="0 takes a free one")
    _option(everything, "--reload-port", RELOAD_PORT, type=int, help="0 takes a free one")
    _offload_options(everything)

    offload = commands.add_parser("offload-server", help="start ingress and encoders (Ray)")
    offload.set_defaults(command="offload-server", extra="service")
    _server_options(offload)
    _option(offload, "--port", OFFLOAD_PORT, type=int, help="0 takes a free one")
    _offload_options(offload)

    reload = commands.add_parser("reload-server", help="start reload and dictionaries (no Ray)")
    reload.set_defaults(command="reload-server", extra="reload")
    _server_options(reload)
    _option(reload, "--port", RELOAD_PORT, type=int, help="0 takes a free one")
    reload.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)

    doctor = commands.add_parser("doctor", help="look at what a start needs, and start nothing")
    doctor.set_defaults(command="doctor", extra="reload")
    doctor.add_argument("--part", choices=PARTS, default=PARTS[0], help="whose start")
    doctor.add_argument("--json", action="store_true", help="one document in place of lines")
    _service_options(doctor)
    _option(doctor, "--offload-port", OFFLOAD_PORT, type=int, help="of the ingress")
    _option(doctor, "--reload-port", RELOAD_PORT, type=int, help="of the reload server")
    _offload_options(doctor)

    settings = commands.add_parser("config", help="show the settings that are in force")
    settings.set_defaults(command="config", extra="reload")
    settings.add_argument("--json", action="store_true", help="one document in place of TOML")
    _config_option(settings)

    size = commands.add_parser("size", help="say what a load of prompts needs, and what it saves")
    size.set_defaults(command="size", extra="")
    size_command.add_options(size)


def _option(parser: argparse.ArgumentParser, name: str, key: str, **kind: Any) -> None:
    """An option that gives a setting. One that is left out leaves it to the other sources."""
    parser.add_argument(name, dest=key, default=argparse.SUPPRESS, **kind)


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")


def _server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print the addresses as one line of JSON"
    )
    _service_options(parser)


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
    _option(parser, "--log-level", "log.level", **LEVEL)


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
    try:
        return int(text) << 20
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:64]!r} is no whole number of MiB") from None
