"""What a model is given beside token ids: a loaded cache whose keys and values it changes is never
offloaded as that of plain ids, and a prefix never goes together with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from lexico_client import Client, InMemoryTransport
from lexico_client.engines.hf._beside_ids import follow, plain, sees_all
from lexico_client.engines.hf._held_tokens import HeldTokens
from lexico_client.hf import HuggingFaceCache
from lexico_codec.hf_inputs import cache_inputs
from lexico_proto.errors import InvalidInput
from tests.support.answers import IDS, PAGE_TOKENS, TOKENS, answer, made
from tests.support.client_fixtures import PATIENT

PREFIX = 32


@pytest.fixture(scope="module")
def model() -> Any:
    return made("llama")


@pytest.fixture
def shared(model: Any, tmp_path: Path) -> Iterator[HuggingFaceCache]:
    with Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        yield HuggingFaceCache(client, model, codec="raw", page_tokens=PAGE_TOKENS)


def hidden(first: int, end: int) -> Tensor:
    mask = torch.ones_like(IDS)
    mask[0, first:end] = 0
    return mask


def of_scores(shown: Tensor) -> Tensor:
    return torch.zeros(shown.shape).masked_fill(~shown, torch.finfo(torch.float32).min)


def causal(tokens: int, columns: int) -> Tensor:
    return torch.ones(1, 1, tokens, columns).tril(columns - tokens).bool()


def holed(tokens: int, columns: int) -> Tensor:
    return causal(tokens, columns) & (torch.arange(columns) != columns - tokens)


CHANGED: dict[str, Callable[[int], dict[str, Any]]] = {
    "padding": lambda held: {"attention_mask": hidden(0, 10)},
    "a hole": lambda held: {"attention_mask": hidden(38, 41)},
    "a mask that is too short": lambda held: {"attention_mask": torch.ones(1, TOKENS - 1).long()},
    "a hole in four dimensions": lambda held: {"attention_mask": holed(TOKENS - held, TOKENS)},
    "no causal mask": lambda held: {"attention_mask": torch.zeros(1, 1, TOKENS - held, TOKENS)},
    "positions": lambda held: {"position_ids": torch.arange(held, TOKENS)[None] + 50},
    "positions that begin anew": lambda held: {
        "position_ids": torch.arange(held, TOKENS)[None] % 40
    },
    "places in the cache": lambda held: {"cache_position": torch.arange(held, TOKENS) + 1},
    "not causal": lambda held: {"is_causal": False},
    "token types": lambda held: {"token_type_ids": torch.zeros(1, TOKENS - held).long()},
}
THE_SAME: dict[str, Callable[[int], dict[str, Any]]] = {
    "nothing": lambda held: {},
    "a mask of ones": lambda held: {"attention_mask": torch.ones_like(IDS)},
    "a mask of truth": lambda held: {"attention_mask": torch.ones_like(IDS).bool()},
    "four dimensions": lambda held: {"attention_mask": causal(TOKENS - held, TOKENS)},
    "scores": lambda held: {"attention_mask": of_scores(causal(TOKENS - held, TOKENS))},
    "positions": lambda held: {"position_ids": torch.arange(held, TOKENS)[None]},
    "settings": lambda held: {
        "use_cache": True,
        "logits_to_keep": 1,
        "output_hidden_states": False,
    },
    "kinds of tokens": lambda held: {"mm_token_type_ids": torch.zeros(1, TOKENS - held).int()},
}


@torch.inference_mode()
@pytest.mark.parametrize("name", CHANGED)
def test_after_a_miss_it_is_computed_and_not_offloaded(
    model: Any, shared: HuggingFaceCache, name: str
) -> None:
    hit = shared.load(IDS)
    model(IDS, **CHANGED[name](0), **hit.inputs)
    with pytest.raises(InvalidInput, match=r"from position 0 on is not known.*padding"):
        shared.offload(IDS, hit.cache)
    assert shared.load(IDS).tokens == 0


def prefixed(model: Any, shared: HuggingFaceCache) -> None:
    miss = shared.load(IDS)
    model(IDS[:, :PREFIX], **miss.inputs)
    assert shared.offload(IDS[:, :PREFIX], miss.cache).tokens == PREFIX


@torch.inference_mode()
@pytest.mark.parametrize("name", CHANGED)
def test_a_hit_refuses_it(model: Any, shared: HuggingFaceCache, name: str) -> None:
    prefixed(model, shared)
    hit = shared.load(IDS)
    assert hit.tokens == PREFIX
    with pytest.raises(InvalidInput, match="leave"):
        model(IDS[:, PREFIX:], **CHANGED[name](PREFIX), **hit.inputs)
    again = hit.inputs
    got = model(IDS[:, PREFIX:], **again).logits
    torch.testing.assert_close(got, model(IDS).logits[:, PREFIX:], atol=1e-4, rtol=1e-4)
    assert shared.offload(IDS, *again.values()).tokens == 48


@torch.inference_mode()
@pytest.mark.parametrize("name", CHANGED)
def test_in_a_later_pass_it_ends_what_is_known(
    model: Any, shared: HuggingFaceCache, name: str
) -> None:
    """The first tokens of the cache are as they should be, whatever came behind."""
    hit = shared.load(IDS)
    model(IDS[:, :PREFIX], **hit.inputs)
    by_hand = cache_inputs(model, hit.cache)
    model(IDS[:, PREFIX:], **CHANGED[name](PREFIX), **by_hand)
    model(IDS[:, :3], **by_hand)
    with pytest.raises(InvalidInput, match=f"from position {PREFIX} on is not known"):
        shared.offload(IDS, hit.cache)
    with pytest.raises(InvalidInput, match=r"\*\*hit.inputs again"):
        answer(model, torch.cat([IDS, IDS[:, :9]], 1), by_hand)
    assert shared.offload(IDS[:, :PREFIX], hit.cache).tokens == PREFIX


@torch.inference_mode()
@pytest.mark.parametrize("name", THE_SAME)
def test_what_changes_nothing_is_offloaded(model: Any, shared: HuggingFaceCache, name: str) -> None:
    prefixed(model, shared)
    hit, given = shared.load(IDS), THE_SAME[name](PREFIX)
    got = model(IDS[:, PREFIX:], **given, **hit.inputs).logits[:, -1]
    torch.testing.assert_close(got, model(IDS).logits[:, -1], atol=1e-4, rtol=1e-4)
    assert shared.offload(IDS, hit.cache).tokens == 48


@pytest.mark.parametrize("mask", [hidden(0, 10), hidden(20, 40)], ids=["padding", "a hole"])
@pytest.mark.parametrize(
    "way",
    [{}, {"prompt_lookup_num_tokens": 3, "eos_token_id": 96}, {"num_beams": 2}],
    ids=["greedy", "lookup", "beams"],
)
def test_generate(model: Any, shared: HuggingFaceCache, mask: Tensor, way: dict[str, Any]) -> None:
    hit, given = shared.load(IDS), {"attention_mask": mask, "pad_token_id": 0, **way}
    out = answer(model, IDS, hit.inputs, **given)
    assert torch.equal(out, answer(model, IDS, **given)), "a miss is the model's own answer"
    with pytest.raises(InvalidInput, match="not known"):
        shared.offload(out[:1], hit.cache)
    with torch.inference_mode():
        prefixed(model, shared)
    again = shared.load(IDS)
    assert again.tokens == PREFIX
    with pytest.raises(InvalidInput, match="padding"):
        answer(model, IDS, again.inputs, **given)


def test_padding_that_generate_finds_by_itself(model: Any, shared: HuggingFaceCache) -> None:
    """Without a mask it takes the padding token for padding wherever it stands."""
    hit, pad = shared.load(IDS), int(IDS[0, 5])
    out = answer(model, IDS, hit.inputs, attention_mask=None, pad_token_id=pad, eos_token_id=96)
    with pytest.raises(InvalidInput, match="not known"):
        shared.offload(out, hit.cache)


@torch.inference_mode()
def test_token_types_where_a_model_has_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=97, bos_token_id=1, eos_token_id=1
    )
    gpt2 = GPT2LMHeadModel(config).train(False)
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        shared = HuggingFaceCache(client, gpt2, codec="raw", page_tokens=PAGE_TOKENS)
        hit = shared.load(IDS)
        gpt2(IDS, token_type_ids=torch.zeros_like(IDS), **hit.inputs)
        with pytest.raises(InvalidInput, match="not known"):
            shared.offload(IDS, hit.cache)
        prefixed(gpt2, shared)
        with pytest.raises(InvalidInput, match="token_type_ids: the cache was loaded for"):
            gpt2(IDS[:, PREFIX:], token_type_ids=IDS[:, PREFIX:], **shared.load(IDS).inputs)


def test_a_cache_that_is_cropped_before_it(model: Any, shared: HuggingFaceCache) -> None:
    with torch.inference_mode():
        hit = shared.load(IDS)
        model(IDS[:, :PREFIX], **hit.inputs)
        by_hand = cache_inputs(model, hit.cache)
        model(IDS[:, PREFIX:], attention_mask=hidden(0, 9), **by_hand)
        hit.cache.crop(PREFIX - TOKENS)
        assert shared.offload(IDS, hit.cache).tokens == PREFIX
        model(IDS[:, PREFIX:], **by_hand)
    with pytest.raises(InvalidInput, match=f"from position {PREFIX} on is not known"):
        shared.offload(IDS, hit.cache)  # that it was computed anew is not looked for


def test_nobody_waits_for_a_device() -> None:
    """What lies on a device is compared there, and looked at when the cache is offloaded."""
    beside = {
        "attention_mask": torch.ones(1, 9, device="meta"),
        "position_ids": torch.arange(4, 9, device="meta")[None],
        "cache_position": torch.arange(4, 9, device="meta"),
        "mm_token_type_ids": torch.zeros(1, 5, device="meta"),
    }
    flag = plain(beside, 5, 4, told=False)
    assert isinstance(flag, Tensor)
    assert flag.is_meta
    assert flag.ndim == 0
    held = HeldTokens(IDS[0], 4)
    held.grow(4, torch.empty(1, 5, dtype=torch.int64, device="meta"), flag)
    assert held.whole


def test_shapes_that_fit_nothing() -> None:
    assert sees_all({"full_attention": torch.ones(1, 9)}, 5, 4) is False
    assert sees_all(torch.ones(1, 1, 4, 9).bool(), 5, 4) is False, "of other tokens"
    assert sees_all(torch.ones(1, 1, 5, 9).long(), 5, 4) is False, "neither shown nor scores"
    assert sees_all(torch.ones(9), 5, 4) is False
    assert follow([4, 5, 6], 3, 4) is False
    assert follow(torch.tensor(4), 1, 4) is False
    assert bool(follow(torch.arange(9)[None], 5, 4)), "the last of a whole prompt's"
    pictures = {"position_ids": torch.zeros(3, 1, 5), "pixel_values": torch.zeros(2)}
    assert plain(pictures, 5, 4, told=True) is True
    assert plain(pictures, 5, 4, told=False) is False
