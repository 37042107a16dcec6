"""What caches that grow in place save after a reload, and how far a session's answers agree
with those of no service: SmolLM2 on this machine's CPU.

    python -m bench.generate [--only forward] [--tokens 1500] [--rounds 7] [--prompts 20]

First forward: a prefix of all but 64 tokens is in memory, as a load leaves it. One side is a
`DynamicCache` of these tensors, as it was before there was room behind them; the other has room.
The ratio is of the time of the forward pass over the last 64 tokens, and of its memory beyond what
was there, the model's own scratch memory among it. Both give the same bits, which is checked.
Seconds of the processors are counted beside those of the clock: a busy machine scatters them less.
Results are in `generate_forward.json`.

Agreement: greedy answers of a session that reloads, against the model's own `generate`, token by
token. An answer that departs once counts as other from there on, even where it says the same.
Results are in `generate_agreement.json`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from lexico_client import Client, InMemoryTransport, Timeouts
from lexico_client.engines.hf._prefix import roomy_cache
from lexico_client.engines.hf._room_layer import Room
from lexico_client.hf import HuggingFaceCache, Session
from lexico_codec.hf_inputs import cache_inputs
from lexico_lab.models import load_model
from lexico_lab.record import ROOT, finish, gate, machine, table

REST: Final = 64
TESTS: Final = {
    "forward": "tests/unit/test_hf_room_layer.py",
    "agreement": "tests/unit/test_hf_session.py",
}
PATIENT: Final = Timeouts(match=600, load=600, idle=600, offload=600, dictionaries=600)


def texts(tokenizer: Any, count: int, tokens: int) -> list[list[int]]:
    """Prompts of the project's documentation, none of which begins as another does.

    Raises:
        SystemExit: it is too short for so many.
    """
    whole = "\n\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    ids = tokenizer(whole).input_ids
    if len(ids) < count * tokens:
        raise SystemExit(f"the documentation has {len(ids)} tokens: fewer than asked for")
    return [ids[at * tokens : (at + 1) * tokens] for at in range(count)]


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that the process held at the most while it worked, beyond what it held before.

    Raises:
        SystemExit: this system does not tell.
    """

    def held(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is not held any more
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except (OSError, AttributeError) as error:
        raise SystemExit(f"the peak of memory cannot be told here: {error}") from error
    before = held("VmRSS")
    work()
    return held("VmHWM") - before


class FirstForward:
    """The forward pass after a reload, on either kind of cache."""

    def __init__(self, model: Any, ids: list[int]) -> None:
        self._model = model
        self._rest = torch.tensor([ids[-REST:]])
        cache = DynamicCache(config=model.config)
        model(torch.tensor([ids[:-REST]]), **cache_inputs(model, cache), logits_to_keep=1)
        layers: list[Any] = cache.layers
        self._prefix = torch.stack([torch.stack([each.keys, each.values]) for each in layers])

    def cache(self, room: int) -> DynamicCache:
        """A cache in memory of its own, with so much room behind the prefix; 0 for a `DynamicCache`
        of tensors that end there."""
        tokens = self._prefix.shape[4]
        shape = (*self._prefix.shape[:4], tokens + room, self._prefix.shape[5])
        memory = torch.empty(shape)
        memory[..., :tokens, :] = self._prefix
        config = self._model.config
        cache = roomy_cache(config) if room else DynamicCache(config=config)
        layers: list[Any] = cache.layers
        for layer, (keys, values) in zip(layers, memory, strict=True):
            if room:
                layer.move_in(Room(keys, values, tokens))
            else:
                layer.lazy_initialization(keys, values)
                layer.keys, layer.values = keys, values
        return cache

    def run(self, cache: DynamicCache) -> Tensor:
        """Logits of the last token."""
        logits: Tensor = self._model(
            self._rest, **cache_inputs(self._model, cache), logits_to_keep=1
        ).logits
        return logits

    def step(self, cache: DynamicCache) -> Tensor:
        """One token more."""
        logits: Tensor = self._model(
            self._rest[:, :1], **cache_inputs(self._model, cache), logits_to_keep=1
        ).logits
        return logits


@torch.inference_mode()
def forwards(model: Any, ids: list[int], rounds: int, steps: int) -> dict[str, Any]:
    """Interleaved rounds of both kinds of cache.

    Raises:
        SystemExit: their logits differ.
    """
    first = FirstForward(model, ids)
    sides = {"joined": 0, "in place": REST + 256}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    stepped: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, list[int]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        logits = []
        for name in list(sides)[:: -1 if number % 2 else 1]:
            cache, peak = first.cache(sides[name]), first.cache(sides[name])
            held = peak_of(lambda cache=peak: first.run(cache))  # type: ignore[misc]
            del peak
            began, used = time.perf_counter(), time.process_time()
            logits.append(first.run(cache))
            ended, used = time.perf_counter(), time.process_time() - used
            for _ in range(steps):
                first.step(cache)
            last = time.perf_counter()
            if number:
                seconds[name].append(ended - began)
                stepped[name].append((last - ended) / steps)
                processor[name].append(used)
                peaks[name].append(held)
        if not torch.equal(*logits):
            raise SystemExit("the two kinds of cache give other logits: nothing was measured")
    ratios = {
        name: statistics.median(
            b / a for a, b in zip(each["joined"], each["in place"], strict=True)
        )
        for name, each in (("time", seconds), ("processor", processor), ("step", stepped))
    }
    megabytes = {name: statistics.median(each) / 1e6 for name, each in peaks.items()}
    return {
        "prefix tokens": len(ids) - REST,
        "prefix MB": first._prefix.nbytes / 1e6,
        "joined s": statistics.median(seconds["joined"]),
        "in place s": statistics.median(seconds["in place"]),
        "time": ratios["time"],
        "processor time": ratios["processor"],
        "step time": ratios["step"],
        "joined MB": megabytes["joined"],
        "in place MB": megabytes["in place"],
        "memory": megabytes["in place"] / megabytes["joined"],
    }


def greedy(new: int) -> dict[str, Any]:
    """Settings of `generate` for answers of at most so many tokens."""
    return {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}


@torch.inference_mode()
def answers(model: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
    """The model's own answers."""
    made = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy(new))
        made.append(out[0, len(prompt) :].tolist())
    return made


@torch.inference_mode()
def agreement(
    model: Any, prompts: list[list[int]], expected: list[list[int]], new: int, codec: str
) -> dict[str, Any]:
    """How many tokens of a session's answers are those of the model's own `generate`.

    Raises:
        SystemExit: a prompt was not reloaded.
    """
    same, whole, tokens, reloaded = 0, 0, 0, 0
    with (
        tempfile.TemporaryDirectory() as folder,
        Client(transport=InMemoryTransport(), dictionaries_dir=folder, timeouts=PATIENT) as client,
        Session(HuggingFaceCache(client, model, codec=codec)) as session,
    ):
        for prompt, theirs in zip(prompts, expected, strict=True):
            ids = torch.tensor([prompt])
            session.generate(ids, **greedy(1)).report.offloads()
            got = session.generate(ids, **greedy(new), offload=False)
            if not got.report.reloaded_tokens:
                raise SystemExit(f"a prompt was not reloaded: {got.report}")
            reloaded += got.report.reloaded_tokens
            ours: list[int] = got.answers[0].tolist()
            length = max(len(theirs), len(ours))
            equal = sum(a == b for a, b in zip(theirs, ours, strict=False))
            same, tokens, whole = same + equal, tokens + length, whole + (theirs == ours)
    return {
        "codec": codec,
        "prompts": len(prompts),
        "prompt tokens": len(prompts[0]),
        "reloaded": reloaded // len(prompts),
        "answer tokens": tokens,
        "agree": same / tokens,
        "whole answers": whole,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--prompt-tokens", type=int, default=600)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--codecs", nargs="+", default=["lossless", "near", "balanced"])
    parser.add_argument("--only", choices=TESTS, help="one of both")
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    chosen = [options.only] if options.only else list(TESTS)
    if not options.no_gate:
        gate(*(TESTS[part] for part in chosen))
    described = machine()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded = load_model("smollm2")
    common = {"threads": torch.get_num_threads()}
    if "forward" in chosen:
        (prompt,) = texts(loaded.tokenizer, 1, options.tokens)
        forward = forwards(loaded.model, prompt, options.rounds, options.steps)
        print(table([forward]))
        result = {
            "time": forward["time"],
            "processor_time": forward["processor time"],
            "memory": forward["memory"],
            "step_time": forward["step time"],
            "rounds": options.rounds,
            "rows": [forward],
        }
        finish("generate_forward", result | common, described)
    if "agreement" in chosen:
        prompts = texts(loaded.tokenizer, options.prompts, options.prompt_tokens)
        expected = answers(loaded.model, prompts, options.new_tokens)
        rows = [
            agreement(loaded.model, prompts, expected, options.new_tokens, codec)
            for codec in options.codecs
        ]
        print(table(rows))
        result = {row["codec"]: row["agree"] for row in rows} | {"rows": rows}
        finish("generate_agreement", result | common, described)


if __name__ == "__main__":
    main()
