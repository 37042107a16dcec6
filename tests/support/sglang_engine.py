"""SGLang engines for tests: the process that makes them, and one engine of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
PYTHON: Final = os.environ.get("LEXICO_TEST_SGLANG", "")
"""The Python that has SGLang."""
MODULE: Final = "lexico_client.engines.sglang"
PAGE_TOKENS: Final = 64
THREADS: Final = 1
"""That an engine computes with."""
POLICY: Final = "wait_complete"
"""Of prefetches: a request waits for all that is stored."""

_ENVIRONMENT: Final = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": str(THREADS),
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
_PATH: Final = (
    ROOT / "tests" / "support" / "sglang_cpu",
    ROOT,
    ROOT / "proto",
    ROOT / "client",
)


@dataclass
class Generated:
    """What came of some prompts."""

    tokens: list[list[int]]
    reasons: list[str]
    cached: list[int]
    """Tokens that SGLang found in a cache, its own or ours."""
    details: list[dict[str, int]]
    """The same by where they were: `device`, `host`, `storage`."""
    first: list[float]
    """Seconds to the first token."""
    seconds: list[float]
    """Of the whole answer."""

    @property
    def loaded(self) -> list[int]:
        """Tokens that came from us."""
        return [each.get("storage", 0) for each in self.details]


class Engine:
    """A running engine."""

    def __init__(self, nursery: Nursery, extra: str | None) -> None:
        self._nursery = nursery
        self._extra = extra
        self._begun = False

    def generate(
        self,
        *token_ids: Sequence[int],
        max_tokens: int = 8,
        ignore_eos: bool = False,
        **more: Any,
    ) -> Generated:
        """Greedy tokens of prompts that come at once; `more` are fields of each request."""
        self.begin(*token_ids, max_tokens=max_tokens, ignore_eos=ignore_eos, **more)
        return self.result()

    def begin(
        self,
        *token_ids: Sequence[int],
        max_tokens: int = 8,
        ignore_eos: bool = False,
        **more: Any,
    ) -> None:
        """As `generate`, whose result is to be fetched by `result`."""
        ids = [list(map(int, each)) for each in token_ids]
        self._begun = True
        asked = {"token_ids": ids, "max_tokens": max_tokens, "ignore_eos": ignore_eos, "more": more}
        self._nursery.tell({"do": "generate", **asked})

    def result(self) -> Generated:
        self._begun = False
        return Generated(**self._nursery.answer())

    def shown(self) -> Counter[str]:
        """What SGLang's server would show of our families, those of engines before it among them:
        name and label values → number."""
        return Counter(self._nursery.ask({"do": "shown"}))

    def flush(self) -> None:
        """Empties SGLang's own caches, on device and host, once it has nothing left to do: what was
        to be stored has been, or has failed."""
        if self._begun:  # by a test that failed
            self.result()
        wait_until(lambda: self._nursery.ask({"do": "flush"})["flushed"], "SGLang to be idle")

    def detach(self) -> bool:
        """Takes the storage backend away; False while SGLang has something to do with it."""
        return bool(self._nursery.ask({"do": "detach"})["success"])

    def attach(self, extra: dict[str, Any] | None = None, policy: str = POLICY) -> None:
        """Gives it a backend again, or the one that it has another policy of prefetches.

        Args:
            extra: the extra config of ours, if it shall be another one.
            policy: of prefetches.
        """
        config = self._extra if extra is None else _config(extra)
        asked = {"do": "attach", "extra": config, "policy": policy}
        wait_until(lambda: self._nursery.ask(asked)["success"], "SGLang to be idle")


class Engines:
    """Engines of a nursery, one at a time: each runs until another one is asked for."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._stack = contextlib.ExitStack()
        self._wanted: object = None
        self._engine: Engine | None = None

    def like(self, extra: dict[str, Any] | None = None, **options: Any) -> Engine:
        """The one that runs, if it was started so, or a new one. As of `Nursery.engine`."""
        if self._engine is None or self._wanted != (extra, options):
            self.close()
            self._engine = self._stack.enter_context(self._nursery.engine(extra, **options))
            self._wanted = extra, options
        return self._engine

    def close(self) -> None:
        """Ends the one that runs."""
        self._engine = None
        self._stack.close()


class Nursery:
    """The process that has imported SGLang."""

    def __init__(self, log: Path, model: Path) -> None:
        self._model = model
        self._log = log
        metrics = log.with_suffix(".metrics")
        metrics.mkdir()
        environment = {**environment_on_cpu(), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        with log.open("wb") as written:
            self._process = subprocess.Popen(
                [PYTHON, "-m", "tests.support.sglang_nursery"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                env=environment,
                cwd=log.parent,
            )
        self._running = False
        self.answer()

    @contextlib.contextmanager
    def engine(self, extra: dict[str, Any] | None = None, **options: Any) -> Iterator[Engine]:
        """An engine, for the block. Float32 on the CPU, one step at a time.

        Args:
            extra: the extra config of ours; None for an engine without a storage backend.
            options: of `sglang.Engine`.
        """
        fields: dict[str, Any] = {
            "model_path": str(self._model),
            "device": "cpu",
            "dtype": "float32",
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "grammar_backend": "none",
            "disable_cuda_graph": True,
            "disable_overlap_schedule": True,
            "skip_server_warmup": True,
            "enable_cache_report": True,
            "enable_metrics": True,
            "max_total_tokens": 4096,
            "max_running_requests": 4,
            "mem_fraction_static": 0.8,
            "context_length": 2048,
            "page_size": PAGE_TOKENS,
            "random_seed": 0,
            "log_level": "info",
            "sleep_on_idle": True,
            "host": "127.0.0.1",
            "port": _free_port(),
        }
        if extra is not None:
            fields |= {
                "enable_hierarchical_cache": True,
                "hicache_ratio": 2.0,
                "hicache_io_backend": "direct",
                "hicache_mem_layout": "page_first_direct",
                "hicache_write_policy": "write_through",
                "hicache_storage_backend": "dynamic",
                "hicache_storage_prefetch_policy": POLICY,
                "hicache_storage_backend_extra_config": _config(extra),
            }
        self.ask({"do": "start", "options": {**fields, **options}})
        self._running = True
        try:
            yield Engine(self, fields.get("hicache_storage_backend_extra_config"))
        finally:
            if self._running:
                self.tell({"do": "end"})
                self._ended()

    def ask(self, line: dict[str, Any]) -> dict[str, Any]:
        """The answer to a line."""
        self.tell(line)
        return self.answer()

    def tell(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        found = self._answer()
        if "ended" in found:
            self._running = False
            raise EngineFailed("it ended without a word")
        if "error" in found:
            self._ended()
            raise EngineFailed(f"{found['kind']}: {found['error']}")
        return found

    def said(self) -> str:
        """Its log."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ended(self) -> None:
        self._running = False
        while "ended" not in self._answer():
            pass

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            pytest.fail(f"SGLang's process ended: {self.said()[-4000:]}")
        found: dict[str, Any] = json.loads(line)
        return found


class EngineFailed(Exception):
    """An engine ended with an error."""


def environment_on_cpu() -> dict[str, str]:
    """Of processes that run SGLang, and what is here, on the CPU."""
    return {**os.environ, **_ENVIRONMENT, "PYTHONPATH": ":".join(map(str, _PATH))}


def _config(extra: dict[str, Any]) -> str:
    """The extra config of ours, and what SGLang needs with it."""
    config = {
        "backend_name": "lexico",
        "module_path": MODULE,
        "class_name": "LexicoStorage",
        "interface_v1": 1,
        **extra,
    }
    return json.dumps(config)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port
