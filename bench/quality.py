"""Every way to store a prompt cache on the same prefixes: KL and NLL against bytes.

    python -m bench.quality [--data FOLDER] [--texts 12] [--sets wikitext2 gsm8k] [--only NAME ...]
                            [--state FOLDER] [--threads 2]

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
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from bench.fidelity import (
    CONTINUATION,
    DATA,
    PREFIX,
    TAIL,
    texts_of,
    through_frames,
    windows_of,
)
from bench.report import finish, gate, machine, table, threads
from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.hf_geometry import geometry_of
from lexico_lab.evaluation.caches import divergence
from lexico_lab.evaluation.curves import curve, fraction_at
from lexico_lab.models import load_model
from lexico_lab.published import eviction, freed, titles
from lexico_lab.published.coder import Coder, Prefix, Stored
from lexico_lab.published.eviction import Eviction
from lexico_lab.published.freed import Freed
from lexico_lab.published.ours import HEADLINE, Frames, all_of, residual
from lexico_lab.published.training import Training

FREED: Final = ("near", "step=0.7", "step=1.5")
"""Settings of lexico-residual that also run after evictions, which free some of the vectors."""
KLS: Final = (0.005, 0.01, 0.02, 0.035)

Point = dict[str, Any]


def method_of(coder: Coder | Frames | Eviction) -> str:
    """Settings of one method make one curve."""
    if isinstance(coder, Eviction):
        return coder.curve
    if isinstance(coder, Frames):
        return coder.spec.codec.name
    return type(coder).__module__.split(".")[-1]


@torch.inference_mode()
def prefix_cache(
    model: Any, ids: Sequence[int], *, attention: bool = True
) -> tuple[DynamicCache, Tensor]:
    """The cache of `ids`, and `[layers, tokens]` the mean attention that each token gets.

    Without `attention` the latter is zero, in half the time.
    """
    cache = DynamicCache()
    if not attention:
        model(torch.tensor([list(ids)]), past_key_values=cache, logits_to_keep=1)
        return cache, torch.zeros(len(cache.layers), len(ids))
    former = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that shows its weights
    try:
        seen = model(
            torch.tensor([list(ids)]),
            past_key_values=cache,
            logits_to_keep=1,
            output_attentions=True,
        ).attentions
    finally:
        model.set_attn_implementation(former)
    later = torch.arange(len(ids), 0, -1)  # tokens that can see each one, itself included
    return cache, torch.stack([layer[0].mean(0).sum(0) / later for layer in seen])


def prefix_of(cache: DynamicCache, importance: Tensor, tokens: slice, model: Any) -> Prefix:
    """The part of a cache that coders are given."""
    rope = geometry_of(model.config, torch.float16).rope
    if rope is None:
        raise SystemExit("a model without RoPE: this comparison needs one")

    def part(name: str) -> Tensor:
        layers = [getattr(layer, name)[0, :, tokens].transpose(0, 1) for layer in cache.layers]
        return torch.stack(layers).half().float()

    positions = torch.arange(tokens.start, tokens.stop)
    return Prefix(part("keys"), part("values"), positions, rope, importance[:, tokens])


def coders(names: Sequence[str]) -> Iterator[Coder]:
    """The peers' coders, not calibrated, those whose name has one of `names` in it."""
    for module in titles.CODERS:
        made: list[Coder] = import_module(f"lexico_lab.published.{module}").coders()
        yield from (one for one in made if any(n in f"{module} {one.name}" for n in names))


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
        for ids in texts_of(tokenizer, path, count):
            cache, importance = prefix_cache(model, ids[:PREFIX], attention=False)
            yield prefix_of(cache, importance, slice(SINK_TOKENS, PREFIX), model)


@torch.inference_mode()
def measure(
    model: Any,
    ids: list[int],
    chosen: Sequence[Coder | Frames | Eviction],
    instruction: Sequence[int] = (),
) -> dict[str, Point]:
    """KL, NLL and bytes of one text, for each coder; `instruction` as in `eviction.selections`."""
    attention = any(isinstance(coder, Coder) and coder.weighs for coder in chosen)
    cache, importance = prefix_cache(model, ids[:PREFIX], attention=attention)
    coded = slice(SINK_TOKENS, PREFIX - TAIL)
    prefix = prefix_of(cache, importance, coded, model)
    sinks = 2 * prefix.keys[:, 0].numel() * 2 * SINK_TOKENS  # keys and values, in float16
    following = ids[PREFIX:]
    targets = torch.tensor(ids[PREFIX + 1 :])[:, None]

    def predictions(used: DynamicCache) -> Tensor:
        logits = model(torch.tensor([following]), past_key_values=used).logits[0]
        used.crop(-len(following))  # as it was
        return logits.float().log_softmax(-1)

    def rebuilt(stored: Stored) -> DynamicCache:
        made = DynamicCache()
        for index, layer in enumerate(cache.layers):
            keys, values = layer.keys.clone(), layer.values.clone()
            keys[0, :, coded] = stored.keys[index].transpose(0, 1)
            values[0, :, coded] = stored.values[index].transpose(0, 1)
            made.update(keys, values, index)
        return made

    reference = predictions(cache)

    def point(made: Tensor, size: int) -> Point:
        return {
            "kl": divergence(reference, made),
            "nll": float(-made[:-1].gather(1, targets).mean()),
            "nll_exact": float(-reference[:-1].gather(1, targets).mean()),
            "bytes": size,
        }

    points: dict[str, Point] = {}
    sources = {False: cache}  # of evictions: exact, and coded
    for coder in chosen:
        if isinstance(coder, Frames):
            other, size = through_frames(cache, ids, coder.spec, coder.dictionary)
            if coder.name == eviction.CODER:
                sources[True] = other
            points[coder.name] = point(predictions(other), size)
        elif isinstance(coder, Coder):
            stored = coder.code(prefix)
            points[coder.name] = point(predictions(rebuilt(stored)), stored.size + sinks)
    evictions = [coder for coder in chosen if isinstance(coder, Eviction)]
    for one, kept in eviction.selections(model, ids[:PREFIX], cache, evictions, coded, instruction):
        if isinstance(one, Freed):
            freely = one.cache(cache, kept, coded)
            other, size = through_frames(freely, ids, one.through.spec, one.through.dictionary)
            points[one.name] = point(predictions(other), size)
            continue
        short = eviction.shorten(sources[one.coded], kept, coded, one.coded)
        logits = eviction.continued(model, short, following, PREFIX)
        points[one.name] = point(logits.float().log_softmax(-1), short.size)
    return points


def summary(rows: Sequence[Point]) -> dict[str, Any]:
    """`bytes_at_kl` for each method, and what ours save against the best peer.

    Ours after an eviction is neither ours nor a peer.
    """
    methods = sorted({row["method"] for row in rows})
    curves = {
        name: curve((row["fraction"], row["kl"]) for row in rows if row["method"] == name)
        for name in methods
    }
    at = {name: {str(kl): fraction_at(points, kl) for kl in KLS} for name, points in curves.items()}
    lead: dict[str, float | None] = {}
    for kl in map(str, KLS):
        others = [name for name in methods if name not in titles.OURS and " + " not in name]
        peers = [at[name][kl] for name in others if at[name][kl]]
        mine = [at[name][kl] for name in methods if name in titles.OURS and at[name][kl]]
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
            "tests/unit/test_quality.py",
            "tests/contract/test_codec_residual.py",
            "tests/unit/test_baselines_quantisers.py",
            "tests/unit/test_baselines_transforms.py",
            "tests/unit/test_baselines_eviction.py",
            "tests/unit/test_baselines_freed.py",
        )
    described = machine()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    loaded = load_model("smollm2")
    model, tokenizer = loaded.model, loaded.tokenizer
    calibrated = Calibration(model, tokenizer, options.data / "wikitext2" / "valid.txt")
    mine = list(all_of(model))
    evicting = [] if options.no_evict else _evictions(model, options.only)
    needed = eviction.CODER if any(one.coded for one in evicting) else None
    mine = [one for one in mine if one.name == needed or _named(one.name, options.only)]
    chosen = [*mine, *coders(options.only), *evicting]
    instruction = tokenizer(eviction.INSTRUCTION, add_special_tokens=False).input_ids
    whole = (PREFIX - TAIL) * geometry_of(model.config, torch.float16).token_bytes
    result: dict[str, Any] = {}
    for name in options.sets:
        texts = windows_of(tokenizer, _text(options.data, name), options.texts)
        measured = []
        for number, ids in enumerate(texts, 1):
            kept = options.state / f"{name}-{number:02d}-{_digest(ids)}.json"
            measured.append(remembered(kept, model, ids, chosen, instruction, calibrated))
            sys.stderr.write(f"{name}: text {number} of {len(texts)}\n")
        rows = [_row(coder, [text[coder.name] for text in measured], whole) for coder in chosen]
        print(f"\n{name}\n{table(rows)}")
        result[name] = {"texts": len(texts), "points": rows, **summary(rows)}
    if options.only == [""]:
        finish("quality", {"continuation": CONTINUATION, **_headline(result), **result}, described)


def remembered(
    path: Path,
    model: Any,
    ids: list[int],
    chosen: Sequence[Coder | Frames | Eviction],
    instruction: Sequence[int],
    calibrated: Callable[[Coder], Coder],
) -> dict[str, Point]:
    """As `measure`, but for the points that the file at `path` has; it gets the others."""
    known: dict[str, Point] = json.loads(path.read_text()) if path.exists() else {}
    missing = [coder for coder in chosen if _key(coder) not in known]
    if any(isinstance(one, Eviction) and one.coded for one in missing):  # they start from these
        missing += [one for one in chosen if one.name == eviction.CODER and one not in missing]
    if missing:
        ready = [calibrated(one) if isinstance(one, Coder) else one for one in missing]
        found = measure(model, ids, ready, instruction)
        known |= {_key(coder): found[coder.name] for coder in missing}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1))
    return {coder.name: known[_key(coder)] for coder in chosen}


def _key(coder: Coder | Frames | Eviction) -> str:
    """Name of a coder, and what it depends on beside this code."""
    if isinstance(coder, Coder) and coder.learns:
        return f"{coder.name} of {coder.learns * (PREFIX - SINK_TOKENS)} tokens"
    if isinstance(coder, Freed):
        return f"{coder.name} {_key(coder.through)}"
    if not isinstance(coder, Frames):
        return coder.name
    return f"{coder.name} {coder.spec.codec.config_json()} {coder.dictionary.digest.hex()[:16]}"


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


def _evictions(model: Any, names: Sequence[str]) -> list[Eviction]:
    """Those whose name has one of `names` in it, of all methods where one is named."""
    made = eviction.evictions()
    made += freed.evictions(one for one in residual(model) if one.name.endswith(FREED))
    methods = set(titles.EVICTIONS) & set(names) or eviction.USUAL
    made = [one for one in made if one.method in methods]
    chosen = [one for one in made if _named(f"{one.curve} {one.name}", names)]
    if chosen and not eviction.available():
        print(f"skipped: methods that evict ({eviction.ABSENT})")
        return []
    return chosen


def _text(data: Path, name: str) -> str:
    """The text of a set: WikiText-2's test, or GSM8K's questions and answers under one another."""
    path = data / name / ("train.jsonl" if name == "gsm8k" else "test.raw.txt")
    if not path.is_file():
        raise SystemExit(f"skipped: {path} is absent; give --data")
    if name != "gsm8k":
        return path.read_text()
    lines = [json.loads(line) for line in path.read_text().splitlines()[:2500]]
    return "\n\n".join(f"{line['question']}\n{line['answer']}" for line in lines)


def _row(coder: Coder | Frames | Eviction, texts: Sequence[Point], whole: int) -> Point:
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
