"""The images' Containerfile: what it copies is there, and what the manifests expect it to be."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from k8s.checks.pods import Pod, pods
from k8s.checks.rendering import HERE, Problem, Rendering

ROOT: Final = HERE.parent
FILE: Final = HERE / "images" / "Containerfile"
FLAVOURS: Final = {"lexico-offload": "cpu", "lexico-offload-cuda": "cuda"}
"""Build argument FLAVOUR of each image, by its name in the manifests."""
VOLATILE: Final = frozenset({"/dev/shm", "/tmp"})
"""Places that are mounted anew for every container, and are in each image anyway."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Containerfile."""

    line: int
    name: str
    text: str
    """Its words on one line."""


def instructions(text: str) -> list[Instruction]:
    """All of a Containerfile."""
    found = []
    start, joined = 0, ""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#") or not line.strip():
            continue
        start = start if joined else number
        joined += line.removesuffix("\\")
        if not line.endswith("\\"):
            name, _, rest = joined.strip().partition(" ")
            found.append(Instruction(start, name.upper(), " ".join(rest.split())))
            joined = ""
    return found


def check(renderings: list[Rendering], text: str | None = None) -> list[Problem]:
    """What does not fit.

    Args:
        text: of a Containerfile, in place of the project's.
    """
    found = instructions(FILE.read_text() if text is None else text)
    told = [*_of_arguments(found), *_of_copies(found), *_of_wheel(found)]
    told += sorted({each for rendering in renderings for each in _of_pods(found, rendering)})
    return [Problem(f"{FILE.parent.name}/{FILE.name}", what) for what in told]


def copied(found: list[Instruction], flavour: str) -> Iterator[tuple[int, str]]:
    """Line and path of what an image of that flavour takes out of the tree."""
    for each in found:
        words = each.text.split()
        if each.name == "COPY" and not words[0].startswith("--from"):
            for path in words[:-1]:
                yield each.line, path.replace("${FLAVOUR}", flavour).removesuffix("/")


def _of_arguments(found: list[Instruction]) -> Iterator[str]:
    """Build arguments are declared in the stage that uses them: not every builder hands them on."""
    declared: set[str] = set()
    for each in found:
        if each.name == "ARG":
            declared.add(each.text.partition("=")[0])
            continue
        for name in sorted(set(re.findall(r"\$\{?([A-Z_]{2,})\b", each.text)) - declared):
            yield f"line {each.line} uses {name}, which its stage does not declare by ARG"
        if each.name == "FROM":
            declared = set()


def _of_copies(found: list[Instruction]) -> Iterator[str]:
    for flavour in FLAVOURS.values():
        for line, path in copied(found, flavour):
            if not (ROOT / path).exists():
                yield f"line {line} copies {path}, which is not there"
            elif not _in_context(path):
                yield f"line {line} copies {path}, which .dockerignore leaves out"
    stages = [each.text.split()[-1] for each in found if each.name == "FROM"]
    for each in found:
        match = re.search(r"--(?:from=|mount=\S*from=)([\w-]+)", each.text)
        if match and match[1] not in stages:
            yield f"line {each.line} takes something out of {match[1]}, which is no stage"


def _of_wheel(found: list[Instruction]) -> Iterator[str]:
    """What the wheel is made of is copied."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    there = {path for _, path in copied(found, "cpu")}
    for path in (*wanted, *project["project"]["license-files"], project["project"]["readme"]):
        if path not in there:
            yield f"the wheel needs {path}, which is not copied"


def _in_context(path: str) -> bool:
    """Whether the last pattern of .dockerignore that matches lets it in."""
    inside = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line.startswith(("#", "**/")) or not line:
            continue
        parents = [path, *(str(each) for each in Path(path).parents if str(each) != ".")]
        if any(fnmatch.fnmatch(each, pattern) for each in parents):
            inside = line.startswith("!")
    return inside


def _of_pods(found: list[Instruction], rendering: Rendering) -> Iterator[str]:
    """Users, folders, ports, programs and versions of the containers that are of our images."""
    user = _last(found, "USER")
    home = re.search(r"\bHOME=(\S+)", _last(found, "ENV"))
    ports = set(_last(found, "EXPOSE").split())
    folders = set(re.findall(r" install -d [^&]*?(/\S+)", _all(found, "RUN")))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for pod in pods(rendering):
        for container in pod.containers:
            name, _, tag = container["image"].rpartition("/")[2].partition(":")
            if name not in FLAVOURS:
                continue
            if tag != project["version"]:
                yield f"image {container['image']} is not of version {project['version']}"
            if (wanted := _user(pod)) != user:
                yield f"USER is {user}, and {pod.component} runs as {wanted}"
            for each in container.get("env", ()):
                if each["name"] == "HOME" and (home is None or each["value"] != home[1]):
                    yield f"HOME is not {each['value']}, as {pod.component} has it"
            for port in container.get("ports", ()):
                if port["name"] in _OURS and str(port["containerPort"]) not in ports:
                    yield f"EXPOSE lacks {port['containerPort']} of {pod.component}"
            for place in _writable(container):
                if place not in folders:
                    yield f"no folder {place} is made, which {pod.component} writes to"
            for program in container.get("command", ())[:1]:
                if program not in (*project["scripts"], "python"):
                    yield f"it has no program {program}, which {pod.component} runs"


_OURS: Final = ("offload", "reload", "health", "metrics")
"""Names of the ports that our processes listen on."""


def _user(pod: Pod) -> str:
    context = pod.spec.get("securityContext", {})
    return f"{context.get('runAsUser')}:{context.get('runAsGroup')}"


def _writable(container: Mapping[str, Any]) -> set[str]:
    mounts = container.get("volumeMounts", ())
    return {each["mountPath"] for each in mounts if not each.get("readOnly")} - VOLATILE


def _last(found: list[Instruction], name: str) -> str:
    return next((each.text for each in reversed(found) if each.name == name), "")


def _all(found: list[Instruction], name: str) -> str:
    return " ".join(each.text for each in found if each.name == name)
