"""What each part imports: a node pays for nothing that it does not use."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

import pytest

from lexico_codec import codecs
from tests.support.waiting import PATIENCE_S

OF_THE_LAB: Final = {"lexico_lab", "matplotlib", "rich", "gguf"}
OF_TELEMETRY: Final = {"prometheus_client", "opentelemetry"}
OF_OTHERS: Final = {"transformers", "triton", "sympy", "torch._dynamo", "torch._inductor"}
EVERY_CODEC: Final = {cls.__module__ for cls in codecs.CODECS.values()} | {
    "lexico_codec.codecs.sparse"
}
"""A codec is imported with the first cache that it codes."""
PARTS: Final = {
    "lexico_client": {
        *("ray", "redis", "lexico_store", "lexico_worker", "lexico_services", "platformdirs"),
        *("lexico_client._memory", "google.protobuf.json_format", *EVERY_CODEC),
    },
    "lexico_services.reload.run": {
        *("ray", "lexico_client", "lexico_services.offload", "torch", "numpy", *EVERY_CODEC),
    },
    "lexico_worker.page_encoder": {
        *("ray", "grpc", "lexico_client", "lexico_services", *EVERY_CODEC),
    },
    "lexico_services.cli": {
        *("ray", "grpc", "redis", "torch", "numpy", "google.protobuf"),
        *("lexico_codec", "lexico_client", "shtab"),
    },
}
"""module → what its process must not have imported, beside what no part needs."""

_PROGRAM: Final = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(sys.modules)))
"""


def imported_by(module: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, module],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", PARTS)
def test_a_part_imports_what_it_needs_alone(module: str) -> None:
    found = imported_by(module)
    assert found & (PARTS[module] | OF_THE_LAB | OF_TELEMETRY | OF_OTHERS) == set()
    assert not {name for name in found if name.startswith("lexico_lab")}


def test_who_deploys_ingress_and_encoders_computes_nothing() -> None:
    """Ray brings what it likes; its replicas import the rest."""
    found = imported_by("lexico_services.offload.deployment")
    assert found & {"torch", "transformers", "lexico_lab", "lexico_client", *EVERY_CODEC} == set()


def test_engines_are_imported_by_their_name_alone() -> None:
    assert not {name for name in imported_by("lexico_client") if ".engines" in name}
    found = imported_by("lexico_client.hf")
    assert "transformers" in found
    ours = found - imported_by("transformers.utils")  # which some releases of theirs bring rich to
    assert not {name for name in ours if name.partition(".")[0] in OF_THE_LAB}


def test_the_connector_of_vllm_is_there_without_vllm() -> None:
    found = imported_by("lexico_client.engines.vllm")
    assert not {name for name in found if name.startswith("lexico_client.engines.vllm.")}
    found = imported_by("lexico_client.engines.vllm._worker")
    assert not {name for name in found if name.partition(".")[0] in {"vllm", *OF_OTHERS}}


def test_the_tier_of_vllm_is_there_without_vllm() -> None:
    found = imported_by("lexico_client.engines.vllm.tier._side")
    assert not {name for name in found if name.partition(".")[0] in {"vllm", *OF_OTHERS}}


def test_the_backend_of_sglang_is_there_without_sglang() -> None:
    name = "lexico_client.engines.sglang"
    assert f"{name}.storage" not in imported_by(name)
    found = imported_by(f"{name}._storage")
    assert not {each for each in found if each.partition(".")[0] in {"sglang", *OF_OTHERS}}


def test_what_runs_in_lmcache_is_there_without_lmcache() -> None:
    found = imported_by("lexico_client.engines.lmcache")
    assert not {name for name in found if name.startswith("lexico_client.engines.lmcache.")}
    found = imported_by("lexico_client.engines.lmcache._store")
    assert not {name for name in found if name.partition(".")[0] in {"lmcache", *OF_OTHERS}}
