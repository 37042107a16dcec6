"""Copies of the manifests with one thing broken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from k8s.checks.all_checks import problems
from k8s.checks.rendering import (
    Rendering,
    alone,
    base_with,
    example,
    examples,
    overlay,
    without_digests,
)

Broken = Callable[[Any], object]
Case = tuple[str, str, Broken, str]
"""An overlay, `base`, or the component or engine that the base has with it; kind and name of an
object; what is done to it; what is said of it then."""

OVERLAYS = ("dev", "production")


def put(path: str, value: object) -> Broken:
    """Sets a field of an object; None takes it out."""

    def broken(item: Any) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in way:
            item = item[part]
        if value is None:
            del item[last]
        elif isinstance(item, list) and last == len(item):
            item.append(value)
        else:
            item[last] = value

    return broken


def swap(path: str, old: str, new: str) -> Broken:
    """Replaces a part of a text."""

    def broken(item: Any) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        for part in way:
            item = item[part]
        assert old in item[last]
        item[last] = item[last].replace(old, new)

    return broken


def environment(path: str, name: str, value: str) -> Broken:
    """Sets a variable of a container."""

    def broken(item: Any) -> None:
        for part in path.split("."):
            item = item[int(part) if part.isdigit() else part]
        found = [each for each in item.get("env", ()) if each["name"] == name]
        if found:
            found[0]["value"] = value
        else:
            item.setdefault("env", []).append({"name": name, "value": value})

    return broken


def drop(_: Any) -> str:
    """Takes the object out."""
    return "drop"


def whole(rendering: str) -> Rendering:
    """A rendering as cases name it."""
    if rendering in OVERLAYS:
        return overlay(rendering)
    if rendering in examples():
        return example(rendering)
    return base_with() if rendering == "base" else alone(rendering)


def named(rendering: Rendering, of: str) -> Any:
    """The object of that kind and name, without the digest behind a ConfigMap's."""
    names = [f"{x['kind']}/{x['metadata']['name']}" for x in without_digests(rendering).objects]
    return rendering.objects[names.index(of)]


def said(rendering: str, of: str, broken: Broken) -> list[str]:
    """All that the checks say of a rendering with one object broken."""
    objects = copy.deepcopy(whole(rendering).objects)
    item = named(Rendering(rendering, objects), of)
    if broken(item) == "drop":
        objects = tuple(each for each in objects if each is not item)
    return [str(each) for each in problems(Rendering(rendering, objects))]
