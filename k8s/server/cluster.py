"""etcd and API servers on loopback, with certificates of their own, while a block runs."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from k8s.checks.rendering import Object
from k8s.server import programs
from k8s.server.api import ApiServer
from k8s.server.certificates import Certificates
from k8s.server.programs import Programs
from lexico_store.child import spawn_bound

PATIENCE_S: Final = 300
"""Ends a hang, and nothing else: a busy machine is slower."""
_POLL_S: Final = 0.05
_DEFINITIONS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

RESTRICTED: Final[Object] = {
    "apiVersion": "policy/v1beta1",
    "kind": "PodSecurityPolicy",
    "metadata": {
        "name": "restricted",
        "annotations": {
            "seccomp.security.alpha.kubernetes.io/allowedProfileNames": "runtime/default"
        },
    },
    "spec": {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "requiredDropCapabilities": ["ALL"],
        "volumes": [
            *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
            *("persistentVolumeClaim", "projected", "secret"),
        ],
        "hostNetwork": False,
        "hostIPC": False,
        "hostPID": False,
        "readOnlyRootFilesystem": True,
        "runAsUser": {"rule": "MustRunAsNonRoot"},
        "runAsGroup": {"rule": "MustRunAs", "ranges": [{"min": 1, "max": 65_535}]},
        "fsGroup": {"rule": "MustRunAs", "ranges": [{"min": 1, "max": 65_535}]},
        "supplementalGroups": {"rule": "MustRunAs", "ranges": [{"min": 1, "max": 65_535}]},
        "seLinux": {"rule": "RunAsAny"},
    },
}
"""What Kubernetes calls restricted, with a root that cannot be written, in the words of a server
that is older than the labels by which a namespace asks for it."""


class Failed(Exception):
    """A server did not start, or refused what it needs."""


@dataclass(frozen=True)
class Cluster:
    """Servers that answer; None for one that is not to be had."""

    built_in: ApiServer | None
    custom: ApiServer | None


@contextmanager
def running(found: Programs, definitions: Mapping[str, Object]) -> Iterator[Cluster]:
    """Servers while the block runs. They end with it, and with this process.

    Args:
        found: what to start; without etcd, none is.
        definitions: CustomResourceDefinitions, by name.

    Raises:
        Failed: one does not start.
    """
    paths = {name: program.path for name, program in found.found.items()}
    if programs.ETCD not in paths:
        yield Cluster(None, None)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lexico-k8s-")))
        start = _Start(folder, Certificates(folder), stack)
        store = start.etcd(paths[programs.ETCD])
        built_in = custom = None
        if programs.BUILT_IN in paths:
            built_in = start.built_in(paths[programs.BUILT_IN], store)
        if programs.CUSTOM in paths:
            custom = start.custom(paths[programs.CUSTOM], store)
        if built_in is not None:
            start.wait(lambda: built_in.ask("GET", "/readyz").good, "kube-apiserver is ready")
            _must(built_in.apply(RESTRICTED, dry=False).why, built_in, RESTRICTED)
        if custom is not None:
            # It never says that it is ready: it waits for kinds that only the other one has.
            start.wait(lambda: custom.ask("GET", _DEFINITIONS).good, "definitions can be read")
            for name, definition in definitions.items():
                define(start.wait, custom, name, definition)
        yield Cluster(built_in, custom)


def define(
    wait: Callable[[Callable[[], object], str], None],
    server: ApiServer,
    name: str,
    definition: Object,
) -> None:
    """Has a server know a custom resource.

    Raises:
        Failed: it refuses the definition.
    """
    answer = server.ask("POST", _DEFINITIONS, definition)
    if not answer.good:
        raise Failed(f"{server.name} refuses the definition of {name}: {answer.why}")

    def established() -> bool:
        status = server.ask("GET", f"{_DEFINITIONS}/{name}").body.get("status", {})
        states = {each["type"]: each["status"] for each in status.get("conditions") or ()}
        return states.get("Established") == "True"

    wait(established, f"{name} is established")
    spec = definition["spec"]
    for version in (each["name"] for each in spec["versions"] if each["served"]):
        path = f"/apis/{spec['group']}/{version}/{spec['names']['plural']}"
        wait(lambda path=path: server.ask("GET", path).good, f"{path} is served")  # type: ignore[misc]
    server.forget_kinds()


class _Start:
    """Starts processes that a stack ends again."""

    def __init__(self, folder: Path, certificates: Certificates, stack: ExitStack) -> None:
        self._folder = folder
        self._certificates = certificates
        self._stack = stack
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        context = ssl.create_default_context(cafile=str(certificates.authority))
        context.load_cert_chain(certificates.admin, certificates.admin_key)
        self._context = context

    def etcd(self, path: str) -> str:
        """Its URL."""
        client, peer = (f"https://127.0.0.1:{port}" for port in _free_ports(2))
        own = self._certificates
        files = {"cert": own.server, "key": own.server_key, "trusted-ca": own.authority}
        self._spawn(
            programs.ETCD,
            *(path, "--name=default", f"--data-dir={self._folder / 'etcd'}", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
            f"--initial-cluster=default={peer}",
            *(f"--{name}-file={file}" for name, file in files.items()),
            *(f"--peer-{name}-file={file}" for name, file in files.items()),
            *("--client-cert-auth", "--peer-client-cert-auth", "--log-level=warn"),
        )
        asked = ApiServer(programs.ETCD, int(client.rpartition(":")[2]), self._context)
        self._stack.callback(asked.close)
        self.wait(lambda: asked.ask("GET", "/health").good, "etcd is healthy")
        return client

    def built_in(self, path: str, store: str) -> ApiServer:
        """kube-apiserver, with RBAC and a policy of restricted pods."""
        own = self._certificates
        return self._server(
            programs.BUILT_IN,
            *(path, *self._common(store, "built-in"), "--advertise-address=127.0.0.1"),
            *("--authorization-mode=RBAC", "--enable-admission-plugins=PodSecurityPolicy"),
            # Pods need no Secret with a token of their account, which a controller would make.
            "--feature-gates=BoundServiceAccountTokenVolume=true,TTLAfterFinished=true",
            f"--service-account-key-file={own.accounts_key}",
            f"--service-account-signing-key-file={own.accounts_key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            *("--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none"),
        )

    def custom(self, path: str, store: str) -> ApiServer:
        """The extension server, without what it would ask another one."""
        config = self._folder / "kubeconfig"
        config.write_text(yaml.safe_dump(_kubeconfig()))
        off = "NamespaceLifecycle,MutatingAdmissionWebhook,ValidatingAdmissionWebhook"
        off += ",ValidatingAdmissionPolicy,MutatingAdmissionPolicy"
        return self._server(
            programs.CUSTOM,
            *(path, *self._common(store, "custom"), f"--kubeconfig={config}"),
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            *("--authentication-skip-lookup", "--enable-priority-and-fairness=false"),
            f"--disable-admission-plugins={off}",
        )

    def wait(self, look: Callable[[], object], what: str) -> None:
        """Until `look` is true.

        Raises:
            Failed: a server ended meanwhile, or it never was.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not _looked(look):
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise Failed(f"{name} ended with {process.returncode}: {self._said(name)}")
            if time.monotonic() > deadline:
                raise Failed(f"after {PATIENCE_S} s not: {what}")
            time.sleep(_POLL_S)

    def _common(self, store: str, prefix: str) -> list[str]:
        own = self._certificates
        return [
            *(f"--etcd-servers={store}", f"--etcd-prefix=/{prefix}"),
            *(f"--etcd-cafile={own.authority}", f"--etcd-certfile={own.admin}"),
            *(f"--etcd-keyfile={own.admin_key}", "--bind-address=127.0.0.1"),
            *(f"--tls-cert-file={own.server}", f"--tls-private-key-file={own.server_key}"),
            f"--client-ca-file={own.authority}",
        ]

    def _server(self, name: str, *command: str) -> ApiServer:
        (port,) = _free_ports(1)
        self._spawn(name, *command, f"--secure-port={port}")
        server = ApiServer(name, port, self._context)
        self._stack.callback(server.close)
        return server

    def _spawn(self, name: str, *command: str) -> None:
        process = spawn_bound(command, self._folder, self._folder / f"{name}.log")
        self._processes[name] = process
        self._stack.callback(_end, process)

    def _said(self, name: str) -> str:
        lines = (self._folder / f"{name}.log").read_text(errors="replace").splitlines()
        return " | ".join(lines[-3:])[-500:]


def _looked(look: Callable[[], object]) -> bool:
    try:
        return bool(look())
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    # Nothing that they hold is needed again.
    process.kill()
    process.wait()


def _must(why: str, server: ApiServer, item: Object) -> None:
    if not server.ask("GET", server.path(item)).good:
        raise Failed(f"{server.name} refuses {item['kind']}/{item['metadata']['name']}: {why}")


def _free_ports(count: int) -> list[int]:
    """Of loopback; all are held until the last one is known."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _kubeconfig() -> Object:
    """Of a server that nobody asks: the extension server wants to be told of one."""
    name = "nobody"
    config: Object = json.loads('{"apiVersion": "v1", "kind": "Config"}')
    config["clusters"] = [{"name": name, "cluster": {"server": "https://127.0.0.1:1"}}]
    config["contexts"] = [{"name": name, "context": {"cluster": name, "user": name}}]
    config["users"] = [{"name": name, "user": {}}]
    config["current-context"] = name
    return config
