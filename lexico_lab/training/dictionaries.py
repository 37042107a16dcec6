"""Sets of dictionaries, for codecs lexico and lexico-packed: sample, learn, and put together.

For lexico-packed the model then says what an error of each table costs (`costs`): the errors of the
tables, weighted so, tell the codec how to share out atoms.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any, Final

import torch
from torch import Tensor

from lexico_codec.canonical import canonical_json
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.sets.atom_tensors import PARTS
from lexico_codec.sets.dictionary import AtomSet
from lexico_codec.sets.info import SetInfo
from lexico_codec.tensors import bytes_of
from lexico_lab.models import LoadedModel
from lexico_lab.training.costs import MEASURED_WINDOWS, importance_of_tables, weigh
from lexico_lab.training.learn import Learned
from lexico_lab.training.pool import LocalPool, Pool
from lexico_lab.training.progress import Bars
from lexico_lab.training.sample import Samples, cut_windows, sample
from lexico_lab.training.settings import LEXICO, PACKED, TrainSettings
from lexico_lab.training.state import DictionaryState, Task, work_through
from lexico_proto.errors import InvalidInput

_VECTORS_PER_ATOM: Final = 8


def samples_of(settings: TrainSettings, loaded: LoadedModel) -> Samples:
    """Where the samples of a run lie, or will lie.

    Raises:
        InvalidInput: the text is too short.
        ConfigurationError: it cannot be read.
        Unsupported: a model whose cache the codecs do not cover.
    """
    geometry = geometry_of(loaded.model.config, "float32")
    text = settings.read_text()
    samples = Samples(
        folder=settings.state / "samples",
        windows=cut_windows(text, loaded.tokenizer, settings.tokens, settings.window_lengths),
        layers=geometry.layers,
        kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        rope=geometry.rope if settings.codec == PACKED else None,
    )
    _check_enough(samples, settings.learn.atoms)
    return samples


def check_dictionaries(
    settings: TrainSettings, loaded: LoadedModel, importance: Tensor | None
) -> None:
    """Raises what `train_dictionaries` would before it begins. Writes nothing.

    Raises:
        InvalidInput, Unsupported: see `samples_of`; importance that is not the model's.
        ConfigurationError: see `samples_of`; a state folder of other settings.
    """
    geometry = geometry_of(loaded.model.config, "float32")
    samples = samples_of(settings, loaded)
    _check_importance(importance, settings, geometry)
    DictionaryState.check(settings.state, _what_decides(settings, geometry, samples))


def train_dictionaries(
    settings: TrainSettings,
    loaded: LoadedModel,
    importance: Tensor | None,
    pool: Pool | None,
    progress: Bars,
) -> AtomSet:
    """Makes the set, going on where a run with the same settings stopped; see `run.train`."""
    geometry = geometry_of(loaded.model.config, "float32")
    samples = samples_of(settings, loaded)
    _check_importance(importance, settings, geometry)
    decides = _what_decides(settings, geometry, samples)
    state = DictionaryState.claim(settings.state, decides)
    _sample_all(settings, samples, loaded, pool, progress)
    _learn_all(settings, samples, state, pool, progress)
    results = [[state.result(layer, part) for part in PARTS] for layer in range(geometry.layers)]
    info = SetInfo(
        model=settings.model,
        kv_heads=geometry.kv_heads,
        rope=json.loads(canonical_json(asdict(geometry.rope))) if geometry.rope else {},
        sparsity=settings.learn.sparsity,
        training=decides,
        corpus_digest=samples.corpus_digest,
        held_out=[{"key": k.relative_error, "value": v.relative_error} for k, v in results],
        command=settings.command,
    )
    if settings.codec != PACKED:
        return _assemble(results, info)
    if importance is None:
        unseen = samples.windows[_first_held_out(samples) :][:MEASURED_WINDOWS]
        importance = importance_of_tables(
            loaded.model, unseen, _assemble(results, info), samples.rope, state.folder, progress
        )
    told = {**decides, "importance": _digest(importance)}
    return _assemble(results, replace(info, training=told), importance)


def _sample_all(
    settings: TrainSettings,
    samples: Samples,
    loaded: LoadedModel,
    pool: Pool | None,
    progress: Bars,
) -> None:
    lengths = [len(window) for window in samples.windows]
    done = sum(lengths[: samples.finished()])
    what = f"{settings.codec}: sampling"
    with progress(total=sum(lengths), initial=done, desc=what, unit="tok") as bar:
        for tokens in sample(loaded, samples, pool):
            bar.update(tokens)


def _learn_all(
    settings: TrainSettings,
    samples: Samples,
    state: DictionaryState,
    pool: Pool | None,
    progress: Bars,
) -> None:
    held_out = samples.rows_of(_first_held_out(samples))
    places = [(layer, part) for layer in range(samples.layers) for part in PARTS]
    tasks = [
        Task(
            vectors=samples.path(layer, part),
            energies=samples.energy_path(layer),
            shape=(samples.rows, samples.head_dim),
            held_out_from=held_out,
            settings=settings.learn,
            result=state.result_path(layer, part),
            packed_heads=samples.kv_heads if settings.codec == PACKED else 0,
        )
        for layer, part in places
        if not state.has(layer, part)
    ]
    workers = min(settings.workers, max(1, len(tasks)))
    done = len(places) - len(tasks)
    what = f"{settings.codec}: learning"
    with progress(total=len(places), initial=done, desc=what, unit="dict") as bar:
        for _ in work_through(tasks, pool or LocalPool(workers, settings.device)):
            bar.update()


def _first_held_out(samples: Samples) -> int:
    """Number of the first window that nothing is learned from; so are those after it."""
    return len(samples.windows) - max(1, len(samples.windows) // 10)


def _assemble(
    results: list[list[Learned]], info: SetInfo, importance: Tensor | None = None
) -> AtomSet:
    """The set of finished dictionaries, with means where they were removed.

    With importance it has the errors too. Errors that are not weighted would take atoms from the
    layers that matter most: worse than equal numbers.
    """
    atoms = [(key.atoms, value.atoms) for key, value in results]
    means = [(k.mean, v.mean) for k, v in results if k.mean is not None and v.mean is not None]
    if not means:
        return AtomSet.build(atoms, info)
    curves = [curve for pair in results for one in pair if (curve := one.errors) is not None]
    if importance is None or not curves or not bool(importance.any()):
        return AtomSet.build(atoms, info, means)
    most = min(len(curve) for curve in curves)  # dictionaries are alike, so curves are too
    errors = torch.stack([curve[:most] for curve in curves]).view(len(results), 2, most)
    weighted = weigh(errors.double(), importance.double().cpu())
    return AtomSet.build(atoms, info, means, weighted)


def _check_enough(samples: Samples, atoms: int) -> None:
    if len(samples.windows) < 2:
        raise InvalidInput("text: fills one window only; at least two are needed")
    if samples.rows < _VECTORS_PER_ATOM * atoms:
        raise InvalidInput(
            f"text: gives {samples.rows} vectors a dictionary; "
            f"{atoms} atoms need at least {_VECTORS_PER_ATOM * atoms}"
        )


def _what_decides(settings: TrainSettings, geometry: Geometry, samples: Samples) -> dict[str, Any]:
    """All that the artefact's bytes depend on; workers and paths are not among it."""
    return {
        "model": settings.model,
        "corpus": samples.corpus_digest,
        "tokens": sum(len(window) for window in samples.windows),
        "layers": geometry.layers,
        "kv_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        **_codec_if_packed(settings),
        **asdict(settings.learn),
    }


def _codec_if_packed(settings: TrainSettings) -> dict[str, Any]:
    """Sets for codec lexico do not name it: their bytes are those of before there was a choice."""
    return {} if settings.codec == LEXICO else {"codec": settings.codec}


def _check_importance(
    importance: Tensor | None, settings: TrainSettings, geometry: Geometry
) -> None:
    if importance is None:
        return
    if settings.codec != PACKED:
        raise InvalidInput(f"importance: codec {settings.codec} makes no use of it")
    if importance.shape != (geometry.layers, 2):
        raise InvalidInput(
            f"importance: must be [{geometry.layers}, 2], not {list(importance.shape)}"
        )
    if not bool((importance.isfinite() & (importance >= 0)).all()):
        raise InvalidInput("importance: must be finite and not negative")


def _digest(importance: Tensor) -> str:
    """BLAKE2b-256 of the numbers as doubles, as hex."""
    return hashlib.blake2b(bytes_of(importance.double()), digest_size=32).hexdigest()
