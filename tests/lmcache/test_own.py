"""LMCache's own tests of adapters, serdes and faults, with ours in the place of its own.

They are no part of its wheel: LEXICO_TEST_LMCACHE_SOURCE is the folder of its unpacked sdist.
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

from tests.support.lmcache_fakes import LOCKS
from tests.support.lmcache_server import ENVIRONMENT, PYTHON
from tests.support.vllm_engine import ROOT
from tests.support.vllm_service import EngineService, engine_service

SOURCE: Final = os.environ.get("LEXICO_TEST_LMCACHE_SOURCE", "")
MODEL: Final = "test_model"
FILES: Final = {
    "test_mock_l2_adapter.py": 29,
    "test_fault_inject_l2_adapter.py": 6,
    "serde/test_serde_e2e.py": 13,
    "serde/test_serde_fs_e2e.py": 1,
    "serde/test_factory.py": 9,
}
"""File → tests of it that ours are to pass."""
PACKAGES: Final = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "pygments", "async_timeout")
"""What the tests need that LMCache's environment has not, as far as this one has it."""


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    """Of these tests alone."""
    with engine_service() as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LMCache's tests beside what they need, and a model's config."""
    made = tmp_path_factory.mktemp("own")
    shutil.copytree(Path(SOURCE) / "tests", made / "tests")
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            file = Path(found.origin)
            package = file.parent if found.submodule_search_locations else file
            (made / package.name).symlink_to(package)
    (made / "lmcache_own.py").symlink_to(ROOT / "tests" / "support" / "lmcache_own.py")
    (made / "lexico_codec").symlink_to(ROOT / "lexico_codec")
    LlamaConfig(
        num_hidden_layers=4, hidden_size=256, num_attention_heads=4, num_key_value_heads=2
    ).save_pretrained(made / "model")
    return made


@pytest.mark.parametrize(("file", "count"), FILES.items())
def test_lmcaches_own_tests_pass_with_ours(
    file: str, count: int, folder: Path, service: EngineService
) -> None:
    model = {"model": MODEL, "folder": str(folder / "model"), "weights": "00" * 32}
    own = {
        "model": MODEL,
        "adapter": {**service.settings, **LOCKS, **model},
        "serde": {**model},
    }
    report = folder / "report.xml"
    done = subprocess.run(
        [
            *(PYTHON, "-m", "pytest", "-q", "-p", "lmcache_own", "-p", "no:cacheprovider"),
            *(f"--rootdir={folder}", f"--junitxml={report}", f"tests/v1/distributed/{file}"),
        ],
        env={
            **os.environ,
            **ENVIRONMENT,
            "LEXICO_OWN": json.dumps(own),
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
