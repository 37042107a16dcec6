"""What a transform is fitted to: gradients and states as the model has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.rope import rotate, unrotate
from lexico_lab.models import LoadedModel
from lexico_lab.training import observe as observing
from lexico_lab.training.observe import (
    GRADIENT_TOKENS,
    PROMPT_TOKENS,
    WINDOW_TOKENS,
    Observations,
    observe,
)
from tests.support.coded_models import layers_of
from tests.support.saved_model import TINY, letters
from tests.support.tiny_evaluation import letters as tokenizer

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 512,
}
MOVE = 3e-3
"""Of every component: models have some float32 inside, so that less would drown."""


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel("tiny", LlamaForCausalLM(LlamaConfig(**TINY)).eval(), tokenizer)


def models() -> dict[str, tuple[Any, type[Any]]]:
    """Plain RoPE; with a scale; with a scale and components that are not turned."""
    phi = {name: n for name, n in TINY.items() if name != "initializer_range"}
    return {
        "plain": (LlamaConfig(**TINY), LlamaForCausalLM),
        "yarn": (LlamaConfig(**TINY, rope_parameters=YARN), LlamaForCausalLM),
        "yarn-partial": (
            PhiConfig(**phi, rope_parameters={**YARN, "partial_rotary_factor": 0.5}),
            PhiForCausalLM,
        ),
    }


@pytest.mark.parametrize("name", ["plain", "yarn", "yarn-partial"])
def test_gradients_are_those_of_keys_before_rope_and_of_values(name: str, tmp_path: Path) -> None:
    """Against the change of the log-likelihood when one row is moved, in double precision."""
    torch.manual_seed(0)
    config, kind = models()[name]
    model = kind(config).double().eval()
    if name == "yarn-partial":
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    geometry = geometry_of(config, "float32")
    rope = geometry.rope
    assert rope is not None
    assert (rope.scale != 1, rope.rotary_dim) == (name != "plain", 4 if "partial" in name else 8)
    ids = tuple(ord(c) % 64 for c in letters(WINDOW_TOKENS, seed=3))
    states, gradients = observing._window(model, geometry, ids, torch.Generator().manual_seed(5))
    assert gradients.shape == (GRADIENT_TOKENS, 64)
    assert states.shape == (WINDOW_TOKENS - SINK_TOKENS, 64)

    tokens = torch.tensor([ids])
    cache = DynamicCache()
    with torch.no_grad():
        model(tokens[:, :PROMPT_TOKENS], **cache_inputs(model, cache))
    pairs = [(layer.keys.clone(), layer.values.clone()) for layer in layers_of(cache)]
    positions = torch.arange(PROMPT_TOKENS)

    def likelihoods(moved: dict[tuple[int, int], Tensor]) -> Tensor:
        """Of the continuation, after moves `[prompt, heads, dim]` of (layer, 0 keys, 1 values)."""
        whole = DynamicCache()
        for layer, (keys, values) in enumerate(pairs):
            if (layer, 0) in moved:
                before = unrotate(keys[0].transpose(0, 1), positions, rope) + moved[layer, 0]
                keys = rotate(before, positions, rope).transpose(0, 1)[None]
            if (layer, 1) in moved:
                values = values + moved[layer, 1].transpose(0, 1)[None]
            whole.update(keys, values, layer)
        with torch.no_grad():
            logits = model(tokens[:, PROMPT_TOKENS:], **cache_inputs(model, whole)).logits[0]
        return logits.log_softmax(-1)

    exact = likelihoods({})
    shares = exact.float().exp()
    drawn = torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(5))
    rows = gradients.view(GRADIENT_TOKENS, 2, 2, 2, 8).double()  # layer, part, head, component
    generator = torch.Generator().manual_seed(7)
    for layer in (0, 1):
        for part in (0, 1):
            for turned in (slice(0, rope.rotary_dim), slice(rope.rotary_dim, 8)):
                direction = torch.zeros(PROMPT_TOKENS, 2, 8, dtype=torch.float64)
                noise = torch.randn(GRADIENT_TOKENS, 2, 8, generator=generator)
                direction[SINK_TOKENS:-32, :, turned] = noise[:, :, turned].double()
                expected = float((rows[:, layer, part] * direction[SINK_TOKENS:-32]).sum())
                up, down = (
                    likelihoods({(layer, part): sign * MOVE * direction}).gather(1, drawn).sum()
                    for sign in (1, -1)
                )
                assert float(up - down) / (2 * MOVE) == pytest.approx(expected, rel=2e-2, abs=0.1)
    last = states.view(-1, 2, 2, 2, 8)[:, 1, 1]
    kept = pairs[1][1][0].transpose(0, 1)[SINK_TOKENS:]
    torch.testing.assert_close(last[: len(kept)].double(), kept, atol=5e-3, rtol=2e-3)


def test_states_of_layer_0_do_not_depend_on_the_position(tiny: LoadedModel, tmp_path: Path) -> None:
    """RoPE is taken off: equal tokens have equal keys."""
    ids = tuple(7 + at % 5 for at in range(WINDOW_TOKENS))
    seen = Observations(tmp_path, (ids,), geometry_of(tiny.model.config, "float32"))
    assert list(observe(tiny, seen, 0)) == [0]
    states = seen.states(0).float()
    torch.testing.assert_close(states[5:105, :16], states[905:1005, :16], atol=5e-3, rtol=5e-3)
