"""Every object against the strict schema of its kind."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

import jsonschema
import kubernetes_validate
from kubernetes_validate import utils

from k8s.checks.definitions import schemas
from k8s.checks.pods import pods
from k8s.checks.rendering import Object, Problem, Rendering, shown

KUBERNETES: Final = "1.37"
"""Whose schemas count."""

# It reads a file of megabytes anew for each object.
utils.schema_contents = cache(utils.schema_contents)

_REFUSALS: Final = (
    jsonschema.ValidationError,
    kubernetes_validate.SchemaNotFoundError,
    kubernetes_validate.InvalidSchemaError,
)


def check(rendering: Rendering) -> list[Problem]:
    """Objects that an API server would refuse for their shape, and pods within custom resources."""
    found = []
    for each in rendering.objects:
        found += [Problem(shown(each), what) for what in _of_object(json.dumps(each))]
    for pod in pods(rendering):
        if pod.kind == "RayService":  # its definition lets templates hold anything
            what = _of_object(json.dumps(pod.as_object()))
            found += [Problem(pod.owner, each) for each in what]
    return found


@cache
def _of_object(document: str) -> tuple[str, ...]:
    """What is wrong with one object, as JSON: renderings share most of them."""
    each: Object = json.loads(document)
    custom = schemas().get((each["apiVersion"], each["kind"]))
    if custom is not None:
        errors = jsonschema.Draft202012Validator(custom).iter_errors(each)
        return tuple(f"{_path(error)}: {error.message:.200}" for error in errors)
    try:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    except _REFUSALS as error:
        return (f"{_path(error)}: {error.message:.200}",)
    return ()


def _path(error: Any) -> str:
    return ".".join(str(part) for part in getattr(error, "absolute_path", ())) or "schema"
