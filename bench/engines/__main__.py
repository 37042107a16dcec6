"""What sharing costs and saves in vLLM on this machine's CPU, each figure beside its goal.

    LEXICO_TEST_VLLM=PYTHON python -m bench.engines [--only first-token conversations agreement]
    python -m bench.engines --only agreement --after 5 --prompts 5

PYTHON is that of the environment that has vLLM: `make test-vllm` makes it. The model is SmolLM2 in
float32. vllm_first_token.py, vllm_conversations.py and vllm_agreement.py of this folder say what
the parts measure. What `--only` leaves out keeps what engines.json has of it, with its machine.
With `--after N` conversations or prompts are the ones behind the first N, and are added to those in
the file: long parts can be run in pieces.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from bench.engines import vllm_agreement, vllm_conversations, vllm_first_token
from bench.engines.parts import AGREED, added, earlier, flat, judged
from bench.generate import texts
from examples.two_nodes.service import Service
from lexico_lab.models import SMOLLM2, model_folder
from lexico_lab.record import finish, gate, machine, table
from tests.support.vllm_engine import PYTHON, Nursery
from tests.support.vllm_service import engine_service

PARTS: Final = ("first-token", "conversations", "agreement")
TESTS: Final = ("tests/unit/test_vllm_*.py", "tests/vllm/test_turns.py")
ANSWER, LONG_ANSWER = 16, 32
"""Tokens of an answer, and of one whose agreement is counted."""
AT_MOST: Final = {
    "reload_balanced": 0.25,
    "reload_lossless": 0.25,
    "miss": 0.01,
    "store": 0.02,
    "adapter": 0.05,
}
AT_LEAST: Final = {"conversations_equal": 1.0, "near_forced": 0.95, "near_free": 0.95}
COUNTS: Final = {
    "conversations": vllm_conversations.COUNTS,
    "agreement": AGREED,
}


@contextmanager
def nurseries(model: Path, count: int) -> Iterator[list[Nursery]]:
    """Processes that vLLM engines are started in."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = []
        for number in range(count):
            made.append(Nursery(folder / f"vllm{number}.log", model))
            stack.callback(made[-1].close)
        yield made


def first_token(both: list[Nursery], model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Codec → its row."""
    count = len(options.codecs) * (options.rounds + 1)
    prompts, rows = texts(AutoTokenizer.from_pretrained(model), count, options.tokens), {}
    with Service() as service:
        addresses = {"reload": service.reload, "offload": service.offload}
        for codec in options.codecs:
            described = machine()
            own, prompts = prompts[: options.rounds + 1], prompts[options.rounds + 1 :]
            row = vllm_first_token.measure(both[0], addresses, codec, own, options.answer or ANSWER)
            print(table([flat(row)]), flush=True)
            rows[codec] = {**row, "machine": described}
    return rows


def conversations(both: list[Nursery], model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`lossless` → its row."""
    count, tokens = vllm_conversations.texts_needed(options.after + options.conversations)
    asked, described = texts(AutoTokenizer.from_pretrained(model), count, tokens), machine()
    asked = asked[options.after :]
    with engine_service() as service:
        row = vllm_conversations.measure(both, service.settings, asked, options.answer or ANSWER)
    print(table([row]), flush=True)
    return {"lossless": {**row, "machine": described}}


def agreement(both: list[Nursery], model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Codec, or the engine's own cache → its row."""
    count = options.after + options.prompts
    prompts = texts(AutoTokenizer.from_pretrained(model), count, options.prompt_tokens)
    prompts, described = prompts[options.after :], machine()
    with engine_service() as service:
        rows = vllm_agreement.measure(
            both[0], service.settings, ["near"], prompts, options.answer or LONG_ANSWER
        )
    print(table(rows), flush=True)
    return {row["cache"]: {**row, "machine": described} for row in rows}


def figures(parts: dict[str, Any]) -> dict[str, float]:
    """What documents show; of several codecs the worst."""
    found: dict[str, float] = {}
    for codec, row in parts.get("first-token", {}).items():
        found[f"reload_{codec}"] = row["reload"]["median"]
        for name in ("miss", "store", "adapter", "store ratio"):
            key = name.replace(" ", "_")
            found[key] = max(found.get(key, -1.0), row[name]["median"])
    for row in parts.get("conversations", {}).values():
        found["conversations_equal"] = row["equal"] / row["answer tokens"]
    for cache, row in parts.get("agreement", {}).items():
        for way in ("forced", "free"):
            found[f"{cache}_{way}"] = row[way] / row["answer tokens"]
    return found


def main() -> None:
    """Runs the parts; writes bench/results/engines.json."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engines", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--tokens", type=int, default=1500, help="of a prompt of first-token")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codecs", nargs="+", default=["balanced", "lossless"])
    parser.add_argument("--conversations", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=20, help="of agreement")
    parser.add_argument("--prompt-tokens", type=int, default=600)
    parser.add_argument("--after", type=int, default=0, help="so many conversations or prompts")
    parser.add_argument(
        "--answer", type=int, help=f"tokens of each answer: {ANSWER}, in agreement {LONG_ANSWER}"
    )
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not PYTHON:
        raise SystemExit("LEXICO_TEST_VLLM is not set: the Python of an environment with vLLM")
    if not options.no_gate:
        gate(*TESTS)
    model, parts = Path(model_folder(SMOLLM2)), earlier("engines", "vllm")
    run = {"first-token": first_token, "conversations": conversations, "agreement": agreement}
    if options.after and "first-token" in options.only:
        raise SystemExit("--after: first-token has no pieces")
    with nurseries(model, 2 if "conversations" in options.only else 1) as both:
        for part in options.only:
            came = run[part](both, model, options)
            if options.after:
                came = added(parts.get(part, {}), came, COUNTS[part])
            parts[part] = parts.get(part, {}) | came
            found = figures(parts)
            rows = judged(found, AT_MOST, AT_LEAST)
            print(table(rows))
            finish("engines", {**found, "goals": rows, "vllm": parts}, machine())


if __name__ == "__main__":
    main()
