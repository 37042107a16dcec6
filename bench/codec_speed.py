"""What lexico-residual costs on the CPU, against prefilling and against the paper's code.

    python -m bench.codec_speed [--rounds 7] [--page-tokens 64]

SmolLM2-135M, a prefix of 704 tokens in whole pages, float16, through real frames. In each round
every side runs once, in turns. `decode_vs_prefill` is the time the model takes to prefill the
tokens over the time that their pages take to decode; `encode_vs_paper_s8` is the time that encoding
takes over that of codec lexico with s = 8. Both are medians over rounds, the worse of one thread
and all, for preset balanced; the rows have the other presets too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.sets.transform import QUALITIES
from lexico_lab.caches import cache_of, forward, states_of
from lexico_lab.evaluation.ways import Way, way_of
from lexico_lab.models import LoadedModel, load_model, quiet
from lexico_lab.record import finish, gate, machine, table
from lexico_lab.studies.ours import PAPER_SET, RESIDUAL_SET
from lexico_lab.studies.texts import DATA, windows

TOKENS: Final = 704
PAPER: Final = "lexico s=8"
HEADLINE: Final = "balanced"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--page-tokens", type=int, default=64)
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/contract/test_codec_residual*.py", "tests/kernels/test_*entropy*.py")
    described = machine()
    quiet()
    loaded = load_model("smollm2")
    ids, geometry, exact = prefix_of(loaded)
    residual, paper = load_builtin(RESIDUAL_SET), load_builtin(PAPER_SET)
    page, codec = options.page_tokens, "lexico-residual"
    ways = [way_of(q, codec, {"quality": q}, geometry, page, residual) for q in QUALITIES]
    ways.append(way_of(PAPER, "lexico", {"sparsity": 8}, geometry, page, paper))

    def prefill() -> None:
        forward(loaded.model, ids, cache_of(), 1)

    rows: list[dict[str, Any]] = []
    every = len(os.sched_getaffinity(0))
    for threads in sorted({1, every}):
        torch.set_num_threads(threads)
        sides: dict[str, Callable[[], object]] = {"prefill": prefill}
        for way in ways:
            out = torch.empty_like(exact)
            frames = encode_pages(way, ids, exact)
            sides[f"encode {way.name}"] = partial(encode_pages, way, ids, exact)
            sides[f"decode {way.name}"] = partial(decode_pages, way, ids, frames, out)
        times = _rounds(sides, options.rounds)
        for name in (way.name for way in ways):
            rows.append(
                {
                    "threads": threads,
                    "codec": name,
                    "decode_vs_prefill": _ratio(times["prefill"], times[f"decode {name}"]),
                    "encode_vs_prefill": _ratio(times[f"encode {name}"], times["prefill"]),
                    "encode_vs_paper_s8": _ratio(times[f"encode {name}"], times[f"encode {PAPER}"]),
                }
            )
    print(table(rows))
    mine = [row for row in rows if row["codec"] == HEADLINE]
    finish(
        "codec_speed",
        {
            "decode_vs_prefill": min(row["decode_vs_prefill"] for row in mine),
            "encode_vs_paper_s8": max(row["encode_vs_paper_s8"] for row in mine),
            "rows": rows,
        },
        described,
    )


def prefix_of(loaded: LoadedModel) -> tuple[list[int], Geometry, Tensor]:
    """Token ids, what caches are, and that of the tokens: `[layers, 2, tokens, heads, dim]`."""
    ids = list(windows(loaded.tokenizer, DATA / "wikitext2" / "test.raw.txt", 3)[1][:TOKENS])
    cache = cache_of()
    forward(loaded.model, ids, cache, 1)
    exact = states_of(cache).transpose(2, 3).half().contiguous()
    return ids, geometry_of(loaded.model.config, torch.float16), exact


def encode_pages(way: Way, ids: list[int], exact: Tensor) -> list[Any]:
    """The frames of all pages."""
    spec, frames = way.spec, []
    for page, key in enumerate(page_keys(spec, ids)):
        tokens = slice(page * spec.page_tokens, (page + 1) * spec.page_tokens)
        for group in range(spec.groups):
            layers = spec.group_range(group)
            part = exact[layers.start : layers.stop, :, tokens].contiguous()
            frames.append(encode_group(spec, key, page, group, part, way.dictionary))
    return frames


def decode_pages(way: Way, ids: list[int], frames: list[Any], out: Tensor) -> None:
    """Fills `out` from the frames of all pages."""
    spec, waiting = way.spec, iter(frames)
    for page, key in enumerate(page_keys(spec, ids)):
        tokens = slice(page * spec.page_tokens, (page + 1) * spec.page_tokens)
        for group in range(spec.groups):
            layers = spec.group_range(group)
            part = out[layers.start : layers.stop, :, tokens]
            decode_group(spec, key, page, group, next(waiting), part, way.dictionary)


def _rounds(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for run in range(rounds + 1):  # the first warms up
        for name in names if run % 2 else reversed(names):
            start = time.perf_counter()
            sides[name]()
            if run:
                times[name].append(time.perf_counter() - start)
    return times


def _ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()
