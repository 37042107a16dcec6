"""What KubeRay and Ray Serve would find out late: in the operator's log, or after minutes."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from k8s.checks.pods import pods, quantity
from k8s.checks.rendering import HERE, Object, Problem, Rendering, shown
from k8s.checks.selectors import matches
from k8s.checks.settings import CONFIG, settings_of
from lexico_proto.errors import LexicoError

LOCK: Final = HERE.parent / "requirements" / "demo.lock"
RESERVED: Final = ("gcs-server", "dashboard", "serve")
"""Ports that the head must name for KubeRay to make its Services."""


def check(rendering: Rendering) -> list[Problem]:
    """RayServices that would not become ready."""
    found = []
    for each in rendering.of_kind("RayService"):
        found += [Problem(shown(each), what) for what in _of_service(rendering, each)]
    return found


def _of_service(rendering: Rendering, service: Object) -> Iterator[str]:
    cluster = service["spec"]["rayClusterConfig"]
    if cluster.get("rayVersion") != _locked("ray"):
        yield f"rayVersion {cluster.get('rayVersion')} is not the locked one, {_locked('ray')}"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token: whoever reaches Ray could run code there"
    if service["spec"].get("rayClusterDeletionDelaySeconds", 60) < 300:
        yield "rayClusterDeletionDelaySeconds: the old cluster goes before clients find the new one"
    head = cluster["headGroupSpec"]
    if head["rayStartParams"].get("num-cpus") != "0":
        yield "the head takes work: num-cpus must be 0"
    names = [port["name"] for port in head["template"]["spec"]["containers"][0]["ports"]]
    for name in RESERVED:
        if name not in names:
            yield f"the head has no port {name}"
    yield from _of_application(rendering, service)
    yield from _of_environment(service)
    for group in cluster["workerGroupSpecs"]:
        for what in (*_of_group(group), *_of_drains(rendering, group)):
            yield f"group {group['groupName']}: {what}"


def _of_group(group: Mapping[str, Any]) -> Iterator[str]:
    if (
        not group["minReplicas"]
        <= group.get("replicas", group["minReplicas"])
        <= group["maxReplicas"]
    ):
        yield "needs minReplicas <= replicas <= maxReplicas"
    spec = group["template"]["spec"]
    container = spec["containers"][0]
    if "readinessProbe" not in container:
        yield "has no readinessProbe: KubeRay's asks Serve's proxy, which is off"
    if "exec" in container.get("readinessProbe", {}):
        yield "its readinessProbe needs programs that images need not have"
    store = int(group["rayStartParams"].get("object-store-memory", 0))
    sizes = [quantity(v["emptyDir"]["sizeLimit"]) for v in spec["volumes"] if v["name"] == "shm"]
    if not store or not sizes or store > sizes[0]:
        yield "object-store-memory is not within /dev/shm"
    elif sizes[0] > quantity(container["resources"]["limits"]["memory"]) / 2:
        yield "/dev/shm may take more than half of the memory"


def _of_drains(rendering: Rendering, group: Mapping[str, Any]) -> Iterator[str]:
    """Whether a drain of a node can end. Budgets of these pods count pods that must stay."""
    labels = group["template"]["metadata"].get("labels", {})
    for budget in rendering.of_kind("PodDisruptionBudget"):
        stay = budget["spec"].get("minAvailable", 0)
        if matches(budget["spec"]["selector"], labels) and stay >= group["minReplicas"]:
            yield f"{shown(budget)} keeps {stay} of {group['minReplicas']}: no node can be drained"


def _of_application(rendering: Rendering, service: Object) -> Iterator[str]:
    cluster = service["spec"]["rayClusterConfig"]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    if config.get("proxy_location") != "Disabled":
        yield "serveConfigV2: proxy_location is not Disabled"
    (application,) = config["applications"]
    function, arguments = _builder(application["import_path"])
    if function is None:
        yield f"serveConfigV2: {application['import_path']} is not there"
    given = application.get("args", {})
    for name in sorted(set(given) - arguments):
        yield f"serveConfigV2: args.{name} is no argument"
    if not str(given.get("config", "")).startswith(CONFIG):
        yield f"serveConfigV2: args.config is not below {CONFIG}"
    groups = [g for g in cluster["workerGroupSpecs"] if _has_ingress(g)]
    nodes = sum(group["minReplicas"] for group in groups)
    if given.get("ingresses") != nodes or any(g["maxReplicas"] != g["minReplicas"] for g in groups):
        yield f"args.ingresses is {given.get('ingresses')}, and {nodes} nodes have an ingress"
    most = sum(group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    for pod in pods(rendering):
        if pod.kind != "RayService" or pod.component != "ingress":
            continue
        try:
            settings = settings_of(rendering, pod, pod.containers[0])
            encoder = settings.encoder(settings.store_url)
        except LexicoError:
            return  # `settings` says it
        share = quantity(pod.containers[0]["resources"]["limits"].get("nvidia.com/gpu", 0))
        if encoder.num_gpus is None or encoder.num_gpus > share:
            yield f"encoder.num_gpus is {encoder.num_gpus}, and a worker has {share} GPUs"
        if encoder.max_replicas > most:
            yield f"encoder.max_replicas is {encoder.max_replicas}, and there are {most} workers"


def _has_ingress(group: Mapping[str, Any]) -> bool:
    # Ray's command line takes it in quotes of its own.
    text = group["rayStartParams"].get("resources", '"{}"').strip('"').replace('\\"', '"')
    return "lexico_ingress" in json.loads(text)


def _of_environment(service: Object) -> Iterator[str]:
    """Any of them may build the application, so all have the same settings."""
    cluster = service["spec"]["rayClusterConfig"]
    templates = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    seen = []
    for group in templates:
        variables = group["template"]["spec"]["containers"][0].get("env", ())
        seen.append({v["name"]: v for v in variables if v["name"].startswith("LEXICO_")})
    if any(each != seen[0] for each in seen):
        yield "head and workers have different settings in their environment"


@cache
def _builder(import_path: str) -> tuple[str | None, frozenset[str]]:
    """The function's name, if it is there, and the names of the arguments of its application. Its
    module is read and not imported, as Ray takes seconds.
    """
    module, _, name = import_path.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None, frozenset()
    tree = ast.parse(Path(spec.origin).read_text())
    functions = [each.name for each in tree.body if isinstance(each, ast.FunctionDef)]
    (arguments,) = (
        each
        for each in tree.body
        if isinstance(each, ast.ClassDef) and each.name == "BuildArguments"
    )
    fields = [each.target for each in arguments.body if isinstance(each, ast.AnnAssign)]
    names = frozenset(each.id for each in fields if isinstance(each, ast.Name))
    return (name if name in functions else None), names


@cache
def _locked(package: str) -> str:
    match = re.search(rf"^{package}==([0-9.]+)", LOCK.read_text(), re.MULTILINE)
    return match[1] if match else ""
