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
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import torch
import transformers
from transformers import DynamicCache

from bench.fidelity import DATA, texts_of
from bench.report import finish, gate, machine, table
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.spec import CacheSpec, make_spec
from lexico_lab.models import load_model

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
        gate("tests/contract/test_codec_residual.py", "tests/kernels/test_entropy.py")
    described = machine()
    transformers.utils.logging.disable_progress_bar()
    loaded = load_model("smollm2")
    ids = texts_of(loaded.tokenizer, DATA / "wikitext2" / "test.raw.txt", 3)[1][:TOKENS]
    geometry = geometry_of(loaded.model.config, torch.float16)
    specs = {}
    for name, codec, config, built_in in (
        *(
            (q, "lexico-residual", {"quality": q}, "smollm2-135m-residual")
            for q in ("near", "balanced", "small")
        ),
        (PAPER, "lexico", {"sparsity": 8}, "smollm2-135m"),
    ):
        dictionary = load_builtin(built_in)
        specs[name] = (
            make_spec(
                weights=bytes(32),
                geometry=geometry,
                codec=codec,
                codec_config=json.dumps(config),
                dictionary=dictionary.digest,
                page_tokens=options.page_tokens,
            ),
            dictionary,
        )
    cache = DynamicCache()
    with torch.inference_mode():
        loaded.model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1)
    layers: Any = cache.layers
    exact = torch.stack([torch.stack((la.keys[0], la.values[0])) for la in layers])
    exact = exact.transpose(2, 3).half().contiguous()  # [layers, 2, tokens, heads, dim]

    @torch.inference_mode()
    def prefill() -> None:
        loaded.model(torch.tensor([ids]), past_key_values=DynamicCache(), logits_to_keep=1)

    rows = []
    every = len(os.sched_getaffinity(0))
    for threads in sorted({1, every}):
        torch.set_num_threads(threads)
        sides: dict[str, Callable[[], object]] = {"prefill": prefill}
        for name, (spec, dictionary) in specs.items():
            frames = _encode(spec, dictionary, ids, exact)
            out = torch.empty_like(exact)
            sides[f"encode {name}"] = lambda s=spec, d=dictionary: _encode(s, d, ids, exact)
            sides[f"decode {name}"] = lambda s=spec, d=dictionary, f=frames, o=out: _decode(
                s, d, ids, f, o
            )
        times = _rounds(sides, options.rounds)
        for name in specs:
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


def _encode(spec: CacheSpec, dictionary: Any, ids: list[int], exact: torch.Tensor) -> list[Any]:
    frames = []
    for page, key in enumerate(page_keys(spec, ids)):
        tokens = slice(page * spec.page_tokens, (page + 1) * spec.page_tokens)
        for group in range(spec.groups):
            layers = spec.group_range(group)
            part = exact[layers.start : layers.stop, :, tokens].contiguous()
            frames.append(encode_group(spec, key, page, group, part, dictionary))
    return frames


def _decode(
    spec: CacheSpec, dictionary: Any, ids: list[int], frames: list[Any], out: torch.Tensor
) -> None:
    waiting = iter(frames)
    for page, key in enumerate(page_keys(spec, ids)):
        tokens = slice(page * spec.page_tokens, (page + 1) * spec.page_tokens)
        for group in range(spec.groups):
            layers = spec.group_range(group)
            part = out[layers.start : layers.stop, :, tokens]
            decode_group(spec, key, page, group, next(waiting), part, dictionary)


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
