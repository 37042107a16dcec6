"""The offload part: Ray, the Serve application with ingress and encoders, and its orderly end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lexico_proto.errors import ConfigurationError, Unavailable
from lexico_services.config import ListenConfig, OffloadConfig
from lexico_services.doctor.needs import PLASMA_FACTOR
from lexico_services.ending import Ending
from lexico_services.process import take_port
from lexico_services.telemetry.config import NOTHING, TelemetryConfig
from lexico_worker.config import EncoderConfig
from lexico_worker.ray_runtime import RayConfig, RayRuntime

_log = logging.getLogger(__name__)

PROBE_EVERY_S = 5.0
"""Seconds between two questions to the ingress."""
READ_AGAIN_S = 30.0
"""Longest wait, in seconds, for the ingress to read files again."""
SERVE_S = 4.0
"""Seconds of a shutdown that are kept for encoders to end: a layer group, and its lease."""
RAY_S = 2.5
"""Seconds of a shutdown that are kept for Ray's own processes, and what comes after them."""
_LOOK_S = 0.25
"""Between two looks at a start: each is 16 ms of a core here, while replicas start, and more in
Serve's controller.
"""
RECOVERY_S = 30.0
"""Seconds beyond the drain that Serve is given to replace an ingress."""


class OffloadServer:
    """Starts Ray and the application; blocking calls, for the main thread."""

    def __init__(
        self,
        listen: ListenConfig,
        offload: OffloadConfig,
        encoder: EncoderConfig,
        ray: RayConfig,
        telemetry: TelemetryConfig = NOTHING,
    ) -> None:
        """
        Args:
            listen: where the ingress listens, and how long its start may take.
            offload: bounds of the ingress.
            encoder: the encoders.
            ray: which Ray.
            telemetry: what the ingress tells of itself.
        """
        if not ray.address:
            needed = int(offload.max_inflight_bytes * PLASMA_FACTOR)
            ray = replace(ray, object_store_bytes=max(ray.object_store_bytes, needed))
        self._listen = listen
        self._offload = offload
        self._encoder = encoder
        self._telemetry = telemetry
        self._runtime = RayRuntime(ray)
        self._ingress: Any = None
        self._probe: Any = None
        self._asked = self._answered = 0.0
        self.port = 0

    def start(self, stopped: threading.Event | None = None) -> bool:
        """Returns once the ingress listens; `port` is then known.

        Args:
            stopped: set, it ends the start between two of its steps; `stop` then ends the rest.

        Returns:
            Whether the ingress listens; else `stopped` was set.

        Raises:
            ConfigurationError: the port is taken, Ray lacks what the encoders ask for, or Ray or
                the ingress does not start; the message says why.
        """
        stopped = stopped or threading.Event()
        # A replica that is replaced must come back on the same port, so the port is chosen here,
        # not there.
        listen = replace(self._listen, port=take_port(self._listen.host, self._listen.port))
        self._runtime.start()
        # Imported only now: the runtime sets what Ray reads when it is imported.
        import ray

        try:
            if stopped.is_set() or not self._deploy(listen, stopped):
                return False
            self._ingress.port.remote().result(timeout_s=listen.start_s)
        except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            self.stop()
            raise ConfigurationError(
                f"the ingress does not start on {listen.target}: {error}"
            ) from error
        self.port = listen.port
        self._asked = self._answered = time.monotonic()
        _log.info("offload=%s", self.port)
        return True

    def _deploy(self, listen: ListenConfig, stopped: threading.Event) -> bool:
        import ray
        from ray import serve

        from lexico_services.offload.deployment import (
            APP_NAME,
            INGRESS_CPUS,
            IngressConfig,
            Placement,
            offload_app,
        )

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        encoder = placed(self._encoder, nodes, INGRESS_CPUS)
        here = Placement.on(ray.util.get_node_ip_address())
        config = IngressConfig(listen, self._offload, telemetry=self._telemetry)
        app = offload_app(config, encoder, here)
        # It has a handler and a level of its own, whatever the settings say of logs.
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        if stopped.is_set():
            return False
        target = serve.RunTarget(target=app, name=APP_NAME, route_prefix=None)
        # Waiting for it is ours: Serve's wait has no end, and no way to leave it.
        (ingress,) = serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        running = wait_until_running(
            lambda: serve.status().applications.get(APP_NAME), listen.start_s, stopped
        )
        if running:
            self._ingress = ingress
        return running

    @property
    def ray_runs(self) -> bool:
        """Whether Ray's own processes are there."""
        return not self._runtime.lost()

    def metrics_port(self) -> int | None:
        """Port of the ingress's metrics; None where they are not shown."""
        port: int | None = self._ingress.metrics_port.remote().result(timeout_s=30)
        return port

    def usage(self) -> dict[str, int]:
        """The ingress's process id, bytes in flight, their peak and their limit."""
        usage: dict[str, int] = self._ingress.usage.remote().result(timeout_s=30)
        return usage

    def check(self) -> None:
        """Does not block; to be called every second or so.

        An ingress that died is replaced by Serve in a few seconds, so one that does not answer is
        given time.

        Raises:
            Unavailable: Ray, or the ingress, is gone for good.
        """
        lost = self._runtime.lost()
        if lost:
            raise Unavailable(f"Ray's {lost} ended by itself")
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        now = time.monotonic()
        try:
            if self._probe is not None:
                self._probe.result(timeout_s=0.01)
                self._probe, self._answered = None, now
            elif now - self._asked >= PROBE_EVERY_S:
                self._asked, self._probe = now, self._ingress.usage.remote()
        except TimeoutError:
            pass  # its answer is looked for again at the next call
        except (RuntimeError, RayError, RayServeException):
            self._probe = None
        if now - self._answered > self._listen.drain_s + RECOVERY_S:
            raise Unavailable(f"the ingress has not answered for {now - self._answered:.0f} s")

    @property
    def answers(self) -> bool:
        """Whether the ingress listens, and answered when it was last to be asked by `check`."""
        late = time.monotonic() - self._answered > 2 * PROBE_EVERY_S
        return self._ingress is not None and self.port > 0 and not late

    def read_again(self) -> None:
        """Has the ingress read tokens and certificates again; returns once it has.

        Raises:
            Unavailable: it does not answer.
        """
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            self._ingress.read_again.remote().result(timeout_s=READ_AGAIN_S)
        except (RuntimeError, TimeoutError, RayError, RayServeException) as error:
            raise Unavailable(f"the ingress does not answer: {type(error).__name__}") from error

    def stop(self, ending: Ending | None = None) -> None:
        """Ingress first, encoders after it, Ray last: pages under way are committed. Idempotent.

        Args:
            ending: what time there is for it; None where this is the whole end.
        """
        ending = ending or Ending(self._listen.drain_s)
        ending.begin()
        ingress, self._ingress = self._ingress, None
        # Without Ray's own processes, calls into it wait for a minute, and then end the process.
        if self._runtime.started and not self._runtime.lost():
            import ray

            if ingress is not None:
                try:
                    ingress.drain.remote().result(timeout_s=ending.left(SERVE_S + RAY_S))
                except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
                    _log.warning("ingress did not drain: %s", type(error).__name__)
            self._end_serve(ending.left(RAY_S))
        self._runtime.stop(ending.left())

    def _end_serve(self, within_s: float) -> None:
        """Ends Serve, which waits for its replicas; what takes longer is ended with Ray."""
        from ray import serve

        # Serve's own wait is 30 s, whatever is asked for.
        done = threading.Thread(target=serve.shutdown, name="serve-shutdown", daemon=True)
        done.start()
        done.join(within_s)
        if done.is_alive():
            _log.warning("Serve did not end within %.1f s", within_s)


def placed(
    encoder: EncoderConfig, nodes: Sequence[Mapping[str, float]], ingress_cpus: float
) -> EncoderConfig:
    """The encoders with their GPU share decided, after a check that Ray can place them.

    Args:
        encoder: as it was asked for.
        nodes: resources of each node, by Ray's names.
        ingress_cpus: CPU share of the ingress beside them.

    Raises:
        ConfigurationError: a resource is lacking; without the check Ray would wait for it.
    """
    if encoder.num_gpus is None:
        gpus = sum(node.get("GPU", 0.0) for node in nodes)
        encoder = replace(encoder, num_gpus=1.0 if gpus > 0 else 0.0)
    shares = {"CPU": (encoder.num_cpus, ingress_cpus), "GPU": (encoder.num_gpus or 0.0, 0.0)}
    for name, (share, beside) in shares.items():
        there = [node.get(name, 0.0) for node in nodes]
        needed = share * encoder.min_replicas + beside
        if needed > sum(there) or share > max(there, default=0.0):
            option = f"--encoder-{name.lower()}s"
            raise ConfigurationError(
                f"encoders ({encoder.min_replicas} of {share:g} {name} each) and ingress need "
                f"{needed:g} {name}; Ray has {sum(there):g}, at most "
                f"{max(there, default=0.0):g} on a node: "
                f"lower --encoders or {option}"
            )
    return encoder


def wait_until_running(look: Callable[[], Any], timeout_s: float, stopped: threading.Event) -> bool:
    """Waits for an application of Serve.

    Args:
        look: the application's status overview, or None before Serve knows it.
        timeout_s: longest wait.
        stopped: set, it ends the wait.

    Returns:
        Whether the application runs; else `stopped` was set.

    Raises:
        ConfigurationError: Serve gave up, or the time is over; the message has Serve's.
    """
    deadline = time.monotonic() + timeout_s
    while not stopped.wait(_LOOK_S):
        app = look()
        if app is not None and app.status == "RUNNING":
            return True
        if app is not None and app.status == "DEPLOY_FAILED":
            raise ConfigurationError(f"ingress and encoders do not start: {_told(app)}")
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"ingress and encoders do not run after {timeout_s:g} s: {_told(app)}"
            )
    return False


def _told(app: Any) -> str:
    """What Serve says about an application and its deployments."""
    if app is None:
        return "Serve does not know them"
    told = [app.message, *(f"{name}: {d.message}" for name, d in app.deployments.items())]
    return "; ".join(text for text in told if text and not text.endswith(": ")) or "no reason given"
