"""JSON schemas of custom resources, from their definitions: a field that is unknown is an error.

python -m k8s.checks.strict_schema FOLDER    write k8s/checks/crds/*.json from the YAML files there

The definitions say no less than an API server checks of a resource's shape, but for CEL rules.
Texts are left out, and so are the pod templates, which are checked as pods of Kubernetes' own
schema (`schemas.py`): what is left of a megabyte is small enough to be read.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent / "crds"

ANYTHING: Final[dict[str, Any]] = {}
ELSEWHERE: Final = {
    "RayService": ("template", "serveService", "historyServerOptions"),
    # Ways to sign that this project does not use.
    "Issuer": ("acme", "vault", "venafi"),
}
"""Fields that are not looked into, by kind."""

_KEPT: Final = ("type", "enum", "pattern", "minimum", "maximum", "minItems", "maxItems")
_KEPT_TOO: Final = ("minLength", "maxLength", "required", "nullable")


def strict(schema: Mapping[str, Any], elsewhere: Sequence[str] = ()) -> dict[str, Any]:
    """A structural schema of OpenAPI v3 as a JSON schema that allows no other fields.

    Args:
        schema: of a definition's version.
        elsewhere: names of fields that may hold anything.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: schema[key] for key in (*_KEPT, *_KEPT_TOO) if key in schema}
    if found.pop("nullable", False) and "type" in found:
        found["type"] = [found["type"], "null"]
    if "properties" in schema:
        found["properties"] = {
            name: ANYTHING if name in elsewhere else strict(each, elsewhere)
            for name, each in sorted(schema["properties"].items())
        }
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), Mapping):
        found["additionalProperties"] = strict(schema["additionalProperties"], elsewhere)
    if "items" in schema:
        found["items"] = strict(schema["items"], elsewhere)
    return found


def schemas(definition: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """File name → schema, for each version of a CustomResourceDefinition.

    Args:
        definition: the parsed document.
        source: said in each schema: where it is from.
    """
    spec = definition["spec"]
    kind, group = spec["names"]["kind"], spec["group"]
    made = {}
    for version in spec["versions"]:
        if version["name"] != "v1":
            continue
        schema = strict(version["schema"]["openAPIV3Schema"], ELSEWHERE.get(kind, ()))
        schema["properties"].pop("status", None)
        schema["properties"]["metadata"] = ANYTHING
        schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
        made[f"{kind.lower()}.{group}_{version['name']}.json"] = {"$comment": source, **schema}
    return made


def main(folder: Path) -> int:
    """Writes the schemas of the definitions in a folder."""
    for path in sorted(folder.glob("*.yaml")):
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()[:16]
        for name, schema in schemas(yaml.safe_load(data), f"{path.name}, sha256 {digest}").items():
            (FOLDER / name).write_text(json.dumps(schema, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
