"""What it costs to code pages whose position is not known: bytes at equal KL, beside the usual.

    python -m lexico_lab.studies.unknown_positions [--data FOLDER] [--texts 6]
        [--sets gsm8k wikitext2] [--state FOLDER]

SmolLM2-135M, codec lexico-residual and the built-in set, which codes keys before RoPE. `given` is
the usual: pages at their positions. `found` are the same pages, each a sequence of its own, whose
position the codec finds from their keys. All but the newest 32 of 544 tokens are stored in pages of
64, and 128 are predicted. `far` takes the text to begin at position 5000: its keys are turned so
much further before they are coded, and back afterwards. Where positions are found, no page knows
whether it has the first tokens, so that those are stored exactly that look like attention sinks;
`given, sinks found` does that to the usual. Steps are those of the set's qualities and one between;
bytes are interpolated. `encoding` is how many times as long it takes to encode a page whose
position is found. What is measured is kept in the state folder, text by text: a stopped run goes
on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lexico_codec.codecs import ResidualCodec
from lexico_codec.codecs.codec import Place
from lexico_codec.geometry import Geometry
from lexico_codec.rope import rotate
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.sets.choose import at_hand
from lexico_codec.sets.dictionary import TransformSet
from lexico_lab.evaluation.curves import curve, fraction_at
from lexico_lab.evaluation.fidelity import compare, predicted, through_frames
from lexico_lab.evaluation.prefixes import cut, exact_text
from lexico_lab.evaluation.settings import Split
from lexico_lab.evaluation.ways import Way, way_of
from lexico_lab.machine import threads
from lexico_lab.models import load_model, quiet
from lexico_lab.record import finish, gate, machine, table
from lexico_lab.studies.ours import RESIDUAL_SET, stored_geometry
from lexico_lab.studies.texts import DATA, text_of

SPLIT: Final = Split(prefix=544, recent_tokens=32, continuation=128, turns=0)
FAR: Final = 5000
KLS: Final = (0.02, 0.035, 0.05)
CODEC: Final = "lexico-residual"
GIVEN: Final = "given"
FOUND: Final = {"positions": "found", "sinks": 0}

Figures = dict[str, float]


@dataclass(frozen=True)
class Curve:
    """One way to code pages, at several steps."""

    name: str
    dictionary: TransformSet
    config: Mapping[str, Any]
    first: int = 0
    """Position at which the text is taken to begin."""

    def ways(self, geometry: Geometry) -> Iterator[Way]:
        """From the finest step to the coarsest."""
        near, balanced, small = self.dictionary.transform.steps.values()
        for step in (near, balanced, 2 * balanced, small):
            config = {**self.config, "step": step}
            name = f"{self.name} step={step:.4g}"
            yield way_of(name, CODEC, config, geometry, SPLIT.page_tokens, self.dictionary)


def curves(dictionary: TransformSet) -> Iterator[Curve]:
    """All that is compared."""
    yield Curve(GIVEN, dictionary, {})
    yield Curve("found", dictionary, FOUND)
    yield Curve("found, far", dictionary, FOUND, FAR)
    yield Curve("given, sinks found", dictionary, {"sinks": 0})


@torch.inference_mode()
def measure(model: Any, ids: Sequence[int], every: Sequence[Curve]) -> dict[str, Figures]:
    """Bytes and KL of one text, by the way's name; of codec lossless bytes alone."""
    geometry = stored_geometry(model)
    exact = exact_text(model, ids, SPLIT)
    found: dict[str, Figures] = {}
    for one in every:
        turned = replace(exact, states=_moved(exact.states, one.first, geometry))
        for way in one.ways(geometry):
            made, shelf = through_frames(turned, way, SPLIT.coded)
            made = _moved(made, -one.first, geometry)
            judged = compare(exact, predicted(model, exact, made), shelf.size)
            found[way.name] = {"bytes": judged["bytes"], "kl": judged["kl"]}
    for name, by in (("lossless", 0), ("lossless, far", FAR)):
        way = way_of(name, "lossless", {}, geometry, SPLIT.page_tokens)
        turned = replace(exact, states=_moved(exact.states, by, geometry).half().float())
        made, shelf = through_frames(turned, way, SPLIT.coded)
        if not torch.equal(made, turned.states):
            raise SystemExit(f"{name}: other bits came back")
        found[name] = {"bytes": shelf.size, "kl": 0.0}
    return found


def summary(texts: Sequence[dict[str, Figures]], every: Sequence[Curve], token_bytes: int) -> Any:
    """Points, bytes at equal KL, and these over those of given positions."""
    points: list[dict[str, Any]] = []
    at: dict[str, dict[str, float | None]] = {}
    for one in every:
        mine = []
        for name in (name for name in texts[0] if name.startswith(f"{one.name} step=")):
            kls = [text[name]["kl"] for text in texts]
            size = statistics.mean(text[name]["bytes"] for text in texts)
            fraction = size / (SPLIT.coded * token_bytes)
            error = statistics.stdev(kls) / len(kls) ** 0.5 if len(kls) > 1 else None
            point = {"fraction": fraction, "kl": statistics.mean(kls), "kl_standard_error": error}
            points.append({"name": name, **point})
            mine.append((fraction, statistics.mean(kls)))
        at[one.name] = {str(kl): fraction_at(curve(mine), kl) for kl in KLS}
    price = {
        name: {
            kl: None if mine is None or given is None else mine / given
            for (kl, mine), given in zip(found.items(), at[GIVEN].values(), strict=True)
        }
        for name, found in at.items()
        if name != GIVEN
    }
    whole = SPLIT.coded * token_bytes
    lossless = {
        name: statistics.mean(text[name]["bytes"] for text in texts) / whole
        for name in ("lossless", "lossless, far")
    }
    return {"points": points, "fraction_at_kl": at, "price": price, "lossless": lossless}


@torch.inference_mode()
def longer(model: Any, ids: Sequence[int], dictionary: TransformSet) -> float:
    """Processor time to encode a page where its position is found, over that where it is given:
    the median of pages of one text, each coded both ways in turn. Preset balanced."""
    geometry = stored_geometry(model)
    exact = exact_text(model, ids, SPLIT)
    rows = exact.states.transpose(2, 3).to(geometry.torch_dtype)
    given, ratios = ResidualCodec(), list[float]()
    for first in 2 * [*range(0, SPLIT.coded, SPLIT.page_tokens)]:
        page = rows[:, :, first : first + SPLIT.page_tokens].contiguous()
        taken = []
        for codec in (given, given.without_positions()):
            began = time.thread_time()
            codec.encode(page, Place(0, first, geometry.rope), dictionary)
            taken.append(time.thread_time() - began)
        ratios.append(taken[1] / taken[0])
    return statistics.median(ratios)


def main() -> None:
    """Runs the study and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--sets", nargs="+", default=["gsm8k", "wikitext2"])
    parser.add_argument("--state", type=Path, default=Path(".cache/unknown_positions"))
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/unit/test_found_positions.py")
    described = machine()
    torch.set_num_threads(threads())
    quiet()
    dictionary = at_hand(ResidualCodec(), load_builtin(RESIDUAL_SET), TransformSet)
    every = tuple(curves(dictionary))
    loaded = load_model("smollm2")
    options.state.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    for name in options.sets:
        windows = cut(
            name,
            text_of(options.data, name),
            loaded.tokenizer,
            replace(SPLIT, texts=options.texts),
            whole=True,
        ).texts
        texts = []
        for ids in windows:
            what = repr((ids, dictionary.digest)).encode()
            named = hashlib.blake2b(what, digest_size=16).hexdigest()
            kept = options.state / f"{named}.json"
            if not kept.exists():
                kept.write_text(json.dumps(measure(loaded.model, ids, every)))
            texts.append(json.loads(kept.read_text()))
        found = summary(texts, every, stored_geometry(loaded.model).token_bytes)
        print(f"\n{name}\n{table(found['points'])}")
        print(json.dumps({"price": found["price"], "lossless": found["lossless"]}, indent=1))
        result[name] = found
    finish(
        "unknown_positions",
        {
            "texts": options.texts,
            "far": FAR,
            "set": dictionary.digest.hex(),
            "encoding": longer(loaded.model, windows[0], dictionary),
            "text_sets": result,
        },
        described,
    )


def _moved(states: Tensor, by: int, geometry: Geometry) -> Tensor:
    """`[layers, 2, kv_heads, tokens, head_dim]` as it would be `by` positions further back, or
    nearer where it is negative: RoPE is relative, so the attention over it would be the same.
    """
    if not by or geometry.rope is None:
        return states
    keys, rope = states[:, 0], replace(geometry.rope, scale=1.0)
    rows = keys.reshape(-1, 1, keys.shape[-1])
    turned = rotate(rows, torch.full((len(rows),), by), rope).view_as(keys)
    return torch.stack([turned, states[:, 1]], 1)


if __name__ == "__main__":
    main()
