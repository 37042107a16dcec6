"""What `cliffs` compares: models, their sets, and points of every text, all of them kept."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch

from lexico_codec.codecs import ResidualCodec
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.transform import QUALITIES
from lexico_lab.caches import divergence
from lexico_lab.evaluation.fidelity import predicted, through_frames
from lexico_lab.evaluation.prefixes import ExactText, cut, exact_text, read_text
from lexico_lab.evaluation.settings import Split
from lexico_lab.evaluation.shelf import FrameShelf
from lexico_lab.evaluation.turns import Turn, converse, exact_turns
from lexico_lab.evaluation.ways import Way, way_of
from lexico_lab.models import LoadedModel, load_model
from lexico_lab.studies.cliff_models import with_constant_keys, with_outliers, with_wide_heads
from lexico_lab.studies.ours import RESIDUAL_SET, stored_geometry
from lexico_lab.training.fit_settings import FitSettings
from lexico_lab.training.progress import bars
from lexico_lab.training.residual import ResidualSettings, train_residual
from lexico_proto.errors import DictionaryMismatch

BUILT_IN: Final = RESIDUAL_SET
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
                command="python -m lexico_lab.studies.cliffs",
                calibrated=CALIBRATED,
            )
            loaded = LoadedModel(settings.model, made, self.loaded.tokenizer)
            train_residual(settings, self._text, loaded, bars).save(path)
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
        split = self._split("long" if kind == "short" else kind)
        text, tokenizer = read_text(self._source), self._models.loaded.tokenizer
        texts = cut(self._source.name, text, tokenizer, split).texts
        return [ids[-PREFIX - CONTINUATION :] if kind == "short" else ids for ids in texts]

    def _split(self, kind: str) -> Split:
        most = self._models.model("plain").config.max_position_embeddings
        return Split(
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
        model, split = self._models.model(name), self._split(kind)
        geometry, page = stored_geometry(model), split.page_tokens
        codec = ResidualCodec.name
        ways = {q: way_of(q, codec, {"quality": q}, geometry, page, own) for q in QUALITIES}
        if kind == "turns":
            exact = exact_turns(model, ids, split)
            return {
                quality: _turns_point(
                    converse(model, exact, partial(FrameShelf, way), split), geometry
                )
                for quality, way in ways.items()
            }
        text = exact_text(model, ids, split)
        return {quality: _point(model, text, way, split.coded) for quality, way in ways.items()}


def _point(model: Any, exact: ExactText, way: Way, coded: int) -> Point:
    try:
        made, shelf = through_frames(exact, way, coded)
    except DictionaryMismatch:  # a set that the codec finds to be of other weights
        return {"refused": 1.0}
    size = shelf.size / coded
    return {
        "kl": divergence(exact.predictions, predicted(model, exact, made)),
        "token_bytes": size,
        "fraction": size / way.spec.geometry.token_bytes,
    }


def _turns_point(turns: Sequence[Turn], geometry: Geometry) -> Point:
    size = turns[-1]["bytes"] / turns[-1]["stored"]
    return {
        "kl": turns[-1]["kl"],
        "kl_once": turns[-1]["kl_once"],
        "kl_first": turns[0]["kl"],
        "token_bytes": size,
        "fraction": size / geometry.token_bytes,
    }
