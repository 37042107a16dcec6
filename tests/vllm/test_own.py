"""vLLM's own tests of connectors and tiers, with ours in the place of its own.

They are no part of its wheel: LEXICO_TEST_VLLM_SOURCE is the folder of its unpacked sdist. pip has
that: `pip download --no-deps --no-binary vllm --no-build-isolation --no-clean vllm==0.32.0` leaves
it in a folder of TMPDIR, also where it cannot be built.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import pytest
from transformers import LlamaConfig

from lexico_codec.hf_geometry import geometry_of
from tests.support.saved_model import character_tokenizer
from tests.support.vllm_engine import ENVIRONMENT, PYTHON, ROOT
from tests.support.vllm_service import EngineService, engine_service

SOURCE: Final = os.environ.get("LEXICO_TEST_VLLM_SOURCE", "")
UNIT: Final = "v1/kv_connector/unit"
TIERING: Final = "v1/kv_offload/tiering"
FILES: Final = {
    f"{UNIT}/test_kv_connector_lifecycle.py": 1,
    f"{UNIT}/test_remote_prefill_lifecycle.py": 8,
    f"{UNIT}/test_kv_load_failure_recovery.py": 11,
    f"{UNIT}/test_invalid_blocks_correctness.py": 3,
    f"{UNIT}/test_error_propagation.py": 2,
    f"{UNIT}/test_cache_pollution_prevention.py": 1,
    f"{UNIT}/test_hma_auto_config.py": 4,
    f"{UNIT}/test_multi_connector.py": 1,
    f"{UNIT}/offloading_connector": 100,
    "v1/core/test_scheduler.py": 16,
    "v1/core/test_async_scheduler.py": 3,
    "v1/core/test_deferred_block_free.py": 1,
    f"{TIERING}/test_fs_tier.py": 19,
    f"{TIERING}/test_tiering_offloading.py": 39,
    f"{TIERING}/test_factory.py": 4,
}
"""File or folder → tests of it in which one of ours is made, and that pass."""
PACKAGES: Final = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "pygments")
"""What the tests need that vLLM's environment has not, as far as this one has it."""
NAME: Final = "facebook/opt-125m"
"""Of the model that the tests take. All they need of it is a config and a tokenizer: those of
another are found by this name."""
LLAMA: Final = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    dtype="float16",
    num_hidden_layers=2,
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=1 << 14,
)


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    """Of these tests alone."""
    with engine_service() as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM's tests beside what they need, and a model."""
    made, source = tmp_path_factory.mktemp("own"), Path(SOURCE) / "tests"
    shutil.copytree(source / "v1", made / "tests" / "v1")
    shutil.copy(source / "__init__.py", made / "tests")
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            file = Path(found.origin)
            package = file.parent if found.submodule_search_locations else file
            (made / package.name).symlink_to(package)
    (made / "vllm_own").symlink_to(ROOT / "tests" / "support" / "vllm_own")
    (made / "lexico_codec").symlink_to(ROOT / "lexico_codec")
    cached = made / "hub" / f"models--{NAME.replace('/', '--')}"
    LLAMA.save_pretrained(cached / "snapshots" / "main")
    character_tokenizer().save_pretrained(cached / "snapshots" / "main")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("main")
    return made


@pytest.mark.parametrize(("file", "count"), FILES.items())
def test_vllms_own_tests_pass_with_ours(
    file: str, count: int, folder: Path, service: EngineService
) -> None:
    weights = {"codec": "lossless", "weights": "00" * 32}
    model = str(folder / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots" / "main")
    own = {
        "layers": LLAMA.num_hidden_layers,
        "token_bytes": geometry_of(LLAMA, "float32").token_bytes,
        "connector": {**service.settings, **weights},
        "tier": {**service.settings, **weights, "layout": "heads-first", "model": model},
    }
    report = folder / "report.xml"
    done = subprocess.run(
        [
            *(PYTHON, "-m", "pytest", "-q", "-p", "vllm_own", "-p", "no:cacheprovider"),
            *(f"--rootdir={folder}", f"--junitxml={report}", f"tests/{file}"),
        ],
        env={
            **os.environ,
            **ENVIRONMENT,
            "LEXICO_OWN": json.dumps(own),
            "HF_HUB_CACHE": str(folder / "hub"),
            "PYTHONPATH": ":".join(map(str, (folder, ROOT / "proto", ROOT / "client"))),
        },
        cwd=folder,
        capture_output=True,
        text=True,
    )
    said = f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert done.returncode == 0, said
    assert _passed(report) == count, said


def _passed(report: Path) -> int:
    """Tests that ran and passed."""
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts: dict[str, Any] = suite.attrib
    tests, *others = (int(counts[each]) for each in ("tests", "failures", "errors", "skipped"))
    return tests - sum(others)
