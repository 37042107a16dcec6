"""Whether codec lexico-residual falls off a cliff: hard caches against plain ones.

    python -m bench.cliffs [--data FOLDER] [--texts 12] [--long-texts 8] [--only NAME ...]

SmolLM2-135M and models made from it (`bench.cliff_models`), WikiText-2 test, presets near, balanced
and small, everything through real frames in pages of 64 tokens. KL is from the predictions of a
model's exact cache to those of its reloaded one. A case's `ratio` is its KL over the KL of the
plain case at the same preset; below `LIMIT` there is no cliff. The cases:

- key outliers: channels of 30 times the median norm, in every KV head;
- constant keys: one layer whose keys before RoPE are all the same;
- head_dim 128: KV heads of twice the width;
- long context: a prefix of 7,936 tokens, so that the whole is the model's longest;
- 8th reload: a conversation whose pages were coded on top of coded pages.

A set belongs to a model. The first three cases have sets of their own, trained on a small sample;
their plain case is the plain model with a set of the same sample. What the built-in set does to a
model that it was not trained on is shown beside them, and decides nothing. A set is calibrated to
the KL of its presets, so hard caches may show in bytes: `bytes_ratio_at_kl` has the bytes a token
at the plain case's KL, over the plain case's, where the presets reach that KL.

Sets and points are kept in the state folder: a run that stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from bench.cliff_models import with_constant_keys, with_outliers, with_wide_heads
from bench.fidelity import DATA
from bench.report import finish, gate, machine, table
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.transform import QUALITIES
from lexico_codec.spec import make_spec
from lexico_lab.evaluation.caches import cache_of, divergence, forward, states_of
from lexico_lab.evaluation.curves import curve, fraction_at
from lexico_lab.evaluation.fidelity import through_frames
from lexico_lab.evaluation.prefixes import ExactText, cut, read_text
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.evaluation.shelf import FrameShelf
from lexico_lab.evaluation.turns import converse, exact_turns
from lexico_lab.evaluation.ways import Way
from lexico_lab.models import LoadedModel, load_model
from lexico_lab.training.fit import FitSettings
from lexico_lab.training.residual import ResidualSettings, train_residual
from lexico_proto.errors import DictionaryMismatch

LIMIT: Final = 1.5
BUILT_IN: Final = "smollm2-135m-residual"
OWN: Final = "own"
PREFIX: Final = 768
CONTINUATION: Final = 256
TURNS: Final = 8
TURN_TOKENS: Final = 128
SAMPLE_WINDOWS: Final = 16
"""Windows of 1,024 tokens that sets are trained on here; one of them is held out."""
SAMPLE_VECTORS: Final = 60_000
CALIBRATED: Final = 8
"""Windows that their steps are measured on."""
NORM_TOKENS: Final = 1024
"""Of the validation text, to measure keys on."""

Point = dict[str, float]


@dataclass(frozen=True)
class Case:
    """What is compared: two ways to come to a point a text, `plain` the easy one."""

    name: str
    set_name: str
    """`OWN` or `BUILT_IN`."""
    model: str = "plain"
    kind: str = "prefix"
    """prefix: reload and continue; long: the same after a long prefix; turns; first turn."""
    decides: bool = True


CASES: Final = (
    Case("key outliers", OWN, "outliers"),
    Case("constant keys", OWN, "constant"),
    Case("head_dim 128", OWN, "wide"),
    Case("long context", BUILT_IN, kind="long"),
    Case("8th reload, against coded once", BUILT_IN, kind="turns"),
    Case("8th reload, against the first", BUILT_IN, kind="first turn"),
    Case("key outliers, built-in set", BUILT_IN, "outliers", decides=False),
    Case("constant keys, built-in set", BUILT_IN, "constant", decides=False),
)


class Models:
    """The models and their sets, each made when it is first needed."""

    def __init__(self, data: Path, state: Path) -> None:
        self._data, self._state = data, state
        self._models: dict[str, Any] = {}
        self._sets: dict[tuple[str, str], DictionarySet] = {}

    @cached_property
    def loaded(self) -> LoadedModel:
        """SmolLM2."""
        return load_model("smollm2")

    @cached_property
    def _text(self) -> str:
        return read_text(self._data / "wikitext2" / "valid.txt")

    def model(self, name: str) -> Any:
        """One of plain, outliers, constant, wide."""
        if name not in self._models:
            plain = self.loaded.model
            ids = self.loaded.tokenizer(self._text[: 16 * NORM_TOKENS], verbose=False).input_ids
            makers: dict[str, Callable[[], Any]] = {
                "plain": lambda: plain,
                "outliers": lambda: with_outliers(plain, ids[:NORM_TOKENS])[0],
                "constant": lambda: with_constant_keys(
                    plain, ids[:NORM_TOKENS], plain.config.num_hidden_layers // 2
                ),
                "wide": lambda: with_wide_heads(plain),
            }
            self._models[name] = makers[name]()
        return self._models[name]

    def set_of(self, model: str, name: str) -> DictionarySet:
        """The built-in set, or one that is trained on the model here."""
        if (model, name) not in self._sets:
            self._sets[model, name] = load_builtin(name) if name != OWN else self._trained(model)
        return self._sets[model, name]

    def _trained(self, model: str) -> DictionarySet:
        path = self._state / f"{model}.safetensors"
        if not path.is_file():
            sys.stderr.write(f"training a set of {model}\n")
            made = self.model(model)
            settings = ResidualSettings(
                model=f"smollm2 {model}",
                state=self._state / f"{model}.state",
                tokens=1024 * SAMPLE_WINDOWS,
                fit=FitSettings(
                    run_layers=geometry_of(made.config, "float32").layers, vectors=SAMPLE_VECTORS
                ),
                command="python -m bench.cliffs",
                calibrated=CALIBRATED,
            )
            loaded = LoadedModel(settings.model, made, self.loaded.tokenizer)
            train_residual(settings, self._text, loaded, _progress).save(path)
        return DictionarySet.load(path)


class Points:
    """What was measured, text by text; measured when it is first needed, and kept."""

    def __init__(
        self, models: Models, data: Path, state: Path, texts: int, long_texts: int
    ) -> None:
        self._models, self._state = models, state
        self._source = data / "wikitext2" / "test.raw.txt"
        if not self._source.is_file():
            raise SystemExit(f"skipped: {self._source} is absent; give --data")
        self._texts_of = {
            "prefix": texts,
            "long": long_texts,
            "short": long_texts,
            "turns": texts,
        }

    def of(self, model: str, set_name: str, kind: str) -> dict[str, list[Point]]:
        """Points of each preset.

        Args:
            model: see `Models.model`. set_name: `OWN` or `BUILT_IN`.
            kind: prefix, turns, long, or short: the last tokens before the continuations of long.
        """
        own = self._models.set_of(model, set_name)
        found: dict[str, list[Point]] = {quality: [] for quality in QUALITIES}
        for number, ids in enumerate(self._texts(kind), 1):
            digest = hashlib.blake2b(str([ids, own.digest]).encode(), digest_size=6).hexdigest()
            path = self._state / "points" / f"{model}-{kind}-{number:02d}-{digest}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(self._measured(model, own, ids, kind), indent=1))
                sys.stderr.write(f"{model}, {set_name}, {kind}: text {number}\n")
            for quality, point in json.loads(path.read_text()).items():
                found[quality].append(point)
        return found

    def _texts(self, kind: str) -> list[tuple[int, ...]]:
        settings = self._settings("long" if kind == "short" else kind)
        text, tokenizer = read_text(self._source), self._models.loaded.tokenizer
        texts = cut(self._source.name, text, tokenizer, settings).texts
        return [ids[-PREFIX - CONTINUATION :] if kind == "short" else ids for ids in texts]

    def _settings(self, kind: str) -> EvalSettings:
        most = self._models.model("plain").config.max_position_embeddings
        return EvalSettings(
            model="smollm2",
            sources=(self._source,),
            out=self._state,
            state=self._state,
            texts=self._texts_of[kind],
            prefix=most - CONTINUATION if kind == "long" else PREFIX,
            continuation=CONTINUATION,
            turns=TURNS if kind == "turns" else 0,
            turn_tokens=TURN_TOKENS,
        )

    @torch.inference_mode()
    def _measured(
        self, name: str, own: DictionarySet, ids: Sequence[int], kind: str
    ) -> dict[str, Point]:
        model, settings = self._models.model(name), self._settings(kind)
        geometry = geometry_of(model.config, torch.float16)
        ways = {quality: _way(quality, geometry, own, settings) for quality in QUALITIES}
        if kind == "turns":
            exact = exact_turns(model, ids, settings)
            return {
                quality: _turns_point(
                    converse(model, exact, partial(FrameShelf, way), settings), geometry
                )
                for quality, way in ways.items()
            }
        text = _exact(model, ids, settings)
        return {quality: _point(model, text, way, settings) for quality, way in ways.items()}


def _way(quality: str, geometry: Geometry, own: DictionarySet, settings: EvalSettings) -> Way:
    spec = make_spec(
        weights=bytes(32),
        geometry=geometry,
        codec="lexico-residual",
        codec_config=json.dumps({"quality": quality}),
        dictionary=own.digest,
        page_tokens=settings.page_tokens,
    )
    return Way(quality, "lexico-residual", spec, own)


def _exact(model: Any, ids: Sequence[int], settings: EvalSettings) -> ExactText:
    """As `prefixes.exact_text`, which prefills twice to time it."""
    cache = cache_of(torch.empty(0, 0, 0, 0, 0))
    forward(model, ids[: settings.prefix], cache, 1)
    states, following = states_of(cache), ids[settings.prefix :]
    return ExactText(tuple(ids), states, forward(model, following, cache, len(following)), 0.0)


def _point(model: Any, exact: ExactText, way: Way, settings: EvalSettings) -> Point:
    try:
        made, shelf = through_frames(exact, way, settings.coded)
    except DictionaryMismatch:  # a set that the codec finds to be of other weights
        return {"refused": 1.0}
    predictions = forward(model, exact.following, cache_of(made), len(exact.following))
    size = shelf.size / settings.coded
    return {
        "kl": divergence(exact.predictions, predictions),
        "token_bytes": size,
        "fraction": size / way.spec.geometry.token_bytes,
    }


def _turns_point(turns: Sequence[Any], geometry: Geometry) -> Point:
    size = turns[-1]["bytes"] / turns[-1]["stored"]
    return {
        "kl": turns[-1]["kl"],
        "kl_once": turns[-1]["kl_once"],
        "kl_first": turns[0]["kl"],
        "token_bytes": size,
        "fraction": size / geometry.token_bytes,
    }


def compare(hard: Sequence[Point], plain: Sequence[Point]) -> dict[str, float]:
    """KL of both and their ratio: of means over the same texts, its standard error by the delta
    method.
    """
    ours, theirs = [one["kl"] for one in hard], [one["kl"] for one in plain]
    mean, base, texts = statistics.mean(ours), statistics.mean(theirs), len(ours)
    ratio = mean / base
    left = [a - ratio * b for a, b in zip(ours, theirs, strict=True)]
    many = texts > 1
    spread = (sum(x * x for x in left) / (texts * (texts - 1))) ** 0.5 if many else 0.0
    return {
        "kl": mean,
        "kl_standard_error": statistics.stdev(ours) / texts**0.5 if many else 0.0,
        "kl_plain": base,
        "ratio": ratio,
        "ratio_standard_error": spread / base,
        "texts": texts,
    }


def rows_of(case: Case, points: Points) -> list[dict[str, Any]]:
    """A row a preset."""
    kind = "turns" if case.kind == "first turn" else case.kind
    hard = points.of(case.model, case.set_name, kind)
    if any("refused" in point for ones in hard.values() for point in ones):
        refused = [_refused(case, quality, hard[quality]) for quality in QUALITIES]
        if case.decides:
            named = ", ".join(f"{row['preset']} {row['refused']}" for row in refused)
            raise SystemExit(f"{case.name}: texts refused of {refused[0]['texts']}: {named}")
        return refused
    if kind == "turns":
        against = "kl_first" if case.kind == "first turn" else "kl_once"
        plain = {
            quality: [{**one, "kl": one[against]} for one in ones] for quality, ones in hard.items()
        }
    else:
        plain = points.of("plain", case.set_name, "short" if kind == "long" else kind)

    def mean(one: Sequence[Point], key: str) -> float:
        return statistics.mean(point[key] for point in one)

    reached = curve((mean(one, "token_bytes"), mean(one, "kl")) for one in hard.values())
    rows = []
    for quality in QUALITIES:
        compared = compare(hard[quality], plain[quality])
        size = mean(plain[quality], "token_bytes")
        at_kl = fraction_at(reached, compared["kl_plain"])
        rows.append(
            {
                "case": case.name,
                "preset": quality,
                **compared,
                "fraction": mean(hard[quality], "fraction"),
                "bytes_ratio": mean(hard[quality], "token_bytes") / size,
                "bytes_ratio_at_kl": at_kl / size if at_kl is not None else None,
                "decides": case.decides,
            }
        )
    return rows


def _refused(case: Case, quality: str, hard: Sequence[Point]) -> dict[str, Any]:
    """A row without figures: how many of the texts the codec refused to code with the set."""
    refused = sum("refused" in point for point in hard)
    return {
        "case": case.name,
        "preset": quality,
        "refused": refused,
        "texts": len(hard),
        "decides": False,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--long-texts", type=int, default=8, help="of the long context")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of cases' names")
    parser.add_argument("--no-gate", action="store_true")
    parser.add_argument("--state", type=Path, default=Path(".cache/cliffs"))
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/unit/test_cliffs.py", "tests/contract/test_codec_residual.py")
    described = machine()
    transformers.utils.logging.disable_progress_bar()
    options.state.mkdir(parents=True, exist_ok=True)
    models = Models(options.data, options.state)
    points = Points(models, options.data, options.state, options.texts, options.long_texts)
    chosen = [case for case in CASES if any(part in case.name for part in options.only)]
    rows = [row for case in chosen for row in rows_of(case, points)]
    print(table([row for row in rows if "refused" not in row]))
    if options.only == [""]:
        finish("cliffs", {**summary(rows), "rows": rows}, described)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The ratios of the rows that decide, and the largest."""
    ratios = {f"{row['case']} {row['preset']}": row["ratio"] for row in rows if row["decides"]}
    return {"worst_ratio": max(ratios.values()), "limit": LIMIT, "ratios": ratios}


def _progress(*items: Any, **options: Any) -> Any:
    from tqdm import tqdm

    return tqdm(*items, **options)


if __name__ == "__main__":
    main()
