"""Every object of a rendering by server-side dry run, and every pod within it as a Pod."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from k8s.checks.pods import Pod, pods
from k8s.checks.rendering import Object, Rendering, shown
from k8s.server import rights
from k8s.server.api import ApiServer
from k8s.server.conversion import converted

AS_POD: Final = "as Pod"
"""Said of a pod that is within something else."""
STANDING: Final = (
    *("ServiceAccount", "Role", "ClusterRole"),
    *("RoleBinding", "ClusterRoleBinding"),
)
"""Kinds that are there for real while a rendering is looked at: its pods and its rights want them.
Namespaces are too, and stay."""


@dataclass
class Findings:
    """What was asked, and what was refused."""

    refused: dict[str, list[str]] = field(default_factory=dict)
    """`Kind/name: why` → renderings that have it."""
    checked: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Objects by kind with version, server, and the version that the server was asked for."""
    said: Counter[str] = field(default_factory=Counter)
    """Objects by what of them was said in older words."""
    unasked: Counter[str] = field(default_factory=Counter)
    """Objects by what of them no server was asked about."""
    unchecked: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Objects by kind with version, and why no server was asked."""
    warnings: Counter[str] = field(default_factory=Counter)
    """What servers warned of."""
    reviews: int = 0
    """Questions about rights."""

    def refuse(self, rendering: Rendering, where: str, why: str) -> None:
        """Notes a refusal."""
        self.refused.setdefault(f"{where}: {why}", []).append(rendering.name)


class DryRun:
    """Asks servers about renderings."""

    def __init__(
        self,
        built_in: tuple[ApiServer, int] | None,
        custom: ApiServer | None,
        kinds: Collection[tuple[str, str]],
        lacking: str = "",
    ) -> None:
        """What to ask.

        Args:
            built_in: a server of built-in kinds and the minor version of its Kubernetes; None where
                there is none.
            custom: a server of custom resources, or None.
            kinds: those resources, by `apiVersion` and `kind`.
            lacking: why there is none.
        """
        self.findings = Findings()
        self._built_in = built_in
        self._custom = custom
        self._kinds = kinds
        self._lacking = lacking

    def check(self, rendering: Rendering) -> None:
        """Adds what servers say of a rendering to the findings. Where they refuse an object, pods
        and rights are not asked about: nobody knows what shape it has.
        """
        with self._standing(rendering):
            taken = [self._ask(rendering, each, shown(each)) for each in rendering.objects]
            if not all(taken):
                return
            for pod in pods(rendering):
                item = as_pod(rendering, pod)
                self._ask(rendering, item, f"{pod.owner} {AS_POD}", AS_POD)
            if self._built_in is not None:
                asked, wrong = rights.check(self._built_in[0], rendering, _namespace(rendering))
                self.findings.reviews += asked
                for where, why in wrong:
                    self.findings.refuse(rendering, where, why)

    def _ask(self, rendering: Rendering, item: Object, where: str, how: str = "") -> bool:
        """Whether nobody refuses it."""
        findings = self.findings
        version, kind = item["apiVersion"], item["kind"]
        label = f"{version} {kind} {how}".strip()
        if (version, kind) in self._kinds:
            server, asked = self._custom, item
        elif self._built_in is None:
            server, asked = None, item
        else:
            server, minor = self._built_in
            changed = converted(item, minor)
            asked = changed.item
            findings.said.update(changed.said)
            findings.unasked.update(changed.unasked)
        if server is None:
            findings.unchecked[label, self._lacking] += 1
            return True
        if server.resource(asked["apiVersion"], kind) is None:
            findings.unchecked[label, f"{server.name} does not know it"] += 1
            return True
        answer = server.apply(asked)
        findings.checked[label, server.name, asked["apiVersion"]] += 1
        if asked["apiVersion"] == version:  # or the server would only say that the older is old
            findings.warnings.update(answer.warnings)
        if not answer.good:
            findings.refuse(rendering, where, answer.why)
        return answer.good

    @contextmanager
    def _standing(self, rendering: Rendering) -> Iterator[None]:
        """Namespaces, accounts and their rights, made in the order in which they need each other.
        One that is refused is not there, and told when it is asked about.
        """
        if self._built_in is None:
            yield
            return
        server, _ = self._built_in
        made = []
        for kind in ("Namespace", *STANDING):
            for each in rendering.of_kind(kind):
                if server.apply(each, dry=False).good and kind != "Namespace":
                    made.append(each)
        try:
            yield
        finally:
            for each in reversed(made):
                server.ask("DELETE", server.path(each))


def as_pod(rendering: Rendering, pod: Pod) -> Object:
    """The first pod that a controller makes of a template, with the claims of a StatefulSet."""
    item = pod.as_object()
    item["metadata"]["namespace"] = _namespace(rendering)
    kind, _, name = pod.owner.partition("/")
    owner = rendering.find(kind, name)
    claims = owner["spec"].get("volumeClaimTemplates", ()) if owner is not None else ()
    for claim in (each["metadata"]["name"] for each in claims):
        source = {"persistentVolumeClaim": {"claimName": f"{claim}-{name}-0"}}
        item["spec"]["volumes"] = [*item["spec"].get("volumes", ()), {"name": claim, **source}]
    return item


def minor_version(version: str) -> int:
    """Of Kubernetes 1, from a version of its own or of one of its libraries, as Debian writes them.

    Raises:
        ValueError: it is none.
    """
    match = re.match(r"(?:\d+:)?[01]\.(\d+)\.", version)
    if match is None:
        raise ValueError(f"{version} is no version of Kubernetes 1")
    return int(match[1])


def _namespace(rendering: Rendering) -> str:
    (namespace,) = rendering.of_kind("Namespace")
    return str(namespace["metadata"]["name"])
