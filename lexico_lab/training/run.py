"""`lexico train`: from a model and a text to dictionary sets.

A run keeps all it has done in a state folder: samples window by window, dictionaries one by one,
each written whole or not at all. Started again with the same settings it goes on from there, and
the artefact is the same to the byte as that of a run that was never stopped. Nothing is written at
the target before everything is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexico_codec.sets.atom_tensors import PARTS
from lexico_codec.sets.dictionary import DictionarySet, TransformSet
from lexico_codec.sets.info import SetInfo
from lexico_lab.models import LoadedModel, load_model
from lexico_lab.training.dictionaries import check_dictionaries, train_dictionaries
from lexico_lab.training.pool import Pool
from lexico_lab.training.progress import bars
from lexico_lab.training.residual import (
    IMPORTANCE,
    ResidualSettings,
    check_residual,
    train_residual,
)
from lexico_lab.training.settings import RESIDUAL, TrainSettings
from lexico_proto.errors import ConfigurationError


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A set that was made."""

    settings: TrainSettings
    dictionary: DictionarySet
    seconds: float
    """Of this call; what a former one did is not among it."""

    def document(self) -> dict[str, Any]:
        """What `lexico train --json` says of it."""
        made, steps = self.dictionary, {}
        if isinstance(made, TransformSet):
            steps = {name: float(step) for name, step in made.transform.steps.items()}
        return {
            "codec": self.settings.codec,
            "out": str(self.settings.out),
            "digest": made.digest.hex(),
            "bytes": len(made.to_bytes()),
            "seconds": round(self.seconds, 3),
            "held_out": [] if steps else [dict(errors) for errors in made.info.held_out],
            "steps": steps,
        }


def train(
    settings: TrainSettings,
    loaded: LoadedModel | None = None,
    importance: Tensor | None = None,
    pool: Pool | None = None,
) -> DictionarySet:
    """Runs or resumes a training run and writes the artefact.

    Args:
        settings: the run.
        loaded: the model, where it is in memory already.
        importance: for codec lexico-packed `[layers, 2]`, how much a squared error of a component
            of the layer's keys and values costs, in any unit: the set tells the codec by it how
            to share out atoms. None for that of `settings.importance`, and without it for what
            the model's predictions show.
        pool: who samples, observes and learns; None for this process, and as many more as
            `settings.workers` says.

    Raises:
        InvalidInput: the text is too short, or the model cannot be sampled.
        ConfigurationError: an unusable file or folder, or a state folder of other settings.
        Unsupported: a model whose cache the codecs do not cover.
        Unavailable: workers died again and again; what is done is kept.
    """
    settings.check_target()
    text = settings.read_text()
    loaded = loaded or load_model(settings.model, settings.device)
    made: DictionarySet
    if settings.codec == RESIDUAL:
        made = train_residual(_residual(settings), text, loaded, bars, pool)
    else:
        if importance is None and settings.importance is not None:
            importance = read_importance(settings.importance)
        made = train_dictionaries(settings, loaded, importance, pool, bars)
    made.save(settings.out)
    return made


def train_all(
    runs: Sequence[TrainSettings], loaded: LoadedModel | None = None, pool: Pool | None = None
) -> list[Made]:
    """Makes several sets of one model, one after another, each as `train` makes it.

    What can be refused is refused before the first is begun. A run for lexico-residual that tells
    another its importance is to come before it.

    Raises:
        LexicoError: see `train`.
    """
    for settings in runs:
        settings.check_target()
        settings.read_text()
    told = [_told(settings, runs[:number]) for number, settings in enumerate(runs)]
    loaded = loaded or load_model(runs[0].model, runs[0].device)
    if len(runs) > 1:
        for settings, importance in zip(runs, told, strict=True):
            _check(settings, loaded, importance)
    made = []
    for settings, importance in zip(runs, told, strict=True):
        start = time.monotonic()
        dictionary = train(settings, loaded, importance, pool)
        made.append(Made(settings, dictionary, time.monotonic() - start))
    return made


def read_importance(path: Path) -> Tensor:
    """Importance `[layers, 2]`, as a set for lexico-residual tells it.

    Raises:
        ConfigurationError: the file cannot be read, or does not tell it.
        InvalidInput: it is no set.
    """
    told = DictionarySet.load(path).info.training.get(IMPORTANCE)
    try:
        found = torch.tensor(told, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as e:
        raise ConfigurationError(
            f"importance {path}: does not tell it; `lexico train --codec lexico-residual` makes "
            "sets that do"
        ) from e
    return found


def report(made: Sequence[Made]) -> str:
    """Tables for the terminal: errors or steps of each set, then files, sizes, times, digests."""
    parts = [_details(one.dictionary) for one in made]
    if len(made) > 1:
        parts = [f"{one.settings.codec}\n{part}" for one, part in zip(made, parts, strict=True)]
    width = max(len(str(one.settings.out)) for one in made)
    rows = [
        f"{one.settings.out!s:{width}s}  {one.settings.codec:15s} "
        f"{len(one.dictionary.to_bytes()):>11,} bytes {one.seconds / 60:6.1f} min  "
        f"{one.dictionary.digest.hex()}"
        for one in made
    ]
    return "\n".join([*parts, *rows])


def _details(made: DictionarySet) -> str:
    if isinstance(made, TransformSet):
        steps = made.transform.steps
        return "\n".join(f"{name:10s} step {step:.3g}" for name, step in steps.items())
    return error_table(made.info)


def _residual(settings: TrainSettings) -> ResidualSettings:
    return ResidualSettings(
        settings.model, settings.state, settings.tokens, settings.fit, settings.command
    )


def _told(settings: TrainSettings, earlier: Sequence[TrainSettings]) -> Tensor | None:
    """Importance that a run is to heed, unless it has none or an earlier run is to find it."""
    if settings.importance is None:
        return None
    path = settings.importance.resolve()
    if any(run.codec == RESIDUAL and run.out.resolve() == path for run in earlier):
        return None
    return read_importance(settings.importance)


def _check(settings: TrainSettings, loaded: LoadedModel, importance: Tensor | None) -> None:
    if settings.codec == RESIDUAL:
        check_residual(_residual(settings), settings.read_text(), loaded)
    else:
        check_dictionaries(settings, loaded, importance)


def error_table(info: SetInfo) -> str:
    """Held-out relative errors of a set, one line a layer and their mean, in per cent."""
    lines = ["layer    key  value"]
    lines += [
        f"{i:5d} {100 * e['key']:6.1f} {100 * e['value']:6.1f}" for i, e in enumerate(info.held_out)
    ]
    means = (sum(e[p] for e in info.held_out) / max(1, len(info.held_out)) for p in PARTS)
    lines.append(" mean " + " ".join(f"{100 * m:6.1f}" for m in means))
    return "\n".join(lines)
