"""What sharing costs and saves in SGLang on this machine's CPU.

    LEXICO_TEST_SGLANG=PYTHON python -m bench.engines.sglang [--only first-token agreement]
        [--stored-keys SET]

PYTHON is that of the environment that has SGLang: `make test-sglang` makes it. The model is SmolLM2
in float32. SET is one for pages of unknown position: `lexico train --codec lexico-residual
--keys-as-stored --model smollm2`. Without it all pages are lossless, and the parts measure that
alone. sglang_first_token.py and sglang_agreement.py of this folder say what the parts measure.
What `--only` leaves out keeps what engines.json has of it, with its machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer

from bench.engines import sglang_agreement, sglang_first_token
from bench.engines.results import earlier, write
from bench.engines.sglang_calls import CALLS
from bench.generate import texts
from examples.two_nodes.service import Service
from lexico_codec.sets.dictionary import DictionarySet
from lexico_lab.models import SMOLLM2, model_folder
from lexico_lab.record import gate, machine, table
from tests.support.sglang_engine import PYTHON, Nursery
from tests.support.vllm_service import engine_service

PARTS: Final = ("first-token", "agreement")
TESTS: Final = ("tests/unit/test_sglang_*.py",)
ADAPTER: Final = 0.05
"""What the adapter may add to the calls of the service underneath."""
AGREES: Final = 0.95


@contextmanager
def nursery(model: Path, calls: Path) -> Iterator[Nursery]:
    """The process that SGLang engines are started in."""
    os.environ[CALLS] = str(calls)
    made = Nursery(calls.with_name("sglang.log"), model)
    try:
        yield made
    finally:
        made.close()


def coded(options: argparse.Namespace, lossy: str) -> dict[str, dict[str, Any]]:
    """Codec → what else is set for it; a lossy one if there is a set for it."""
    found: dict[str, dict[str, Any]] = {"lossless": {}}
    if options.stored_keys is not None:
        found[lossy] = {"dictionary": str(options.stored_keys.resolve())}
    return found


def first_token(
    made: Nursery, calls: Path, model: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Codec → its row."""
    codecs, rows = coded(options, "balanced"), {}
    count = options.rounds + 1
    prompts = texts(AutoTokenizer.from_pretrained(model), len(codecs) * count, options.tokens)
    with Service() as service:
        addresses = {"reload": service.reload, "offload": service.offload}
        for number, (codec, more) in enumerate(codecs.items()):
            own = prompts[number * count : (number + 1) * count]
            settings, described = {**addresses, "codec": codec, **more}, machine()
            row = sglang_first_token.measure(made, calls, settings, own, options.answer)
            print(table([_flat(row)]), flush=True)
            rows[codec] = {**row, "machine": described}
    return rows


def agreement(
    made: Nursery, calls: Path, model: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Codec, or the engine's own cache → its row."""
    prompts = texts(AutoTokenizer.from_pretrained(model), options.prompts, options.prompt_tokens)
    codecs, described = coded(options, "near"), machine()
    with engine_service() as service:
        rows = sglang_agreement.measure(made, service.settings, codecs, prompts, options.answer)
    print(table(rows), flush=True)
    trained = _trained(options.stored_keys)
    return {row["cache"]: {**row, "set": trained, "machine": described} for row in rows}


def figures(parts: dict[str, Any]) -> dict[str, float]:
    """What documents show; of several codecs the worst."""
    found: dict[str, float] = {}
    for codec, row in parts.get("first-token", {}).items():
        found[f"sglang_reload_{codec}"] = row["reload"]["median"]
        for name in ("miss", "adapter", "store ratio"):
            key = f"sglang_{name.replace(' ', '_')}"
            found[key] = max(found.get(key, -1.0), row[name]["median"])
    for cache, row in parts.get("agreement", {}).items():
        found |= {f"sglang_{cache}_{how}": row[how] for how in ("forced", "free")}
    return found


def judged(found: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each figure that has a goal."""
    rows = []
    for name, goal, most in (
        ("sglang_adapter", ADAPTER, True),
        ("sglang_near_forced", AGREES, False),
        ("sglang_near_free", AGREES, False),
    ):
        if name in found:
            met = found[name] <= goal if most else found[name] >= goal
            asked = f"{'<=' if most else '>='} {goal:g}"
            rows.append({"figure": name, "measured": found[name], "goal": asked, "met": met})
    return rows


def _trained(file: Path | None) -> str | None:
    """The command that made a set."""
    if file is None:
        return None
    return DictionarySet.load(file).info.command


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Of spreads the median."""
    return {name: v["median"] if isinstance(v, dict) else v for name, v in row.items()}


def main() -> None:
    """Runs the parts; writes bench/results/engines.json."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engines.sglang", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--stored-keys", type=Path, metavar="SET")
    parser.add_argument("--tokens", type=int, default=1500, help="of a prompt of first-token")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=20, help="of agreement")
    parser.add_argument("--prompt-tokens", type=int, default=600)
    parser.add_argument("--answer", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not PYTHON:
        raise SystemExit("LEXICO_TEST_SGLANG is not set: the Python of an environment with SGLang")
    if not options.no_gate:
        gate(*TESTS)
    model, parts = Path(model_folder(SMOLLM2)), earlier("sglang")
    run = {"first-token": first_token, "agreement": agreement}
    with tempfile.TemporaryDirectory() as folder:
        calls = Path(folder) / "calls.jsonl"
        with nursery(model, calls) as made:
            for part in options.only:
                parts[part] = parts.get(part, {}) | run[part](made, calls, model, options)
                found = figures(parts)
                rows = judged(found)
                print(table(rows))
                write("sglang", parts, found, rows)


if __name__ == "__main__":
    main()
