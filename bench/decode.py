"""Where the time goes in which a page is decoded, against codec lossless, on the CPU.

    python -m bench.decode [--rounds 15]

Real pages of SmolLM2-135M, 64 tokens each, float16, through real frames. In each round every side
decodes all pages once, in turns. `balanced_vs_lossless` is the time of codec lossless over that of
preset balanced, a median over rounds, on one thread, on which codec lossless decodes always; the
rows have the other presets and all threads. Milliseconds are medians, a page: `streams` is entropy
decoding up to components in their places, `products` those with the set's matrices up to the
cache's memory, `rest` is all else: checks, header, exact tokens, calls.

What products cannot go below, by arithmetic alone: `multiply-adds`, millions a page, are those of
components that are not zero; `matrices` is what a page reads of them at least, in MiB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final
from unittest import mock

import torch
from torch import Tensor

from bench.codec_speed import decode_pages, encode_pages, prefix_of
from lexico_codec.kernels.synthesis import compiled
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.sets.dictionary import TransformSet
from lexico_codec.sets.transform import QUALITIES, Transform
from lexico_lab.evaluation.ways import way_of
from lexico_lab.models import load_model, quiet
from lexico_lab.record import finish, gate, machine, table
from lexico_lab.studies.ours import RESIDUAL_SET

PAGE: Final = 64
LOSSLESS: Final = "lossless"
_NONE: Final = {"multiply-adds": 0.0, "matrices": 0.0}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/kernels/test_restoring.py", "tests/kernels/test_synthesis.py")
    described, rows = machine(), list[dict[str, Any]]()
    quiet()
    ids, geometry, exact = prefix_of(load_model("smollm2"))
    residual, out = load_builtin(RESIDUAL_SET), torch.empty_like(exact)
    if not isinstance(residual, TransformSet):
        raise SystemExit(f"{RESIDUAL_SET} has no transform")
    ways = [way_of(LOSSLESS, LOSSLESS, {}, geometry, PAGE, None)]
    for quality in QUALITIES:
        given = {"quality": quality}
        ways.append(way_of(quality, "lexico-residual", given, geometry, PAGE, residual))
    frames = {way.name: encode_pages(way, ids, exact) for way in ways}
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        taken: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
        for run in range(options.rounds + 1):  # the first warms up
            for way in ways if run % 2 else reversed(ways):
                with _parts() as parts:
                    start = time.perf_counter()
                    decode_pages(way, ids, frames[way.name], out)
                    parts["all"] = time.perf_counter() - start
                if run:
                    taken[way.name].append(parts)
        for way in ways:
            decode = partial(decode_pages, way, ids, frames[way.name], out)
            work = _NONE if way.name == LOSSLESS else _work(residual.transform, decode)
            rows.append(_row(threads, way.name, taken, len(frames[way.name])) | work)
    print(table(rows))
    least = next(row for row in rows if row["threads"] == 1 and row["side"] == "balanced")
    finish("decode", {"balanced_vs_lossless": least["vs lossless"], "rows": rows}, described)


def _row(
    threads: int, name: str, taken: dict[str, list[dict[str, float]]], pages: int
) -> dict[str, Any]:
    def middle(part: str) -> float:
        return statistics.median(parts[part] for parts in taken[name]) / pages * 1e3

    ratios = [b["all"] / a["all"] for a, b in zip(taken[name], taken[LOSSLESS], strict=True)]
    whole, streams, products = middle("all"), middle("streams"), middle("products")
    return {
        "threads": threads,
        "side": name,
        "ms": whole,
        "streams": streams,
        "products": products,
        "rest": whole - streams - products,
        "vs lossless": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
    }


@contextmanager
def _parts() -> Iterator[dict[str, float]]:
    """Seconds in the two calls that most of decoding consists of."""
    parts = {"streams": 0.0, "products": 0.0}

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any) -> Any:
            start = time.perf_counter()
            made = call(*given)
            parts[part] += time.perf_counter() - start
            return made

        return counted

    with ExitStack() as stack:
        for name, part in (("arranged", "streams"), ("synthesise_into", "products")):
            call = timed(part, getattr(compiled, name))
            stack.enter_context(mock.patch.object(compiled, name, call))
        yield parts


def _work(transform: Transform, decode: Callable[[], None]) -> dict[str, float]:
    """What the products of a page cannot do without."""
    components, second = transform.order.shape[1], transform.selected.shape[1]
    width = transform.bases.shape[-1]
    found: list[float] = []
    usual = Transform.restored

    def seen(self: Transform, run: int, arranged: Tensor, *rest: Any) -> Tensor:
        direct = arranged[:components].clone()
        direct[self.selected[run]] = 0
        by_q = int((arranged[components:] != 0).sum()) * second
        found.append(by_q + (int((direct != 0).sum()) + second * arranged.shape[1]) * width)
        made: Tensor = usual(self, run, arranged, *rest)
        return made

    with (
        mock.patch.object(Transform, "restored", seen),
        mock.patch.object(Transform, "restores", return_value=False),
    ):
        decode()
    read = 2 * second * second + 4 * second * width
    return {"multiply-adds": statistics.mean(found) / 1e6, "matrices": read / 2**20}


if __name__ == "__main__":
    main()
