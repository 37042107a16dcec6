"""Whether whatever is named is there: Secrets, ConfigMaps, keys, ports, accounts, claims, files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from k8s.checks.pods import Pod, pods
from k8s.checks.rendering import Object, Problem, Rendering, shown
from k8s.new_secrets import secrets_of

GIVEN_SECRETS: Final[Mapping[str, frozenset[str]]] = {
    **{each["metadata"]["name"]: frozenset(each["stringData"]) for each in secrets_of([])},
    "lexico-engine-token": frozenset({"token"}),
    "lexico-external-redis": frozenset({"url", "ca.crt", "tls.crt", "tls.key"}),
}
"""Secret → its keys, of those that are there before: README.md names them."""
GIVEN_CLAIMS: Final = frozenset({"lexico-models"})
CERTIFICATE_KEYS: Final = frozenset({"tls.crt", "tls.key", "ca.crt"})

READ_ELSEWHERE: Final[Mapping[str, tuple[str, ...]]] = {
    "ray-head": (
        *("/etc/lexico/store", "/etc/lexico/store-ca", "/etc/lexico/tls", "/etc/lexico/tokens"),
    ),
    "encoder": ("/etc/lexico/tls", "/etc/lexico/tokens"),
}
"""Component → folders that it needs not: all of Ray's pods have the same settings, as any of them
may build the application, and not all of them open what is named there."""

AGENT: Final = 52365
"""Port of Ray's agent on each node, which Ray opens by itself."""

_PATH: Final = re.compile(r"/(?:etc/lexico|etc/valkey|models|work|data)(?:/[\w.-]+)+")
"""Of a file that a pod is told of, and that must be mounted for it."""


def check(rendering: Rendering) -> list[Problem]:
    """Names that lead nowhere."""
    found = []
    secrets = _secrets(rendering)
    for pod in pods(rendering):
        for what in _of_pod(rendering, secrets, pod):
            found.append(Problem(pod.owner, what))
    for each in rendering.of_kind("StatefulSet"):
        name = each["spec"]["serviceName"]
        if rendering.find("Service", name) is None:
            found.append(Problem(shown(each), f"serviceName {name} is no Service"))
    for each in rendering.of_kind("HorizontalPodAutoscaler"):
        target = each["spec"]["scaleTargetRef"]
        scaled = rendering.find(target["kind"], target["name"])
        if scaled is None or scaled["apiVersion"] != target["apiVersion"]:
            found.append(Problem(shown(each), f"scales {target['name']}, which is not there"))
        elif "replicas" in scaled["spec"]:
            what = f"{shown(scaled)} has replicas too: each apply would undo the scaling"
            found.append(Problem(shown(each), what))
    for each in rendering.of_kind("Certificate"):
        issuer = each["spec"]["issuerRef"]
        if rendering.find(issuer["kind"], issuer["name"]) is None:
            found.append(Problem(shown(each), f"issuer {issuer['name']} is not there"))
    for each in rendering.of_kind("Issuer"):
        name = each["spec"].get("ca", {}).get("secretName")
        if name is not None and name not in secrets:
            found.append(Problem(shown(each), f"Secret {name} is not there"))
    for each in rendering.of_kind("RayService"):
        found += [Problem(shown(each), what) for what in _of_ray(rendering, secrets, each)]
    return found


def _secrets(rendering: Rendering) -> dict[str, frozenset[str]]:
    made = {c["spec"]["secretName"]: CERTIFICATE_KEYS for c in rendering.of_kind("Certificate")}
    return {**GIVEN_SECRETS, **made}


def _of_ray(
    rendering: Rendering, secrets: Mapping[str, frozenset[str]], service: Object
) -> Iterator[str]:
    cluster = service["spec"]["rayClusterConfig"]
    token = cluster.get("authOptions", {}).get("secretName")
    if "auth_token" not in secrets.get(token, ()):
        yield f"authOptions: Secret {token} has no auth_token"
    storage = cluster.get("gcsFaultToleranceOptions", {})
    reference = storage.get("redisPassword", {}).get("valueFrom", {}).get("secretKeyRef", {})
    if reference.get("key") not in secrets.get(reference.get("name"), ()):
        yield "gcsFaultToleranceOptions: its password is in no Secret"
    host, _, port = storage.get("redisAddress", "").partition(":")
    found = rendering.find("Service", host)
    if found is None or int(port) not in [each["port"] for each in found["spec"]["ports"]]:
        yield f"gcsFaultToleranceOptions: {host}:{port} is no Service's port"


def _of_pod(rendering: Rendering, secrets: Mapping[str, frozenset[str]], pod: Pod) -> Iterator[str]:
    account = pod.spec.get("serviceAccountName")
    if account and rendering.find("ServiceAccount", account) is None:
        yield f"service account {account} is not there"
    claims = _claims(rendering, pod)
    volumes: dict[str, frozenset[str] | None] = dict.fromkeys(claims)
    for volume in pod.spec.get("volumes", ()):
        if volume["name"] in volumes:
            yield f"volume {volume['name']} is there twice"
        volumes[volume["name"]], problem = _files(rendering, secrets, volume)
        if problem:
            yield problem
    mounted = set()
    for container in pod.containers:
        yield from _of_container(rendering, secrets, pod, container, volumes)
        mounted |= {each["name"] for each in container.get("volumeMounts", ())}
    for name in sorted(set(volumes) - mounted):
        yield f"volume {name} is mounted nowhere"


def _claims(rendering: Rendering, pod: Pod) -> list[str]:
    kind, _, name = pod.owner.partition("/")
    owner = rendering.find(kind, name)
    templates = owner["spec"].get("volumeClaimTemplates", ()) if owner is not None else ()
    return [each["metadata"]["name"] for each in templates]


def _files(
    rendering: Rendering, secrets: Mapping[str, frozenset[str]], volume: Mapping[str, Any]
) -> tuple[frozenset[str] | None, str]:
    """Files of a volume, None where nobody knows them; and what is wrong with it."""
    if "persistentVolumeClaim" in volume:
        claim = volume["persistentVolumeClaim"]["claimName"]
        known = claim in GIVEN_CLAIMS or rendering.find("PersistentVolumeClaim", claim) is not None
        return None, "" if known else f"claim {claim} is not there"
    if "configMap" in volume:
        name = volume["configMap"]["name"]
        found = rendering.find("ConfigMap", name)
        keys = None if found is None else frozenset(found["data"])
        kind, items = "ConfigMap", volume["configMap"].get("items")
    elif "secret" in volume:
        name = volume["secret"]["secretName"]
        keys = secrets.get(name)
        kind, items = "Secret", volume["secret"].get("items")
        if keys is None and volume["secret"].get("optional"):
            return None, ""
    else:
        return None, ""
    if keys is None:
        return None, f"{kind} {name} is not there"
    for item in items or ():
        if item["key"] not in keys:
            return None, f"{kind} {name} has no {item['key']}"
    return (frozenset(item["path"] for item in items) if items else keys), ""


def _of_container(
    rendering: Rendering,
    secrets: Mapping[str, frozenset[str]],
    pod: Pod,
    container: Mapping[str, Any],
    volumes: Mapping[str, frozenset[str] | None],
) -> Iterator[str]:
    name = container["name"]
    places: dict[str, frozenset[str] | None] = {}
    for mount in container.get("volumeMounts", ()):
        path = mount["mountPath"]
        if mount["name"] not in volumes:
            yield f"{name}: mount {path} has no volume {mount['name']}"
        if path in places:
            yield f"{name}: {path} is mounted twice"
        if "subPath" in mount:
            yield f"{name}: {path} is a subPath, which never changes when its source does"
        places[path] = volumes.get(mount["name"])
    names = [each["name"] for each in container.get("env", ())]
    for twice in sorted({each for each in names if names.count(each) > 1}):
        yield f"{name}: variable {twice} is there twice"
    for variable in container.get("env", ()):
        yield from _of_variable(rendering, secrets, name, variable)
    ports = container.get("ports", ())
    for attribute in ("name", "containerPort"):
        values = [port[attribute] for port in ports if attribute in port]
        for value in sorted({str(each) for each in values if values.count(each) > 1}):
            yield f"{name}: port {value} is there twice"
    for port in ports:
        if not re.fullmatch(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?", port.get("name", "")):
            yield f"{name}: port {port.get('name')!r} is no name of at most 15 characters"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        for how in ("tcpSocket", "httpGet", "grpc"):
            asked = container.get(probe, {}).get(how, {}).get("port")
            if asked not in (None, AGENT) and pod.port(asked) is None:
                yield f"{name}: {probe} asks port {asked}, which is not there"
    yield from _of_paths(rendering, container, places, READ_ELSEWHERE.get(pod.component, ()))


def _of_variable(
    rendering: Rendering,
    secrets: Mapping[str, frozenset[str]],
    name: str,
    variable: Mapping[str, Any],
) -> Iterator[str]:
    source = variable.get("valueFrom", {})
    if "secretKeyRef" in source:
        reference = source["secretKeyRef"]
        if reference["key"] not in secrets.get(reference["name"], ()):
            yield f"{name}: Secret {reference['name']} has no {reference['key']}"
    if "configMapKeyRef" in source:
        reference = source["configMapKeyRef"]
        found = rendering.find("ConfigMap", reference["name"])
        if found is None or reference["key"] not in found["data"]:
            yield f"{name}: ConfigMap {reference['name']} has no {reference['key']}"


def _of_paths(
    rendering: Rendering,
    container: Mapping[str, Any],
    places: Mapping[str, frozenset[str] | None],
    elsewhere: Collection[str],
) -> Iterator[str]:
    """Files that a container is told of: by arguments, variables, and settings that are mounted."""
    texts = [*container.get("command", ()), *container.get("args", ())]
    for variable in container.get("env", ()):
        texts.append(variable.get("value", ""))
        reference = variable.get("valueFrom", {}).get("configMapKeyRef")
        found = rendering.find("ConfigMap", reference["name"]) if reference else None
        if found is not None:
            texts.append(found["data"].get(reference["key"], ""))
    for each in rendering.of_kind("ConfigMap"):
        read = [key for key in each["data"] if f"/{key}" in " ".join(texts)]
        texts += [_code(each["data"][key]) for key in read if key.endswith((".toml", ".conf"))]
    for path in sorted({path for text in texts for path in _PATH.findall(text)}):
        if any(path.startswith(f"{folder}/") for folder in elsewhere):
            continue
        place = max((p for p in places if f"{path}/".startswith(f"{p}/")), key=len, default=None)
        if place is None:
            yield f"{container['name']}: {path} is mounted nowhere"
            continue
        files, file = places[place], path[len(place) + 1 :]
        if files is not None and file and file not in files:
            yield f"{container['name']}: {path} is not among {', '.join(sorted(files))}"


def _code(text: str) -> str:
    """Without lines that are comments."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
