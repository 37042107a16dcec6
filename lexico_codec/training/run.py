"""`lexico train`: from a model and a text to a dictionary set.

The run keeps all it has done in a state folder: samples window by window, dictionaries one by one,
each written whole or not at all. Started again with the same settings it goes on from there, and
the artefact is the same to the byte as that of a run that was never stopped. Nothing is written at
the target before everything is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from lexico_codec.dictionary import PARTS, DictionarySet, SetInfo, canonical_json
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.tensors import bytes_of
from lexico_codec.training.learn import Learned, LearnSettings
from lexico_codec.training.model import LoadedModel, load_model
from lexico_codec.training.sample import WINDOW_LENGTHS, Samples, cut_windows, sample
from lexico_codec.training.state import RunState, Task, work_through
from lexico_proto.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VECTORS_PER_ATOM: Final = 8
_LEXICO: Final = "lexico"
_PACKED: Final = "lexico-packed"
_RESIDUAL: Final = "lexico-residual"
_TRAINED: Final = (_LEXICO, _PACKED, _RESIDUAL)
_DEFAULTS: Final = {_RESIDUAL: LearnSettings(atoms=2048, sparsity=1, vectors=200_000)}
_TOKENS: Final = {_RESIDUAL: 114_688}


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One training run."""

    model: str
    """`smollm2`, a folder, or a name on the hub."""
    text: Path
    """UTF-8 text to sample."""
    out: Path
    """The artefact."""
    state: Path
    """Folder of what is done so far; a few GB of samples."""
    learn: LearnSettings
    tokens: int = 240_000
    """Most tokens of the text that are used."""
    workers: int = 1
    """Dictionaries learned at once, one thread each."""
    window_lengths: tuple[int, ...] = WINDOW_LENGTHS
    codec: str = _LEXICO
    """Codec that the set is for: lexico, lexico-packed, whose keys are coded before RoPE, or
    lexico-residual, which has a transform."""
    joint: int = 2880
    """For lexico-residual: components that are transformed across layers."""
    run_layers: int = 0
    """For lexico-residual: layers that are coded together; 0 for all."""

    def __post_init__(self) -> None:
        if self.codec not in _TRAINED:
            raise ConfigurationError(
                f"codec {self.codec!r}: sets are trained for {', '.join(_TRAINED)}"
            )
        if self.joint < 0 or self.run_layers < 0:
            raise ConfigurationError("joint and run_layers: must not be negative")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lexico train`."""
    parser.add_argument("--model", required=True, help="smollm2, a folder, or a name on the hub")
    parser.add_argument("--text", required=True, type=Path, help="UTF-8 text to sample")
    parser.add_argument("--out", required=True, type=Path, help="artefact to write")
    parser.add_argument(
        "--codec", choices=_TRAINED, default=_LEXICO, help="codec that the set is for"
    )
    parser.add_argument("--atoms", type=int, help="atoms a dictionary (1024; lexico-residual 2048)")
    parser.add_argument(
        "--sparsity", type=int, help="atoms a vector (8; lexico-residual 1 a token)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="folder for resuming (default: OUT.state)")
    parser.add_argument("--tokens", type=int, help="most tokens of the text used")
    parser.add_argument("--vectors", type=int, help="vectors coded a dictionary")
    parser.add_argument(
        "--joint", type=int, default=2880, help="lexico-residual: components across layers"
    )
    parser.add_argument(
        "--run-layers", type=int, default=0, help="lexico-residual: layers coded together (all)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")


def run(args: argparse.Namespace) -> str:
    """Trains as the parsed options say.

    Returns:
        A table of held-out errors for the terminal.

    Raises:
        LexicoError: see `train`.
    """
    usual = _DEFAULTS.get(args.codec, LearnSettings())
    learning = LearnSettings(
        atoms=usual.atoms if args.atoms is None else args.atoms,
        sparsity=usual.sparsity if args.sparsity is None else args.sparsity,
        vectors=usual.vectors if args.vectors is None else args.vectors,
        seed=args.seed,
    )
    settings = TrainSettings(
        model=args.model,
        text=args.text,
        out=args.out,
        state=args.state or args.out.with_name(args.out.name + ".state"),
        learn=learning,
        tokens=_TOKENS.get(args.codec, 240_000) if args.tokens is None else args.tokens,
        workers=args.workers,
        codec=args.codec,
        joint=args.joint,
        run_layers=args.run_layers,
    )
    start = time.monotonic()
    made = train(settings)
    minutes = (time.monotonic() - start) / 60
    if args.state is None:
        shutil.rmtree(settings.state)
    size = f"{len(made.to_bytes()):,} bytes"
    head = error_table(made.info) if made.info.held_out else _steps_table(made)
    return f"{head}\n{args.out}: {size}, {minutes:.1f} min\n{made.digest.hex()}"


def train(
    settings: TrainSettings,
    loaded: LoadedModel | None = None,
    importance: Tensor | None = None,
) -> DictionarySet:
    """Runs or resumes a training run and writes the artefact.

    Args:
        settings: the run.
        loaded: the model, where it is in memory already.
        importance: for codec lexico-packed `[layers, 2]`, how much a squared error of a component
            of the layer's keys and values costs, in any unit: the set then tells the codec how to
            share out atoms. None for equal numbers everywhere.

    Raises:
        InvalidInput: the text is too short, or the model cannot be sampled.
        ConfigurationError: an unusable file or folder, or a state folder of other settings.
        Unsupported: a model whose cache the codecs do not cover.
    """
    text = _read_text(settings.text)
    _check_target(settings.out)
    loaded = loaded or load_model(settings.model)
    if settings.codec == _RESIDUAL:
        return _train_residual(settings, text, loaded)
    geometry = geometry_of(loaded.model.config, "float32")
    samples = Samples(
        folder=settings.state / "samples",
        windows=cut_windows(text, loaded.tokenizer, settings.tokens, settings.window_lengths),
        layers=geometry.layers,
        kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        rope=geometry.rope if settings.codec == _PACKED else None,
    )
    _check_importance(importance, settings, geometry)
    _check_enough(samples, settings.learn.atoms)
    decides = _what_decides(settings, geometry, samples)
    state = RunState.claim(settings.state, decides)
    _sample_all(loaded.model, samples)
    _learn_all(settings, samples, state)
    results = [[state.result(layer, part) for part in PARTS] for layer in range(geometry.layers)]
    info = SetInfo(
        model=settings.model,
        kv_heads=geometry.kv_heads,
        rope=json.loads(canonical_json(asdict(geometry.rope))) if geometry.rope else {},
        sparsity=settings.learn.sparsity,
        training=decides if importance is None else {**decides, "importance": _digest(importance)},
        corpus_digest=samples.corpus_digest,
        held_out=[{"key": k.relative_error, "value": v.relative_error} for k, v in results],
        command=_command(settings),
    )
    made = _assemble(results, info, importance)
    made.save(settings.out)
    return made


def _train_residual(settings: TrainSettings, text: str, loaded: LoadedModel) -> DictionarySet:
    from lexico_codec.training.fit import FitSettings
    from lexico_codec.training.residual import ResidualSettings, train_residual

    layers = geometry_of(loaded.model.config, "float32").layers
    learning = settings.learn
    how = FitSettings(
        run_layers=settings.run_layers or layers,
        joint=settings.joint,
        sparsity=learning.sparsity,
        atoms=learning.atoms,
        vectors=learning.vectors,
        seed=learning.seed,
    )
    command = f"{_command(settings)} --joint {settings.joint} --run-layers {settings.run_layers}"
    whole = ResidualSettings(settings.model, settings.state, settings.tokens, how, command)
    made = train_residual(whole, text, loaded, _progress)
    made.save(settings.out)
    return made


def _steps_table(made: DictionarySet) -> str:
    """Steps of a transform's qualities, one line each."""
    steps = made.family("residual").steps
    return "\n".join(f"{name:10s} step {step:.3g}" for name, step in steps.items())


def _assemble(
    results: list[list[Learned]], info: SetInfo, importance: Tensor | None
) -> DictionarySet:
    """The set of finished dictionaries, with means where they were removed.

    With importance it has the errors too. Errors that are not weighted would take atoms from the
    layers that matter most: worse than equal numbers.
    """
    atoms = [(key.atoms, value.atoms) for key, value in results]
    means = [(k.mean, v.mean) for k, v in results if k.mean is not None and v.mean is not None]
    if not means:
        return DictionarySet.build(atoms, info)
    curves = [curve for pair in results for one in pair if (curve := one.errors) is not None]
    if importance is None or not curves:
        return DictionarySet.build(atoms, info, means)
    most = min(len(curve) for curve in curves)  # dictionaries are alike, so curves are too
    errors = torch.stack([curve[:most] for curve in curves]).view(len(results), 2, most).double()
    weighted = (errors * importance.double().cpu()[:, :, None]).float()
    return DictionarySet.build(atoms, info, means, {"packed.errors": weighted})


def error_table(info: SetInfo) -> str:
    """Held-out relative errors of a set, one line a layer and their mean, in per cent."""
    lines = ["layer    key  value"]
    lines += [
        f"{i:5d} {100 * e['key']:6.1f} {100 * e['value']:6.1f}" for i, e in enumerate(info.held_out)
    ]
    means = (sum(e[p] for e in info.held_out) / max(1, len(info.held_out)) for p in PARTS)
    lines.append(" mean " + " ".join(f"{100 * m:6.1f}" for m in means))
    return "\n".join(lines)


def _sample_all(model: PreTrainedModel, samples: Samples) -> None:
    lengths = [len(window) for window in samples.windows]
    done = sum(lengths[: samples.finished()])
    with _progress(total=sum(lengths), initial=done, desc="sampling", unit="tok") as bar:
        for tokens in sample(model, samples):
            bar.update(tokens)


def _learn_all(settings: TrainSettings, samples: Samples, state: RunState) -> None:
    held_out = samples.rows_of(len(samples.windows) - max(1, len(samples.windows) // 10))
    places = [(layer, part) for layer in range(samples.layers) for part in PARTS]
    tasks = [
        Task(
            vectors=samples.path(layer, part),
            energies=samples.energy_path(layer),
            shape=(samples.rows, samples.head_dim),
            held_out_from=held_out,
            settings=settings.learn,
            result=state.result_path(layer, part),
            packed_heads=samples.kv_heads if settings.codec == _PACKED else 0,
        )
        for layer, part in places
        if not state.has(layer, part)
    ]
    done = len(places) - len(tasks)
    with _progress(total=len(places), initial=done, desc="learning", unit="dict") as bar:
        for _ in work_through(tasks, settings.workers):
            bar.update()


def _progress(*items: Any, **options: Any) -> Any:
    try:
        from tqdm import tqdm  # `lexico serve` imports this module too, and needs no tqdm
    except ImportError as e:
        raise ConfigurationError("tqdm is not installed: lexico-offload[train]") from e
    return tqdm(*items, **options)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"text {path}: cannot read ({e})") from e


def _check_target(out: Path) -> None:
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK) or out.is_dir():
        raise ConfigurationError(f"out {out}: its folder cannot be written")


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
    return {} if settings.codec == _LEXICO else {"codec": settings.codec}


def _check_importance(
    importance: Tensor | None, settings: TrainSettings, geometry: Geometry
) -> None:
    if importance is None:
        return
    if settings.codec != _PACKED:
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


def _command(settings: TrainSettings) -> str:
    """The command that repeats the run, with file names for paths, which differ by machine."""
    learning = settings.learn
    codec = "" if settings.codec == _LEXICO else f" --codec {settings.codec}"
    return (
        f"lexico train{codec} --model {settings.model} --text {settings.text.name} "
        f"--out {settings.out.name} --atoms {learning.atoms} --sparsity {learning.sparsity} "
        f"--seed {learning.seed} --tokens {settings.tokens} --vectors {learning.vectors}"
    )
