"""Whether a start would find its ports free, its store and its Ray there, its secrets readable."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from lexico_proto.errors import LexicoError
from lexico_proto.metrics import Metrics
from lexico_services.auth import Tenants
from lexico_services.certificate_names import CertificateNames
from lexico_services.config import ListenConfig
from lexico_services.doctor.finding import Finding, fail, ok, warn
from lexico_services.doctor.machine import readable_by_others
from lexico_services.policies import Policies
from lexico_services.process import split_address, take_port
from lexico_services.settings import Settings
from lexico_services.settings.schema import SETTINGS
from lexico_services.token_file import TokenFile
from lexico_store import Level, PageStore
from lexico_store.opening import check_embedded
from lexico_store.sharing import check_shared

_DOORS: Final = frozenset({"listen", "tls", "jwt"})
"""Tables of settings that say who may come in."""


def ports(host: str, wanted: dict[str, int], health: str | None = None) -> Iterator[Finding]:
    """
    Args:
        host: to listen on.
        wanted: option → port; 0 is always free.
        health: `HOST:PORT` of the port for health alone, or None.
    """
    given = [port for port in wanted.values() if port]
    if len(set(given)) < len(given):
        yield fail("ports", f"port {given[0]} is given twice", "give each part its own")
    places = {option: (host, port) for option, port in wanted.items()}
    if health is not None:
        places["--health-address"] = split_address(health)
        if places["--health-address"][1] in given:
            text = f"port {places['--health-address'][1]} is given twice"
            yield fail("ports", text, "give --health-address one of its own")
    for option, (where, port) in places.items():
        try:
            take_port(where, port)
        except LexicoError as error:
            yield fail("ports", error.message, f"end what listens there, or give {option}")
        else:
            yield ok("ports", f"{where} {port or 'any'} for {option}")
    if not _speaks_ipv6() and ":" in host:
        yield fail("ports", "this machine has no IPv6", "give an IPv4 --host")


def _speaks_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def secrets(settings: Settings) -> Iterator[Finding]:
    """Every file that the servers listen with, read as they will read it."""
    listen = settings.listen_offload
    for key, setting in SETTINGS.items():
        path = settings.value(key)
        if setting.table not in _DOORS or "Path" not in setting.kind or path is None:
            continue
        name = setting.name.removesuffix("_file")
        path = Path(path)
        if not os.access(path, os.R_OK) or not path.is_file():
            yield fail(name, f"{path} cannot be read by uid {os.getuid()}", "chown or chmod it")
            continue
        try:
            if name == "token":
                TokenFile(path)
            elif name == "policy":
                Policies(path)
            elif name == "certificate":
                from lexico_services.security import check_files  # needs gRPC

                check_files(listen.tls)  # with its key and those who vouch for clients
            elif name == "tenants":
                CertificateNames(path)
            elif key == "jwt.keys":
                Tenants.of(ListenConfig(jwt=listen.jwt), Metrics())
        except LexicoError as error:
            yield fail(name, error.message, "correct it: a start would say the same")
            continue
        except ModuleNotFoundError as error:
            yield fail(name, f"{path} needs {error.name}", "pip install 'lexico-offload[service]'")
            continue
        if name in ("token", "key") and readable_by_others(path):
            yield warn(name, f"{path} can be read by other users", f"chmod 600 {path}")
        else:
            yield ok(name, f"{path}")


def store(settings: Settings, *, shared: bool) -> Iterator[Finding]:
    """The page store: that it answers, or that one can be started here.

    Args:
        settings: of the command.
        shared: whether processes beside this one use it.
    """
    name, url = "store", settings.value("store.url")
    if url is None:
        yield fail(name, "none is given", "--store URL, LEXICO_STORE, or url in [store] of a file")
        return
    scheme = url.partition(":")[0]
    try:
        if shared:
            check_shared(url)
        if scheme == "embedded":
            yield ok(name, f"embedded, {check_embedded(url)}")
            return
        from lexico_store import open_store

        with open_store(url, settings.store) as opened:
            opened.ping()
            looked = list(_look(opened))
    except LexicoError as error:
        yield fail(name, error.message, "start it, or correct the URL, its password and rights")
    except ModuleNotFoundError as error:
        yield fail(name, f"needs {error.name}", "pip install 'lexico-offload[store]'")
    else:
        yield from looked or [ok(name, f"{scheme}:// answers")]


def _look(opened: PageStore) -> Iterator[Finding]:
    """What a store says of itself, where it says anything. What a start would refuse fails here."""
    for each in opened.look():
        if each.level is Level.NOTE:
            yield ok("store", str(each))
        else:
            made = fail if each.level is Level.REFUSED else warn
            yield made("store", each.what, each.to_do)


def ray(settings: Settings) -> Finding:
    """Ray: installed, and the cluster that is joined answers."""
    from lexico_worker.ray_runtime import check_answers

    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return fail("ray", "not installed", "pip install 'lexico-offload[service]'")
    address = settings.ray.address
    if not address:
        return ok("ray", f"{version}, one is started here")
    try:
        check_answers(address)
    except LexicoError as error:
        return fail("ray", error.message, "start the cluster, or correct --ray-address")
    return ok("ray", f"{version}, {address} answers")
