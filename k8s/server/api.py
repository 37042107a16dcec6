"""An API server, as this project asks it: JSON over HTTPS, without a client of Kubernetes."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from k8s.checks.rendering import Object

PATIENCE_S: Final = 120
"""For one answer. It ends a hang, and nothing else."""
MANAGER: Final = "lexico-server-check"
_APPLY: Final = "application/apply-patch+yaml"
_JSON: Final = "application/json"


@dataclass(frozen=True)
class Answer:
    """What a server says."""

    status: int
    body: Object
    warnings: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether it did what it was asked."""
        return 200 <= self.status < 300

    @property
    def why(self) -> str:
        """Its reason, in one line."""
        return " ".join(str(self.body.get("message", f"status {self.status}")).split())


class ApiServer:
    """One server."""

    def __init__(self, name: str, port: int, context: ssl.SSLContext) -> None:
        self.name = name
        self._port = port
        self._context = context
        self._connection: http.client.HTTPSConnection | None = None
        self._known: dict[str, dict[str, Object]] = {}

    def resource(self, api_version: str, kind: str) -> Object | None:
        """What it tells of a kind (`name`, `namespaced`); None where it does not know that."""
        if api_version not in self._known:
            answer = self.ask("GET", group_path(api_version))
            listed = answer.body.get("resources", []) if answer.good else []
            whole = (each for each in listed if "/" not in each["name"])
            self._known[api_version] = {each["kind"]: each for each in whole}
        return self._known[api_version].get(kind)

    def forget_kinds(self) -> None:
        """Asks anew which kinds there are."""
        self._known.clear()

    def apply(self, item: Object, dry: bool = True) -> Answer:
        """Server-side apply of an object, to the end of admission alone where it is `dry`.

        Raises:
            LookupError: it does not know the kind.
        """
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        if dry:
            query["dryRun"] = "All"
        path = f"{self.path(item)}?{urlencode(query)}"
        return self.ask("PATCH", path, item, kind=_APPLY)

    def path(self, item: Object) -> str:
        """Where an object is.

        Raises:
            LookupError: it does not know the kind.
        """
        found = self.resource(item["apiVersion"], item["kind"])
        if found is None:
            raise LookupError(f"{self.name} has no {item['apiVersion']} {item['kind']}")
        metadata = item["metadata"]
        within = (
            f"/namespaces/{metadata.get('namespace', 'default')}" if found["namespaced"] else ""
        )
        return f"{group_path(item['apiVersion'])}{within}/{found['name']}/{metadata['name']}"

    def ask(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        kind: str = _JSON,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call.

        Raises:
            OSError: it does not answer.
        """
        text = None if body is None else json.dumps(body)
        sent = {"Content-Type": kind, "Accept": _JSON, **(headers or {})}
        try:
            answer, raw = self._call(method, path, text, sent)
        except (http.client.HTTPException, OSError):
            # A connection that was idle may be gone, and every call here can be made twice.
            self.close()
            answer, raw = self._call(method, path, text, sent)
        warnings = tuple(answer.headers.get_all("Warning", ()))
        return Answer(answer.status, _read(raw), warnings)

    def close(self) -> None:
        """Gives the connection up; another call makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(
        self, method: str, path: str, text: str | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                "127.0.0.1", self._port, timeout=PATIENCE_S, context=self._context
            )
        self._connection.request(method, path, text, dict(headers))
        answer = self._connection.getresponse()
        return answer, answer.read()


def group_path(api_version: str) -> str:
    """Where a group and version is."""
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _read(raw: bytes) -> Object:
    try:
        found: Any = json.loads(raw)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    return {"message": raw[:300].decode(errors="replace")}
