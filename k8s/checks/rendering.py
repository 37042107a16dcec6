"""What kustomize makes of this folder: every overlay, and every component on the base."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).resolve().parent.parent
BASE: Final = HERE / "base"
COMPONENTS: Final = HERE / "components"
EXAMPLES: Final = HERE / "examples"
OVERLAYS: Final = HERE / "overlays"

STORES: Final = ("external-redis", "sentinel", "cluster")
"""Components that give the page store another shape: one of them at a time."""

NEEDS: Final[Mapping[str, tuple[str, ...]]] = {"store-tls": ("cert-manager",)}
"""Component → those without which it is nothing."""

NOT_WITH: Final[Mapping[str, frozenset[str]]] = {"external-redis": frozenset({"store-tls"})}
"""Component → those that change what it takes away."""

NAMESPACE: Final = "lexico"

_DIGEST: Final = re.compile(r"-[2456789bcdfghkmt]{10}$")
"""As kustomize writes one."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Something that would not work, or that no pod should be allowed."""

    where: str
    """The object, as `Kind/name`, and what in it."""
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Rendering:
    """Objects that are applied together."""

    name: str
    objects: tuple[Object, ...]

    def of_kind(self, *kinds: str) -> Iterator[Object]:
        """Objects of these kinds."""
        return (each for each in self.objects if each["kind"] in kinds)

    def find(self, kind: str, name: str) -> Object | None:
        """The object of that kind and name."""
        for each in self.of_kind(kind):
            if each["metadata"]["name"] == name:
                return each
        return None


def program(name: str) -> str:
    """Path of a program that a package brings, beside this Python, or else on PATH.

    Raises:
        RuntimeError: it is not installed.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which(name, path=path)
    if found is None:
        raise RuntimeError(f"{name} is not installed: make k8s-check does it")
    return found


def shown(item: Mapping[str, Any]) -> str:
    """`Kind/name`."""
    return f"{item['kind']}/{item['metadata']['name']}"


def components() -> list[str]:
    """Names of all components."""
    return sorted(path.parent.name for path in COMPONENTS.glob("*/kustomization.yaml"))


def rendered(name: str, text: str) -> Rendering:
    """The objects of a stream of YAML documents."""
    documents = yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return Rendering(name, tuple(each for each in documents if each))


@cache
def overlay(name: str) -> Rendering:
    """An overlay of this folder."""
    return rendered(f"overlays/{name}", _kustomize(OVERLAYS / name))


def components_of(name: str) -> list[str]:
    """Names of the components of an overlay, in the order in which they are applied."""
    made = yaml.safe_load((OVERLAYS / name / "kustomization.yaml").read_text())
    return [Path(each).name for each in made.get("components", ())]


@cache
def base_with(*names: str) -> Rendering:
    """The base with components, in the order in which they are applied."""
    return _combined("base", NAMESPACE, names)


def examples() -> list[str]:
    """Engines that there is an example of."""
    return sorted(path.parent.name for path in EXAMPLES.glob("*/kustomization.yaml"))


def example(name: str) -> Rendering:
    """The base with an engine, which shows a certificate."""
    return base_with("cert-manager", f"../examples/{name}")


def alone(name: str) -> Rendering:
    """The base with one component, and with what that one needs."""
    return base_with(*NEEDS.get(name, ()), name)


def with_all(store: str) -> Rendering:
    """The base with a shape of the store and every other component that goes with it."""
    without = {*STORES, *NOT_WITH.get(store, ())}
    return base_with(store, *(name for name in components() if name not in without))


@cache
def overlay_with(name: str, *names: str) -> Rendering:
    """An overlay with components."""
    (namespace,) = (each["metadata"]["name"] for each in overlay(name).of_kind("Namespace"))
    return _combined(f"overlays/{name}", namespace, names)


def without_digests(rendering: Rendering) -> Rendering:
    """The same with ConfigMaps by the names that they are given here: kustomize puts a digest of
    their content behind each, but for those that nothing mounts.
    """
    text = json.dumps(rendering.objects)
    for each in rendering.of_kind("ConfigMap"):
        name = each["metadata"]["name"]
        if _DIGEST.search(name):
            text = text.replace(f'"{name}"', f'"{name.rpartition("-")[0]}"')
    return Rendering(rendering.name, tuple(json.loads(text)))


def everything() -> list[Rendering]:
    """All that the checks look at: overlays, with the smoke test too, the base, each component
    alone, each shape of the store with all that it can be together with, and each engine.
    """
    overlays = sorted(path.name for path in OVERLAYS.iterdir() if path.is_dir())
    return [
        *(overlay(name) for name in overlays),
        *(overlay_with(name, "smoke-test") for name in overlays),
        base_with(),
        *(alone(name) for name in components()),
        *(with_all(store) for store in STORES),
        *(example(name) for name in examples()),
    ]


def _combined(start: str, namespace: str, components: Sequence[str]) -> Rendering:
    # Beside this folder, as kustomize takes relative paths alone.
    with tempfile.TemporaryDirectory() as scratch:
        here = os.path.relpath(HERE, scratch)
        lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization"]
        # Without it, what components bring would be in another namespace than what they refer to.
        lines += [f"namespace: {namespace}", "resources:", f"  - {here}/{start}"]
        if components:
            lines += ["components:", *(f"  - {here}/components/{each}" for each in components)]
        (Path(scratch) / "kustomization.yaml").write_text("\n".join(lines) + "\n")
        return rendered(" + ".join((start, *components)), _kustomize(Path(scratch)))


def _kustomize(folder: Path) -> str:
    command = (program("kubectl"), "kustomize", str(folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder}: {done.stderr.strip()}")
    return done.stdout
