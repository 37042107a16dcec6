"""A head of Ray that keeps its state in a Redis, twice: what the first wrote, the second tells.

RAY_REDIS_ADDRESS says where, REDIS_PASSWORD is the password; both are what KubeRay gives a head.
"""

from __future__ import annotations

import os
import sys
import tempfile


def main() -> None:
    """Writes what the second head finds to standard output, as its last line."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on loopback alone
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Short, for the sockets in it.
    with tempfile.TemporaryDirectory(prefix="rh", dir="/tmp", ignore_cleanup_errors=True) as folder:
        import ray
        from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

        from lexico_worker.ray_processes import few_processes

        found = None
        for _ in range(2):
            with few_processes():
                ray.init(
                    address="local",
                    _redis_password=os.environ["REDIS_PASSWORD"],
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                    include_dashboard=False,
                    num_cpus=1,
                    object_store_memory=100 << 20,
                    log_to_driver=False,
                )
            found = _internal_kv_get(b"kept", namespace=b"lexico")
            _internal_kv_put(b"kept", b"by-the-first", namespace=b"lexico")
            ray.shutdown()
    sys.stdout.write(f"\n{(found or b'nothing').decode()}\n")


if __name__ == "__main__":
    main()
