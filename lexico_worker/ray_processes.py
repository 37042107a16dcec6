"""A Ray of this machine without the processes that serve others than its driver.

Ray's head starts three programs in Python that nobody asks here: the autoscaler of clusters, which
adds and removes machines; the one that copies workers' logs to a driver, which is told not to print
them; and the dashboard, of which `include_dashboard=False` leaves a process that counts users of
Ray. `ray.init` waits for the last one to be up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

_NOWHERE: Final = b"127.0.0.1:1"
"""Where no dashboard is."""


@contextmanager
def few_processes() -> Iterator[None]:
    """`ray.init` inside starts a Ray without them. It has no options for it."""
    from ray._private import parameter, services

    parameters: Any = parameter
    starts: Any = services
    own = parameters.RayParams, starts.start_api_server
    parameters.RayParams = partial(own[0], no_monitor=True, include_log_monitor=False)
    starts.start_api_server = _no_dashboard
    try:
        yield
    finally:
        parameters.RayParams, starts.start_api_server = own


def _no_dashboard(*_: object, **__: object) -> tuple[str, None]:
    """What `start_api_server` gives where it has started none: no address, and no process."""
    from ray._private import ray_constants
    from ray.experimental.internal_kv import _internal_kv_put

    # Ray's agent looks for the dashboard every second, and logs a traceback where it finds none.
    _internal_kv_put(
        ray_constants.DASHBOARD_ADDRESS,
        _NOWHERE,
        namespace=ray_constants.KV_NAMESPACE_DASHBOARD,
    )
    return "", None
