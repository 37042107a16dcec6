"""A prompt cache of codes where it must not be used: nothing is computed from a part of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, StaticCache

from lexico_client import Client, InMemoryTransport
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.kernels.attend.layer import CodedLayer
from lexico_proto import errors
from tests.support.client_fixtures import PATIENT
from tests.support.coded_models import (
    HEAD_DIM,
    KV_HEADS,
    Q_HEADS,
    SHAPE,
    TOLERANCE,
    assert_same,
    generated,
    layers_of,
    llama,
    offloaded,
    prompt,
    shared_of,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> Any:
    return llama()


@pytest.fixture
def memory() -> InMemoryTransport:
    return InMemoryTransport()


@pytest.fixture
def client(memory: InMemoryTransport, tmp_path: Path) -> Iterator[Client]:
    with Client(transport=memory, dictionaries_dir=tmp_path, timeouts=PATIENT) as client:
        yield client


# Other attention


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_other_attention_fails_loudly_and_leaves_the_cache(
    client: Client, model: Any, implementation: str
) -> None:
    ids = prompt(39)
    shared = offloaded(client, model, ids)
    cache = shared.load_codes(ids).cache
    model.set_attn_implementation(implementation)
    for _ in range(2):
        with pytest.raises(errors.Unsupported, match="set_attn_implementation"):
            generated(model, ids, cache)
    assert cache.get_seq_length() == 32
    model.set_attn_implementation("lexico_codes")
    assert_same(generated(model, ids, cache), generated(model, ids, shared.load(ids).cache))


def test_states_are_good_for_nothing_else(client: Client, model: Any) -> None:
    cache = shared_of(client, model).load_codes(prompt(4)).cache
    new = torch.zeros(1, KV_HEADS, 1, HEAD_DIM)
    keys, values = cache.update(new, new, 0)
    uses: list[Callable[[], Any]] = [
        lambda: keys.shape,
        lambda: keys.dtype,
        lambda: keys + 1,
        lambda: torch.cat([keys, values]),
        lambda: torch.nn.functional.scaled_dot_product_attention(new, keys, values),
        lambda: keys.numpy(),
        lambda: new.copy_(keys),
        lambda: copy.deepcopy(keys),
        lambda: keys.data_ptr(),
    ]
    for use in uses:
        with pytest.raises(errors.Unsupported, match="lexico_codes"):
            use()
    assert repr(keys) == "CodedStates()"


def test_a_step_is_attended_to_once(client: Client, model: Any) -> None:
    layer = layers_of(shared_of(client, model).load_codes(prompt(4)).cache)[0]
    new, query = torch.zeros(1, KV_HEADS, 1, HEAD_DIM), torch.zeros(Q_HEADS, 1, HEAD_DIM)
    first = layer.update(new, new)[0].step
    second = layer.update(new, new)[0].step
    with pytest.raises(errors.Unsupported, match="once"):
        layer.attend(first, query, 1.0)
    with pytest.raises(errors.Unsupported, match="own tokens"):
        layer.attend(second, query.repeat(1, 2, 1), 1.0)
    layer.attend(second, query, 1.0)
    with pytest.raises(errors.Unsupported, match="once"):
        layer.attend(second, query, 1.0)
    assert layer.get_seq_length() == 1


def sdpa(**changes: Any) -> Any:
    return llama(attn_implementation="sdpa", **changes)


@torch.no_grad()
def test_other_caches_go_as_with_sdpa(model: Any) -> None:
    ids, plain = prompt(30), sdpa()
    assert torch.equal(model(ids, use_cache=False).logits, plain(ids, use_cache=False).logits)
    ours, theirs = (DynamicCache(config=model.config) for _ in "ab")
    for first, end in ((0, 11), (11, 12), (12, 29), (29, 30)):
        a = model(ids[:, first:end], **cache_inputs(model, ours)).logits
        b = plain(ids[:, first:end], **cache_inputs(plain, theirs)).logits
        torch.testing.assert_close(a, b, **TOLERANCE)
    for cache in (None, "static"):
        given = {"cache_implementation": cache} if cache else {}
        assert_same(generated(model, ids, **given), generated(plain, ids, **given))
    static = [StaticCache(config=model.config, max_cache_len=40) for _ in "ab"]
    for part in (ids[:, :7], ids[:, 7:20], ids[:, 20:21]):
        a = model(part, **cache_inputs(model, static[0])).logits
        torch.testing.assert_close(
            a, plain(part, **cache_inputs(plain, static[1])).logits, **TOLERANCE
        )


@torch.no_grad()
def test_padded_batches_and_windows_go_as_with_sdpa(model: Any) -> None:
    ids, mask = prompt(30).view(2, 15), torch.ones(2, 15, dtype=torch.long)
    mask[0, :6] = 0
    given: dict[str, Any] = {"attention_mask": mask, "pad_token_id": 0}
    assert_same(generated(model, ids, **given), generated(sdpa(), ids, **given))
    window = {key: value for key, value in SHAPE.items() if key != "attn_implementation"}
    logits = []
    for implementation in ("sdpa", "lexico_codes"):
        torch.manual_seed(2)
        window |= {"sliding_window": 9, "attn_implementation": implementation}
        config = MistralConfig(**window)
        logits.append(generated(MistralForCausalLM(config).eval(), prompt(20)).logits)
    torch.testing.assert_close(torch.stack(logits[0]), torch.stack(logits[1]), **TOLERANCE)


def test_gradients_of_a_model_without_cache_are_those_of_sdpa(model: Any) -> None:
    found = []
    for each in (model, sdpa()):
        each(prompt(9), labels=prompt(9), use_cache=False).loss.backward()
        found.append(each.model.layers[0].self_attn.k_proj.weight.grad)
    torch.testing.assert_close(*found)


# What is refused


def test_padding_masks_and_batches_are_refused(client: Client, model: Any) -> None:
    ids = prompt(20)
    shared = offloaded(client, model, ids)
    padding = torch.ones_like(ids)
    padding[0, 0] = 0
    refused: list[tuple[str, dict[str, Any]]] = [
        ("padding", {"attention_mask": padding}),
        ("2 sequences", {"num_return_sequences": 2, "do_sample": True}),
        ("2 sequences", {"num_beams": 2}),
        ("attention weights", {"output_attentions": True}),
    ]
    for match, given in refused:
        kind = errors.InvalidInput if match == "padding" else errors.Unsupported
        with pytest.raises(kind, match=match):
            generated(model, ids, shared.load_codes(ids).cache, **given)
    own = torch.zeros(1, 1, 4, 20)  # a mask of the caller's making
    with torch.no_grad(), pytest.raises(errors.InvalidInput, match="mask"):
        model(ids[:, 16:], attention_mask=own, **cache_inputs(model, shared.load_codes(ids).cache))


def test_training_is_refused(client: Client, model: Any) -> None:
    ids = prompt(20)
    shared = offloaded(client, model, ids)
    with pytest.raises(errors.Unsupported, match="no_grad"):
        model(ids[:, 16:], **cache_inputs(model, shared.load_codes(ids).cache))
    dropping = llama(attention_dropout=0.1).train()
    with torch.no_grad(), pytest.raises(errors.Unsupported, match="dropout"):
        dropping(ids[:, 16:], **cache_inputs(dropping, shared.load_codes(ids).cache))


@pytest.mark.parametrize("argument", ["sliding_window", "softcap", "s_aux", "position_bias"])
def test_scores_of_another_kind_are_refused(client: Client, model: Any, argument: str) -> None:
    ids = prompt(20)
    cache = offloaded(client, model, ids).load_codes(ids).cache
    with torch.no_grad(), pytest.raises(errors.InvalidInput, match=argument):
        model(ids[:, 16:], **cache_inputs(model, cache), **{argument: 5})


def test_tensors_of_another_model_are_refused(client: Client, model: Any) -> None:
    cache = shared_of(client, model).load_codes(prompt(4)).cache
    for wrong in (
        torch.zeros(1, KV_HEADS + 1, 1, HEAD_DIM),
        torch.zeros(1, KV_HEADS, 1, HEAD_DIM + 1),
        torch.zeros(1, KV_HEADS, 1, HEAD_DIM, dtype=torch.float16),
    ):
        with pytest.raises(errors.ShapeMismatch, match="needs"):
            cache.update(wrong, wrong, 0)


def test_a_pass_that_broke_off_is_noticed(client: Client, model: Any) -> None:
    ids = prompt(20)
    cache = offloaded(client, model, ids).load_codes(ids).cache

    def broken(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_pre_hook(broken)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        model(ids[:, 16:18], **cache_inputs(model, cache))
    hook.remove()
    with torch.no_grad(), pytest.raises(errors.Unsupported, match="half-way"):
        model(ids[:, 16:18], **cache_inputs(model, cache))


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_codes_that_were_not_written_whole_are_never_read(
    client: Client, model: Any, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    """In the last layer too, where all layers count the same tokens."""
    ids = prompt(30)
    shared = offloaded(client, model, ids[:, :16])
    cache = shared.load_codes(ids, buffer_tokens=6, window_tokens=6).cache
    torn, fork = layers_of(cache)[layer]._coded, copy.deepcopy(cache)
    sort = CodedLayer._sort

    def broken(self: CodedLayer, *arguments: Any) -> None:
        sort(self, *arguments)
        if self is torn:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(CodedLayer, "_sort", broken)
        with pytest.raises(MemoryError):
            model(ids[:, 16:28], **cache_inputs(model, cache))
    for each in (cache, copy.deepcopy(cache)):
        with pytest.raises(errors.Unsupported, match="load the prefix again"):
            model(ids[:, 28:], **cache_inputs(model, each))
    cache.reset()
    fresh = model(ids, **cache_inputs(model, cache)).logits
    torch.testing.assert_close(fresh, model(ids).logits, **TOLERANCE)
    model(ids[:, 16:], **cache_inputs(model, fork))


@torch.no_grad()
def test_infinity_is_not_coded(client: Client, model: Any) -> None:
    ids = prompt(30)
    cache = shared_of(client, model).load_codes(ids, buffer_tokens=6, window_tokens=6).cache
    model.model.layers[1].self_attn.v_proj.weight.fill_(torch.inf)
    with pytest.raises(errors.NonFiniteCache, match=r"go on from load\(\)"):
        model(ids, **cache_inputs(model, cache))
    with pytest.raises(errors.Unsupported, match="half-way"):
        model(ids, **cache_inputs(model, cache))


# Cache operations


@torch.no_grad()
def test_crop_takes_from_the_buffer_alone(client: Client, model: Any) -> None:
    ids = prompt(30)
    shared = offloaded(client, model, ids[:, :16])
    cache, dense = shared.load_codes(ids).cache, shared.load(ids).cache
    for each in (cache, dense):
        model(ids[:, 16:], **cache_inputs(model, each))
        each.crop(-5)
    cache.crop(0)
    assert cache.get_seq_length() == 25
    cache.crop(23)  # as a length, for earlier transformers
    dense.crop(-2)
    ours, theirs = (
        model(ids[:, 23:], **cache_inputs(model, each)).logits for each in (cache, dense)
    )
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    for tokens in (-15, 15, 3):
        with pytest.raises(errors.Unsupported, match="newest 14 are exact"):
            cache.crop(tokens)
    assert cache.get_seq_length() == 30
    cache.crop(-14)
    assert cache.get_seq_length() == 16


@torch.no_grad()
def test_reset_gives_an_empty_cache(client: Client, model: Any) -> None:
    ids = prompt(30)
    cache = offloaded(client, model, ids).load_codes(ids, buffer_tokens=6, window_tokens=6).cache
    model(ids[:, 24:], **cache_inputs(model, cache))
    cache.reset()
    assert (cache.get_seq_length(), cache.coded_tokens) == (0, 0)
    ours = model(ids, **cache_inputs(model, cache)).logits
    torch.testing.assert_close(ours, model(ids).logits, **TOLERANCE)
    assert cache.coded_tokens == 24
    cache.reset()
    model(ids[:, :3], **cache_inputs(model, cache))
    cache.crop(-2)  # without codes, the first tokens can go too
    assert cache.get_seq_length() == 1


def test_one_sequence_and_no_other_place(client: Client, model: Any) -> None:
    ids = prompt(20)
    cache = offloaded(client, model, ids).load_codes(ids).cache
    cache.batch_repeat_interleave(1)
    cache.reorder_cache(torch.LongTensor([0]))
    cache.batch_select_indices(torch.tensor([0]))
    for refused in (
        lambda: cache.batch_repeat_interleave(2),
        lambda: cache.reorder_cache(torch.LongTensor([0, 0])),
        lambda: cache.batch_select_indices(torch.tensor([1])),
        lambda: cache.layers[0].offload(),
        lambda: cache.layers[0].prefetch(),
    ):
        with pytest.raises(errors.Unsupported):
            refused()
    assert not cache.is_compileable
    assert not layers_of(cache)[0].is_croppable, "codes are not"
    assert cache.is_initialized
    assert cache.get_mask_sizes(3, 0) == (19, 0)
    assert layers_of(cache)[0].get_max_length() == -1


def test_copies_go_on_in_different_ways(client: Client, model: Any) -> None:
    ids = prompt(33)
    shared = offloaded(client, model, ids)
    cache = shared.load_codes(ids, buffer_tokens=4, window_tokens=2).cache
    fork = copy.deepcopy(cache)
    generated(model, torch.cat([ids[:, :32], prompt(18, seed=4)], 1), cache)
    assert fork.get_seq_length() == 32
    again = shared.load_codes(ids, buffer_tokens=4, window_tokens=2).cache
    assert_same(generated(model, ids, fork), generated(model, ids, again))
    for ours, theirs in zip(layers_of(fork), layers_of(cache), strict=True):
        assert ours._coded is not theirs._coded
        assert ours._coded.atoms is theirs._coded.atoms


def test_assisted_generation_crops_what_it_guessed_wrong(client: Client, model: Any) -> None:
    # From nothing: with a cache that holds tokens, transformers 5.23 feeds the whole prompt again.
    ids = prompt(20).repeat(1, 3)
    cache = shared_of(client, model).load_codes(ids).cache
    assert layers_of(cache)[0].is_croppable
    given: dict[str, Any] = {"max_new_tokens": 40, "output_logits": False, "eos_token_id": 96}
    assisted = generated(model, ids, cache, prompt_lookup_num_tokens=4, **given)
    assert torch.equal(assisted.sequences, generated(model, ids, **given).sequences)
    assert cache.get_seq_length() in range(60, 100)


def test_inference_mode_may_come_and_go(client: Client, model: Any) -> None:
    ids = prompt(40)
    shared = offloaded(client, model, ids)
    with torch.inference_mode():
        cache = shared.load_codes(ids[:, :33], buffer_tokens=3, window_tokens=2).cache
        model(ids[:, 32:36], **cache_inputs(model, cache))
        cache = copy.deepcopy(cache)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.no_grad()):
        with mode:
            model(ids[:, 36:38], **cache_inputs(model, cache))
    copy.deepcopy(cache)
    cache.reset()
