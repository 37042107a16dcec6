"""`lexico doctor`: everything that a start needs, a line each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from lexico_proto.errors import LexicoError
from lexico_services.address_file import check_claim
from lexico_services.doctor import neighbours, packages
from lexico_services.doctor.finding import Finding, State, fail, warn
from lexico_services.doctor.machine import machine
from lexico_services.doctor.needs import Needs
from lexico_services.settings import Settings
from lexico_services.telemetry.config import INGRESS, RELOAD_BESIDE, SERVICE

EXIT_CODES: Final = {State.OK: 0, State.WARN: 1, State.FAIL: 2}


_METRICS_OF: Final = {
    "serve": (SERVICE, INGRESS, RELOAD_BESIDE),
    "offload-server": (SERVICE, INGRESS),
    "reload-server": (INGRESS,),
}
"""part → the ports that it shows metrics on."""


def examine(
    read: Callable[[], Settings], part: str, default_store: str, address_file: Path | None = None
) -> Iterator[Finding]:
    """Looks at one thing after another; starts nothing.

    Args:
        read: gives the settings that the command would have; what it refuses is a finding.
        part: the command: serve, offload-server or reload-server.
        default_store: URL of the store that `serve` takes where none is given.
        address_file: as the command would have it.
    """
    with_ray = part != "reload-server"
    yield from packages.packages("service" if with_ray else "reload")
    yield packages.sets()
    yield from _said("settings", lambda: _of_settings(read(), part, default_store))
    yield from _said("address file", lambda: _refused(check_claim, address_file))
    if with_ray:
        yield packages.gpu()
    yield packages.kernels()  # last: it imports torch


def _of_settings(settings: Settings, part: str, default_store: str) -> Iterator[Finding]:
    settings.check()
    alone, with_ray = part == "serve", part != "reload-server"
    if alone and settings.value("store.url") is None:
        settings = settings.with_store(default_store)
    yield from machine(Needs.of(settings, ray=with_ray, store=alone))
    wanted = {}
    if with_ray:
        option = "--offload-port" if alone else "--port"
        wanted[option] = settings.listen_offload.port
    if not with_ray or alone:
        wanted["--reload-port" if alone else "--port"] = settings.listen_reload.port
    listen = settings.listen_offload
    yield from neighbours.ports(listen.host, wanted, listen.health_address)
    yield from neighbours.secrets(settings)
    yield from neighbours.store(settings, shared=with_ray)
    yield from _said("metrics", lambda: _refused(settings.telemetry.check, *_METRICS_OF[part]))
    yield from _drain_file(settings.offload.drain_file if with_ray else None)
    if with_ray:
        yield neighbours.ray(settings)


def _drain_file(path: Path | None) -> Iterator[Finding]:
    if path is not None and not path.parent.is_dir():
        yield warn("drain file", f"{path.parent} is no folder: nobody can touch {path}", "make it")


def _refused(check: Callable[..., None], *args: Any) -> Iterator[Finding]:
    """Nothing, where a check of the start's passes; it raises where it does not."""
    check(*args)
    yield from ()


def _said(name: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What is found, and last the setting that cannot be used, if there is one."""
    try:
        yield from look()
    except LexicoError as error:
        yield fail(name, error.message, "correct it")


def told(found: Iterable[Finding], *, as_json: bool, write: Callable[[str], None]) -> int:
    """Writes what was found, each thing as soon as it is; returns the exit code.

    Args:
        found: things.
        as_json: one document in place of lines.
        write: takes text.
    """
    kept = []
    for each in found:
        kept.append(each)
        if not as_json:
            write(each.line() + "\n")
    if as_json:
        write(json.dumps([each.as_json() for each in kept], indent=2) + "\n")
    return max((EXIT_CODES[each.state] for each in kept), default=0)
