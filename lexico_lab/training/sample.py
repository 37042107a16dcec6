"""Key and value vectors of a model over a text, and how much attention each got, for training.

The text is cut into windows of several lengths, so that keys of early and late positions are both
seen. Each window is one forward pass from an empty cache; what lands in the cache is appended, as
fp16, to one file a dictionary: keys after their rotation, or as they were before it. The first
tokens of a window are left out: as attention sinks they are stored exact.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch

from lexico_codec.canonical import canonical_json
from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.files import write_atomically
from lexico_codec.geometry import Rope
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.rope import unrotate
from lexico_codec.sets.atom_tensors import PARTS, Part
from lexico_lab.models import LoadedModel, load_model
from lexico_lab.training.importance import recorded_importance
from lexico_lab.training.pool import Pool
from lexico_proto.errors import ConfigurationError, InvalidInput, Unsupported

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW_LENGTHS: Final = (2048, 1024, 1024)
"""Tokens a window, in turn."""

_PROGRESS: Final = "progress.json"


@dataclass(frozen=True, slots=True)
class Samples:
    """Where the vectors of one model over one text lie, or will lie."""

    folder: Path
    windows: tuple[tuple[int, ...], ...]
    """Token ids of each window."""
    layers: int
    kv_heads: int
    head_dim: int
    rope: Rope | None = None
    """Rotation that is taken off the keys, or None to keep them as they lie in the cache."""

    @property
    def rows(self) -> int:
        """Vectors a dictionary: tokens that are no sinks, times heads."""
        return self.rows_of(len(self.windows))

    def rows_of(self, windows: int) -> int:
        """Vectors a dictionary that the first windows give."""
        return sum(len(w) - SINK_TOKENS for w in self.windows[:windows]) * self.kv_heads

    @property
    def corpus_digest(self) -> str:
        """See `digest_of`."""
        return digest_of(self.windows)

    def path(self, layer: int, part: Part) -> Path:
        """File of one dictionary's vectors: fp16 `[rows, head_dim]`, row-major, no header."""
        return self.folder / f"{layer:02d}.{part}.f16"

    def energy_path(self, layer: int) -> Path:
        """File of a layer's attention energies: fp32 `[rows]`, see `importance`."""
        return self.folder / f"{layer:02d}.energy.f32"

    def finished(self) -> int:
        """Windows that are on disk."""
        try:
            done = json.loads((self.folder / _PROGRESS).read_text())["windows"]
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ConfigurationError(f"{self.folder / _PROGRESS}: cannot read ({e})") from e
        return int(done)


def digest_of(windows: Iterable[Sequence[int]]) -> str:
    """BLAKE2b-256 of the windows' token ids, as hex."""
    digest = hashlib.blake2b(digest_size=32)
    for window in windows:
        digest.update(np.asarray([len(window), *window], dtype="<u4").tobytes())
    return digest.hexdigest()


def cut_windows(
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    lengths: Sequence[int] = WINDOW_LENGTHS,
) -> tuple[tuple[int, ...], ...]:
    """The first `tokens` tokens of a text as windows whose lengths take turns.

    `<unk>`, the mark of tokenised WikiText for a word it dropped, is left out.

    Raises:
        InvalidInput: the text does not fill one window.
    """
    cleaned = text.replace(" <unk>", "").replace("<unk>", "")
    ids = tokenizer(cleaned, add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    windows, at = [], 0
    for length in itertools.cycle(lengths):
        if at + length > len(ids):
            break
        windows.append(tuple(ids[at : at + length]))
        at += length
    if not windows:
        raise InvalidInput(f"text: {len(ids)} tokens do not fill a window of {lengths[0]}")
    return tuple(windows)


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """What one window gives."""

    states: list[npt.NDArray[np.float16]]
    """`[tokens, kv_heads, head_dim]` of each dictionary, keys before values in each layer."""
    energies: list[npt.NDArray[np.float32]]
    """`[tokens, kv_heads]` of each layer."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Takes windows' token ids to what they give."""

    model: PreTrainedModel
    layers: int
    rope: Rope | None

    def __call__(self, window: Sequence[int]) -> Sampled:
        """
        Raises:
            InvalidInput: the model gives NaN or infinity, or values beyond fp16.
            Unsupported: attention that does not go through the interface of transformers.
        """
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        with torch.inference_mode(), recorded_importance(self.model) as energy:
            ids = torch.tensor([list(window)], device=self.model.device)
            self.model(ids, **cache_inputs(self.model, cache), use_cache=True, logits_to_keep=1)
        states: list[npt.NDArray[Any]] = []
        for layer, part in itertools.product(range(self.layers), PARTS):
            found = cache.layers[layer].keys if part == "key" else cache.layers[layer].values
            taken = found[0, :, SINK_TOKENS:].transpose(0, 1)  # [T, G, m]
            if part == "key" and self.rope is not None:
                positions = torch.arange(SINK_TOKENS, len(window), device=taken.device)
                taken = unrotate(taken, positions, self.rope)
            block = taken.half().cpu().contiguous()
            if not bool(block.isfinite().all()):
                raise InvalidInput(f"layer {layer} {part}: NaN, infinity or beyond fp16")
            states.append(block.numpy())
        for layer in range(self.layers):
            if layer not in energy:
                raise Unsupported(f"layer {layer}: its attention cannot be watched")
        flat = [energy[layer][:, SINK_TOKENS:].T.contiguous() for layer in range(self.layers)]
        return Sampled(states, [one.cpu().numpy() for one in flat])


@dataclass(frozen=True, slots=True)
class Sampling:
    """The work of sampling, for workers that load the model themselves."""

    model: str
    layers: int
    rope: Rope | None
    threads: int

    def begin(self, device: str) -> Sampler:
        """Loads the model."""
        return Sampler(load_model(self.model, device).model, self.layers, self.rope)


def sample(loaded: LoadedModel, samples: Samples, pool: Pool | None = None) -> Iterator[int]:
    """Dumps the windows that are not on disk yet, yielding the tokens of each as it is finished.

    A run that was cut short goes on with the window it had not finished.

    Args:
        loaded: the model.
        samples: what to write.
        pool: whose workers run the model; None for this process alone.

    Raises:
        ConfigurationError: the folder cannot be written.
        InvalidInput, Unsupported: see `Sampler`.
        Unavailable: see `Pool`.
    """
    done = samples.finished()
    _make(samples.folder)
    left = samples.windows[done:]
    made: Generator[Sampled, None, None]
    if pool is None:
        sampler = Sampler(loaded.model, samples.layers, samples.rope)
        made = (sampler(window) for window in left)
    else:
        work = Sampling(loaded.name, samples.layers, samples.rope, torch.get_num_threads())
        made = pool.map(work, left)
    with closing(made):
        for index, found in enumerate(made, start=done):
            _keep(samples, index, found)
            yield len(samples.windows[index])


def _keep(samples: Samples, index: int, found: Sampled) -> None:
    """Writes what a window gave, and then that it is there."""
    offset = 2 * samples.head_dim * samples.rows_of(index)
    places = itertools.product(range(samples.layers), PARTS)
    for (layer, part), block in zip(places, found.states, strict=True):
        _write_at(samples.path(layer, part), offset, block.tobytes())
    for layer, energy in enumerate(found.energies):
        _write_at(samples.energy_path(layer), 4 * samples.rows_of(index), energy.tobytes())
    write_atomically(samples.folder / _PROGRESS, canonical_json({"windows": index + 1}).encode())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigurationError(f"{folder}: cannot write ({e.strerror or e})") from e


def _write_at(path: Path, offset: int, data: bytes) -> None:
    try:
        path.touch()
        with path.open("r+b") as f:
            f.seek(offset)
            f.write(data)
    except OSError as e:
        raise ConfigurationError(f"{path}: cannot write ({e.strerror or e})") from e
