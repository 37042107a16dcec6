"""The adapter and the serde in LMCache's own hands: its memory, plug-in loader and serde wrapper,
without an engine."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lexico_proto.metrics import ENGINE_PAGES, ENGINE_TOKENS
from tests.support.client_fixtures import flipped
from tests.support.lmcache_fakes import HEAD_DIM, HEADS, LAYERS, LOCKS
from tests.support.lmcache_server import ENVIRONMENT, MODULE, PYTHON
from tests.support.saved_model import save_tiny
from tests.support.vllm_engine import ROOT
from tests.support.vllm_service import EngineService, engine_service

TOKENS = 64
CHUNKS = [0, 1, 2, 3]
ALL, NONE = [True] * 4, [False] * 4


class Driver:
    """The process that has LMCache."""

    def __init__(self, log: Path, model: Path) -> None:
        path = [ROOT, ROOT / "proto", ROOT / "client"]
        with log.open("wb") as written:
            self._process = subprocess.Popen(
                [PYTHON, "-m", "tests.support.lmcache_driver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                env={**os.environ, **ENVIRONMENT, "PYTHONPATH": ":".join(map(str, path))},
                text=True,
                cwd=log.parent,
            )
        self._log = log
        self._model = model
        self._answer()

    def ask(self, do: str, **line: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        objects = {
            "model": str(self._model),
            "chunks": CHUNKS,
            "shape": [2, LAYERS, TOKENS, HEADS * HEAD_DIM],
            "dtype": "bfloat16",
        }
        self._process.stdin.write(json.dumps({"do": do, **objects, **line}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            pytest.fail(f"LMCache's process ended: {self.said()[-4000:]}")
        found: dict[str, Any] = json.loads(line)
        return found


@pytest.fixture(scope="module")
def service() -> Iterator[EngineService]:
    """Of these tests alone."""
    with engine_service() as made:
        yield made


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Driver]:
    made = Driver(tmp_path_factory.mktemp("driver") / "driver.log", tiny)
    yield made
    made.close()


@pytest.fixture
def opened(driver: Driver, service: EngineService, tiny: Path) -> Iterator[Driver]:
    """With our adapter."""
    driver.ask("open", adapter=ours(service, model=str(tiny)))
    yield driver
    driver.ask("close")


def ours(service: EngineService, **settings: Any) -> dict[str, Any]:
    return {
        "type": "plugin",
        "module_path": MODULE,
        "class_name": "LexicoL2Adapter",
        "adapter_params": {**service.settings, **LOCKS, **settings},
    }


def serde(folder: Path, **settings: Any) -> dict[str, Any]:
    """LMCache's folder, with our serde."""
    return {
        "type": "plugin",
        "module_path": MODULE,
        "class_name": "LMCacheAdapter",
        "adapter_params": {"type": "fs", "base_path": str(folder)},
        "serde": {"type": "lexico", **settings},
    }


def test_what_one_adapter_stores_another_finds_and_loads(
    driver: Driver, service: EngineService
) -> None:
    assert driver.ask("open", adapter=ours(service)) == {"type": "LexicoL2Adapter"}
    assert driver.ask("find") == {"found": NONE}
    stored = driver.ask("store", chunks=CHUNKS[:3])
    assert stored["stored"]
    assert stored["bytes"] == sum(
        len(frame) for entry in service.store._pages.values() for frame in entry.frames
    )
    driver.ask("close")
    driver.ask("open", adapter=ours(service))
    assert driver.ask("find") == {"found": [True] * 3 + [False]}
    assert driver.ask("find", salt="another") == {"found": NONE}
    loaded = driver.ask("load")
    assert loaded == {"came": [True] * 3 + [False], "same": [True] * 3 + [False]}
    counted = driver.ask("status")["status"]["counted"]
    assert counted[f"{ENGINE_PAGES.name} sent"] == 3
    assert counted[f"{ENGINE_TOKENS.name} loaded"] == 3 * TOKENS
    driver.ask("close")


def test_a_service_that_is_gone_is_a_miss(opened: Driver, service: EngineService) -> None:
    opened.ask("store")
    warnings = ("match failed", "load failed", "store failed")
    before = [opened.said().count(each) for each in warnings]
    service.reload.refuse()
    service.offload.refuse()
    try:
        for _ in range(2):
            assert opened.ask("find") == {"found": NONE}
            assert opened.ask("load")["came"] == NONE
            assert not opened.ask("store")["stored"]
    finally:
        service.reload.accept()
        service.offload.accept()
    assert [opened.said().count(each) for each in warnings] == [n + 1 for n in before]


def test_a_damaged_object_is_a_miss_of_its_own(opened: Driver, service: EngineService) -> None:
    before = set(service.store._pages)
    opened.ask("store", chunks=[7, 8])
    name = min(set(service.store._pages) - before)
    entry = service.store._pages[name]
    service.store._pages[name] = type(entry)((flipped(entry.frames[0]),), entry.expires_s)
    loaded = opened.ask("load", chunks=[7, 8])
    assert sorted(loaded["came"]) == [False, True]
    assert loaded["same"] == loaded["came"]


def test_objects_that_lmcache_itself_loses_leave_the_others_whole(
    driver: Driver, service: EngineService, tiny: Path
) -> None:
    """LMCache's adapter for tests, which drops what it is told to, in front of ours."""
    faulty = {"type": "fault_inject", "inner": ours(service, model=str(tiny)), "gap_indices": [1]}
    assert driver.ask("open", adapter=faulty) == {"type": "FaultInjectL2Adapter"}
    chunks = [20, 21, 22, 23]
    assert driver.ask("store", chunks=chunks)["stored"]
    assert driver.ask("find", chunks=chunks) == {"found": ALL}
    came = [True, False, True, True]
    assert driver.ask("load", chunks=chunks)["came"] == came
    driver.ask("close")


def test_settings_that_cannot_be_used_are_said_when_the_server_starts(
    driver: Driver, service: EngineService, tmp_path: Path
) -> None:
    for adapter, said in (
        (ours(service, lay_out="x"), "adapter_params: lay_out: unknown"),
        (ours(service, layout="rows"), "layout: 'rows' is none of keys-first"),
        (ours(service, model="no/such-model"), "no/such-model: no folder"),
        (serde(tmp_path, padded_to=3), "serde: padded_to"),
    ):
        assert said in driver.ask("open", adapter=adapter)["error"]


def test_the_serde_fills_files_that_lmcache_reads_back(driver: Driver, tmp_path: Path) -> None:
    for adapter in (serde(tmp_path, padded_to=0.9), serde(tmp_path, padded_to=0.9)):
        driver.ask("open", adapter=adapter)
        driver.ask("store")
        assert driver.ask("find") == {"found": ALL}
        assert driver.ask("load") == {"came": ALL, "same": ALL}
        driver.ask("close")
    raw = 2 * LAYERS * TOKENS * HEADS * HEAD_DIM * 2
    assert [file.stat().st_size for file in tmp_path.glob("*.data")] == [int(0.9 * raw)] * 4


def test_bytes_that_are_damaged_are_a_miss_of_what_is_loaded_together(
    driver: Driver, tmp_path: Path
) -> None:
    driver.ask("open", adapter=serde(tmp_path))
    assert driver.ask("store")["stored"]
    file = min(tmp_path.glob("*.data"))
    file.write_bytes(flipped(file.read_bytes(), 200))
    assert driver.ask("load")["came"] == NONE
    driver.ask("close")


def test_shorter_files_are_a_miss_where_nothing_is_filled_up(
    driver: Driver, tmp_path: Path
) -> None:
    """Why `padded_to` is there: should LMCache change, this test says so."""
    driver.ask("open", adapter=serde(tmp_path, padded_to=0))
    assert driver.ask("store")["stored"]
    assert driver.ask("load")["came"] == NONE
    driver.ask("close")


def test_nothing_is_filled_up_for_an_adapter_that_takes_back_what_there_is(
    driver: Driver, tmp_path: Path
) -> None:
    device = tmp_path / "dax.img"
    device.touch()
    os.truncate(device, 16 << 20)
    slots = {"device_path": str(device), "max_dax_size_gb": 1 / 64, "slot_bytes": 1 << 16}
    adapter = serde(tmp_path, padded_to=0)
    driver.ask("open", adapter={**adapter, "adapter_params": {"type": "dax", **slots}})
    assert driver.ask("store")["stored"]
    assert driver.ask("load") == {"came": ALL, "same": ALL}
    driver.ask("close")
