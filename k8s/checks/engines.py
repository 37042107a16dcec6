"""Engines as clients: their settings of ours, by the code that reads them, and where these lead."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Final

from k8s.checks.pods import pods
from k8s.checks.rendering import Problem, Rendering
from lexico_client.engines._settings import EngineSettings
from lexico_client.engines.sglang._config import StorageConfig
from lexico_client.engines.vllm._config import ConnectorConfig
from lexico_proto.errors import LexicoError

VLLM: Final = "--kv-transfer-config"
SGLANG: Final = "--hicache-storage-backend-extra-config"


def check(rendering: Rendering) -> list[Problem]:
    """Settings that the adapter would refuse, and addresses that are no Service's."""
    found = []
    for pod in pods(rendering):
        for container in pod.containers:
            arguments = container.get("args", [])
            for option, text in pairwise(arguments):
                if option in (VLLM, SGLANG):
                    where = f"{pod.owner} container {container['name']} {option}"
                    found += [Problem(where, what) for what in _of_engine(rendering, option, text)]
    return found


def _of_engine(rendering: Rendering, option: str, text: str) -> Iterator[str]:
    try:
        given = json.loads(text)
        settings = _vllm(given) if option == VLLM else StorageConfig.of(given)
    except (ValueError, KeyError) as error:
        yield f"is not to be read: {error!r}"
        return
    except LexicoError as error:
        yield error.message
        return
    for address in (settings.reload, settings.offload):
        if address is not None and not _leads_somewhere(rendering, address):
            yield f"{address} is no Service's port"


def _vllm(given: Mapping[str, Any]) -> EngineSettings:
    return ConnectorConfig.of(given["kv_connector_extra_config"])


def _leads_somewhere(rendering: Rendering, address: str) -> bool:
    host, _, port = address.rpartition(":")
    service = rendering.find("Service", host)
    return service is not None and int(port) in [each["port"] for each in service["spec"]["ports"]]
