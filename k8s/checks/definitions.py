"""Definitions of custom resources, condensed, and the strict schemas that they make.

python -m k8s.checks.definitions FOLDER    write k8s/checks/crds/*.json from the YAML files there

A condensed definition says all that an API server checks, its rules in CEL too, so that a server
takes it (`k8s/server`). Texts are left out, and so are the pod templates, which are checked as pods
of Kubernetes' own: what is left of a megabyte is small enough to be read.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent / "crds"

ELSEWHERE: Final = {
    "RayService": ("template", "serveService", "historyServerOptions"),
    # Ways to sign that this project does not use.
    "Issuer": ("acme", "vault", "venafi"),
}
"""Fields that are not looked into, by kind."""
SOURCE: Final = "source"
"""The annotation that says which file a definition is from."""

_ANYTHING: Final = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_TEXTS: Final = ("description", "example", "externalDocs", "title")
_KEPT: Final = ("type", "enum", "pattern", "minimum", "maximum", "minItems", "maxItems")
_KEPT_TOO: Final = ("minLength", "maxLength", "required", "nullable")

Document = dict[str, Any]


def condensed(definition: Mapping[str, Any], where: str) -> Document:
    """A CustomResourceDefinition with its version v1 alone, and without texts.

    Args:
        definition: the parsed document.
        where: said in it: where it is from.
    """
    spec = definition["spec"]
    elsewhere = ELSEWHERE.get(spec["names"]["kind"], ())
    (version,) = (each for each in spec["versions"] if each["name"] == "v1")
    schema = _condensed(version["schema"]["openAPIV3Schema"], elsewhere)
    schema["properties"]["status"] = _ANYTHING
    made = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    made["subresources"] = version.get("subresources", {})
    return {
        "apiVersion": definition["apiVersion"],
        "kind": definition["kind"],
        "metadata": {"name": definition["metadata"]["name"], "annotations": {SOURCE: where}},
        "spec": {**{key: spec[key] for key in ("group", "names", "scope")}, "versions": [made]},
    }


def strict(schema: Mapping[str, Any]) -> Document:
    """A structural schema of OpenAPI v3 as a JSON schema that allows no other fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: schema[key] for key in (*_KEPT, *_KEPT_TOO) if key in schema}
    if found.pop("nullable", False) and "type" in found:
        found["type"] = [found["type"], "null"]
    if "properties" in schema:
        found["properties"] = {name: strict(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), Mapping):
        found["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        found["items"] = strict(schema["items"])
    return found


def source(path: Path) -> str:
    """Which file that is."""
    return f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def read() -> dict[str, Document]:
    """Condensed definitions of this project, by their names."""
    documents = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    return {each["metadata"]["name"]: each for each in documents}


@cache
def schemas() -> Mapping[tuple[str, str], Document]:
    """The strict schema of each kind, by `apiVersion` and `kind`."""
    made = {}
    for definition in read().values():
        spec = definition["spec"]
        schema = strict(spec["versions"][0]["schema"]["openAPIV3Schema"])
        del schema["properties"]["status"]
        schema["properties"]["metadata"] = {}
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        made[f"{spec['group']}/v1", spec["names"]["kind"]] = schema
    return made


def main(folder: Path) -> int:
    """Condenses the definitions in a folder."""
    for path in sorted(folder.glob("*.yaml")):
        made = condensed(yaml.safe_load(path.read_bytes()), source(path))
        (FOLDER / f"{made['metadata']['name']}.json").write_text(json.dumps(made, indent=1) + "\n")
    return 0


def _condensed(schema: Mapping[str, Any], elsewhere: Sequence[str]) -> Document:
    found: Document = {}
    for key, value in schema.items():
        if key in _TEXTS:
            continue
        if key == "properties":
            found[key] = {
                name: dict(_ANYTHING) if name in elsewhere else _condensed(each, elsewhere)
                for name, each in sorted(value.items())
            }
        elif key in ("items", "not") or (
            key == "additionalProperties" and value not in (True, False)
        ):
            found[key] = _condensed(value, elsewhere)
        elif key in ("allOf", "anyOf", "oneOf"):
            found[key] = [_condensed(each, elsewhere) for each in value]
        elif key == "x-kubernetes-validations":
            rules = ("rule", "fieldPath", "reason", "optionalOldSelf")
            found[key] = [{k: each[k] for k in rules if k in each} for each in value]
        else:
            found[key] = value
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
