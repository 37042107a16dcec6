"""A conversation of several turns over two LMCache servers, each with a vLLM engine, in turns.

    lexico serve                                  # in another terminal: where it listens
    python -m examples.lmcache --model MODEL      # by the Python that has vLLM, LMCache and
                                                  # lexico-offload; on the CPU with
                                                  # --layout vllm-cpu --dtype float32

The servers share nothing but the service. What it prints of a turn: tokens of its prompt, how many
of them the engine had or got from its LMCache server, the objects that this loaded from the service
until then, in tokens, and the seconds that the answer took. vLLM and LMCache warn on standard
error; VLLM_LOGGING_LEVEL=INFO and LMCACHE_LOG_LEVEL=INFO have them say more.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Final

QUESTIONS: Final = (
    "Explain in five sentences what a prefix cache is.",
    "Which of these sentences matters most to someone who runs a service, and why?",
    "Give an example with numbers.",
    "Now say all of it in two sentences.",
)
INSTRUCTIONS: Final = (
    "You are a patient teacher. You answer in plain words and complete sentences, you say what you "
    "are not sure of, and you keep to what was asked. "
) * 8
"""What every conversation of an application begins with: a few hundred tokens."""
CHUNK_TOKENS: Final = 64
QUIET: Final = {"VLLM_LOGGING_LEVEL": "WARNING", "LMCACHE_LOG_LEVEL": "WARNING"}
_PATIENCE_S: Final = 300.0


@dataclass
class Node:
    """An LMCache server, and the engine in front of it."""

    server: subprocess.Popen[bytes]
    engine: subprocess.Popen[str]
    http: int

    def ask(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """The engine's answer."""
        assert self.engine.stdin is not None
        self.engine.stdin.write(json.dumps(messages) + "\n")
        self.engine.stdin.flush()
        return _line(self.engine)

    def loaded(self) -> int:
        """Tokens that the server has loaded from the service."""
        (adapter,) = _status(self.http)["storage_manager"]["l2_adapters"]
        tokens: int = adapter["counted"].get("lexico_engine_tokens_total loaded", 0)
        return tokens

    def settle(self) -> None:
        """Waits until nothing is being stored."""

        def settled() -> bool:
            stores = _status(self.http)["storage_manager"]["store_controller"]
            return not stores["pending_keys_count"] and not stores["in_flight_task_count"]

        _wait(settled, "objects were not stored")

    def end(self) -> None:
        """Ends both."""
        self.engine.communicate()
        self.server.terminate()
        self.server.wait()


def main() -> None:
    """Runs the conversation, or one engine of it."""
    options = _options()
    if options.engine:
        _engine(options)
        return
    nodes: list[Node] = []
    messages = [{"role": "system", "content": INSTRUCTIONS}]
    try:
        for name in "AB":
            _say(f"node {name}: an LMCache server and a vLLM engine start, which takes a while")
            nodes.append(_started(options))
        _say(f"{'node':>4} {'prompt':>7} {'cached':>7} {'loaded':>7} {'seconds':>8}  answer")
        for turn, question in enumerate(QUESTIONS):
            node = nodes[turn % 2]
            messages.append({"role": "user", "content": question})
            said = node.ask(messages)
            messages.append({"role": "assistant", "content": said["answer"]})
            node.settle()  # the next turn is the other node's
            answer = " ".join(said["answer"].split())[:50]
            figures = f"{said['prompt']:>7} {said['cached']:>7} {node.loaded():>7}"
            _say(f"{'AB'[turn % 2]:>4} {figures} {said['seconds']:>8.2f}  {answer}")
    finally:
        for node in nodes:
            node.end()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a folder, or a name on the hub")
    parser.add_argument("--reload", default="127.0.0.1:7412", help="address of the reload server")
    parser.add_argument("--offload", default="127.0.0.1:7411", help="address of the ingress")
    parser.add_argument("--codec", default="lossless", help="preset or codec")
    parser.add_argument("--layout", default="side-by-side", help="how vLLM keeps keys and values")
    parser.add_argument("--block-size", type=int, default=32, help="vLLM's")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _started(options: argparse.Namespace) -> Node:
    """A server, and then an engine: both measure free memory."""
    port, http, metrics = (_free_port() for _ in range(3))
    adapter = {
        "type": "plugin",
        "module_path": "lexico_client.engines.lmcache",
        "class_name": "LexicoL2Adapter",
        "adapter_params": {
            "reload": options.reload,
            "offload": options.offload,
            "codec": options.codec,
            "model": options.model,
            "layout": options.layout,
            "block_tokens": options.block_size,
        },
    }
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "lmcache.cli.main", "server"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--http-host", "127.0.0.1", "--http-port", str(http)),
            *("--prometheus-port", str(metrics), "--chunk-size", str(CHUNK_TOKENS)),
            *("--supported-transfer-mode", "auto", "--l1-size-gb", "1"),
            *("--eviction-policy", "LRU", "--l2-prefetch-policy", "retain"),
            *("--l2-adapter", json.dumps(adapter)),
        ],
        stdout=sys.stderr,
        env={**QUIET, **os.environ},
    )
    try:
        return Node(server, _engine_at(port, http, server), http)
    except BaseException:
        server.terminate()
        server.wait()
        raise


def _engine_at(port: int, http: int, server: subprocess.Popen[bytes]) -> subprocess.Popen[str]:
    """An engine that shares by the server, once both are ready."""
    _wait(lambda: server.poll() is not None or _answers(http), "LMCache's server does not answer")
    if server.poll() is not None:
        raise SystemExit("LMCache's server ended: its messages are above")
    command = [sys.executable, "-m", "examples.lmcache", *sys.argv[1:], "--engine", str(port)]
    pipe = subprocess.PIPE
    environment = {**QUIET, **os.environ}
    engine = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    _line(engine)  # it is ready
    return engine


def _engine(options: argparse.Namespace) -> None:
    """Answers conversations, a line each, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM writes there as well
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=options.model,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        block_size=options.block_size,
        gpu_memory_utilization=0.4,
        enforce_eager=True,
        kv_transfer_config={
            "kv_connector": "LMCacheMPConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {
                "lmcache.mp.host": "tcp://127.0.0.1",
                "lmcache.mp.port": options.engine,
            },
        },
    )
    params = SamplingParams(temperature=0, max_tokens=120)
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        began = time.perf_counter()
        (said,) = llm.chat(json.loads(line), params, use_tqdm=False)
        found = {
            "prompt": len(said.prompt_token_ids or ()),
            "cached": said.num_cached_tokens,
            "seconds": time.perf_counter() - began,
            "answer": said.outputs[0].text,
        }
        answers.write(json.dumps(found) + "\n")
        answers.flush()
    llm.llm_engine.engine_core.shutdown()


def _line(engine: subprocess.Popen[str]) -> dict[str, Any]:
    assert engine.stdout is not None
    line = engine.stdout.readline()
    if not line:
        raise SystemExit("an engine ended: its messages are above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _status(http: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/status") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _answers(http: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/healthcheck"):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _wait(look: Any, why: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not look():
        if time.monotonic() > end:
            raise SystemExit(f"{why} within {_PATIENCE_S:g} s")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
    return port


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
