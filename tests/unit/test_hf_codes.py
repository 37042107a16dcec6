"""A prompt cache that stays codes: the logits of the dense one, from less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from lexico_client import Client, InMemoryTransport
from lexico_client import hf as public
from lexico_client.engines.hf._recoding import Recoding
from lexico_client.hf import CodedCache, HuggingFaceCache, weights_fingerprint
from lexico_codec.codecs import LexicoCodec
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.kernels.pursuit.coding import encode, reconstruct
from lexico_proto import errors
from tests.support.client_fixtures import PATIENT, flipped
from tests.support.coded_models import (
    DICTIONARY,
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    SINKS,
    SPARSITY,
    TOLERANCE,
    assert_same,
    generated,
    layers_of,
    llama,
    offloaded,
    prompt,
    qwen2,
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


# The same numbers as dense


@pytest.mark.parametrize("make", [llama, qwen2], ids=lambda make: make.__name__)
@pytest.mark.parametrize("tokens", [33, 39, 9])
def test_generates_as_the_dense_reload(
    client: Client, make: Callable[[], Any], tokens: int
) -> None:
    model, ids = make(), prompt(tokens)
    shared = offloaded(client, model, ids)
    hit, dense = shared.load_codes(ids), shared.load(ids)
    assert (hit.tokens, hit.reason) == (dense.tokens, None)
    assert hit.cache.get_seq_length() == hit.tokens == hit.cache.coded_tokens + SINKS
    assert_same(generated(model, ids, hit.cache), generated(model, ids, dense.cache))
    assert hit.cache.get_seq_length() == tokens + 11


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_types(client: Client, dtype: torch.dtype) -> None:
    model, ids = llama().to(dtype), prompt(39)
    shared = offloaded(client, model, ids)
    rest = ids[:, shared.load(ids).tokens :]
    with torch.inference_mode():
        ours = model(rest, **cache_inputs(model, shared.load_codes(ids).cache)).logits
        theirs = model(rest, **cache_inputs(model, shared.load(ids).cache)).logits
    assert ours.dtype == dtype
    assert (ours.float() - theirs.float()).norm() < 0.03 * theirs.float().norm()


@pytest.mark.parametrize("chunks", [(103,), (40, 1, 62)])
def test_a_long_tail_sees_its_own_tokens_exact(
    client: Client, model: Any, chunks: tuple[int, ...]
) -> None:
    ids = prompt(16 + sum(chunks))
    shared = offloaded(client, model, ids[:, :16])
    hit, dense = shared.load_codes(ids, buffer_tokens=63, window_tokens=10), shared.load(ids)
    seen = hit.tokens
    assert seen == 16
    for chunk in chunks:
        part = ids[:, seen : seen + chunk]
        with torch.inference_mode():
            ours = model(part, **cache_inputs(model, hit.cache)).logits
            theirs = model(part, **cache_inputs(model, dense.cache)).logits
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
        seen += chunk
        if seen < 16 + sum(chunks):
            assert hit.cache.coded_tokens == 16 - SINKS  # up to here the buffer holds all
    assert hit.cache.coded_tokens == 16 - SINKS + 40
    assert [layer.buffered_tokens for layer in layers_of(hit.cache)] == [63] * LAYERS


def recoded(cache: DynamicCache, coded: int, buffer_tokens: int, window_tokens: int) -> int:
    """A dense cache whose oldest tokens are what their codes stand for: the reference."""
    while cache.get_seq_length() - SINKS - coded > buffer_tokens:
        first = SINKS + coded
        for index, layer in enumerate(layers_of(cache)):
            oldest = torch.stack([layer.keys[0], layer.values[0]])
            oldest = oldest[:, :, first : first + window_tokens].transpose(1, 2)
            atoms = DICTIONARY.stack(index, 1)
            codes = encode(oldest, atoms, SPARSITY, quantised=True)
            dense = reconstruct(codes, atoms).view(oldest.shape).transpose(1, 2)
            layer.keys[0, :, first : first + window_tokens] = dense[0]
            layer.values[0, :, first : first + window_tokens] = dense[1]
        coded += window_tokens
    return coded


def test_after_an_overflow_as_dense_reconstructions(client: Client, model: Any) -> None:
    ids = prompt(90)
    shared = offloaded(client, model, ids[:, :24])
    hit = shared.load_codes(ids, buffer_tokens=12, window_tokens=5)
    dense, exact, coded = shared.load(ids).cache, shared.load(ids).cache, 24 - SINKS
    first, ours, theirs, never = 24, [], [], []
    for tokens in [30, *[1] * 36]:
        part = ids[:, first : first + tokens]
        with torch.no_grad():
            ours.append(model(part, **cache_inputs(model, hit.cache)).logits[0])
            theirs.append(model(part, **cache_inputs(model, dense)).logits[0])
            never.append(model(part, **cache_inputs(model, exact)).logits[0])
            coded = recoded(dense, coded, 12, 5)
        assert hit.cache.coded_tokens == coded
        first += tokens
    assert first == 90
    assert coded == 24 - SINKS + 55  # the last 11, between 12 - 5 + 1 and 12, are exact
    # A coefficient at the edge between two of 8 bits may round to either: hence no tight bound.
    off = (torch.cat(ours) - torch.cat(theirs)).norm()
    assert off < 0.02 * (torch.cat(theirs) - torch.cat(never)).norm()


# The buffer


@pytest.mark.parametrize(
    ("buffered", "due"), [(0, 0), (127, 0), (128, 0), (129, 32), (160, 32), (161, 64), (1000, 896)]
)
def test_what_is_due_by_default(buffered: int, due: int) -> None:
    assert Recoding(LexicoCodec()).due(buffered) == due


@pytest.mark.parametrize(("buffer_tokens", "window_tokens"), [(0, 1), (1, 1), (1, 2), (8, 3)])
def test_a_window_never_takes_more_than_there_is(buffer_tokens: int, window_tokens: int) -> None:
    recoding = Recoding(LexicoCodec(), buffer_tokens, window_tokens)
    for buffered in range(40):
        due = recoding.due(buffered)
        assert due % window_tokens == 0
        assert 0 <= due <= buffered
        assert buffered - due <= buffer_tokens
        assert due == 0 or buffered - due > buffer_tokens - window_tokens


def test_the_oldest_are_coded_a_window_at_a_time(client: Client, model: Any) -> None:
    ids = prompt(17)
    shared = offloaded(client, model, ids)
    cache = shared.load_codes(ids, buffer_tokens=5, window_tokens=3).cache
    counted = []
    for token in torch.cat([ids[:, 16:], prompt(9, seed=4)], 1).T:
        with torch.no_grad():
            model(token[None], **cache_inputs(model, cache))
        kinds = {(layer.coded_tokens, layer.buffered_tokens) for layer in layers_of(cache)}
        assert len(kinds) == 1
        counted.append(kinds.pop())
    assert [buffered for _, buffered in counted] == [1, 2, 3, 4, 5, 3, 4, 5, 3, 4]
    assert [coded - 12 for coded, _ in counted] == [0, 0, 0, 0, 0, 3, 3, 3, 6, 6]


def test_a_cache_from_nothing_keeps_its_first_tokens_exact(client: Client, model: Any) -> None:
    ids = prompt(40)
    cache = shared_of(client, model).load_codes(ids, buffer_tokens=7, window_tokens=2).cache
    plain = DynamicCache(config=model.config)
    with torch.no_grad():
        ours = model(ids, **cache_inputs(model, cache)).logits
        torch.testing.assert_close(
            ours, model(ids, **cache_inputs(model, plain)).logits, **TOLERANCE
        )
    assert cache.coded_tokens == 30
    keys = layers_of(cache)[0]._keys
    assert torch.equal(keys[:, :SINKS], layers_of(plain)[0].keys[0, :, :SINKS])
    assert torch.equal(keys[:, SINKS:], layers_of(plain)[0].keys[0, :, 34:])


def test_pages_shorter_than_the_sinks(client: Client, model: Any) -> None:
    ids = prompt(14)
    shared = offloaded(client, model, ids, page_tokens=3)
    for short in (ids, ids[:, :5]):
        hit, dense = shared.load_codes(short), shared.load(short)
        assert hit.cache.get_seq_length() == hit.tokens == (12 if short is ids else 3)
        assert_same(generated(model, short, hit.cache), generated(model, short, dense.cache))


@pytest.mark.parametrize(
    ("page_tokens", "recent_tokens", "kept"),
    [(8, 12, 27), (8, 37, 2), (8, 36, 3), (8, 35, 4), (3, 35, 4), (3, 37, 2), (8, 15, 24)],
)
def test_pages_are_cut_where_the_newest_tokens_begin(
    client: Client, model: Any, page_tokens: int, recent_tokens: int, kept: int
) -> None:
    ids = prompt(39)
    shared = offloaded(client, model, ids, page_tokens=page_tokens, recent_tokens=recent_tokens)
    hit, dense = shared.load_codes(ids), shared.load(ids)
    assert hit.cache.get_seq_length() == hit.tokens == dense.tokens == kept
    assert hit.cache.coded_tokens == max(0, kept - SINKS)
    assert_same(generated(model, ids, hit.cache), generated(model, ids, dense.cache))


def test_vectors_of_fewer_atoms_than_s(client: Client, model: Any) -> None:
    ids = prompt(39)
    shared = offloaded(
        client, model, ids, codec_config={"sparsity": 12, "tolerance": 0.75}, page_tokens=5
    )
    hit, dense = shared.load_codes(ids), shared.load(ids)
    assert hit.tokens == 35
    assert_same(generated(model, ids, hit.cache), generated(model, ids, dense.cache))


# Loads


@pytest.mark.parametrize(("page", "left"), [(0, 0), (3, 24)])
def test_a_damaged_frame_is_a_shorter_prefix(
    client: Client, memory: InMemoryTransport, model: Any, page: int, left: int
) -> None:
    ids = prompt(50)
    shared = offloaded(client, model, ids)
    frames = list(memory.pages.values())[page]
    frames[-1] = flipped(frames[-1])
    hit, dense = shared.load_codes(ids), shared.load(ids)
    assert (hit.tokens, type(hit.reason)) == (left, errors.DamagedFrame)
    assert hit.cache.get_seq_length() == left
    assert_same(generated(model, ids, hit.cache), generated(model, ids, dense.cache))


def test_a_miss_without_the_dictionary_stays_exact(client: Client, model: Any) -> None:
    ids = prompt(40)
    shared = shared_of(client, model, dictionary=DICTIONARY.digest)
    hit = shared.load_codes(ids, buffer_tokens=4, window_tokens=1)
    assert (hit.tokens, hit.reason) == (0, None)
    assert_same(generated(model, ids, hit.cache), generated(model, ids))
    assert hit.cache.coded_tokens == 0


def test_a_dictionary_that_is_fetched(client: Client, model: Any) -> None:
    ids = prompt(40)
    offloaded(client, model, ids)
    hit = shared_of(client, model, dictionary=DICTIONARY.digest).load_codes(ids, buffer_tokens=31)
    generated(model, ids, hit.cache, max_new_tokens=40)
    assert hit.cache.coded_tokens == 39 - SINKS + 32


def test_what_cannot_be_loaded_as_codes(client: Client, model: Any) -> None:
    ids = prompt(20)
    with pytest.raises(errors.Unsupported, match=r"raw keeps no codes.*load\(\)"):
        HuggingFaceCache(client, model, codec="raw").load_codes(ids)
    shared = shared_of(client, model)
    with pytest.raises(errors.ConfigurationError, match="buffer_tokens=-1"):
        shared.load_codes(ids, buffer_tokens=-1)
    with pytest.raises(errors.ConfigurationError, match="window_tokens=12"):
        shared.load_codes(ids, buffer_tokens=10, window_tokens=12)
    with pytest.raises(errors.ConfigurationError, match="window_tokens=True"):
        shared.load_codes(ids, window_tokens=True)
    with pytest.raises(errors.ShapeMismatch, match="batch of 2"):
        shared.load_codes(ids.repeat(2, 1))
    model.set_attn_implementation("sdpa")
    with pytest.raises(errors.ConfigurationError, match="set_attn_implementation"):
        shared.load_codes(ids)


def test_the_attention_implementation_is_no_part_of_the_fingerprint() -> None:
    assert weights_fingerprint(llama()) == weights_fingerprint(llama(attn_implementation="sdpa"))


def test_it_is_not_offloaded(client: Client, model: Any) -> None:
    ids = prompt(20)
    shared = offloaded(client, model, ids)
    with pytest.raises(errors.Unsupported, match="CodedCache"):
        shared.offload(ids, shared.load_codes(ids).cache)  # type: ignore[arg-type]


# Memory


def test_less_memory_than_dense(client: Client, model: Any) -> None:
    ids = prompt(401)
    shared = offloaded(client, model, ids)
    hit = shared.load_codes(ids)
    dense = sum(
        layer.keys.nbytes + layer.values.nbytes for layer in layers_of(shared.load(ids).cache)
    )
    # 11 bytes a vector of 64, spare room and the index of values beside it
    assert (3 * SPARSITY + 2) / 64 < hit.cache.held_bytes / dense < 0.5
    before = hit.cache.held_bytes
    with torch.no_grad():
        model(ids[:, -1:], **cache_inputs(model, hit.cache))
    assert hit.cache.held_bytes - before == LAYERS * 2 * KV_HEADS * HEAD_DIM * 4


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gave back in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in held:
                self.elements = max(self.elements, leaf.numel())
        return out


def test_a_decode_step_makes_nothing_dense(client: Client, model: Any) -> None:
    ids = prompt(1201)
    shared = offloaded(client, model, ids[:, :1200])
    codes, roomy = shared.load_codes(ids).cache, shared.load(ids).cache
    joined = DynamicCache([(layer.keys, layer.values) for layer in layers_of(roomy)])
    found = []
    for cache in (codes, joined, roomy):
        with torch.no_grad(), Largest() as largest:
            model(ids[:, -1:], **cache_inputs(model, cache))
        found.append(largest.elements)
    one = 1200 * KV_HEADS * HEAD_DIM  # keys or values of one layer
    assert found[1] >= one
    assert found[0] < one / 2
    assert found[2] <= found[1]


def test_no_dense_mask_is_made_for_one_unpadded_sequence(
    client: Client, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = prompt(39)
    shared = offloaded(client, model, ids)

    def never(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a mask of all queries and tokens")

    monkeypatch.setattr("lexico_client.engines.hf._coded_attention.sdpa_mask", never)
    for hit in (shared.load_codes(ids), shared.load(ids)):
        generated(model, ids, hit.cache)


def test_public_names() -> None:
    assert public.__all__ == [
        "CodedCache",
        "CodedHit",
        "GenerateReport",
        "Generated",
        "Hit",
        "HuggingFaceCache",
        "OffloadOutcome",
        "PromptReport",
        "Session",
        "weights_fingerprint",
    ]
    assert public.CodedCache is CodedCache
