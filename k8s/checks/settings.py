"""Commands, settings and sizes, by the code that will read them."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from k8s.checks.pods import Pod, pods, quantity
from k8s.checks.rendering import HERE, Problem, Rendering
from lexico_proto.errors import ConfigurationError, LexicoError
from lexico_services.doctor.needs import shared_bytes
from lexico_services.health import LIVE, READY
from lexico_services.policies import Policies
from lexico_services.process import split_address
from lexico_services.settings import Settings
from lexico_services.settings.schema import SETTINGS

SETTINGS_PAGE: Final = HERE.parent / "docs" / "settings.md"
CONFIG: Final = "/etc/lexico/config/"
GRACE_S: Final = 10
"""Seconds that an end takes beyond `listen.drain_s`, as docs/lifecycle.md says."""
STAND_IN: Final = "redis://store"
"""For a URL that a Secret has."""


def check(rendering: Rendering) -> list[Problem]:
    """Commands with unknown options, settings that are none, sizes that do not fit."""
    found = []
    for pod in pods(rendering):
        for container in pod.containers:
            where = f"{pod.owner} container {container['name']}"
            found += [Problem(where, what) for what in _of_command(container)]
            found += [Problem(where, what) for what in _of_store(rendering, container)]
            files = _files(rendering, pod, container)
            if "lexico.toml" in files:
                found += [Problem(where, what) for what in _of_settings(rendering, pod, container)]
            if "policy.toml" in files:
                found += [Problem(where, what) for what in _of_policies(files["policy.toml"])]
    return found


def settings_of(rendering: Rendering, pod: Pod, container: Mapping[str, Any]) -> Settings:
    """The settings that are in force in a container.

    Raises:
        ConfigurationError: one that cannot be used.
    """
    text = _files(rendering, pod, container).get("lexico.toml")
    if text is None:
        raise ConfigurationError(f"lexico.toml is not in {CONFIG}")
    environment = {
        name: value
        for name, value in variables(rendering, container).items()
        if name.startswith("LEXICO_")
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lexico.toml"
        file.write_text(text)
        settings = Settings.of({}, file, environment)
    settings.check()
    return settings


def variables(rendering: Rendering, container: Mapping[str, Any]) -> dict[str, str]:
    """Environment of a container; what Secrets have is stood in for."""
    found = {}
    for each in container.get("env", ()):
        source = each.get("valueFrom", {})
        value = each.get("value", STAND_IN)
        if "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            config = rendering.find("ConfigMap", reference["name"])
            value = config["data"].get(reference["key"], "") if config is not None else ""
        found[each["name"]] = value
    return found


def _files(rendering: Rendering, pod: Pod, container: Mapping[str, Any]) -> Mapping[str, str]:
    """Contents of the ConfigMap that is mounted where settings are."""
    names = [
        mount["name"]
        for mount in container.get("volumeMounts", ())
        if f"{mount['mountPath']}/" == CONFIG
    ]
    for volume in pod.spec.get("volumes", ()):
        if volume["name"] in names and "configMap" in volume:
            config = rendering.find("ConfigMap", volume["configMap"]["name"])
            return config["data"] if config is not None else {}
    return {}


def _of_command(container: Mapping[str, Any]) -> Iterator[str]:
    command, arguments = container.get("command", []), container.get("args", [])
    if command == ["lexico"]:
        what = _refusal(tuple(arguments))
        if what:
            yield what
    elif not command and container["name"] not in ("ray-head", "ray-worker"):
        yield "has no command: what runs would be the image's choice"


def _of_store(rendering: Rendering, container: Mapping[str, Any]) -> Iterator[str]:
    """Whether a URL asks for TLS where the store that comes along speaks it, and only there."""
    url = variables(rendering, container).get("LEXICO_STORE", "")
    confs = [text for each in rendering.of_kind("ConfigMap") for text in each["data"].values()]
    tls = any(line.startswith("tls-port ") for text in confs for line in text.splitlines())
    if "@lexico-" in url and url.startswith("rediss") != tls:
        yield f"LEXICO_STORE is {url.partition(':')[0]}, and the store {'has' if tls else 'no'} TLS"


@cache
def _refusal(arguments: tuple[str, ...]) -> str:
    """What the command line says to these arguments, empty where it takes them."""
    from lexico_services.parsers.command_line import make_parser
    from lexico_services.parsers.lab import LAB

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            make_parser(LAB & frozenset(arguments[:1])).parse_args(arguments)
    except SystemExit:
        return f"lexico {' '.join(arguments)}: {told.getvalue().strip().splitlines()[-1]}"
    except LexicoError as error:
        return error.message
    return ""


def _of_settings(rendering: Rendering, pod: Pod, container: Mapping[str, Any]) -> Iterator[str]:
    try:
        settings = settings_of(rendering, pod, container)
    except LexicoError as error:
        yield re.sub(r"/\S*/lexico\.toml", "lexico.toml", error.message)
        return
    known = SETTINGS_PAGE.read_text()
    given = tomllib.loads(_files(rendering, pod, container)["lexico.toml"])
    keys = [f"{table}.{name}" for table, entries in given.items() for name in entries]
    set_by = {setting.variable: setting.key for setting in SETTINGS.values()}
    keys += [set_by[name] for name in variables(rendering, container) if name in set_by]
    for key in keys:
        if f"`{key}`" not in known:
            yield f"{key} is not in docs/settings.md"
    for name, key in (("offload", "offload.port"), ("reload", "reload.port")):
        port = pod.port(name)
        if port is not None and port != settings.value(key):
            yield f"its port {name} is {port}, and {key} is {settings.value(key)}"
    yield from _of_health(container, settings)
    yield from _of_end(pod, container, settings)
    if pod.kind == "RayService" and pod.component == "ingress":
        yield from _of_drain(pod, container, settings)
    if pod.component == "ray-head":
        return
    runs_ray = pod.kind == "RayService" or container.get("args", [""])[0] == "serve"
    shared = pod.spec.get("volumes", ())
    sizes = [quantity(v["emptyDir"]["sizeLimit"]) for v in shared if v["name"] == "shm"]
    if runs_ray and (not sizes or sizes[0] < _needed(pod, settings)):
        yield f"/dev/shm is smaller than pages in flight need: {_needed(pod, settings)} bytes"


def _needed(pod: Pod, settings: Settings) -> int:
    """Bytes of shared memory that Ray takes for pages in flight."""
    if pod.kind != "RayService":
        return shared_bytes(settings)
    return max(int(settings.offload.max_inflight_bytes * 2.75), 0)


def _of_health(container: Mapping[str, Any], settings: Settings) -> Iterator[str]:
    address = settings.listen_offload.health_address
    port = None if address is None else split_address(address)[1]
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container.get(name, {}).get("grpc")
        if probe is None:
            continue
        if probe["port"] != port:
            yield f"{name} asks port {probe['port']}, and listen.health_address is {address}"
        service = LIVE if name == "livenessProbe" else (READY,)
        if probe.get("service", "") not in service:
            yield f"{name} asks for {probe.get('service', '')!r}: a name of it is {service[-1]}"


def _of_end(pod: Pod, container: Mapping[str, Any], settings: Settings) -> Iterator[str]:
    if not set(container.get("args", ())) & {"serve", "reload-server", "offload-server"}:
        return
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed = before + settings.value("listen.drain_s") + GRACE_S
    given = pod.spec.get("terminationGracePeriodSeconds", 30)
    if given < needed:
        yield f"is killed after {given} s, and its end may take {needed:g}"


def _of_drain(pod: Pod, container: Mapping[str, Any], settings: Settings) -> Iterator[str]:
    """An ingress that Ray runs hears of the pod's end by a file alone."""
    before = container.get("lifecycle", {}).get("preStop", {})
    line = " ".join(before.get("exec", {}).get("command", ()))
    file, (_, touches, after) = settings.offload.drain_file, line.partition("touch ")
    if file is None or not touches or not after.startswith(f"{file};"):
        yield f"preStop does not touch offload.drain_file, {file}: Ray would cut calls off"
        return
    pauses = [int(seconds) for seconds in re.findall(r"sleep (\d+)", line)]
    if sum(map(int, re.findall(r"sleep (\d+)", after))) < settings.value("listen.drain_s"):
        yield "preStop ends before listen.drain_s has passed since its touch"
    given = pod.spec.get("terminationGracePeriodSeconds", 30)
    if given < sum(pauses) + GRACE_S:
        yield f"is killed after {given} s, and its preStop takes {sum(pauses)}"


def _of_policies(text: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "policy.toml"
        file.write_text(text)
        try:
            Policies(file)
        except LexicoError as error:
            yield f"policy.toml: {error.message}"
