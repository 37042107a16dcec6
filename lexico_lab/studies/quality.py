"""Every way to store a prompt cache on the same prefixes: KL and NLL against bytes.

    python -m lexico_lab.studies.quality [--data FOLDER] [--texts 12] [--sets wikitext2 gsm8k]
                                         [--only NAME ...] [--state FOLDER] [--threads 2]

SmolLM2-135M. Of a 768-token prefix the first 4 tokens (sinks) and the last 32 stay exact, the rest
is coded; the next 256 tokens are predicted from that cache and from the uncompressed one. Methods
that learn do so on WikiText-2 validation text alone. Bytes are all that would lie in the store, the
exact sinks in float16 included, over the float16 bytes of the 736 tokens. Methods that evict tokens
take part where kvpress is installed, alone and with what they keep coded. The last line has each
text set's points, `bytes_at_kl` of each method (interpolated between points, never beyond them) and
`lead`, the best peer's bytes over ours at equal KL. What is measured is kept in the state folder,
text by text: a run that stopped goes on, and `--only` measures a part ahead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.geometry import Rope
from lexico_lab.evaluation.curves import curve, fraction_at
from lexico_lab.evaluation.evictions import Evicted
from lexico_lab.evaluation.fidelity import (
    Quality,
    compare,
    predicted,
    through_frames,
    through_shelf,
)
from lexico_lab.evaluation.peer_shelf import PeerShelf
from lexico_lab.evaluation.peers import Evicting, importance_of, training_prefix
from lexico_lab.evaluation.prefixes import ExactText, exact_text, tokenize
from lexico_lab.evaluation.ways import Way
from lexico_lab.machine import threads
from lexico_lab.models import load_model, quiet
from lexico_lab.published import eviction, methods, scores, titles
from lexico_lab.published.coder import Coder, Prefix
from lexico_lab.published.eviction import Eviction
from lexico_lab.published.training import Training
from lexico_lab.record import finish, gate, machine, table
from lexico_lab.studies import freed
from lexico_lab.studies.freed import Freed
from lexico_lab.studies.ours import HEADLINE, all_of, residual, stored_geometry
from lexico_lab.studies.texts import DATA, SPLIT, text_of, windows, windows_of

FREED: Final = ("near", "step=0.7", "step=1.5")
"""Settings of lexico-residual that also run after evictions, which free some of the vectors."""
KLS: Final = (0.005, 0.01, 0.02, 0.035)

Method = Way | Coder | Eviction | Freed
Row = dict[str, Any]


def method_of(one: Method) -> str:
    """Settings of one method make one curve."""
    if isinstance(one, Way):
        return one.method
    if isinstance(one, Coder):
        return type(one).__module__.split(".")[-1]
    return one.curve


def coders(names: Sequence[str]) -> Iterator[Coder]:
    """The peers' coders, not calibrated, those whose name has one of `names` in it."""
    for method, made in methods.CODERS.items():
        yield from (one for one in made() if any(n in f"{method} {one.name}" for n in names))


class Calibration:
    """Calibrates coders when they are first needed: it takes minutes."""

    def __init__(self, model: Any, tokenizer: Any, path: Path) -> None:
        self._given = model, tokenizer, path
        self._training: dict[int, Training] = {}
        self._made: dict[str, Coder] = {}

    def __call__(self, coder: Coder) -> Coder:
        if not coder.learns:
            return coder
        if coder.learns not in self._training:
            self._training[coder.learns] = Training(self._prefixes(coder.learns))
        if coder.name not in self._made:
            self._made[coder.name] = coder.calibrate(self._training[coder.learns])
        return self._made[coder.name]

    def _prefixes(self, count: int) -> Iterator[Prefix]:
        model, tokenizer, path = self._given
        for ids in windows(tokenizer, path, count):
            yield training_prefix(model, ids[: SPLIT.prefix], _rope(model))


@torch.inference_mode()
def measure(
    model: Any, ids: Sequence[int], chosen: Sequence[Method], instruction: Sequence[int] = ()
) -> dict[str, Quality]:
    """KL, NLL and bytes of one text for each method; `instruction` as in `scores.scores_of`."""
    exact, coded = exact_text(model, ids, SPLIT), SPLIT.coded
    importance = torch.empty(0)
    if any(isinstance(one, Coder) and one.weighs for one in chosen):
        importance = importance_of(model, exact.ids[: SPLIT.prefix])

    def quality(states: Tensor, size: int) -> Quality:
        return compare(exact, predicted(model, exact, states), size)

    found: dict[str, Quality] = {}
    for one in chosen:
        if isinstance(one, Way):
            made, frames = through_frames(exact, one, coded)
            found[one.name] = quality(made, frames.size)
        elif isinstance(one, Coder):
            shelf = PeerShelf(one, _rope(model), SPLIT.page_tokens, lambda *_: importance)
            found[one.name] = quality(through_shelf(exact, shelf, coded), shelf.size)
    return found | _evicted(model, exact, chosen, instruction)


def _evicted(
    model: Any, exact: ExactText, chosen: Sequence[Method], instruction: Sequence[int]
) -> dict[str, Quality]:
    """What `measure` finds of evictions, alone, coded, and before codecs of ours."""
    coder = next((w for w in chosen if isinstance(w, Way) and w.name == eviction.CODER), None)
    evicted = Evicted(model, exact, SPLIT.coded, instruction)
    alone = [one for one in chosen if isinstance(one, Eviction)]
    before = [one for one in chosen if isinstance(one, Freed)]
    if coder is None and any(one.coded for one in alone):
        raise ValueError(f"evictions whose kept tokens are coded start from {eviction.CODER}")
    evicted.score([*alone, *(one.eviction for one in before)])
    found: dict[str, Quality] = {}
    for one in alone:
        through = coder if one.coded else None
        found[one.name] = evicted.judge(Evicting(one.name, one.curve, one, through))
    stored = slice(SINK_TOKENS, SPLIT.coded)
    for freely in before:
        states = freely.states(exact.states, evicted.kept(freely.eviction), stored)
        made, frames = through_frames(replace(exact, states=states), freely.through, SPLIT.coded)
        found[freely.name] = compare(exact, predicted(model, exact, made), frames.size)
    return found


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """`bytes_at_kl` for each method, and what ours save against the best peer.

    Ours after an eviction is neither ours nor a peer.
    """
    shown = sorted({row["method"] for row in rows})
    curves = {
        name: curve((row["fraction"], row["kl"]) for row in rows if row["method"] == name)
        for name in shown
    }
    at = {name: {str(kl): fraction_at(points, kl) for kl in KLS} for name, points in curves.items()}
    lead: dict[str, float | None] = {}
    for kl in map(str, KLS):
        others = [name for name in shown if name not in titles.OURS and " + " not in name]
        peers = [found for name in others if (found := at[name][kl])]
        mine = [found for name in shown if name in titles.OURS and (found := at[name][kl])]
        lead[kl] = min(peers) / min(mine) if peers and mine else None
    return {"bytes_at_kl": at, "lead": lead}


def main() -> None:
    """Runs the comparison and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--sets", nargs="+", default=["wikitext2", "gsm8k"])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of coders' names")
    parser.add_argument("--no-gate", action="store_true")
    parser.add_argument("--no-evict", action="store_true", help="leave out what kvpress does")
    parser.add_argument("--threads", type=int, default=threads(), help="of torch")
    parser.add_argument("--state", type=Path, default=Path(".cache/quality"))
    options = parser.parse_args()
    if not options.no_gate:
        gate(
            "tests/unit/test_study_quality.py",
            "tests/contract/test_codec_residual*.py",
            "tests/unit/test_published_quantisers.py",
            "tests/unit/test_published_transforms.py",
            "tests/unit/test_published_eviction.py",
            "tests/unit/test_freed.py",
        )
    described = machine()
    torch.set_num_threads(options.threads)
    quiet()
    loaded = load_model("smollm2")
    model, tokenizer = loaded.model, loaded.tokenizer
    calibrated = Calibration(model, tokenizer, options.data / "wikitext2" / "valid.txt")
    mine = list(all_of(model))
    evicting = [] if options.no_evict else _evictions(model, options.only)
    needed = eviction.CODER if any(map(_starts_coded, evicting)) else None
    mine = [one for one in mine if one.name == needed or _named(one.name, options.only)]
    chosen: list[Method] = [*mine, *coders(options.only), *evicting]
    instruction = tokenize(tokenizer, scores.INSTRUCTION)
    whole = SPLIT.coded * stored_geometry(model).token_bytes
    result: dict[str, Any] = {}
    for name in options.sets:
        texts = windows_of(tokenizer, text_of(options.data, name), name, options.texts)
        measured = []
        for number, ids in enumerate(texts, 1):
            kept = options.state / f"{name}-{number:02d}-{_digest(ids)}.json"
            measured.append(remembered(kept, model, ids, chosen, instruction, calibrated))
            sys.stderr.write(f"{name}: text {number} of {len(texts)}\n")
        rows = [_row(coder, [text[coder.name] for text in measured], whole) for coder in chosen]
        print(f"\n{name}\n{table(rows)}")
        result[name] = {"texts": len(texts), "points": rows, **summary(rows)}
    if options.only == [""]:
        found = {"continuation": SPLIT.continuation, **_headline(result), **result}
        finish("quality", found, described)


def remembered(
    path: Path,
    model: Any,
    ids: Sequence[int],
    chosen: Sequence[Method],
    instruction: Sequence[int],
    calibrated: Callable[[Coder], Coder],
) -> dict[str, Quality]:
    """As `measure`, but for the points that the file at `path` has; it gets the others."""
    known: dict[str, Quality] = json.loads(path.read_text()) if path.exists() else {}
    missing = [coder for coder in chosen if _key(coder) not in known]
    if any(map(_starts_coded, missing)):  # what they start from is not kept
        missing += [one for one in chosen if one.name == eviction.CODER and one not in missing]
    if missing:
        ready = [calibrated(one) if isinstance(one, Coder) else one for one in missing]
        found = measure(model, ids, ready, instruction)
        known |= {_key(coder): found[coder.name] for coder in missing}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1))
    return {coder.name: known[_key(coder)] for coder in chosen}


def _key(coder: Method) -> str:
    """Name of a coder, and what it depends on beside this code."""
    if isinstance(coder, Coder) and coder.learns:
        return f"{coder.name} of {coder.learns * (SPLIT.prefix - SINK_TOKENS)} tokens"
    if isinstance(coder, Freed):
        return f"{coder.name} {_key(coder.through)}"
    if not isinstance(coder, Way):
        return coder.name
    digest = coder.dictionary.digest.hex()[:16] if coder.dictionary else ""
    return f"{coder.name} {coder.spec.codec.config_json()} {digest}"


def _digest(ids: Sequence[int]) -> str:
    return hashlib.blake2b(str(list(ids)).encode(), digest_size=6).hexdigest()


def _headline(result: dict[str, Any]) -> dict[str, float]:
    """Of each text set preset balanced's bytes and KL, and the least of the leads."""
    found = {}
    for name, one in result.items():
        usual = next(row for row in one["points"] if row["coder"] == HEADLINE)
        found[f"fraction_{name}"], found[f"kl_{name}"] = usual["fraction"], usual["kl"]
        found[f"lead_{name}"] = min((lead for lead in one["lead"].values() if lead), default=0.0)
    return found


def _named(name: str, parts: Sequence[str]) -> bool:
    return any(part in name for part in parts)


def _evictions(model: Any, names: Sequence[str]) -> list[Eviction | Freed]:
    """Those whose name has one of `names` in it, of all methods where one is named."""
    usual = set(titles.EVICTIONS) & set(names) or eviction.USUAL
    before = freed.evictions(one for one in residual(model) if one.name.endswith(FREED))
    made: list[Eviction | Freed] = [one for one in eviction.evictions() if one.method in usual]
    made += [one for one in before if one.eviction.method in usual]
    chosen = [one for one in made if _named(f"{one.curve} {one.name}", names)]
    if chosen and not scores.available():
        print(f"skipped: methods that evict ({scores.ABSENT})")
        return []
    return chosen


def _starts_coded(one: Method) -> bool:
    return isinstance(one, Eviction) and one.coded


def _rope(model: Any) -> Rope:
    rope = stored_geometry(model).rope
    if rope is None:
        raise SystemExit("a model without RoPE: this comparison needs one")
    return rope


def _row(coder: Method, texts: Sequence[Quality], whole: int) -> Row:
    kls = [text["kl"] for text in texts]
    return {
        "method": method_of(coder),
        "coder": coder.name,
        "fraction": statistics.mean(text["bytes"] for text in texts) / whole,
        "kl": statistics.mean(kls),
        "kl_standard_error": statistics.stdev(kls) / len(kls) ** 0.5 if len(kls) > 1 else 0.0,
        "nll": statistics.mean(text["nll"] for text in texts),
        "nll_exact": statistics.mean(text["nll_exact"] for text in texts),
    }


if __name__ == "__main__":
    main()
