"""A conversation of several turns over two SGLang engines that take turns, and share their caches.

    lexico serve                                  # in another terminal: where it listens
    python -m examples.sglang --model MODEL       # by the Python that has SGLang and lexico-offload

Each turn is answered by the other engine, in processes of its own, which then empties its own
caches: what an engine has of the turns before comes from the service. What is printed of a turn:
tokens of its prompt, how many of them came from the service, and the seconds that the answer took.
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
    parser.add_argument("--settings", default="{}", help="more of the backend's settings, as JSON")
    parser.add_argument("--options", default="{}", help="more for sglang.Engine, as JSON")
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _started() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "examples.sglang", *sys.argv[1:], "--engine"]
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
    os.dup2(2, 1)  # SGLang writes there as well
    import sglang
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ours = {
        "backend_name": "lexico",
        "module_path": "lexico_client.engines.sglang",
        "class_name": "LexicoStorage",
        "interface_v1": 1,
        "prefetch_threshold": 64,
        "reload": options.reload,
        "offload": options.offload,
        "codec": options.codec,
        **json.loads(options.settings),
    }
    fields: dict[str, Any] = {
        "model_path": options.model,
        "page_size": 64,
        "mem_fraction_static": 0.4,
        "enable_cache_report": True,
        "enable_hierarchical_cache": True,
        "hicache_write_policy": "write_through",
        "hicache_storage_backend": "dynamic",
        "hicache_storage_prefetch_policy": "wait_complete",
        "hicache_storage_backend_extra_config": json.dumps(ours),
    }
    engine = sglang.Engine(**{**fields, **json.loads(options.options)})
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        began = time.perf_counter()
        ids = tokenizer.apply_chat_template(
            json.loads(line), add_generation_prompt=True, return_dict=False
        )
        said = engine.generate(
            input_ids=ids, sampling_params={"temperature": 0, "max_new_tokens": 120}
        )
        details = said["meta_info"].get("cached_tokens_details") or {}
        found = {
            "prompt": len(ids),
            "loaded": details.get("storage", 0),
            "seconds": time.perf_counter() - began,
            "answer": said["text"],
        }
        while not engine.flush_cache().success:  # it still stores
            time.sleep(0.05)
        answers.write(json.dumps(found) + "\n")
        answers.flush()
    engine.shutdown()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
