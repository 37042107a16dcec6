"""Which of Ray's processes are started; tests/integration/test_serve_lifecycle.py sees a run."""

from __future__ import annotations

from typing import Any

import pytest
from ray._private import parameter, ray_constants, services
from ray.experimental import internal_kv

from lexico_worker.ray_processes import few_processes


def test_what_nobody_asks_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        internal_kv,
        "_internal_kv_put",
        lambda key, value, *, namespace: told.append((key, value, namespace)),
    )
    own = parameter.RayParams, services.start_api_server
    with few_processes():
        given: Any = parameter.RayParams(num_cpus=3)
        assert (given.num_cpus, given.no_monitor) == (3, True)
        given.update_if_absent(include_log_monitor=True)  # as Ray's node does
        assert given.include_log_monitor is False
        start: Any = services.start_api_server
        assert start(False, False, gcs_address="127.0.0.1:1") == ("", None)
    assert (parameter.RayParams, services.start_api_server) == own
    space = ray_constants.KV_NAMESPACE_DASHBOARD
    assert told == [(ray_constants.DASHBOARD_ADDRESS, b"127.0.0.1:1", space)]


def test_rays_own_are_back_where_its_start_fails() -> None:
    own = parameter.RayParams, services.start_api_server
    with pytest.raises(RuntimeError), few_processes():
        raise RuntimeError
    assert (parameter.RayParams, services.start_api_server) == own
