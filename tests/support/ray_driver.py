"""The operator of a cluster of Ray, on its head: takes lines of JSON and answers each.

    python -m tests.support.ray_driver HOST:PORT

`{"deploy": CONFIG}` is answered with what became of it, `"replicas"` with where they are.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from tests.support.serve_cluster import deployed


def replicas() -> list[dict[str, Any]]:
    """Deployment, host and state of each."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    found = client.get_serve_details()["applications"]
    return [
        {
            "deployment": name,
            "host": replica.get("node_ip"),
            "pid": replica.get("pid"),
            "state": str(replica["state"]),
        }
        for application in found.values()
        for name, deployment in application["deployments"].items()
        for replica in deployment["replicas"]
    ]


def main() -> None:
    """Runs until standard input ends; the cluster and what it runs stay."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray writes there what it pleases
    import ray

    ray.init(address=sys.argv[1], namespace="lexico", log_to_driver=False)
    for line in sys.stdin:
        asked = json.loads(line)
        told = replicas() if asked == "replicas" else asdict(deployed(asked["deploy"]))
        answers.write(json.dumps(told) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
