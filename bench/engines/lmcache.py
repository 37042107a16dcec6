"""What LMCache's adapter adds to the calls of the service underneath, and how far answers agree.

    LEXICO_TEST_LMCACHE=PYTHON python -m bench.engines.lmcache [--only calls agreement]

PYTHON is that of the environment that has LMCache: `make test-lmcache` makes it. Codecs are
lossless, and preset balanced over the built-in set. LMCache makes the adapter, as its server would,
and has it look up, store, look up again and load objects of 256 tokens of SmolLM2's cache, float32,
out of LMCache's own memory and back into it.

- `adapter`: seconds of a look-up that finds and of a load, from when LMCache asks until it is told,
  over those of the client's calls underneath, less 1; of calls at the same time, from the first to
  the last. The worst codec counts.
- `store`: the same of a store.

`agreement` is of preset near, with LMCache's server and vLLM: see lmcache_agreement.py. What
`--only` leaves out keeps what engines_lmcache.json has of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, DynamicCache

from bench.engines import lmcache_agreement
from bench.engines.calls import CALLS, Span, read, seconds, underneath
from bench.engines.parts import earlier, flat, judged
from bench.fleet.rounds import spread
from bench.generate import texts
from examples.two_nodes.service import Service
from lexico_codec.hf_inputs import cache_inputs
from lexico_lab.models import SMOLLM2, load_model, model_folder
from lexico_lab.record import finish, gate, machine, table
from tests.support.lmcache_pairs import Pairs
from tests.support.lmcache_server import ENVIRONMENT, PYTHON
from tests.support.vllm_engine import ROOT, Nursery
from tests.support.vllm_service import engine_service
from tests.support.waiting import wait_until

OBJECTS: Final = 4
OBJECT_TOKENS: Final = 256
TESTS: Final = ("tests/unit/test_lmcache_*.py",)
AT_MOST: Final = {"adapter": 0.05, "store": 0.05}
AT_LEAST: Final = {"near_forced": 0.95, "near_free": 0.95}
FILE: Final = "engines_lmcache"
MEMORY_BYTES: Final = 2 << 30
SECONDS: Final = 600.0
LOCKS: Final = {"l1_read_ttl_seconds": 2 * SECONDS, "l1_write_ttl_seconds": 2 * SECONDS}

Row = dict[str, Any]


class Unexpected(Exception):
    """An answer of LMCache's that is no measurement."""


@contextmanager
def lmcache(calls: Path) -> Iterator[Any]:
    """LMCache's process; what is given asks it one thing.

    Raises:
        SystemExit: it failed; with its log.
    """
    path = ":".join(str(each) for each in (ROOT, ROOT / "proto", ROOT / "client"))
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, CALLS: str(calls)}
    log = calls.with_name("lmcache.log")
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [PYTHON, "-m", "tests.support.lmcache_driver", str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
            cwd=calls.parent,
        ) as process,
    ):
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def answer() -> Row:
            said = json.loads(answers.readline() or '{"error": "it ended"}')
            if "error" in said:
                raise SystemExit(f"LMCache: {said['error']}\n{log.read_text()[-4000:]}")
            return dict(said)

        def ask(do: str, **more: Any) -> Row:
            questions.write(json.dumps({"do": do, **more}) + "\n")
            questions.flush()
            return answer()

        answer()
        try:
            yield ask
        except Unexpected as error:
            raise SystemExit(f"{error}\n{log.read_text()[-4000:]}") from error
        questions.close()


def contents(folder: Path) -> tuple[Path, list[int]]:
    """A file with the objects of one prompt's cache by their numbers, and the shape of each:
    `[2, layers, tokens, kv_heads * head_dim]`, LMCache's layout keys-first.
    """
    loaded = load_model("smollm2")
    (ids,) = texts(loaded.tokenizer, 1, OBJECTS * OBJECT_TOKENS)
    cache = DynamicCache(config=loaded.model.config)
    with torch.inference_mode():
        loaded.model(torch.tensor([ids]), **cache_inputs(loaded.model, cache), logits_to_keep=1)
    sides = [[getattr(each, side)[0] for each in cache.layers] for side in ("keys", "values")]
    whole = torch.stack([torch.stack(side) for side in sides])  # side, layer, head, token, width
    whole = whole.transpose(2, 3).flatten(3)
    objects = torch.split(whole, OBJECT_TOKENS, dim=2)
    file = folder / "objects.safetensors"
    save_file({str(number): each.contiguous() for number, each in enumerate(objects)}, file)
    return file, list(objects[0].shape)


def measure(ask: Any, calls: Path, settings: Row, objects: Row, rounds: int) -> Row:
    """One codec's row; the first round warms up.

    Args:
        ask: LMCache's process.
        calls: the file that `lmcache_inside` writes.
        settings: of the adapter.
        objects: what every question says of them.
        rounds: each of other objects.

    Raises:
        Unexpected: an object was not stored, or did not come back.
    """
    adapter = {
        "type": "plugin",
        "module_path": "bench.engines.lmcache_inside",
        "class_name": "TimedL2Adapter",
        "adapter_params": {**settings, **LOCKS, "layout": "keys-first"},
    }
    ask("open", adapter=adapter)
    found = [_round(ask, calls, objects, number) for number in range(rounds + 1)][1:]
    ask("close")
    return {
        "codec": settings["codec"],
        "rounds": rounds,
        **{name: spread([each[name] for each in found]) for name in found[0]},
    }


def _round(ask: Any, calls: Path, objects: Row, number: int) -> dict[str, float]:
    chunks = list(range(number * OBJECTS, (number + 1) * OBJECTS))

    def timed(*names: str) -> dict[str, list[Span]]:
        """What was called since the last look, once all of these have been."""
        wait_until(lambda: read(calls).keys() >= set(names), f"{names} in {calls.name}")
        found = read(calls)
        calls.write_bytes(b"")
        return found

    calls.write_bytes(b"")
    if any(ask("find", chunks=chunks, **objects)["found"]):
        raise Unexpected("an object was there before it was stored")
    missed = timed("find", "match")
    if not ask("store", chunks=chunks, **objects)["stored"]:
        raise Unexpected("an object was not stored")
    put = timed("set", "offload")
    if not all(ask("find", chunks=chunks, **objects)["found"]):
        raise Unexpected("an object was not found")
    if not all(ask("load", chunks=chunks, **objects)["came"]):
        raise Unexpected("an object did not come")
    hit = timed("find", "match", "get", "load")
    match, load = underneath(hit["find"], hit["match"]), underneath(hit["get"], hit["load"])
    store = underneath(put["set"], put["offload"])
    return {
        "adapter": (seconds(hit["find"]) + seconds(hit["get"])) / (match + load) - 1,
        "store": seconds(put["set"]) / store - 1,
        "miss s": seconds(missed["find"]),
        "match s": match,
        "load s": load,
        "offload s": store,
    }


def calls(options: argparse.Namespace) -> Row:
    """Codec → its row."""
    described, rows = machine(), {}
    with tempfile.TemporaryDirectory() as scratch, Service() as service:
        file, shape = contents(Path(scratch))
        model = str(model_folder(SMOLLM2))
        objects = {"model": model, "contents": str(file), "shape": shape, "dtype": "float32"}
        waits = {f"{call}_seconds": SECONDS for call in ("match", "load", "offload")}
        addresses = {"reload": service.reload, "offload": service.offload, "model": model}
        seen = Path(scratch) / "calls.jsonl"
        for codec in ("lossless", "balanced"):
            settings = {**addresses, **waits, "codec": codec, "recent_tokens": 1}
            with lmcache(seen) as ask:
                row = measure(ask, seen, settings, objects, options.rounds)
            print(table([flat(row)]), flush=True)
            rows[codec] = {**row, "machine": described}
    return rows


def agreement(options: argparse.Namespace) -> Row:
    """Preset → its row."""
    described, model = machine(), Path(model_folder(SMOLLM2))
    prompts = texts(AutoTokenizer.from_pretrained(model), options.prompts, options.prompt_tokens)
    with tempfile.TemporaryDirectory() as scratch, engine_service() as service:

        def folder(name: str) -> Path:
            made = Path(scratch) / name
            made.mkdir(exist_ok=True)
            return made

        nursery = Nursery(folder("vllm") / "vllm.log", model, PYTHON)
        pairs = Pairs(nursery, folder)
        try:
            row = lmcache_agreement.measure(
                pairs, service.settings, "near", prompts, options.answer
            )
        finally:
            pairs.close()
            nursery.close()
    print(table([row]), flush=True)
    return {"near": {**row, "machine": described}}


def figures(parts: dict[str, Row]) -> dict[str, float]:
    """What documents show; of several codecs the worst."""
    found = {
        name: max(row[name]["median"] for row in parts["calls"].values())
        for name in AT_MOST
        if "calls" in parts
    }
    for cache, row in parts.get("agreement", {}).items():
        for way in ("forced", "free"):
            found[f"{cache}_{way}"] = row[way] / row["answer tokens"]
    return found


def main() -> None:
    """Runs the parts; writes bench/results/engines_lmcache.json."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engines.lmcache", description=(__doc__ or "").splitlines()[0]
    )
    run = {"calls": calls, "agreement": agreement}
    parser.add_argument("--only", nargs="+", choices=list(run), default=list(run), metavar="PART")
    parser.add_argument("--rounds", type=int, default=5, help="of calls")
    parser.add_argument("--prompts", type=int, default=20, help="of agreement")
    parser.add_argument("--prompt-tokens", type=int, default=600)
    parser.add_argument("--answer", type=int, default=16, help="tokens of each answer")
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not PYTHON:
        raise SystemExit("LEXICO_TEST_LMCACHE is not set: the Python of an environment with it")
    if not options.no_gate:
        gate(*TESTS)
    parts = earlier(FILE, "lmcache")
    for part in options.only:
        parts[part] = run[part](options)
        found = figures(parts)
        goals = judged(found, AT_MOST, AT_LEAST)
        print(table(goals))
        finish(FILE, {**found, "goals": goals, "lmcache": parts}, machine())


if __name__ == "__main__":
    main()
