"""What an error in each table of vectors costs the model, and how tables share out atoms by it.

The model's predictions are measured with one table coded and all others exact, on windows that
nothing was learned from: KL over squared error. A table is the keys or the values of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from lexico_codec.codecs.codec import Place
from lexico_codec.codecs.packed.codec import PackedCodec
from lexico_codec.codecs.packed.packed_codes import MOST_ATOMS
from lexico_codec.files import write_atomically
from lexico_codec.geometry import Rope
from lexico_codec.sets.atom_tensors import PARTS
from lexico_codec.sets.dictionary import AtomSet
from lexico_lab.caches import cache_of, divergence, forward, states_of
from lexico_lab.training.observe import EXACT_TOKENS
from lexico_lab.training.progress import Bars
from lexico_proto.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEASURED_WINDOWS: Final = 3
"""Windows that costs are measured on: their means settle within some tens of per cent."""

_WINDOW_TOKENS: Final = 1024  # of a window, at most
_PAGE: Final = 64
_TRUST: Final = 0.75
"""Power of the importance that errors are weighted with: few windows exaggerate how much tables
differ. Of 0.5, 0.75 and 1 the middle one had the least KL at equal bytes."""


def importance_of_tables(
    model: PreTrainedModel,
    windows: Sequence[Sequence[int]],
    dictionary: AtomSet,
    rope: Rope | None,
    folder: Path,
    progress: Bars,
) -> Tensor:
    """What a squared error of a component costs, `[layers, 2]` float64: nats over squared error.

    Args:
        model: the model.
        windows: token ids.
        dictionary: the set whose tables are coded, one at a time.
        rope: of the model.
        folder: keeps what is done of each window, as `costs.N.safetensors`.
        progress: of bars.

    Raises:
        InvalidInput: the model gives NaN or infinity.
        ConfigurationError: a file of the folder is none of ours.
    """
    codec = PackedCodec(sparsity=min(dictionary.info.sparsity, MOST_ATOMS))
    tables = 2 * dictionary.layers
    total = torch.zeros(2, dictionary.layers, 2, dtype=torch.float64)
    with progress(total=len(windows) * tables, desc=f"{codec.name}: costs", unit="table") as bar:
        for number, ids in enumerate(windows):
            path = folder / f"costs.{number}.safetensors"
            if path.exists():
                bar.update(tables)
            else:
                found = torch.empty(2, tables, dtype=torch.float64)
                made = table_costs(model, ids[:_WINDOW_TOKENS], codec, dictionary, rope)
                for table, costs in enumerate(made):
                    found[:, table] = torch.tensor(costs, dtype=torch.float64)
                    bar.update()
                write_atomically(path, save({"costs": found}))
            try:
                with safetensors.safe_open(path, framework="pt") as f:
                    total += f.get_tensor("costs").view_as(total)
            except (OSError, safetensors.SafetensorError, RuntimeError) as e:
                raise ConfigurationError(f"{path}: not a finished step of a run ({e})") from e
    nats, errors = total.unbind()
    importance: Tensor = nats / errors.clamp_min(torch.finfo(torch.float64).tiny)
    return importance


@torch.inference_mode()
def table_costs(
    model: PreTrainedModel,
    ids: Sequence[int],
    codec: PackedCodec,
    dictionary: AtomSet,
    rope: Rope | None,
) -> Iterator[tuple[float, float]]:
    """Of each table the KL in nats that it costs when it alone is coded, and its squared error.

    Three quarters of the window are the prompt, whose newest tokens stay exact, as do the sinks.
    The error is the mean over the prompt's components; a rotation does not change it.

    Raises:
        InvalidInput: the model gives NaN or infinity.
    """
    prompt = len(ids) * 3 // 4
    following = ids[prompt:]
    cache = cache_of()
    forward(model, ids[:prompt], cache, 1)
    exact = states_of(cache).half().cpu()  # [layers, 2, heads, tokens, dim]

    def predicted(states: Tensor) -> Tensor:
        used = cache_of(states.to(model.device, model.dtype))
        return forward(model, following, used, len(following)).cpu()

    reference = predicted(exact)
    coded = exact.transpose(2, 3).contiguous()
    end = prompt - min(EXACT_TOKENS, prompt // 4)
    for first in range(0, end, _PAGE):
        place = Place(0, first, rope)
        page = coded[:, :, first : min(first + _PAGE, end)].contiguous()
        out = torch.empty_like(page)
        codec.decode(memoryview(codec.encode(page, place, dictionary)), place, dictionary, out)
        coded[:, :, first : first + page.shape[2]] = out
    coded = coded.transpose(2, 3)
    for layer in range(len(exact)):
        for part in range(len(PARTS)):
            states = exact.clone()
            states[layer, part] = coded[layer, part]
            kl = divergence(reference, predicted(states))
            if not math.isfinite(kl):
                raise InvalidInput("costs: the model's predictions are not finite")
            error = (coded[layer, part].double() - exact[layer, part].double()).square().mean()
            yield kl, float(error)


def weigh(errors: Tensor, importance: Tensor) -> Tensor:
    """What `packed.errors` holds, `[layers, 2, S + 1]` float32.

    Every table is to get its first atom before any gets a second, so much is added to what is left
    after none: vectors that are all their mean cost far more than the squares of their errors say,
    0.1 nats in the values of SmolLM2-135M's first layer.

    Args:
        errors: `[layers, 2, S + 1]`, see `error_curve`.
        importance: `[layers, 2]`, what a squared error costs, in any unit.
    """
    weighted = errors * importance.pow(_TRUST)[:, :, None]
    weighted[:, :, 0] += 2 * weighted.amax()
    return weighted.float()
