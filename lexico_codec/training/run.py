"""`lexico train`: from a model and a text to a dictionary set.

The run keeps all it has done in a state folder: samples window by window, dictionaries one by one,
each written whole or not at all. Started again with the same settings it goes on from there, and
the artefact is the same to the byte as that of a run that was never stopped. Nothing is written at
the target before everything is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lexico_codec.dictionary import PARTS, DictionarySet, SetInfo, canonical_json
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.training.learn import LearnSettings
from lexico_codec.training.model import LoadedModel, load_model
from lexico_codec.training.sample import WINDOW_LENGTHS, Samples, cut_windows, sample
from lexico_codec.training.state import RunState, Task, work_through
from lexico_proto.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VECTORS_PER_ATOM: Final = 8


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lexico train`."""
    defaults = LearnSettings()
    parser.add_argument("--model", required=True, help="smollm2, a folder, or a name on the hub")
    parser.add_argument("--text", required=True, type=Path, help="UTF-8 text to sample")
    parser.add_argument("--out", required=True, type=Path, help="artefact to write")
    parser.add_argument("--atoms", type=int, default=defaults.atoms, help="atoms a dictionary")
    parser.add_argument("--sparsity", type=int, default=defaults.sparsity, help="atoms a vector")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="folder for resuming (default: OUT.state)")
    parser.add_argument("--tokens", type=int, default=240_000, help="most tokens of the text used")
    parser.add_argument(
        "--vectors", type=int, default=defaults.vectors, help="vectors coded a dictionary"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")


def run(args: argparse.Namespace) -> str:
    """Trains as the parsed options say.

    Returns:
        A table of held-out errors for the terminal.

    Raises:
        LexicoError: see `train`.
    """
    settings = TrainSettings(
        model=args.model,
        text=args.text,
        out=args.out,
        state=args.state or args.out.with_name(args.out.name + ".state"),
        learn=LearnSettings(args.atoms, args.sparsity, args.vectors, seed=args.seed),
        tokens=args.tokens,
        workers=args.workers,
    )
    start = time.monotonic()
    made = train(settings)
    minutes = (time.monotonic() - start) / 60
    if args.state is None:
        shutil.rmtree(settings.state)
    size = f"{len(made.to_bytes()):,} bytes"
    return f"{error_table(made.info)}\n{args.out}: {size}, {minutes:.1f} min\n{made.digest.hex()}"


def train(settings: TrainSettings, loaded: LoadedModel | None = None) -> DictionarySet:
    """Runs or resumes a training run and writes the artefact.

    Args:
        settings: the run.
        loaded: the model, where it is in memory already.

    Raises:
        InvalidInput: the text is too short, or the model cannot be sampled.
        ConfigurationError: an unusable file or folder, or a state folder of other settings.
        Unsupported: a model whose cache the codecs do not cover.
    """
    text = _read_text(settings.text)
    _check_target(settings.out)
    loaded = loaded or load_model(settings.model)
    geometry = geometry_of(loaded.model.config, "float32")
    samples = Samples(
        folder=settings.state / "samples",
        windows=cut_windows(text, loaded.tokenizer, settings.tokens, settings.window_lengths),
        layers=geometry.layers,
        kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
    )
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
        training=decides,
        corpus_digest=samples.corpus_digest,
        held_out=[{"key": k.relative_error, "value": v.relative_error} for k, v in results],
        command=_command(settings),
    )
    made = DictionarySet.build([(k.atoms, v.atoms) for k, v in results], info)
    made.save(settings.out)
    return made


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
        )
        for layer, part in places
        if not state.has(layer, part)
    ]
    done = len(places) - len(tasks)
    with _progress(total=len(places), initial=done, desc="learning", unit="dict") as bar:
        for _ in work_through(tasks, settings.workers):
            bar.update()


def _progress(**options: Any) -> Any:
    try:
        from tqdm import tqdm  # `lexico serve` imports this module too, and needs no tqdm
    except ImportError as e:
        raise ConfigurationError("tqdm is not installed: lexico-offload[train]") from e
    return tqdm(**options)


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
        **asdict(settings.learn),
    }


def _command(settings: TrainSettings) -> str:
    """The command that repeats the run, with file names for paths, which differ by machine."""
    learning = settings.learn
    return (
        f"lexico train --model {settings.model} --text {settings.text.name} "
        f"--out {settings.out.name} --atoms {learning.atoms} --sparsity {learning.sparsity} "
        f"--seed {learning.seed} --tokens {settings.tokens} --vectors {learning.vectors}"
    )
