"""vLLM engines for tests: the process that makes them, and one engine of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PYTHON: Final = os.environ.get("LEXICO_TEST_VLLM", "")
"""The Python that has vLLM."""
MODULE: Final = "lexico_client.engines.vllm"
BLOCK_TOKENS: Final = 32

ENVIRONMENT: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Generated:
    """What came of some prompts."""

    tokens: list[list[int]]
    reasons: list[str]
    cached: list[int]
    """Tokens that vLLM found in a cache, its own or ours."""
    first: list[float]
    """Seconds to the first token of each."""
    seconds: float
    """To the last of all."""


class Engine:
    """A running engine."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self.begun = False
        """Whether there is a result to be fetched."""

    def generate(self, *token_ids: Sequence[int], max_tokens: int = 16, **more: Any) -> Generated:
        """Greedy tokens of prompts that come at once."""
        ids = [list(map(int, each)) for each in token_ids]
        line = {"do": "generate", "token_ids": ids, "max_tokens": max_tokens, **more}
        return Generated(**self._nursery.ask(line))

    def begin(self, *token_ids: Sequence[int], max_tokens: int = 16) -> None:
        """As `generate`, whose result is to be fetched by `result`."""
        ids = [list(map(int, each)) for each in token_ids]
        self._nursery.tell({"do": "generate", "token_ids": ids, "max_tokens": max_tokens})
        self.begun = True

    def result(self) -> Generated:
        self.begun = False
        return Generated(**self._nursery.answer())

    def settle(self) -> None:
        """Waits until everything is stored."""
        self._nursery.ask({"do": "settle"})

    def reset(self, **options: Any) -> None:
        """Empties vLLM's own prefix cache."""
        assert self._nursery.ask({"do": "reset", "options": options})["reset"]

    def call(self, function: str, **arguments: Any) -> dict[str, Any]:
        """What `module:name` gives in the engine's process, called with vLLM's `LLM`."""
        return self._nursery.ask({"do": "call", "function": function, "arguments": arguments})

    def counted(self, family: str) -> dict[str, int]:
        """Label values → number, of one family of ours."""
        counted = self._nursery.ask({"do": "counts"})["counted"]
        found = ((name.split(" "), number) for name, number in counted.items())
        return {" ".join(name[1:]): number for name, number in found if name[0] == family}

    def shown(self) -> dict[str, float]:
        """What vLLM's server would show of our families: name and label values → number."""
        shown: dict[str, float] = self._nursery.ask({"do": "counts"})["shown"]
        return shown

    def own(self) -> dict[str, Any]:
        """vLLM's metrics."""
        own: dict[str, Any] = self._nursery.ask({"do": "counts"})["own"]
        return own


class Nursery:
    """The process that has imported vLLM."""

    def __init__(self, log: Path, model: Path, python: str = PYTHON) -> None:
        self._model = model
        self._log = log
        self._running = self._ready = False
        path = [ROOT, ROOT / "proto", ROOT / "client"]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": ":".join(map(str, path))}
        with log.open("wb") as written:
            self._process = subprocess.Popen(
                [python, "-m", "tests.support.vllm_nursery"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                env=environment,
                cwd=log.parent,
            )

    @contextlib.contextmanager
    def engine(self, connector: dict[str, Any] | None = None, **options: Any) -> Iterator[Engine]:
        """An engine, for the block. Float32 on the CPU, with prefix caching, one step at a time.

        Args:
            connector: `kv_connector_extra_config` of ours; None for an engine without.
            options: of `vllm.LLM`.
        """
        fields: dict[str, Any] = {
            "model": str(self._model),
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 2048,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 2048,
            "block_size": BLOCK_TOKENS,
            "disable_log_stats": False,
            "seed": 0,
        }
        if connector is not None:
            own = {name: options.pop(name) for name in ("kv_role", "policy") if name in options}
            fields["kv_transfer_config"] = connector_fields(connector, **own)
        if not self._ready:  # others begin meanwhile
            self.answer()
            self._ready = True
        self.ask({"do": "start", "options": {**fields, **options}})
        self._running = True
        try:
            yield Engine(self)
        finally:
            if self._running:
                self.tell({"do": "end"})
                self._ended()

    def refusal(self, connector: dict[str, Any], **options: Any) -> str:
        """What an engine says that does not start."""
        try:
            with self.engine(connector, **options):
                pytest.fail("the engine started")
        except EngineFailed as error:
            return str(error)

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
            pytest.fail(f"vLLM's process ended: {self.said()[-4000:]}")
        found: dict[str, Any] = json.loads(line)
        return found


def connector_fields(
    settings: dict[str, Any], kv_role: str = "kv_both", policy: str = "recompute"
) -> dict[str, Any]:
    """`kv_transfer_config` of our connector, with these settings."""
    return {
        "kv_connector": "LexicoConnector",
        "kv_connector_module_path": MODULE,
        "kv_role": kv_role,
        "kv_load_failure_policy": policy,
        "kv_connector_extra_config": settings,
    }


class EngineFailed(Exception):
    """An engine ended with an error."""
