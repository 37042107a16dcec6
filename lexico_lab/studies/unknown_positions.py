"""What it costs to code pages whose position is not known: bytes at equal KL, beside the usual.

    python -m lexico_lab.studies.unknown_positions --usual FILE --stored FILE [--data FOLDER]
        [--texts 6] [--sets gsm8k wikitext2] [--state FOLDER]

SmolLM2-135M, codec lexico-residual. The sets are of one `lexico train` command, without and with
`--keys-as-stored`: the usual codes keys before RoPE, of pages at their positions; the other keys as
they are stored, each page a sequence of its own. All but the newest 32 of 544 tokens are stored in
pages of 64, and 128 are predicted. `far` takes the text to begin at position 5000: its keys are
turned so much further before they are coded, and back afterwards. `first exact` stores the first
four tokens of every page as they are, as codecs do with those of a sequence otherwise, in place of
those that look like attention sinks; `sinks found` does the latter to the usual. Steps are those of
the set's qualities and one between; bytes are interpolated. What is measured is kept in the state
folder, text by text: a stopped run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lexico_codec.geometry import Geometry
from lexico_codec.sets.dictionary import TransformSet
from lexico_lab.evaluation.curves import curve, fraction_at
from lexico_lab.evaluation.fidelity import compare, predicted, through_frames
from lexico_lab.evaluation.prefixes import cut, exact_text
from lexico_lab.evaluation.settings import Split
from lexico_lab.evaluation.ways import Way, way_of
from lexico_lab.machine import threads
from lexico_lab.models import load_model, quiet
from lexico_lab.record import finish, gate, machine, table
from lexico_lab.studies.ours import stored_geometry
from lexico_lab.studies.texts import DATA, text_of
from lexico_lab.training.stored_keys import moved

SPLIT: Final = Split(prefix=544, recent_tokens=32, continuation=128, turns=0)
FAR: Final = 5000
KLS: Final = (0.02, 0.035, 0.05)
CODEC: Final = "lexico-residual"
USUAL: Final = "usual"
_BUDGET: Final = ("corpus", "tokens", "joint", "atoms", "vectors", "calibrated")

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


def curves(usual: TransformSet, stored: TransformSet) -> Iterator[Curve]:
    """All that is compared."""
    yield Curve(USUAL, usual, {})
    yield Curve("stored", stored, {"sinks": 0})
    yield Curve("stored, far", stored, {"sinks": 0}, FAR)
    yield Curve("stored, first exact", stored, {})
    yield Curve("usual, sinks found", usual, {"sinks": 0})


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
        way = way_of(name, "lossless", {}, replace(geometry, rope=None), SPLIT.page_tokens)
        turned = replace(exact, states=_moved(exact.states, by, geometry).half().float())
        made, shelf = through_frames(turned, way, SPLIT.coded)
        if not torch.equal(made, turned.states):
            raise SystemExit(f"{name}: other bits came back")
        found[name] = {"bytes": shelf.size, "kl": 0.0}
    return found


def summary(texts: Sequence[dict[str, Figures]], every: Sequence[Curve], token_bytes: int) -> Any:
    """Points, bytes at equal KL, and these over the usual's."""
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
            kl: None if mine is None or usual is None else mine / usual
            for (kl, mine), usual in zip(found.items(), at[USUAL].values(), strict=True)
        }
        for name, found in at.items()
        if name != USUAL
    }
    whole = SPLIT.coded * token_bytes
    lossless = {
        name: statistics.mean(text[name]["bytes"] for text in texts) / whole
        for name in ("lossless", "lossless, far")
    }
    return {"points": points, "fraction_at_kl": at, "price": price, "lossless": lossless}


def main() -> None:
    """Runs the study and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--usual", type=Path, required=True)
    parser.add_argument("--stored", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--sets", nargs="+", default=["gsm8k", "wikitext2"])
    parser.add_argument("--state", type=Path, default=Path(".cache/unknown_positions"))
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/unit/test_keys_as_stored.py", "tests/unit/test_choose.py")
    described = machine()
    torch.set_num_threads(threads())
    quiet()
    usual, stored = (TransformSet.load(path) for path in (options.usual, options.stored))
    if usual.info.keys_as_stored or not stored.info.keys_as_stored:
        raise SystemExit("--stored is the set of keys as they are stored, --usual the other")
    if any(usual.info.training[key] != stored.info.training[key] for key in _BUDGET):
        raise SystemExit("the sets were not trained alike")
    every = tuple(curves(usual, stored))
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
            what = repr((ids, usual.digest, stored.digest)).encode()
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
            "sets": {
                kind: {
                    "digest": one.digest.hex(),
                    "command": one.info.command,
                    "training": {
                        key: one.info.training.get(key) for key in ("tokens", "keys", "positions")
                    },
                }
                for kind, one in (("usual", usual), ("stored", stored))
            },
            "text_sets": result,
        },
        described,
    )


def _moved(states: Tensor, by: int, geometry: Geometry) -> Tensor:
    """`[layers, 2, kv_heads, tokens, head_dim]` as it would be `by` positions further back."""
    if not by or geometry.rope is None:
        return states
    keys = states[:, 0]
    turned = moved(keys.reshape(-1, 1, keys.shape[-1]), by, geometry.rope).view_as(keys)
    return torch.stack([turned, states[:, 1]], 1)


if __name__ == "__main__":
    main()
