"""What a training run has done so far, and the dictionaries that are left to learn."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from lexico_codec.canonical import canonical_json
from lexico_codec.files import write_atomically
from lexico_codec.sets.atom_tensors import Part
from lexico_lab.run_state import RunState
from lexico_lab.training.importance import training_weights
from lexico_lab.training.learn import Learned, LearnSettings, learn
from lexico_lab.training.pool import Pool
from lexico_lab.training.rounding import as_lexico, as_packed
from lexico_proto.errors import ConfigurationError

_LOG = logging.getLogger(__name__)
_HELD_OUT_VECTORS = 20_000  # most that a dictionary is measured on
_TOKENS_AT_ONCE = 65536


@dataclass(frozen=True, slots=True)
class DictionaryState(RunState):
    """The state of a run that learns dictionaries: a file of each one that is finished."""

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
    data: tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]] | None = None
    """What the files hold, for workers that do not see them."""

    def read(self) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]:
        """Vectors `[rows, m]` and energies `[rows]`, to be written to at will.

        Raises:
            ConfigurationError: the files are not as they must be.
        """
        if self.data is not None:
            return self.data[0].copy(), self.data[1].copy()
        try:
            flat = np.fromfile(self.vectors, dtype=np.float16).reshape(self.shape)
            energies = np.fromfile(self.energies, dtype=np.float32).reshape(self.shape[0])
        except (OSError, ValueError) as e:
            raise ConfigurationError(f"{self.vectors}: not the samples of this run ({e})") from e
        return flat, energies


@dataclass(frozen=True, slots=True)
class Learning:
    """The work of learning: from tasks to what goes to their files."""

    threads: int = 1

    def begin(self, device: str) -> Callable[[Task], tuple[Path, bytes]]:
        """Nothing is to be loaded."""
        return partial(_do, device=device)


def work_through(tasks: Sequence[Task], pool: Pool) -> Iterator[Path]:
    """Learns every task's dictionary on one thread each, yielding result files as they are written.

    The bytes are the same whoever of a machine learns them.

    Raises:
        ConfigurationError: samples that are not of this run.
        Unavailable: see `Pool`.
    """
    if pool.shares_files:
        items: Iterable[Task] = tasks
    else:
        items = (replace(task, data=task.read()) for task in tasks)
    with closing(pool.map(Learning(), items, ordered=False)) as made:
        for result, data in made:
            write_atomically(result, data)
            yield result


def _do(task: Task, device: str) -> tuple[Path, bytes]:
    flat, energies = task.read()
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
    rounding = as_packed if packed else as_lexico
    learned = learn(train, held_out[::stride], task.settings, weights, packed, device, rounding)
    learned = replace(learned, mean=mean)
    found = {field.name: getattr(learned, field.name) for field in fields(learned)}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    rest = {k: v for k, v in found.items() if k not in tensors and v is not None}
    _LOG.info("learned=%s relative_error=%.4f", task.result.name, learned.relative_error)
    return task.result, save(tensors, {"learned": canonical_json(rest)})


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
