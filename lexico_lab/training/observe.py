"""What a transform is fitted to: a model's cache over a text, and how its predictions feel it.

Each window is a prompt and a continuation. The prompt fills a cache; the continuation is predicted
from it, a token is drawn from each prediction, and the gradient of the drawn tokens' log-likelihood
is taken with respect to every key (before RoPE) and value of the prompt. The mean of g gᵀ is the
Fisher information of the cache: an error e costs the predictions a KL of about ½ eᵀ E[g gᵀ] e.

Both go to files, window by window, so that memory does not grow with the text and a run that was
cut short goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_codec.canonical import canonical_json
from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.files import write_atomically
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.rope import unrotate
from lexico_lab.models import LoadedModel, load_model
from lexico_lab.training.pool import Pool
from lexico_proto.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WINDOW_TOKENS: Final = 1024
PROMPT_TOKENS: Final = 768
EXACT_TOKENS: Final = 32
"""Of the prompt, the newest, which stay exact: no gradients are kept, as nodes compute them."""

_PROGRESS: Final = "progress.json"


@dataclass(frozen=True, slots=True)
class Observations:
    """Where they lie, or will lie. A row is a token: `2 * layers * kv_heads * head_dim` numbers,
    keys before values in each layer.
    """

    folder: Path
    windows: tuple[tuple[int, ...], ...]
    """Token ids, `WINDOW_TOKENS` each."""
    geometry: Geometry

    @property
    def row(self) -> int:
        """Numbers a token."""
        return 2 * self.geometry.layers * self.geometry.kv_heads * self.geometry.head_dim

    def states(self, window: int) -> Tensor:
        """`[tokens, row]` float16: the window's cache without sinks, keys before RoPE."""
        flat = self._read("states.f16", np.float16, window, _STATE_TOKENS * self.row)
        return flat.view(_STATE_TOKENS, self.row)

    def gradients(self, window: int) -> Tensor:
        """`[tokens, row]` float32: gradients of the first tokens of `states`."""
        scale = self._read("scales.f32", np.float32, window, 1)
        flat = self._read("gradients.f16", np.float16, window, GRADIENT_TOKENS * self.row)
        return flat.view(GRADIENT_TOKENS, self.row).float() * float(scale)

    def _read(self, name: str, dtype: type[np.floating[Any]], window: int, numbers: int) -> Tensor:
        path, size = self.folder / name, np.dtype(dtype).itemsize
        try:
            flat: npt.NDArray[Any] = np.fromfile(
                path, dtype, numbers, offset=size * window * numbers
            )
        except OSError as e:
            raise ConfigurationError(f"{path}: cannot read ({e})") from e
        if len(flat) != numbers:
            raise ConfigurationError(f"{path}: not the observations of this run")
        return torch.from_numpy(flat)

    def finished(self) -> int:
        """Windows that are on disk."""
        try:
            return int(json.loads((self.folder / _PROGRESS).read_text())["windows"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ConfigurationError(f"{self.folder / _PROGRESS}: cannot read ({e})") from e


_STATE_TOKENS: Final = WINDOW_TOKENS - SINK_TOKENS
GRADIENT_TOKENS: Final = PROMPT_TOKENS - SINK_TOKENS - EXACT_TOKENS


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """What one window gives."""

    states: npt.NDArray[np.float16]
    """`[tokens, row]`."""
    gradients: npt.NDArray[np.float16]
    """`[tokens, row]`, divided by `scale`."""
    scale: npt.NDArray[np.float32]
    """`[1]`."""


@dataclass(frozen=True, slots=True, eq=False)
class Observer:
    """Takes windows, as index and token ids, to what they give."""

    model: PreTrainedModel
    geometry: Geometry
    seed: int

    def __call__(self, window: tuple[int, Sequence[int]]) -> Observed:
        """
        Raises:
            InvalidInput: the model gives NaN or infinity, states beyond fp16, or no gradient.
        """
        index, ids = window
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        states, gradients = _window(self.model, self.geometry, ids, generator)
        scale = float(gradients.abs().max())
        if not bool(states.isfinite().all()) or not 0 < scale < float("inf"):
            raise InvalidInput(f"window {index}: NaN, infinity, beyond fp16, or no gradient at all")
        scaled = (gradients / scale).half()
        return Observed(
            states.contiguous().numpy(), scaled.contiguous().numpy(), np.array([scale], np.float32)
        )


@dataclass(frozen=True, slots=True)
class Observing:
    """The work of observing, for workers that load the model themselves."""

    model: str
    geometry: Geometry
    seed: int
    threads: int

    def begin(self, device: str) -> Observer:
        """Loads the model."""
        return Observer(_frozen(load_model(self.model, device).model), self.geometry, self.seed)


def observe(
    loaded: LoadedModel, observations: Observations, seed: int, pool: Pool | None = None
) -> Iterator[int]:
    """Writes the windows that are not on disk yet, yielding the number of each as it is finished.

    Args:
        loaded: the model.
        observations: what to write.
        seed: of the tokens drawn.
        pool: whose workers run the model; None for this process alone.

    Raises:
        ConfigurationError: the folder cannot be written.
        InvalidInput: see `Observer`.
        Unavailable: see `Pool`.
    """
    done = observations.finished()
    _make(observations.folder)
    left = enumerate(observations.windows[done:], start=done)
    made: Generator[Observed, None, None]
    if pool is None:
        observer = Observer(_frozen(loaded.model), observations.geometry, seed)
        made = (observer(window) for window in left)
    else:
        work = Observing(loaded.name, observations.geometry, seed, torch.get_num_threads())
        made = pool.map(work, left)
    with closing(made):
        for index, found in enumerate(made, start=done):
            _append(observations.folder / "states.f16", index, found.states)
            _append(observations.folder / "gradients.f16", index, found.gradients)
            _append(observations.folder / "scales.f32", index, found.scale)
            write_atomically(
                observations.folder / _PROGRESS, canonical_json({"windows": index + 1}).encode()
            )
            yield index


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _window(
    model: PreTrainedModel, geometry: Geometry, window: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """States `[tokens, row]` float16 and gradients `[tokens, row]` float32 of a window's token ids.

    The generator is of the CPU, wherever the model runs: tokens drawn are then alike.
    """
    from transformers import DynamicCache

    ids = torch.tensor([list(window)], device=model.device)
    prompt, rope = DynamicCache(), geometry.rope
    layers: Any = prompt.layers
    with torch.no_grad():
        model(ids[:, :PROMPT_TOKENS], **cache_inputs(model, prompt), logits_to_keep=1)
    cache, leaves = DynamicCache(), []
    for layer, made in enumerate(layers):
        pair = [made.keys.clone().requires_grad_(), made.values.clone().requires_grad_()]
        cache.update(pair[0], pair[1], layer)
        leaves += pair
    predicted = model(ids[:, PROMPT_TOKENS:], **cache_inputs(model, cache)).logits[0].float()
    likelihoods = predicted.log_softmax(-1)
    drawn = torch.multinomial(likelihoods.detach().exp().cpu(), 1, generator=generator)
    total = likelihoods.gather(1, drawn.to(likelihoods.device)).sum()
    found = torch.autograd.grad(total, leaves)
    last = PROMPT_TOKENS - EXACT_TOKENS
    states, gradients = [], []
    whole: Any = cache.layers
    for layer, made in enumerate(whole):
        states += [_rows(made.keys, rope, WINDOW_TOKENS), _rows(made.values, None, WINDOW_TOKENS)]
        keys, values = found[2 * layer], found[2 * layer + 1]
        gradients += [_rows(_squared(keys, rope), rope, last), _rows(values, None, last)]
    return torch.cat(states, 1).half().cpu(), torch.cat(gradients, 1).cpu()


def _squared(gradients: Tensor, rope: Rope | None) -> Tensor:
    """Gradients of keys so that they turn back as keys do: turning is orthogonal but for a scale,
    whose square they take where keys are turned.
    """
    if rope is None or rope.scale == 1:
        return gradients
    square = torch.ones(gradients.shape[-1], dtype=gradients.dtype, device=gradients.device)
    square[: rope.rotary_dim] = rope.scale**2
    return gradients * square


def _rows(states: Tensor, rope: Rope | None, last: int) -> Tensor:
    """`[tokens, heads * dim]` of `[1, heads, tokens, dim]`, sinks left out, RoPE taken off."""
    rows = states[0, :, SINK_TOKENS:last].detach().transpose(0, 1)
    if rope is not None:
        positions = torch.arange(SINK_TOKENS, last, device=rows.device)
        rows = unrotate(rows, positions, rope)
    return rows.reshape(len(rows), -1)


def _append(path: Path, window: int, data: npt.NDArray[Any]) -> None:
    try:
        path.touch()
        with path.open("r+b") as f:
            f.seek(window * data.nbytes)
            f.write(data.data)
    except OSError as e:
        raise ConfigurationError(f"{path}: cannot write ({e})") from e


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigurationError(f"{folder}: cannot write ({e})") from e
