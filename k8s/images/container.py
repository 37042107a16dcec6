"""A container of a pod as the kubelet would have it run: by runc, as its manifest says.

What is shown: its user and groups, its root that cannot be written, no capabilities, its variables,
its ConfigMaps, folders and shared memory of their size, its limit of memory, and no network but its
own. What is not: seccomp, its limit of processors, Secrets and claims.
"""

from __future__ import annotations

import copy
import json
import resource
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from k8s.checks.pods import Pod, quantity
from k8s.checks.rendering import Object, Rendering
from k8s.checks.settings import variables

_FILES: Final = min(1 << 20, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
"""Open files that a process may have: containerd's bound, where this machine allows as many."""
_GRACE_S: Final = 60


@dataclass(frozen=True)
class Running:
    """A container that runs."""

    state: Path
    name: str
    user: str
    process: subprocess.Popen[bytes]

    def run(self, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a command beside what runs there, with `text` as its input."""
        whole = [*_runc(self.state), "exec", "--user", self.user, self.name, *command]
        return subprocess.run(
            whole, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def end(self) -> int:
        """Ends it as the kubelet does, by SIGTERM; returns its exit code."""
        subprocess.run([*_runc(self.state), "kill", self.name, "TERM"], check=True)
        return self.process.wait(_GRACE_S)


@contextmanager
def running(folder: Path, name: str, specification: Object) -> Iterator[Running]:
    """The container, while the block runs; what it prints is in `NAME.log` of that folder."""
    bundle, state = folder / name, folder / "runc"
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(specification))
    user = specification["process"]["user"]
    with (folder / f"{name}.log").open("wb") as log:
        command = [*_runc(state), "run", "--bundle", str(bundle), name]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield Running(state, name, f"{user['uid']}:{user['gid']}", process)
        finally:
            subprocess.run([*_runc(state), "delete", "--force", name], capture_output=True)
            process.wait(_GRACE_S)


def specification(
    default: Object,
    rendering: Rendering,
    pod: Pod,
    image: Mapping[str, Any],
    root: Path,
    folder: Path,
    *,
    user: int | None = None,
    command: Sequence[str] = (),
) -> Object:
    """OCI's description of the first container of a pod.

    Args:
        default: what `default` of this module found.
        image: the image's configuration.
        root: where its files are mounted.
        folder: for the files of ConfigMaps.
        user: in place of the pod's, and then of group 0, as OpenShift does it.
        command: in place of the container's.

    Raises:
        ValueError: it mounts what is not known here.
    """
    container = pod.containers[0]
    context = {**pod.spec["securityContext"], **container["securityContext"]}
    environment = dict(each.split("=", 1) for each in image.get("Env", ()))
    environment |= variables(rendering, container)
    made: Object = copy.deepcopy(default)
    made["root"] = {"path": str(root), "readonly": context["readOnlyRootFilesystem"]}
    made["hostname"] = pod.component
    made["process"] |= {
        "terminal": False,
        "args": [*command] or [*container["command"], *container["args"]],
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": image.get("WorkingDir", "/"),
        "user": {
            "uid": context["runAsUser"] if user is None else user,
            "gid": context["runAsGroup"] if user is None else 0,
            "additionalGids": [context["fsGroup"]],
        },
        "capabilities": {},
        "noNewPrivileges": not context["allowPrivilegeEscalation"],
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": _FILES, "soft": _FILES}],
    }
    limit = int(quantity(container["resources"]["limits"]["memory"]))
    made["linux"]["resources"]["memory"] = {"limit": limit}
    mounts = [_mount(rendering, pod, each, folder) for each in container["volumeMounts"]]
    taken = {each["destination"] for each in mounts}
    made["mounts"] = [each for each in made["mounts"] if each["destination"] not in taken] + mounts
    return made


def _mount(rendering: Rendering, pod: Pod, mount: Mapping[str, Any], folder: Path) -> Object:
    (volume,) = (each for each in pod.spec["volumes"] if each["name"] == mount["name"])
    target = mount["mountPath"]
    if "configMap" in volume:
        config = rendering.find("ConfigMap", volume["configMap"]["name"])
        if config is None:
            raise ValueError(f"{pod.owner}: no ConfigMap {volume['configMap']['name']}")
        files = folder / volume["name"]
        files.mkdir(exist_ok=True)
        files.chmod(0o755)
        for name, text in config["data"].items():
            (files / name).write_text(text)
        return _entry(target, "bind", str(files), "rbind", "ro")
    if "emptyDir" in volume:
        size = int(quantity(volume["emptyDir"]["sizeLimit"]))
        group = pod.spec["securityContext"]["fsGroup"]
        options = ("nosuid", "nodev", f"size={size}", "mode=2777", f"gid={group}")
        return _entry(target, "tmpfs", "tmpfs", *options)
    raise ValueError(f"{pod.owner}: volume {volume['name']} cannot be mounted here")


def _entry(target: str, kind: str, source: str, *options: str) -> Object:
    return {"destination": target, "type": kind, "source": source, "options": [*options]}


def default(folder: Path) -> Object:
    """What runc writes of itself: namespaces, devices, what is masked of /proc."""
    subprocess.run(["runc", "spec", "--bundle", str(folder)], check=True)
    found: Object = json.loads((folder / "config.json").read_text())
    return found


def _runc(state: Path) -> list[str]:
    return ["runc", "--root", str(state)]
