"""What asks API servers, without one: `make k8s-server-check` asks real ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import pytest

from k8s.checks import definitions
from k8s.checks.pods import pods
from k8s.checks.rendering import Object, Rendering, base_with, overlay
from k8s.server import __main__ as command
from k8s.server import packages, programs, report
from k8s.server.api import Answer
from k8s.server.conversion import CHANGES, converted
from k8s.server.dry_run import DryRun, as_pod, minor_version
from k8s.server.packages import Unavailable
from k8s.server.programs import Programs

NAMESPACE: Final[Object] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "lexico"}}
KINDS: Final = {("ray.io/v1", "RayService")}


class Server:
    """Knows some kinds, and refuses what has no labels."""

    name = "server"

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def resource(self, api_version: str, kind: str) -> Object | None:
        return {"name": kind} if f"{api_version} {kind}" in self.kinds else None

    def apply(self, item: Object, dry: bool = True) -> Answer:
        if item["metadata"].get("labels") or item["kind"] == "Namespace":
            return Answer(200, {}, ("old",))
        return Answer(422, {"message": "no\nlabels"})


def asked(custom: Any, *objects: Object) -> DryRun:
    asking = DryRun(None, custom, KINDS, "no package")
    asking.check(Rendering("one", (NAMESPACE, *objects)))
    return asking


def service(**metadata: Any) -> Object:
    cluster: Object = {"headGroupSpec": {"template": {"spec": {"containers": []}}}}
    head = {"apiVersion": "ray.io/v1", "kind": "RayService"}
    return {**head, "metadata": {"name": "x", **metadata}, "spec": {"rayClusterConfig": cluster}}


def test_a_refusal_names_object_and_renderings() -> None:
    asking = DryRun(None, Server("ray.io/v1 RayService"), KINDS)  # type: ignore[arg-type]
    for name in ("one", "two"):
        asking.check(Rendering(name, (NAMESPACE, service())))
    assert asking.findings.refused == {"RayService/x: no labels": ["one", "two"]}
    first, *_, last = report.lines(asking.findings, 2, 4)
    assert first == "one (and 1 more): RayService/x: no labels"
    assert last.startswith("2 renderings, 4 objects, 2 of them asked about, 0 pods")
    assert last.endswith(" 1 refusals")


def test_what_no_server_was_asked_about_is_named() -> None:
    findings = asked(None, service(labels={"a": "b"})).findings
    assert findings.unchecked == {
        ("ray.io/v1 RayService", "no package"): 1,
        ("v1 Namespace", "no package"): 1,
        ("v1 Pod as Pod", "no package"): 1,
    }
    assert not findings.checked
    assert "NOT CHECKED: 1 of ray.io/v1 RayService: no package" in report.lines(findings, 1, 2)
    findings = asked(Server(), service()).findings
    assert findings.unchecked["ray.io/v1 RayService", "server does not know it"] == 1


def test_what_was_asked_is_counted_by_kind_and_server() -> None:
    findings = asked(Server("ray.io/v1 RayService"), service(labels={"a": "b"})).findings
    assert findings.checked == {("ray.io/v1 RayService", "server", "ray.io/v1"): 1}
    assert findings.warnings == {"old": 1}
    told = report.document(findings, Programs({}, {"etcd": "gone"}), {}, 1, 2)
    assert told["not_to_be_had"] == {"etcd": "gone"}
    assert told["checked"] == [
        {"kind": "ray.io/v1 RayService", "server": "server", "asked_as": "ray.io/v1", "objects": 1}
    ]
    assert json.loads(json.dumps(told)) == told


def test_a_pod_has_the_claims_of_its_stateful_set() -> None:
    rendering = base_with("cluster")
    made = [as_pod(rendering, pod) for pod in pods(rendering) if pod.owner.endswith("-store")]
    (volumes,) = (each["spec"]["volumes"] for each in made)
    assert volumes[-1] == {
        "name": "data",
        "persistentVolumeClaim": {"claimName": "data-lexico-store-0"},
    }
    (store,) = (pod for pod in pods(rendering) if pod.owner.endswith("-store"))
    assert len(store.spec["volumes"]) == len(volumes) - 1


def test_without_servers_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Programs({}, dict.fromkeys((programs.ETCD, programs.CUSTOM), "sid has no such package"))
    monkeypatch.setattr(programs, "programs", lambda *_: gone)
    assert command.main([]) == command.NOT_CHECKED
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "k8s-server-check: no etcd: sid has no such package",
        "k8s-server-check: no apiextensions-apiserver: sid has no such package",
    ]
    assert told.out == ""


# objects for older servers


def test_what_a_server_knows_is_asked_as_it_is() -> None:
    newest = max(change.since for change in CHANGES)
    for each in base_with("monitoring").objects:
        assert converted(each, newest).item == each


def test_older_words_say_the_same() -> None:
    (budget, *_) = base_with().of_kind("PodDisruptionBudget")
    made = converted(budget, 20)
    assert made.item == {**budget, "apiVersion": "policy/v1beta1"}
    assert made.said == {"PodDisruptionBudget of policy/v1 as v1beta1"}
    assert not made.unasked
    assert converted(budget, 21).item == budget
    (scaler,) = base_with().of_kind("HorizontalPodAutoscaler")
    assert converted(scaler, 20).item == {**scaler, "apiVersion": "autoscaling/v2beta2"}


def test_what_a_server_does_not_know_is_left_out_and_named() -> None:
    reload = base_with().find("Deployment", "lexico-reload")
    assert reload is not None
    before = json.dumps(reload)
    made = converted(reload, 20)
    assert json.dumps(reload) == before
    (container,) = made.item["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["tcpSocket"] == {"port": 7413}
    assert "grpc" not in container["readinessProbe"]
    assert container["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "10"]}}
    assert made.unasked == {
        "service of a gRPC probe, asked as a probe of its port",
        "sleep before a container's end, asked as a command",
    }


def test_ports_get_their_default_protocol() -> None:
    ports = [{"port": 1}, {"port": 2, "protocol": "UDP"}]
    made = converted({"apiVersion": "v1", "kind": "Service", "spec": {"ports": ports}}, 20)
    assert [each["protocol"] for each in made.item["spec"]["ports"]] == ["TCP", "UDP"]


@pytest.mark.parametrize("spec", [None, [], {"template": None}, {"template": {"spec": []}}])
def test_broken_shapes_are_left_to_the_server(spec: Any) -> None:
    item = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {}, "spec": spec}
    assert converted(item, 20).item == item


# Debian's packages


def test_what_apt_would_install() -> None:
    text = (
        "NOTE: This is only a simulation!\n"
        "Inst golang-1.27-src (1.27.3-1 Debian:unstable [all])\n"
        "Inst libc6:amd64 (2.42-5 Debian:unstable [amd64])\n"
        "Conf golang-1.27-src (1.27.3-1 Debian:unstable [all])\n"
    )
    assert packages.installed(text) == {"golang-1.27-src": "1.27.3-1", "libc6": "2.42-5"}


def test_a_machine_that_is_not_debians_is_named(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    for text in ("ID=fedora\nVERSION_ID=44\n", ""):
        release.write_text(text)
        with pytest.raises(Unavailable, match="not Debian's"):
            packages.mirror(release)


def test_a_program_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = tmp_path / "os-release"
    release.write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="it needs apt-get, of Debian's package apt"):
        packages.mirror(release)


@pytest.mark.parametrize(
    ("version", "minor"), [("1.20.5+really1.20.2-1.1+deb12u1", 20), ("0.36.4-1", 36)]
)
def test_the_version_of_kubernetes(version: str, minor: int) -> None:
    assert minor_version(version) == minor


def test_a_version_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="no version of Kubernetes"):
        minor_version("3.5.30-2")


def test_programs_are_kept_by_their_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(place: str, scratch: Path, made: Path) -> tuple[str, str]:
        built.append(place)
        made.write_bytes(b"program")
        return "3.5.30-2", ""

    def gone(place: str, scratch: Path, made: Path) -> tuple[str, str]:
        raise Unavailable("sid has no such package")

    monkeypatch.setattr(programs, "mirror", lambda: "mirror")
    monkeypatch.setattr(programs, "_BUILDS", {"etcd": build, "kube-apiserver": gone})
    found = programs.programs(tmp_path)
    assert found.lacking == {"kube-apiserver": "sid has no such package"}
    assert found.found["etcd"].version == "3.5.30-2"
    assert programs.programs(tmp_path) == found
    assert len(built) == 1
    assert os.access(found.found["etcd"].path, os.X_OK)
    Path(found.found["etcd"].path).write_bytes(b"another")
    assert programs.programs(tmp_path) == found
    assert len(built) == 2
    assert programs.programs(tmp_path, anew=True) == found
    assert len(built) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["etcd", "etcd.json"]


def test_packages_that_ask_for_a_schema_are_found(tmp_path: Path) -> None:
    marked = {
        "staging/src/k8s.io/api/apps/v1/doc.go": "// +k8s:openapi-gen=true",
        "pkg/apis/x/doc.go": "// +k8s:openapi-gen=true",
        "pkg/apis/y/doc.go": "package y",
    }
    for name, text in marked.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert programs.described(tmp_path) == [
        "k8s.io/kubernetes/pkg/apis/x",
        "k8s.io/kubernetes/vendor/k8s.io/api/apps/v1",
    ]


# definitions


def test_a_condensed_definition_has_rules_and_no_texts() -> None:
    schema = {
        "type": "object",
        "description": "text",
        "properties": {
            "status": {"type": "object"},
            "spec": {
                "type": "object",
                "properties": {
                    "description": {"type": "string", "title": "text"},
                    "size": {
                        "type": "integer",
                        "default": 1,
                        "x-kubernetes-validations": [{"rule": "self > 0", "message": "text"}],
                    },
                },
            },
        },
    }
    old = {"name": "v1alpha1", "schema": {}}
    new = {"name": "v1", "served": True, "storage": False, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": "Thing", "plural": "things"}
    spec = {"group": "x.io", "scope": "Namespaced", "names": names, "versions": [old, new]}
    made = definitions.condensed(
        {"apiVersion": "v1", "kind": "X", "metadata": {"name": "things.x.io"}, "spec": spec}, "file"
    )
    (version,) = made["spec"]["versions"]
    assert (version["name"], version["storage"]) == ("v1", True)
    condensed = version["schema"]["openAPIV3Schema"]
    assert condensed["properties"]["spec"]["properties"] == {
        "description": {"type": "string"},
        "size": {
            "type": "integer",
            "default": 1,
            "x-kubernetes-validations": [{"rule": "self > 0"}],
        },
    }
    assert '"text"' not in json.dumps(made)


def test_every_custom_resource_has_a_definition() -> None:
    for rendering in (base_with(), overlay("dev"), overlay("production")):
        for each in rendering.objects:
            kind = (each["apiVersion"], each["kind"])
            assert ("." not in kind[0] or kind[0].partition("/")[0].endswith(".k8s.io")) or (
                kind in definitions.schemas()
            )


def test_a_folder_without_the_definitions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no definition of certificates"):
        command.read(tmp_path)
