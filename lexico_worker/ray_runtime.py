"""A Ray of our own on this machine: loopback alone, with a token and a folder of its own."""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lexico_proto.cgroup import cores
from lexico_proto.errors import ConfigurationError
from lexico_worker.ray_patience import patient_start, set_limits
from lexico_worker.ray_processes import few_processes

_log = logging.getLogger(__name__)

_PREFIX: Final = "ray-"
_MAX_SOCKET_PATH: Final = 107  # sun_path, less its final zero
SHARED: Final = Path("/dev/shm")
_LONGEST_SOCKET: Final = (
    f"/{_PREFIX}12345678/r/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"
)
_END_S: Final = 8.0
_LEFTOVER_GRACE_S: Final = 3.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_ANSWER_S: Final = 5.0
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_ON_LOOPBACK: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_VITAL: Final = ("gcs_server", "raylet")


@dataclass(frozen=True)
class RayConfig:
    """Which Ray to use."""

    address: str = ""
    """Address of a running cluster, which brings its own token; empty starts Ray here, on loopback.
    """
    num_cpus: int = 0
    """CPUs that a Ray started here may hand out; 0 takes all that this process may use."""
    object_store_bytes: int = 1 << 30
    """Shared memory for pages in flight: at least 2.5 times what the ingress admits, or Ray spills
    to disk.
    """
    start_s: float = 120.0
    """Seconds that each part of a Ray started here is given to start."""

    def __post_init__(self) -> None:
        if self.num_cpus < 0 or self.object_store_bytes < 0:
            raise ConfigurationError("ray: num_cpus and object_store_bytes must not be negative")


class RayRuntime:
    """Starts or joins Ray; `stop` ends what was started.

    Ray listens on every address by default, writes a token into the user's home, and keeps its
    session, with spilled pages, in a folder that everyone may read. Here it is told, before it is
    imported, to stay on 127.0.0.1, to take a token from a file that only this user reads, and to
    keep its session beside that file.
    """

    def __init__(self, config: RayConfig) -> None:
        self._config = config
        self._folder: Path | None = None
        self._started = False

    @property
    def started(self) -> bool:
        """Whether Ray is up through this runtime."""
        return self._started

    def start(self) -> None:
        """Initialises Ray in this process. Handlers of SIGTERM that this process has stay.

        Raises:
            ConfigurationError: Ray is in use in this process already, does not start, or has no
                folder short enough for its sockets; no cluster answers at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray runs workers at nice 15: beside any busy process, ingress and encoders would starve.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # The autoscaler hears of load every two seconds, and not every ten.
        for told_by in ("HANDLE", "REPLICA"):
            name = f"RAY_SERVE_{told_by}_AUTOSCALING_METRIC_PUSH_INTERVAL_S"
            os.environ.setdefault(name, "2")
        # Replicas tell their own story; Ray's warning about accelerators on CPU-only nodes is none
        # of ours.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Serve's threads here outlive a Ray that died, and their next call would start another one.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        # Below Python, Ray answers SIGTERM with a stack trace and the end of the process.
        os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
        if self._config.address:
            check_answers(self._config.address)
        else:
            self._keep_to_ourselves()
        try:
            self._init()
        except BaseException:
            self._remove_folder()
            raise

    def lost(self) -> str:
        """The Ray processes started here that are gone, without which nothing works; empty while
        all run, and in a joined cluster.
        """
        if not self._started or self._folder is None:
            return ""
        from ray._private import worker

        node = worker._global_node
        dead: set[str] = {name for name, _ in node.dead_processes()} if node is not None else set()
        return " and ".join(name for name in _VITAL if name in dead)

    def stop(self, within_s: float = _END_S) -> None:
        """Leaves Ray; ends it where it was started here. Idempotent.

        Args:
            within_s: seconds until what is left of Ray is killed. Ray's own end takes one or two.
        """
        until = time.monotonic() + within_s
        if self._started:
            self._started = False
            import ray

            ray.shutdown()
            if self._folder is not None:
                _end_leftovers(min(_LEFTOVER_GRACE_S, until - time.monotonic()))
        self._remove_folder(max(1.0, until - time.monotonic()))

    def _init(self) -> None:
        import ray

        if ray.is_initialized():
            raise ConfigurationError("Ray is in use in this process already")
        options: dict[str, Any] = {
            "namespace": "lexico",
            "logging_level": logging.WARNING,
            "log_to_driver": False,
        }
        if self._config.address:
            options["address"] = self._config.address
        else:
            shared = _plasma_folder(self._config.object_store_bytes)
            options.update(
                address="local",
                # Named, or Ray warns in five lines of its own, or refuses to start.
                _plasma_directory=shared or str(self._folder),
                _node_ip_address="127.0.0.1",
                # A folder in ours: Ray lets everyone into the one that it is given.
                _temp_dir=f"{self._folder}/r",
                include_dashboard=False,
                object_store_memory=self._config.object_store_bytes,
                num_cpus=self._config.num_cpus or cores(),
            )
        try:
            with _sigterm_kept(), ExitStack() as own:
                if not self._config.address:
                    own.enter_context(patient_start(self._config.start_s))
                    own.enter_context(few_processes())
                ray.init(**options)
        except Exception as error:  # Ray's own limits raise bare ones
            ray.shutdown()
            raise ConfigurationError(f"Ray does not start: {error}") from error
        self._started = True
        _log.info("ray=up version=%s", ray.__version__)

    def _keep_to_ourselves(self) -> None:
        _stay_on_loopback()
        set_limits(self._config.start_s)
        os.environ["RAY_AUTH_MODE"] = "token"
        _adopt_orphans()
        self._folder = _make_folder()
        path = self._folder / "token"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)

    def _remove_folder(self, within_s: float = _END_S) -> None:
        if self._folder is None:
            return
        folder, self._folder = self._folder, None
        # Ray's agents outlive `ray.shutdown` by a moment, in which they write their logs again.
        deadline = time.monotonic() + within_s
        while folder.exists() and time.monotonic() < deadline:
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)


def _plasma_folder(object_store_bytes: int) -> str | None:
    """Where pages in flight are shared; None where only the folder of temporary files is left,
    which is a disk as a rule.
    """
    return str(SHARED) if shared_bytes() >= object_store_bytes else None


def shared_bytes() -> int:
    """Free bytes of the memory that processes share; 0 where this user may not write there."""
    try:
        if not os.access(SHARED, os.W_OK | os.X_OK):
            return 0
        found = os.statvfs(SHARED)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def check_answers(address: str) -> None:
    """Finds out at once that there is no cluster: Ray itself would try for minutes.

    Ray takes 127.0.0.1 for the machine's own address, where a cluster that keeps to loopback does
    not answer: it is then told to stay there.

    Raises:
        ConfigurationError: nothing answers, or the address is none.
    """
    if address == "auto":
        address = _running_here()
    client = address.startswith("ray://")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"Ray address {address}: must be HOST:PORT, ray://HOST:PORT, auto")
    if host not in _LOOPBACK or client:
        found = _answers(host, int(port))
    elif not (found := _answers(_own_address(), int(port))):
        found = _answers(host, int(port))
        if found:
            _stay_on_loopback()
    if not found:
        raise ConfigurationError(f"Ray address {address}: no cluster answers there")


def _stay_on_loopback() -> None:
    """Undocumented, and the only switch that keeps every listener of a single node on 127.0.0.1."""
    os.environ[_ON_LOOPBACK] = "0"
    if "ray" in sys.modules:  # which has read it already
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = False


def _running_here() -> str:
    """The cluster that Ray itself would take for `auto`."""
    given = os.environ.get("RAY_ADDRESS", "")
    if given not in ("", "auto"):
        return given
    from ray._private import services

    try:
        found: str = services.get_ray_address_from_environment("auto", None)
    except ConnectionError as error:
        raise ConfigurationError("Ray address auto: no cluster runs on this machine") from error
    return found


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_S):
            return True
    except OSError:
        return False


def _own_address() -> str:
    """Where other machines reach this one; nothing is sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            address: str = probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
    return address


def _adopt_orphans() -> None:
    """Has the kernel make this process the parent of Ray's processes whose own parent died."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_leftovers(grace_s: float = _LEFTOVER_GRACE_S) -> None:
    """Ends Ray's processes that outlive its orderly end: agents whose raylet was killed stay for a
    minute. `_adopt_orphans` made them children of this process, which tells them from another's.
    """
    deadline = time.monotonic() + grace_s
    while living := _living_ray_children():
        if time.monotonic() > deadline:
            for pid in living:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            return
        time.sleep(0.05)


def _living_ray_children() -> list[int]:
    """Process ids of adopted children that call themselves a part of Ray; collects the dead."""
    living = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is gone meanwhile
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            state, parent = rest.split()[:2]
            if not name.startswith("ray::") or int(parent) != os.getpid():
                continue
            if state == "Z":
                os.waitpid(int(entry.name), os.WNOHANG)
            else:
                living.append(int(entry.name))
    return living


def _make_folder() -> Path:
    """A folder that only this user enters (mode 700), short enough for Ray's sockets in it.

    Raises:
        ConfigurationError: the folder for temporary files has too long a path.
    """
    most = _MAX_SOCKET_PATH - len(_LONGEST_SOCKET)
    for place in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(place)) <= most and os.access(place, os.W_OK):
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    raise ConfigurationError(
        f"TMPDIR {tempfile.gettempdir()}: too long for Ray's sockets, which leave it {most} bytes, "
        "and /tmp cannot be written; give a shorter one"
    )


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keeps this process's handler of SIGTERM while Ray starts.

    `ray.init` installs one that raises SystemExit, in the middle of its own start: half of Ray
    would be left, which nothing then ends. Without a handler of ours, Ray's is better than none.
    """
    ours = signal.getsignal(signal.SIGTERM)
    in_main = threading.current_thread() is threading.main_thread()
    if ours in (signal.SIG_DFL, None) or not in_main:
        yield
        return
    install = signal.signal

    def install_others(number: int, handler: Any) -> Any:
        return ours if number == signal.SIGTERM else install(number, handler)

    signal.signal = install_others  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = install
        signal.signal(signal.SIGTERM, ours)  # Ray's C++ may have taken it below Python
