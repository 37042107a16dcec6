"""`make image-check`: builds the CPU image, and runs it as k8s/ would, without a cluster.

Needs root, and Debian's buildah, debootstrap and runc.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from k8s.checks.pods import Pod, pods
from k8s.checks.rendering import COMPONENTS, Rendering, base_with, overlay
from k8s.images import container, machine
from k8s.images.build import BILL, build, report
from k8s.images.container import Running, running, specification
from k8s.images.storage import Storage

SMOKE_TEST: Final = COMPONENTS / "smoke-test" / "smoke_test.py"
PATIENCE_S: Final = 900
"""Ends a hang, and nothing else: a busy machine is slower."""
COMPILERS: Final = frozenset({"as", "c++", "cc", "clang", "cpp", "g++", "gcc", "ld", "make"})
READY: Final = """
import sys, grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
stub = health_pb2_grpc.HealthStub(grpc.insecure_channel("127.0.0.1:7413"))
answer = stub.Check(health_pb2.HealthCheckRequest(service="ready"), timeout=3)
sys.exit(answer.status != health_pb2.HealthCheckResponse.SERVING)
"""
"""What the kubelet asks of `lexico serve`."""
HEALTHY: Final = """
import urllib.request
urllib.request.urlopen("http://127.0.0.1:52365/api/healthz", timeout=3).read()
"""
"""What KubeRay's probes ask of Ray."""


class Failed(Exception):
    """The image does not do what it must."""


@dataclass(frozen=True)
class Image:
    """The image that is looked at."""

    name: str
    configuration: dict[str, Any]
    root: Path
    """Where its files are mounted."""
    scratch: Path
    default: dict[str, Any]
    """What runc makes of a container that nothing is said about."""

    def as_pod(self, rendering: Rendering, pod: Pod, **changes: Any) -> dict[str, Any]:
        """How a pod of it is run; `changes` are those of `specification`."""
        place = (self.root, self.scratch)
        return specification(self.default, rendering, pod, self.configuration, *place, **changes)


def main() -> int:
    """Exit code 0; 1 where something is not as it must be; 2 where that cannot be known here."""
    if lacking := machine.lacking("buildah", "debootstrap", "runc"):
        sys.stderr.write(f"make image-check: {lacking}\n")
        return 2
    storage = Storage()
    name = build(storage, "cpu")
    sys.stdout.write(report(storage, name))
    user = 100_000 + secrets.randbelow(1 << 30)
    steps: list[tuple[str, Callable[[Image], str]]] = [
        ("labels", labels),
        ("files", files),
        ("bill of materials", bill_of_materials),
        ("as the manifest's user", lambda image: dev(image, None)),
        (f"as user {user} of group 0", lambda image: dev(image, user)),
        ("as KubeRay's head", ray_head),
    ]
    failed = 0
    with storage.mounted(name) as root, storage.scratch("run") as scratch:
        image = Image(name, storage.configuration(name), root, scratch, container.default(scratch))
        for what, step in steps:
            started = time.monotonic()
            try:
                outcome = f"ok, {step(image)}"
            except (Failed, subprocess.SubprocessError) as error:
                failed, outcome = 1, f"FAILED: {error}"
            sys.stdout.write(f"{what}: {outcome}, {time.monotonic() - started:.0f} s\n")
            sys.stdout.flush()
    return failed


def labels(image: Image) -> str:
    """It says what it is, of which source, and under which licence."""
    found = image.configuration.get("Labels", {})
    wanted = {
        f"org.opencontainers.image.{name}"
        for name in ("base.name", "licenses", "revision", "title", "version")
    }
    if empty := sorted(name for name in wanted if not found.get(name)):
        raise Failed(f"no {', '.join(empty)}")
    return f"revision {found['org.opencontainers.image.revision']}"


def files(image: Image) -> str:
    """No file is its user's to write, bytecode is there, and compilers are not."""
    (search,) = (each for each in image.configuration["Env"] if each.startswith("PATH="))
    folders = search.removeprefix("PATH=").split(":")
    compilers = sorted(
        str(path)
        for folder in folders
        for path in (image.root / folder.lstrip("/")).glob("*")
        if path.name in COMPILERS
    )
    if compilers:
        raise Failed(f"compilers: {' '.join(compilers)}")
    sources, compiled, writable = 0, 0, []
    for path in _walk(image.root):
        mode = path.lstat()
        own = mode.st_uid >= 10_000 or mode.st_gid >= 10_000
        if own or (mode.st_mode & stat.S_IWOTH and not mode.st_mode & stat.S_ISVTX):
            writable.append("/" + str(path.relative_to(image.root)))
        if path.suffix == ".py" and "/opt/lexico/lib/" in str(path):
            there = any(path.parent.glob(f"__pycache__/{path.stem}.cpython-*.pyc"))
            sources, compiled = sources + 1, compiled + there
            if not there and "/site-packages/lexico_" in str(path):
                raise Failed(f"no bytecode of {path.relative_to(image.root)}")
    if writable != ["/training"]:
        raise Failed(f"files that its user may write: {' '.join(writable[:5]) or 'none'}")
    # Others have a few templates, and modules for other versions of Python.
    if compiled < 0.99 * sources:
        raise Failed(f"bytecode of {compiled} of {sources} modules alone")
    return f"bytecode of {compiled} of {sources} modules"


def bill_of_materials(image: Image) -> str:
    """Every package of Python's and of Debian's is in it, by name and version."""
    bill = json.loads((image.root / BILL).read_text())
    told = {each["purl"].split("?")[0] for each in bill["components"] if "purl" in each}
    installed = {
        f"pkg:pypi/{name.lower().replace('_', '-')}@{version}"
        for folder in (image.root / "opt/lexico/lib").glob("python3*/site-packages/*.dist-info")
        for name, version in [folder.name.removesuffix(".dist-info").split("-")]
        if not name.startswith("lexico")
    }
    status = (image.root / "var/lib/dpkg/status").read_text()
    debian = status.count("\nStatus: install ok installed\n")
    if missing := sorted(installed - {each.replace("%2B", "+") for each in told}):
        raise Failed(f"it has no {' '.join(missing[:5])}")
    if (listed := sum(each.startswith("pkg:deb/") for each in told)) != debian:
        raise Failed(f"it has {listed} of Debian's {debian} packages")
    return f"{len(installed)} packages of Python's, {debian} of Debian's"


def dev(image: Image, user: int | None) -> str:
    """The overlay `dev`: doctor, a page put and got back, and an end by SIGTERM."""
    rendering = overlay("dev")
    (pod,) = pods(rendering)
    doctor = ("lexico", "doctor", "--config", "/etc/lexico/config/lexico.toml")
    name = f"service-{user}"
    described = image.as_pod(rendering, pod, user=user, command=doctor)
    with running(image.scratch, f"{name}-doctor", described) as started:
        if started.process.wait(PATIENCE_S):
            raise Failed(f"lexico doctor: {_log(image, started)}")
    described = image.as_pod(rendering, pod, user=user)
    with running(image.scratch, name, described) as service:
        seconds = _wait(image, service, READY)
        done = service.run(
            *("python", "-", "--offload=127.0.0.1:7411", "--reload=127.0.0.1:7412"),
            text=SMOKE_TEST.read_text(),
        )
        if done.returncode:
            raise Failed(f"smoke test: {done.stdout}")
        written = service.run("sh", "-c", "touch /x /opt/lexico/x /etc/lexico/config/x 2>&1; true")
        if written.stdout.count("Read-only file system") != 3:
            raise Failed(f"its root can be written: {written.stdout}")
        if code := service.end():
            raise Failed(f"exit code {code} after SIGTERM: {_log(image, service)}")
    return f"doctor, ready after {seconds:.0f} s, two pages put and got back, ended"


def ray_head(image: Image) -> str:
    """Ray's head as KubeRay starts it, with what the RayService gives it."""
    # Ray gives its node 30 s, too few on a busy machine.
    start = f"export RAY_raylet_start_wait_time_s={PATIENCE_S}; "
    start += "ulimit -n 65536; ray start --head --block --num-cpus=0 --dashboard-host=0.0.0.0"
    start += " --object-store-memory=104857600 --dashboard-agent-listen-port=52365"
    command = ("/bin/bash", "-c", "--", start)
    described = image.as_pod(base_with(), _head(), command=command)
    with running(image.scratch, "head", described) as head:
        seconds = _wait(image, head, HEALTHY)
        for asked in (
            "ray health-check --address 127.0.0.1:6379",
            "ray kuberay-autoscaler --help",
            "python -c 'from lexico_services.offload.application import build'",
        ):
            done = head.run("/bin/bash", "-c", "--", asked)
            if done.returncode:
                raise Failed(f"{asked}: {done.stdout}")
    return f"healthy after {seconds:.0f} s, its autoscaler and the application are there"


def _head() -> Pod:
    (head,) = (pod for pod in pods(base_with()) if pod.component == "ray-head")
    return head


def _wait(image: Image, asked: Running, probe: str) -> float:
    """Seconds until a probe succeeds."""
    started = time.monotonic()
    while asked.run("python", "-c", probe).returncode:
        if asked.process.poll() is not None:
            raise Failed(f"ended: {_log(image, asked)}")
        if time.monotonic() - started > PATIENCE_S:
            raise Failed(f"not ready after {PATIENCE_S} s: {_log(image, asked)}")
        time.sleep(1)
    return time.monotonic() - started


def _log(image: Image, asked: Running) -> str:
    return (image.scratch / f"{asked.name}.log").read_text()[-4000:]


def _walk(root: Path) -> Iterator[Path]:
    """Files and folders, but for links and what a container gets anew."""
    for folder, folders, names in os.walk(root):
        if folder == str(root):
            folders[:] = [name for name in folders if name not in ("dev", "proc", "sys")]
        for name in (*folders, *names):
            path = Path(folder) / name
            if not path.is_symlink():
                yield path


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"make image-check: {error.cmd[0]} failed with code {error.returncode}")
