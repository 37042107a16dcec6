"""A conversation of several turns over two vLLM engines that take turns, and share their caches.

    lexico serve                                  # in another terminal: where it listens
    python -m examples.vllm --model MODEL         # by the Python that has vLLM and lexico-offload

Each turn is answered by the other engine, in a process of its own. What it prints of a turn: tokens
of its prompt, how many of them came from the service, and the seconds that the answer took.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
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


def main() -> None:
    """Runs the conversation, or one engine of it."""
    options = _options()
    if options.engine:
        _engine(options)
        return
    engines = [_started() for _ in range(2)]
    messages = [{"role": "system", "content": INSTRUCTIONS}]
    _say(f"{'engine':>6} {'prompt':>7} {'loaded':>7} {'seconds':>8}  answer")
    try:
        for turn, question in enumerate(QUESTIONS):
            number = turn % 2
            messages.append({"role": "user", "content": question})
            said = _asked(engines[number], messages)
            messages.append({"role": "assistant", "content": said["answer"]})
            answer = " ".join(said["answer"].split())[:60]
            figures = f"{said['prompt']:>7} {said['loaded']:>7} {said['seconds']:>8.2f}"
            _say(f"{'AB'[number]:>6} {figures}  {answer}")
    finally:
        for engine in engines:
            engine.communicate()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="a folder, or a name on the hub")
    parser.add_argument("--reload", default="127.0.0.1:7412", help="address of the reload server")
    parser.add_argument("--offload", default="127.0.0.1:7411", help="address of the ingress")
    parser.add_argument("--codec", default="lossless", help="preset or codec")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _started() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "examples.vllm", *sys.argv[1:], "--engine"]
    pipe = subprocess.PIPE
    engine = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    _line(engine)  # it is ready: one after another, since both measure free memory
    return engine


def _asked(engine: subprocess.Popen[str], messages: list[dict[str, str]]) -> dict[str, Any]:
    assert engine.stdin is not None
    engine.stdin.write(json.dumps(messages) + "\n")
    engine.stdin.flush()
    return _line(engine)


def _line(engine: subprocess.Popen[str]) -> dict[str, Any]:
    assert engine.stdout is not None
    line = engine.stdout.readline()
    if not line:
        raise SystemExit("an engine ended: its messages are above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _engine(options: argparse.Namespace) -> None:
    """Answers conversations, a line each, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM writes there as well
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=options.model,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        gpu_memory_utilization=0.4,
        enforce_eager=True,
        kv_transfer_config={
            "kv_connector": "LexicoConnector",
            "kv_connector_module_path": "lexico_client.engines.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {
                "reload": options.reload,
                "offload": options.offload,
                "codec": options.codec,
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
            "loaded": said.num_cached_tokens,
            "seconds": time.perf_counter() - began,
            "answer": said.outputs[0].text,
        }
        answers.write(json.dumps(found) + "\n")
        answers.flush()
    llm.llm_engine.engine_core.shutdown()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
