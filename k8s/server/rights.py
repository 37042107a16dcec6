"""What service accounts may do, asked of a server in their name.

No account of this project has a role of ours. Ray's head has the one that KubeRay's operator binds
to its account, for Ray's autoscaler: it is made here as the operator makes it. What an account is
told to have (`SelfSubjectRulesReview`) must be that and no more, and single questions
(`SelfSubjectAccessReview`) must be answered as the tables here say.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from k8s.checks.pods import ray_templates
from k8s.checks.rendering import Object, Rendering
from k8s.server.api import ApiServer

Right = tuple[str, str, str]
"""Verb, API group, resource with its subresource."""

_RBAC: Final = "rbac.authorization.k8s.io"
_REVIEWS: Final = "/apis/authorization.k8s.io/v1"

AUTOSCALER: Final = (
    *((verb, "", "pods") for verb in ("get", "list", "watch", "patch")),
    ("patch", "", "pods/resize"),
    *((verb, "ray.io", "rayclusters") for verb in ("get", "patch")),
)
"""What the autoscaler of Ray does: it reads and marks pods, and changes the groups' sizes."""
EVERYONE: Final = (
    ("create", "authorization.k8s.io", "selfsubjectaccessreviews"),
    ("create", "authorization.k8s.io", "selfsubjectrulesreviews"),
)
"""What whoever has a name may do: ask what it may do."""
NOBODY: Final = (
    *((verb, "", "secrets") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    *((verb, "", "configmaps") for verb in ("get", "list", "patch")),
    *((verb, "", "pods") for verb in ("create", "delete")),
    *(("create", "", f"pods/{what}") for what in ("exec", "attach", "portforward", "eviction")),
    *(("get", "", f"pods/{what}") for what in ("exec", "log")),
    ("create", "", "serviceaccounts/token"),
    ("impersonate", "", "serviceaccounts"),
    ("patch", "apps", "deployments"),
    ("patch", "networking.k8s.io", "networkpolicies"),
    ("delete", "ray.io", "rayclusters"),
    ("patch", "ray.io", "rayservices"),
    ("create", _RBAC, "rolebindings"),
    ("escalate", _RBAC, "roles"),
)
"""What no account may do."""
PATIENCE_S: Final = 60
"""Until a server follows its own changes. It ends a hang, and nothing else."""
ELSEWHERE: Final = "default"
"""A namespace of others."""
_SETTLED: Final = itertools.count()


def check(
    server: ApiServer, rendering: Rendering, namespace: str
) -> tuple[int, list[tuple[str, str]]]:
    """Asks for each service account of a rendering, while accounts and roles are there.

    Returns:
        How many questions were answered, and where and why an answer was wrong.
    """
    asked, wrong = 0, []
    scaled = set(_scaled(rendering))
    with _there(server, _of_autoscalers(scaled, namespace)):
        _settle(server, namespace)
        for each in rendering.of_kind("ServiceAccount"):
            name = each["metadata"]["name"]
            account = _Account(server, namespace, f"system:serviceaccount:{namespace}:{name}")
            needs = AUTOSCALER if name in scaled else ()
            for what in account.wrong(needs):
                wrong.append((f"ServiceAccount/{name}", what))
            asked += account.asked
    return asked, wrong


class _Account:
    """Asks in the name of a service account."""

    def __init__(self, server: ApiServer, namespace: str, user: str) -> None:
        self._server = server
        self._namespace = namespace
        self._headers = {"Impersonate-User": user}
        self.asked = 0

    def wrong(self, needs: Sequence[Right]) -> Iterator[str]:
        """What it may do and must not, and the other way round."""
        for right in sorted(self._rules() - {*needs, *EVERYONE}):
            yield f"may {_shown(right)}, and nothing needs it"
        for right in needs:
            if not self.may(right, self._namespace):
                yield f"may not {_shown(right)}, which it needs"
            if self.may(right, ELSEWHERE):
                yield f"may {_shown(right)} in other namespaces"
        for right in NOBODY:
            for namespace in (self._namespace, ELSEWHERE):
                if self.may(right, namespace):
                    yield f"may {_shown(right)} in {namespace}"

    def _rules(self) -> set[Right]:
        status = self._review("selfsubjectrulesreviews", {"namespace": self._namespace})
        if status.get("incomplete"):
            raise RuntimeError(f"an incomplete list of rights: {status}")
        return {
            (verb, group, resource)
            for rule in status["resourceRules"]
            for verb in rule["verbs"]
            for group in rule.get("apiGroups", [""])
            for resource in rule.get("resources", ())
        }

    def may(self, right: Right, namespace: str) -> bool:
        """Whether it may, in a namespace."""
        verb, group, resource = right
        resource, _, subresource = resource.partition("/")
        attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": resource}
        asked = {"resourceAttributes": {**attributes, "subresource": subresource}}
        return bool(self._review("selfsubjectaccessreviews", asked)["allowed"])

    def _review(self, resource: str, asked: Mapping[str, Any]) -> Object:
        kind = {"selfsubjectrulesreviews": "Rules", "selfsubjectaccessreviews": "Access"}[resource]
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": f"SelfSubject{kind}Review"}
        answer = self._server.ask(
            "POST", f"{_REVIEWS}/{resource}", {**body, "spec": asked}, headers=self._headers
        )
        if not answer.good:
            raise RuntimeError(f"{resource} in the name of an account: {answer.why}")
        self.asked += 1
        status: Object = answer.body["status"]
        return status


def _scaled(rendering: Rendering) -> Iterator[str]:
    """Accounts of heads that have an autoscaler beside them."""
    for each in rendering.of_kind("RayService"):
        if each["spec"]["rayClusterConfig"].get("enableInTreeAutoscaling"):
            yield dict(ray_templates(each))["head"]["spec"]["serviceAccountName"]


def _of_autoscalers(accounts: Iterable[str], namespace: str) -> Iterator[Object]:
    """Role and binding of each, as KubeRay's operator makes them."""
    for account in sorted(accounts):
        subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
        yield from _granted(f"kuberay-{account}", namespace, AUTOSCALER, subject)


def _granted(
    name: str, namespace: str, rights: Iterable[Right], subject: Mapping[str, str]
) -> Iterator[Object]:
    """A role and its binding; for all namespaces where none is named."""
    place = {"namespace": namespace} if namespace else {}
    head = {"apiVersion": f"{_RBAC}/v1", "metadata": {"name": name, **place}}
    kind = "Role" if namespace else "ClusterRole"
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
        for verb, group, resource in rights
    ]
    yield {**head, "kind": kind, "rules": rules}
    to = {"apiGroup": _RBAC, "kind": kind, "name": name}
    yield {**head, "kind": f"{kind}Binding", "subjects": [dict(subject)], "roleRef": to}


@contextmanager
def _there(server: ApiServer, items: Iterable[Object]) -> Iterator[None]:
    """Objects that the server has while the block runs."""
    with ExitStack() as stack:
        for item in items:
            answer = server.apply(item, dry=False)
            if not answer.good:
                raise RuntimeError(f"{item['kind']}/{item['metadata']['name']}: {answer.why}")
            stack.callback(server.ask, "DELETE", server.path(item))
        yield


def _settle(server: ApiServer, namespace: str) -> None:
    """Waits until answers follow from the roles that are there: a server hears of its own changes a
    moment later, in the order in which they were made, so that the last one is the one to wait for.
    """
    name = f"lexico-settled-{next(_SETTLED)}"
    subject = {"apiGroup": _RBAC, "kind": "User", "name": name}
    rights = [("get", "", "nodes")]
    roles = [*_granted(name, namespace, rights, subject), *_granted(name, "", rights, subject)]
    # In the namespace by the one pair, elsewhere by the other.
    with _there(server, roles[:2]):
        _await(server, name, namespace)
    with _there(server, roles[2:]):
        _await(server, name, ELSEWHERE)


def _await(server: ApiServer, user: str, namespace: str) -> None:
    account = _Account(server, namespace, user)
    deadline = time.monotonic() + PATIENCE_S
    while not account.may(("get", "", "nodes"), namespace):
        if time.monotonic() > deadline:
            raise RuntimeError(f"rights are not as granted after {PATIENCE_S} s")
        time.sleep(0.01)


def _shown(right: Right) -> str:
    verb, group, resource = right
    return f"{verb} {resource}{f' of {group}' if group else ''}"
