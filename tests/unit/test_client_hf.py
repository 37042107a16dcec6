"""Hugging Face models: a reloaded cache goes on as the unbroken run does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, StaticCache
from transformers.models.mistral import MistralForCausalLM

from lexico_client import Client, InMemoryTransport
from lexico_client.cache_file import CacheFile
from lexico_client.hf import HuggingFaceCache, weights_fingerprint
from lexico_codec.hf_inputs import cache_inputs
from lexico_proto import errors
from tests.support.client_fixtures import PATIENT, flipped, small_dictionary
from tests.support.coded_models import layers_of

LAYERS, KV_HEADS, HEAD_DIM, PAGE_TOKENS = 3, 2, 16, 8
WEIGHTS = bytes(32)


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def prompt(tokens: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 97, (1, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return llama()


@pytest.fixture
def memory() -> InMemoryTransport:
    return InMemoryTransport()


@pytest.fixture
def client(memory: InMemoryTransport, tmp_path: Path) -> Iterator[Client]:
    with Client(transport=memory, dictionaries_dir=tmp_path, timeouts=PATIENT) as client:
        yield client


def raw(client: Client, model: Any, **changes: Any) -> HuggingFaceCache:
    return HuggingFaceCache(client, model, codec="raw", page_tokens=PAGE_TOKENS, **changes)


def lossy(client: Client, model: Any) -> HuggingFaceCache:
    """Leaves the newest 12 tokens to the model."""
    return HuggingFaceCache(
        client,
        model,
        codec="lexico",
        codec_config={"sparsity": 4},
        dictionary=small_dictionary(layers=LAYERS, head_dim=HEAD_DIM, kv_heads=2),
        page_tokens=PAGE_TOKENS,
        recent_tokens=12,
    )


def prefilled(model: Any, ids: torch.Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids, **cache_inputs(model, cache))
    return cache


def generated(model: Any, ids: torch.Tensor, cache: DynamicCache | None = None) -> Any:
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        **cache_inputs(model, cache),
        max_new_tokens=9,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [33, 32, 39])
def test_raw_is_bit_identical_and_logits_go_on(
    client: Client, dtype: torch.dtype, tokens: int
) -> None:
    model = llama().to(dtype)  # type: ignore[arg-type]
    shared, ids = raw(client, model), prompt(tokens)
    cache = prefilled(model, ids)
    report = shared.offload(ids, cache)
    assert (report.tokens, set(report.pages)) == (32, {"stored"})
    hit = shared.load(ids)
    assert hit.tokens == min(tokens - 1, 32)
    assert hit.cache.get_seq_length() == hit.tokens
    for ours, theirs in zip(layers_of(hit.cache), layers_of(cache), strict=True):
        assert torch.equal(ours.keys, theirs.keys[:, :, : hit.tokens])
        assert torch.equal(ours.values, theirs.values[:, :, : hit.tokens])
    with torch.inference_mode():
        rest = ids[:, hit.tokens :]
        cache.crop(hit.tokens - tokens)  # the unbroken run at the same place
        expected = model(rest, **cache_inputs(model, cache)).logits
        got = model(rest, **cache_inputs(model, hit.cache)).logits
    assert torch.equal(got, expected)


def test_generate_gives_the_tokens_and_logits_of_no_cache_at_all(
    client: Client, model: LlamaForCausalLM
) -> None:
    shared, ids = raw(client, model), prompt(50)
    shared.offload(ids, prefilled(model, ids))
    plain, hit = generated(model, ids), shared.load(ids)
    assert hit.tokens == 48
    out = generated(model, ids, hit.cache)
    assert torch.equal(out.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(out.logits), torch.stack(plain.logits))


@torch.inference_mode()
def test_a_cache_is_saved_as_it_would_be_offloaded(
    client: Client, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    shared, ids, cache = raw(client, model), prompt(21), DynamicCache(config=model.config)
    model(ids[:, :20], **cache_inputs(model, cache))
    path = tmp_path / "prompt.safetensors"
    shared.saved(ids, cache).write(path)
    saved = CacheFile.read(path)
    assert (saved.spec, saved.tokens) == (shared.spec, 20)
    for layer, keys, values in zip(layers_of(cache), saved.keys, saved.values, strict=True):
        assert torch.equal(layer.keys[0].transpose(0, 1), keys)
        assert torch.equal(layer.values[0].transpose(0, 1), values)
    report = client.offload(saved.spec, saved.token_ids, saved.view())
    assert report.tokens == shared.load(ids).tokens == 16
    assert shared.saved(ids, DynamicCache(config=model.config)).tokens == 0


def test_a_miss_is_an_empty_cache_for_the_same_code(
    client: Client, model: LlamaForCausalLM
) -> None:
    shared, ids = raw(client, model), prompt(50)
    hit = shared.load(ids)
    assert (hit.tokens, hit.reason, hit.cache.get_seq_length()) == (0, None, 0)
    out = generated(model, ids, hit.cache)
    assert torch.equal(out.sequences, generated(model, ids).sequences)


def test_the_second_turn_of_a_conversation(client: Client, model: LlamaForCausalLM) -> None:
    shared, ids = raw(client, model), prompt(20)
    reloaded = shared.load(ids)
    first = generated(model, ids, reloaded.cache)
    report = shared.offload(first.sequences, reloaded.cache, wait="received")
    assert report.tokens == 24  # 29 tokens, of which the cache holds 28
    turn = torch.cat([first.sequences, prompt(7, seed=9)], dim=1)
    hit = raw(client, llama()).load(turn)  # another node with the same weights
    assert hit.tokens == 24
    second = generated(model, turn, hit.cache)
    assert torch.equal(second.sequences, generated(model, turn).sequences)
    report = shared.offload(second.sequences, hit.cache)
    assert report.pages == ("present",) * 3 + ("stored",) * 2


@pytest.mark.parametrize("ids", [[], [5], list(range(PAGE_TOKENS))], ids=len)
def test_prompts_that_leave_no_page_to_load(
    client: Client, model: LlamaForCausalLM, ids: list[int]
) -> None:
    hit = raw(client, model).load(ids)
    assert (hit.tokens, hit.reason) == (0, None)


def test_a_damaged_frame_in_the_middle(
    client: Client, memory: InMemoryTransport, model: LlamaForCausalLM
) -> None:
    shared, ids = raw(client, model), prompt(50)
    shared.offload(ids, prefilled(model, ids))
    frames = list(memory.pages.values())[3]
    frames[0] = flipped(frames[0])
    hit = shared.load(ids)
    assert (hit.tokens, type(hit.reason)) == (24, errors.DamagedFrame)
    assert torch.equal(generated(model, ids, hit.cache).sequences, generated(model, ids).sequences)


def test_lexico_registers_its_dictionary_when_first_needed(
    client: Client, memory: InMemoryTransport, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    dictionary = small_dictionary(layers=LAYERS, head_dim=HEAD_DIM, kv_heads=2)
    ids = prompt(41)
    shared = HuggingFaceCache(
        client,
        model,
        codec="lexico",
        codec_config={"sparsity": 4},
        dictionary=dictionary,
        page_tokens=PAGE_TOKENS,
    )
    cache = prefilled(model, ids)
    assert shared.offload(ids, cache).pages == ("stored",) * 5
    assert list(memory.dictionaries) == [dictionary.digest]
    with Client(transport=memory, dictionaries_dir=tmp_path / "b", timeouts=PATIENT) as other:
        hit = HuggingFaceCache(
            other,
            model,
            codec="lexico",
            codec_config={"sparsity": 4},
            dictionary=dictionary.digest,  # fetched
            page_tokens=PAGE_TOKENS,
            recent_tokens=1,
        ).load(ids)
    assert (hit.tokens, hit.reason) == (40, None)
    for ours, theirs in zip(layers_of(hit.cache), layers_of(cache), strict=True):
        assert torch.equal(ours.keys[:, :, :4], theirs.keys[:, :, :4])  # sinks are exact
        error = (ours.keys - theirs.keys[:, :, :40]).norm() / theirs.keys[:, :, :40].norm()
        assert 0 < error < 0.7
    assert torch.isfinite(generated(model, ids, hit.cache).logits[0]).all()


@pytest.mark.parametrize(
    ("tokens", "left"), [(55, 12), (41, 12), (36, 12), (23, 12), (16, 12), (12, 12), (9, 9)]
)
def test_the_newest_tokens_are_left_for_the_model(
    client: Client, model: LlamaForCausalLM, tokens: int, left: int
) -> None:
    """With a lossy codec `recent_tokens`, where full pages reach that far; else one."""
    ids = prompt(tokens)
    coded, exact = lossy(client, model), raw(client, model, recent_tokens=12)
    for shared in (coded, exact):
        shared.offload(ids, prefilled(model, ids))
    hit = coded.load(ids)
    assert (hit.tokens, hit.reason) == (tokens - left, None)
    assert hit.cache.get_seq_length() == hit.tokens
    assert torch.isfinite(generated(model, ids, hit.cache).logits[0]).all()
    hit = exact.load(ids)
    assert hit.tokens == min(tokens - 1, tokens // PAGE_TOKENS * PAGE_TOKENS)
    assert torch.equal(generated(model, ids, hit.cache).sequences, generated(model, ids).sequences)


def test_what_was_computed_on_reloaded_pages_is_not_sent_again(
    client: Client, model: LlamaForCausalLM
) -> None:
    shared, ids = lossy(client, model), prompt(60)
    shared.offload(ids[:, :41], prefilled(model, ids[:, :41]))
    hit = shared.load(ids[:, :41])
    assert hit.tokens == 29, "in the middle of a page that is stored"
    with torch.inference_mode():
        model(ids[:, hit.tokens :], **cache_inputs(model, hit.cache))
    assert shared.offload(ids, hit.cache).pages == ("present",) * 5 + ("stored",) * 2
    assert shared.load(ids).tokens == 48


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "64", None])
def test_numbers_of_recent_tokens_that_are_refused(
    client: Client, model: LlamaForCausalLM, number: Any
) -> None:
    with pytest.raises(errors.ConfigurationError, match="recent_tokens="):
        raw(client, model, recent_tokens=number)


def test_a_digest_that_nobody_registered(client: Client, model: LlamaForCausalLM) -> None:
    ids = prompt(20)
    shared = HuggingFaceCache(
        client, model, codec="paper", dictionary=bytes(32), page_tokens=PAGE_TOKENS
    )
    with pytest.raises(errors.UnknownDictionary):
        shared.offload(ids, prefilled(model, ids))


def test_no_built_in_dictionary_fits(client: Client, model: LlamaForCausalLM) -> None:
    with pytest.raises(errors.ConfigurationError, match="lexico train"):
        HuggingFaceCache(client, model, without_set="refuse")
    shared = HuggingFaceCache(client, model)
    assert (shared.coding.waiting, shared.spec.codec.name) == (True, "lossless")
    with pytest.raises(errors.DictionaryMismatch):
        HuggingFaceCache(
            client, model, codec="paper", dictionary=small_dictionary(layers=LAYERS + 1)
        )


def test_what_is_no_single_sequence_of_this_model_is_refused(
    client: Client, model: LlamaForCausalLM
) -> None:
    shared, ids = raw(client, model), prompt(20)
    batch = ids.repeat(2, 1)
    with pytest.raises(errors.ShapeMismatch, match="batch of 2"):
        shared.load(batch)
    with pytest.raises(errors.ShapeMismatch, match="batch of 2"):
        shared.offload(batch, prefilled(model, batch))
    with pytest.raises(errors.ShapeMismatch, match="2 sequences"):
        shared.offload(ids, prefilled(model, batch))
    with pytest.raises(errors.ShapeMismatch, match="float"):
        shared.load(ids.float())
    other = llama().to(torch.bfloat16)  # type: ignore[arg-type]
    with pytest.raises(errors.ShapeMismatch, match="bfloat16"):
        shared.offload(ids, prefilled(other, ids))
    cache = prefilled(model, ids)
    cache.layers.pop()
    with pytest.raises(errors.ShapeMismatch, match="2 layers, needs 3"):
        shared.offload(ids, cache)
    cache = prefilled(model, ids)
    layers_of(cache)[1].crop(-3)
    with pytest.raises(errors.ShapeMismatch, match="layer 1"):
        shared.offload(ids, cache)
    with pytest.raises(errors.Unsupported, match="Static"):
        shared.offload(ids, StaticCache(config=model.config, max_cache_len=32))  # type: ignore[arg-type]
    with pytest.raises(errors.Unsupported, match="tuple"):
        shared.offload(ids, ())  # type: ignore[arg-type]


def test_a_cache_that_is_not_finite(client: Client, model: LlamaForCausalLM) -> None:
    shared, ids = raw(client, model), prompt(20)
    cache = prefilled(model, ids)
    with torch.inference_mode():
        layers_of(cache)[2].values[0, 1, 9, 3] = float("nan")
    with pytest.raises(errors.NonFiniteCache, match="page 1"):
        shared.offload(ids, cache)


def test_a_cache_shorter_than_the_tokens_and_an_empty_one(
    client: Client, model: LlamaForCausalLM
) -> None:
    shared, ids = raw(client, model), prompt(50)
    assert shared.offload(ids, prefilled(model, ids[:, :17])).tokens == 16
    assert shared.offload(ids, DynamicCache(config=model.config)).tokens == 0
    assert shared.offload(ids[:, :9], prefilled(model, ids)).tokens == 8
    assert shared.load(ids).tokens == 16


def test_a_sliding_window_is_refused(client: Client) -> None:
    config = MistralConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=16,
    )  # fmt: skip
    with pytest.raises(errors.Unsupported, match="full attention"):
        raw(client, MistralForCausalLM(config))


def test_the_fingerprint_is_that_of_the_weights_and_what_they_mean() -> None:
    plain, same, other = llama(), llama(), llama(seed=1)
    halved = llama().to(torch.bfloat16)  # type: ignore[arg-type]
    assert len(weights_fingerprint(plain)) == 32
    assert weights_fingerprint(plain) == weights_fingerprint(same)
    different = {
        weights_fingerprint(model) for model in (plain, other, halved, llama(rms_norm_eps=1e-3))
    }
    assert len(different) == 4
    same.config._name_or_path = "/elsewhere"
    same.config.use_cache = False
    assert weights_fingerprint(same) == weights_fingerprint(plain)


def test_the_fingerprint_follows_a_change_of_the_weights() -> None:
    model = llama()
    before = weights_fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
        assert weights_fingerprint(model) == before, "a head makes no keys and values"
        model.model.embed_tokens.weight[0, 0] += 1
    assert weights_fingerprint(model) != before


def test_a_fingerprint_can_be_given(client: Client, model: LlamaForCausalLM) -> None:
    shared = raw(client, model, weights=WEIGHTS, lora="support-agent")
    assert (shared.spec.weights, shared.spec.lora) == (WEIGHTS, "support-agent")
    ids = prompt(20)
    shared.offload(ids, prefilled(model, ids))
    assert shared.load(ids).tokens == 16
    assert raw(client, model, weights=WEIGHTS).load(ids).tokens == 0


def test_a_model_that_is_not_in_memory(client: Client) -> None:
    with torch.device("meta"):
        model = llama()
    with pytest.raises(errors.Unsupported, match="not in memory"):
        weights_fingerprint(model)
