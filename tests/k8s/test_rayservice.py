"""The application of the RayService on a real Ray, by the configuration that KubeRay hands on."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from k8s.checks.rendering import base_with
from lexico_client import AsyncClient, PageOutcome
from lexico_services.config import ListenConfig, ReloadConfig
from lexico_services.reload.server import ReloadServer
from lexico_store import open_store
from tests.support import serve_cluster
from tests.support.client_fixtures import PATIENT, Landing, random_cache, small_spec, views_of
from tests.support.health import SERVING, health_of
from tests.support.serve_cluster import ServeCluster
from tests.support.servers import PATIENT as PATIENT_STORE
from tests.support.servers import RedisServer, free_port, redis_server
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.timeout(2 * PATIENCE_S)

TOKEN = "token-of-tenant-one"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(store: RedisServer) -> Iterator[ServeCluster]:
    own = {"LEXICO_STORE": store.url, "LEXICO_ENCODER__NUM_GPUS": "0"}
    with serve_cluster.start(own) as cluster:
        yield cluster


@pytest.fixture
def config() -> Any:
    """A copy of the base's configuration of Ray Serve, for one ingress."""
    service = base_with().find("RayService", "lexico")
    assert service is not None
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    config["applications"][0]["args"]["ingresses"] = 1
    return copy.deepcopy(config)


def settings(folder: Path, port: int, health: int) -> Path:
    """The base's settings, with files and ports of this machine."""
    (config,) = (each for each in base_with().of_kind("ConfigMap") if "lexico.toml" in each["data"])
    text = config["data"]["lexico.toml"]
    (folder / "tokens").write_text(f"one:{TOKEN}\n")
    (folder / "policy.toml").write_text(config["data"]["policy.toml"])
    text = text.replace("/etc/lexico/tokens/tokens", f"{folder}/tokens")
    text = text.replace("/etc/lexico/config/policy.toml", f"{folder}/policy.toml")
    # On one machine of two processors, whose port is a free one.
    text = text.replace("port = 7411", f"port = {port}").replace("0.0.0.0", "127.0.0.1")
    text = text.replace(":7413", f":{health}")
    text = text.replace("num_cpus = 1.0", "num_cpus = 0.5").replace("threads = 4", "threads = 1")
    text = text.replace("min_replicas = 2", "min_replicas = 1")
    path = folder / "lexico.toml"
    path.write_text(text)
    return path


def test_what_the_application_cannot_be_built_of_is_told(
    cluster: ServeCluster, config: Any, tmp_path: Path
) -> None:
    config["applications"][0]["args"]["config"] = str(tmp_path / "lexico.toml")
    (tmp_path / "lexico.toml").write_text("[reload]\nmax_page = 3\n")
    deployed = cluster.deploy(config)
    assert deployed.status == "DEPLOY_FAILED"
    assert "reload.max_page is no setting; did you mean max_pages?" in deployed.message


async def test_a_page_goes_through_the_ingress_into_the_store(
    cluster: ServeCluster, store: RedisServer, config: Any, tmp_path: Path
) -> None:
    port, health = free_port(), free_port()
    config["applications"][0]["args"]["config"] = str(settings(tmp_path, port, health))
    deployed = await asyncio.to_thread(cluster.deploy, config)
    assert deployed.status == "RUNNING", deployed.message
    ready = await asyncio.to_thread(health_of, f"127.0.0.1:{health}", "ready")
    assert ready == SERVING  # as the kubelet asks
    spec = small_spec()
    tokens = list(range(2 * spec.page_tokens))
    cache, landing = random_cache(spec, 2), Landing(spec)
    listen = ListenConfig(token_file=tmp_path / "tokens", drain_s=1.0)
    with open_store(store.url, PATIENT_STORE) as pages:
        server = ReloadServer(pages, listen, ReloadConfig(match_timeout_s=PATIENCE_S))
        await server.start()
        reload = f"127.0.0.1:{server.port}"
        try:
            async with AsyncClient(
                offload=f"127.0.0.1:{port}", reload=reload, token=TOKEN, timeouts=PATIENT
            ) as client:
                report = await client.offload(spec, tokens, views_of(spec, cache))
                loaded = await client.load(spec, tokens, landing)
        finally:
            await server.drain()
    assert report.pages == (PageOutcome.STORED, PageOutcome.STORED)
    assert loaded.pages == 2
    assert torch.equal(landing.cache, cache)
