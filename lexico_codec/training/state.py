"""What a training run has done so far, and the work that is left, spread over processes."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from lexico_codec.dictionary import Part, canonical_json, write_atomically
from lexico_codec.training.importance import training_weights
from lexico_codec.training.learn import Learned, LearnSettings, learn
from lexico_proto.errors import ConfigurationError

_LOG = logging.getLogger(__name__)
_HELD_OUT_VECTORS = 20_000  # most that a dictionary is measured on
_TOKENS_AT_ONCE = 65536


@dataclass(frozen=True, slots=True)
class RunState:
    """The state folder: `run.json`, with all that decides the result, and a file a dictionary."""

    folder: Path

    @classmethod
    def claim(cls, folder: Path, decides: dict[str, Any]) -> RunState:
        """Opens the state of this very run, or starts one where there is none.

        Raises:
            ConfigurationError: the folder belongs to another configuration, or cannot be used.
        """
        mark = folder / "run.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = json.loads(mark.read_text()) if mark.exists() else None
        except (OSError, ValueError) as e:
            raise ConfigurationError(f"state {folder}: cannot use ({e})") from e
        if found is None:
            write_atomically(mark, canonical_json(decides).encode())
        elif found != json.loads(canonical_json(decides)):
            known = found if isinstance(found, dict) else {}
            other = sorted(k for k in {*known, *decides} if known.get(k) != decides.get(k))
            raise ConfigurationError(
                f"state {folder}: belongs to a run with another {', '.join(other)}; "
                "choose another folder, or remove it"
            )
        return cls(folder)

    def result_path(self, layer: int, part: Part) -> Path:
        """File of one finished dictionary."""
        return self.folder / f"{layer:02d}.{part}.safetensors"

    def has(self, layer: int, part: Part) -> bool:
        """Whether that dictionary is finished."""
        return self.result_path(layer, part).exists()

    def result(self, layer: int, part: Part) -> Learned:
        """A finished dictionary.

        Raises:
            ConfigurationError: the file is not one of ours.
        """
        path = self.result_path(layer, part)
        try:
            with safetensors.safe_open(path, framework="pt") as f:
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - no dict
                return Learned(**tensors, **json.loads(f.metadata()["learned"]))
        except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as e:
            raise ConfigurationError(f"{path}: not a finished dictionary ({e})") from e


@dataclass(frozen=True, slots=True)
class Task:
    """One dictionary to learn."""

    vectors: Path
    """fp16 `[rows, m]` without header, in the order of the text."""
    energies: Path
    """fp32 `[rows]`: attention energy of each vector."""
    shape: tuple[int, int]
    held_out_from: int
    """Rows from here on are not trained on."""
    settings: LearnSettings
    result: Path
    packed_heads: int = 0
    """For codec lexico-packed the KV heads, whose vectors alternate: the mean of each is removed.
    0 for codec lexico."""


def work_through(tasks: Sequence[Task], workers: int) -> Iterator[Path]:
    """Learns every task's dictionary on one thread each, yielding result files as they are written.

    One worker means this process, so that small runs need no start-up. The bytes are the same
    either way.
    """
    if workers == 1 or len(tasks) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for task in tasks:
                yield _do(task)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), context, initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        for future in as_completed([pool.submit(_do, task) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _do(task: Task) -> Path:
    try:
        flat = np.fromfile(task.vectors, dtype=np.float16).reshape(task.shape)
        energies = np.fromfile(task.energies, dtype=np.float32).reshape(task.shape[0])
    except (OSError, ValueError) as e:
        raise ConfigurationError(f"{task.vectors}: not the samples of this run ({e})") from e
    vectors = torch.from_numpy(flat)
    packed = task.packed_heads > 0
    mean = None
    if packed:
        mean = _mean_of(vectors[: task.held_out_from].view(-1, task.packed_heads, task.shape[1]))
        _subtract(vectors.view(-1, task.packed_heads, task.shape[1]), mean)
    weights = training_weights(torch.from_numpy(energies)[: task.held_out_from])
    held_out = vectors[task.held_out_from :]
    stride = -(-len(held_out) // _HELD_OUT_VECTORS)
    train = vectors[: task.held_out_from]
    learned = replace(learn(train, held_out[::stride], task.settings, weights, packed), mean=mean)
    found = {field.name: getattr(learned, field.name) for field in fields(learned)}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    rest = {k: v for k, v in found.items() if k not in tensors and v is not None}
    data = save(tensors, {"learned": canonical_json(rest)})
    write_atomically(task.result, data)
    _LOG.info("learned=%s relative_error=%.4f", task.result.name, learned.relative_error)
    return task.result


def _mean_of(vectors: Tensor) -> Tensor:
    """Mean of each head over the tokens of `[T, G, m]`, `[G, m]` float16; sums are doubles."""
    total = torch.zeros(vectors.shape[1:], dtype=torch.float64)
    for some in torch.split(vectors, _TOKENS_AT_ONCE):
        total += some.double().sum(0)
    return (total / len(vectors)).half()


def _subtract(vectors: Tensor, mean: Tensor) -> None:
    """`[T, G, m]` without the means, in place."""
    for some in torch.split(vectors, _TOKENS_AT_ONCE):
        some.copy_(some.float() - mean.float())
