"""What sharing costs and saves in SGLang on this machine's CPU, figures beside their goals.

    LEXICO_TEST_SGLANG=PYTHON python -m bench.engines.sglang [--only first-token agreement]
    python -m bench.engines.sglang --only agreement --after 5 --prompts 5

PYTHON is that of the environment that has SGLang: `make test-sglang` makes it. The model is SmolLM2
in float32, each codec over the built-in set. sglang_first_token.py and sglang_agreement.py of this
folder say what the parts measure.
What `--only` leaves out keeps what engines_sglang.json has of it, with its machine. With `--after
N` prompts of agreement are the ones behind the first N, and are added to those in the file.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from bench.engines import sglang_agreement, sglang_first_token
from bench.engines.calls import CALLS
from bench.engines.parts import AGREED, added, earlier, flat, judged
from bench.generate import texts
from examples.two_nodes.service import Service
from lexico_lab.models import SMOLLM2, model_folder
from lexico_lab.record import finish, gate, machine, table
from tests.support.sglang_engine import PYTHON, Nursery
from tests.support.vllm_service import engine_service

FILE: Final = "engines_sglang"
PARTS: Final = ("first-token", "agreement")
TESTS: Final = ("tests/unit/test_sglang_*.py", "tests/unit/test_bench_sglang.py")
AT_MOST: Final = {
    "reload_lossless": 0.25,
    "reload_balanced": 0.25,
    "miss": 0.01,
    "adapter": 0.05,
}
AT_LEAST: Final = {"near_forced": 0.95, "near_free": 0.95}


@contextmanager
def nursery(model: Path, calls: Path) -> Iterator[Nursery]:
    """The process that SGLang engines are started in."""
    os.environ[CALLS] = str(calls)
    made = Nursery(calls.with_name("sglang.log"), model)
    try:
        yield made
    finally:
        made.close()


def first_token(
    made: Nursery, calls: Path, model: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Codec → its row."""
    codecs, rows = ("lossless", "balanced"), {}
    count = options.rounds + 1
    prompts = texts(AutoTokenizer.from_pretrained(model), len(codecs) * count, options.tokens)
    with Service() as service:
        addresses = {"reload": service.reload, "offload": service.offload}
        for number, codec in enumerate(codecs):
            own = prompts[number * count : (number + 1) * count]
            settings, described = {**addresses, "codec": codec}, machine()
            row = sglang_first_token.measure(made, calls, settings, own, options.answer)
            print(table([flat(row)]), flush=True)
            rows[codec] = {**row, "machine": described}
    return rows


def agreement(
    made: Nursery, calls: Path, model: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Codec, or the engine's own cache → its row."""
    count = options.after + options.prompts
    prompts = texts(AutoTokenizer.from_pretrained(model), count, options.prompt_tokens)
    codecs, described = ("lossless", "near"), machine()
    with engine_service() as service:
        rows = sglang_agreement.measure(
            made, service.settings, codecs, prompts[options.after :], options.answer
        )
    print(table(rows), flush=True)
    return {row["cache"]: {**row, "machine": described} for row in rows}


def figures(parts: dict[str, Any]) -> dict[str, float]:
    """What documents show; of several codecs the worst."""
    found: dict[str, float] = {}
    for codec, row in parts.get("first-token", {}).items():
        found[f"reload_{codec}"] = row["reload"]["median"]
        found["own"] = min(found.get("own", math.inf), row["own"]["median"])
        for name in ("beside own", "miss", "adapter", "store ratio"):
            key = name.replace(" ", "_")
            found[key] = max(found.get(key, -1.0), row[name]["median"])
    for cache, row in parts.get("agreement", {}).items():
        for way in ("forced", "free"):
            found[f"{cache}_{way}"] = row[way] / row["answer tokens"]
    return found


def main() -> None:
    """Runs the parts; writes bench/results/engines_sglang.json."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engines.sglang", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--tokens", type=int, default=1500, help="of a prompt of first-token")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=20, help="of agreement")
    parser.add_argument("--prompt-tokens", type=int, default=600)
    parser.add_argument("--after", type=int, default=0, help="so many prompts of agreement")
    parser.add_argument("--answer", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not PYTHON:
        raise SystemExit("LEXICO_TEST_SGLANG is not set: the Python of an environment with SGLang")
    if options.after and "first-token" in options.only:
        raise SystemExit("--after: first-token has no pieces")
    if not options.no_gate:
        gate(*TESTS)
    model, parts = Path(model_folder(SMOLLM2)), earlier(FILE, "sglang")
    run = {"first-token": first_token, "agreement": agreement}
    with tempfile.TemporaryDirectory() as folder:
        calls = Path(folder) / "calls.jsonl"
        with nursery(model, calls) as made:
            for part in options.only:
                came = run[part](made, calls, model, options)
                if options.after:
                    came = added(parts.get(part, {}), came, AGREED)
                parts[part] = parts.get(part, {}) | came
                found = figures(parts)
                rows = judged(found, AT_MOST, AT_LEAST)
                if rows:
                    print(table(rows))
                finish(FILE, {**found, "goals": rows, "sglang": parts}, machine())


if __name__ == "__main__":
    main()
