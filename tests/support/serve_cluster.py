"""A Ray on loopback that deploys configurations of Ray Serve, as the operator of a cluster does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from lexico_worker.ray_runtime import RayConfig, RayRuntime
from tests.support.waiting import PATIENCE_S, wait_until

ENDED = ("RUNNING", "DEPLOY_FAILED")


@dataclass(frozen=True)
class Deployed:
    """What became of an application."""

    status: str
    message: str


class ServeCluster:
    """Its process takes one configuration a line, and answers with one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def deploy(self, config: Mapping[str, Any]) -> Deployed:
        """The state that the first application of a configuration ends in."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(config) + "\n")
        self._process.stdin.flush()
        told = self._process.stdout.readline()
        assert told, "the cluster is gone"
        return Deployed(**json.loads(told))


@contextmanager
def start(environment: Mapping[str, str]) -> Iterator[ServeCluster]:
    """Ends with the block.

    Args:
        environment: beside this process's own: of the cluster, and so of what builds.
    """
    # Not above: Ray reads its token's place when it is imported, and the process below sets that.
    from lexico_services.offload.application import INGRESS_RESOURCE

    own = {**os.environ, **environment}
    own["RAY_OVERRIDE_RESOURCES"] = json.dumps({INGRESS_RESOURCE: 1})
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.serve_cluster"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=own,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield ServeCluster(process)
    finally:
        process.stdin.close()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main() -> None:
    """Runs until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray writes there what it pleases
    runtime = RayRuntime(RayConfig(num_cpus=2, object_store_bytes=200 << 20, start_s=PATIENCE_S))
    runtime.start()
    from ray import serve

    try:
        for line in sys.stdin:
            config = json.loads(line)
            found = deployed(config)
            answers.write(json.dumps(asdict(found)) + "\n")
            answers.flush()
            if found.status == "DEPLOY_FAILED":
                serve.delete(config["applications"][0]["name"])
    finally:
        serve.shutdown()
        runtime.stop()


def deployed(config: Mapping[str, Any]) -> Deployed:
    """Deploys a configuration on the cluster that this process has joined, and waits for what
    becomes of its first application.
    """
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    serve.start(proxy_location=schema.proxy_location)
    # What the dashboard does with a configuration that it is given.
    client = _get_global_client()
    assert client is not None
    client.deploy_apps(schema)
    name = schema.applications[0].name

    def state() -> Any:
        found = serve.status().applications.get(name)
        return found if found is not None and found.status in ENDED else None

    found = wait_until(state, "an application that runs or has failed")
    return Deployed(str(found.status.value), found.message)


if __name__ == "__main__":
    main()
