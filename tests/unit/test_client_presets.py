"""Presets in the client: the set made for the codec, or a refusal that says which to train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lexico_client import Client, InMemoryTransport
from lexico_client.hf import HuggingFaceCache
from lexico_codec.codecs import LexicoCodec, LosslessCodec, codec_from_config
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.kernels.entropy.tables import SYMBOLS
from lexico_codec.presets import PRESETS
from lexico_codec.sets import choose
from lexico_codec.sets.dictionary import AtomSet, DictionarySet, TransformSet
from lexico_codec.sets.info import SetInfo
from lexico_proto import errors
from tests.support.client_fixtures import PATIENT, small_dictionary
from tests.support.dictionaries import set_info
from tests.support.packed_sets import packed_set
from tests.support.waiting import wait_until

LAYERS, KV_HEADS, HEAD_DIM, PAGE_TOKENS = 3, 2, 16, 8
RESIDUAL = ("near", "balanced", "small")


def residual_set(
    runs: int = 1, kv_heads: int = KV_HEADS, info: SetInfo | None = None
) -> DictionarySet:
    """A transform that leaves the components as they are, over tables that know nothing."""
    width, tables, classes = kv_heads * HEAD_DIM, 2 * LAYERS, 40
    count, generator = tables * width // runs, torch.Generator().manual_seed(1)
    atoms = torch.randint(-90, 90, (runs, 5, 8), generator=generator)
    tensors = {
        "means": torch.zeros(tables, kv_heads, HEAD_DIM),
        "bases": torch.eye(width).half().repeat(tables, 1, 1, 1),
        "scales": torch.ones(tables),
        "selected": torch.tensor([[0, 1]] * runs, dtype=torch.int32),
        "cross": (127 * torch.eye(2)).to(torch.int8).repeat(runs, 1, 1),
        "cross_scales": torch.full((runs, 2), 1 / 127),
        "order": torch.arange(count, dtype=torch.int32).repeat(runs, 1),
        "deviations": torch.ones(runs, count),
        "gains": torch.zeros(runs, 9),
        "atoms": atoms.to(torch.int8),
        "remaining": torch.ones(runs, 8),
        "coefficients": torch.ones(runs, 1),
        "frequencies": torch.full((classes, SYMBOLS), 4096 // SYMBOLS, dtype=torch.int32),
        "shifts": torch.zeros(classes, dtype=torch.int32),
        "points": torch.arange(SYMBOLS // 2, dtype=torch.float32).repeat(classes, 1),
        "steps": torch.tensor([0.1, 0.2, 0.4]),
    }
    return TransformSet.build(tensors, info or set_info(kv_heads))


def llama(dtype: torch.dtype = torch.float32, theta: float = 10000.0) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=None, pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(
        transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=PATIENT
    ) as client:
        yield client


def cache_of(client: Client, model: Any, name: str, **changes: Any) -> HuggingFaceCache:
    settings = {"page_tokens": PAGE_TOKENS, "recent_tokens": 1, "weights": bytes(32), **changes}
    return HuggingFaceCache(client, model, codec=name, **settings)


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes sets built-in ones."""

    def ship(*sets: DictionarySet) -> None:
        shelf = {f"set-{number}": made for number, made in enumerate(sets)}
        monkeypatch.setattr(choose, "builtin_sets", lambda: tuple(shelf))
        monkeypatch.setattr(choose, "load_builtin", shelf.__getitem__)

    return ship


def info_for(model: Any, name: str) -> SetInfo:
    """What a set trained on the model says of itself."""
    rope = geometry_of(model.config, model.dtype).rope
    assert rope is not None
    said = {"inv_freq": list(rope.inv_freq), "pairing": rope.pairing, "scale": rope.scale}
    return replace(set_info(KV_HEADS), model=name, rope=said)


def lexico_set(model: Any, name: str) -> DictionarySet:
    plain = small_dictionary(layers=LAYERS, head_dim=HEAD_DIM)
    assert isinstance(plain, AtomSet)
    layers = [(plain.atoms(i, "key"), plain.atoms(i, "value")) for i in range(LAYERS)]
    return AtomSet.build(layers, info_for(model, name))


def unrotated_set(model: Any, name: str) -> DictionarySet:
    made = packed_set(LAYERS, HEAD_DIM)
    layers = [(made.atoms(i, "key"), made.atoms(i, "value")) for i in range(LAYERS)]
    means = made.means(0, LAYERS)[:, :KV_HEADS]
    pairs = list(zip(means[::2], means[1::2], strict=True))
    return AtomSet.build(layers, info_for(model, name), pairs)


@pytest.fixture(scope="module")
def sets(model: Any) -> dict[str, DictionarySet]:
    """One set for each codec that needs one, all of them for the model."""
    return {
        "lexico": lexico_set(model, "plain"),
        "lexico-packed": unrotated_set(model, "packed"),
        "lexico-residual": residual_set(info=info_for(model, "transformed")),
    }


def through(shared: HuggingFaceCache, model: Any) -> list[tuple[Tensor, Tensor]]:
    """What 40 of 41 tokens come back as, and what they were: of all layers, keys and values."""
    ids = torch.randint(0, 97, (1, 41), generator=torch.Generator().manual_seed(3))
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids, **cache_inputs(model, cache))
    assert shared.offload(ids, cache).pages == ("stored",) * 5
    return through_again(shared, model, ids)


def through_again(shared: HuggingFaceCache, model: Any, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What is stored of a prompt beside what the model computes: of all layers, keys and values."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(ids, **cache_inputs(model, cache))
    hit = shared.load(ids)
    assert (hit.tokens, hit.reason) == (40, None)
    layers: list[tuple[Any, Any]] = list(zip(hit.cache.layers, cache.layers, strict=True))
    return [
        (getattr(ours, part), getattr(theirs, part)[:, :, :40])
        for ours, theirs in layers
        for part in ("keys", "values")
    ]


def relative_error(pairs: list[tuple[Tensor, Tensor]]) -> float:
    assert all(bool(ours.isfinite().all()) for ours, _ in pairs)
    assert all(torch.equal(a[:, :, :4], b[:, :, :4]) for a, b in pairs), "sinks are exact"
    return sum(float((a - b).norm() / b.norm()) for a, b in pairs) / len(pairs)


# Choice


@pytest.mark.parametrize("name", [*PRESETS, "lexico", "lexico-packed"])
def test_the_set_that_was_made_for_the_codec_is_taken(
    name: str,
    client: Client,
    model: Any,
    sets: dict[str, DictionarySet],
    built_in: Callable[..., None],
) -> None:
    built_in(*sets.values())
    codec = PRESETS[name].codec if name in PRESETS else name
    spec = cache_of(client, model, name).spec
    assert spec.codec.name == codec
    assert spec.dictionary == (sets[codec].digest if codec in sets else b"")


@pytest.mark.parametrize("name", [*RESIDUAL, "paper"])
def test_without_a_set_for_it_a_preset_is_refused_where_that_is_wanted(
    name: str,
    client: Client,
    model: Any,
    sets: dict[str, DictionarySet],
    built_in: Callable[..., None],
) -> None:
    """Sets of other codecs are no substitute."""
    codec = PRESETS[name].codec
    built_in(*(made for key, made in sets.items() if key != codec))
    says = rf"preset {name} needs a set trained with `lexico train --codec {codec}` for this model"
    with pytest.raises(errors.ConfigurationError, match=says) as caught:
        cache_of(client, model, name, without_set="refuse")
    assert "packed" in str(caught.value)  # fits, and is said to be for another codec
    built_in()
    with pytest.raises(errors.ConfigurationError, match=f"{says}.*: none"):
        cache_of(client, model, name, without_set="refuse")
    other = sets["lexico-packed"]
    with pytest.raises(errors.DictionaryMismatch, match=f"{says}; the set of packed"):
        cache_of(client, model, name, dictionary=other)


def test_a_codec_that_is_named_is_refused_the_same_way(
    client: Client, model: Any, sets: dict[str, DictionarySet]
) -> None:
    with pytest.raises(errors.DictionaryMismatch, match="codec lexico-packed needs a set trained"):
        cache_of(client, model, "lexico-packed", dictionary=sets["lexico"])
    with pytest.raises(errors.DictionaryMismatch, match="codec lexico needs a set trained"):
        cache_of(client, model, "lexico", dictionary=sets["lexico-packed"])


def test_a_set_for_another_rotary_embedding_is_refused(
    client: Client, model: Any, sets: dict[str, DictionarySet]
) -> None:
    """Keys that are turned otherwise, or another model's: where it is given, and where it codes."""
    other = llama(theta=500000.0)
    for name, dictionary in sets.items():
        with pytest.raises(errors.DictionaryMismatch, match="another rotary embedding"):
            cache_of(client, other, name, dictionary=dictionary)
        client.register_dictionary(dictionary)
        shared = cache_of(client, other, name, dictionary=dictionary.digest)
        with pytest.raises(errors.DictionaryMismatch, match="another rotary embedding"):
            through(shared, other)


def test_two_sets_that_serve_are_one_too_many(
    client: Client,
    model: Any,
    sets: dict[str, DictionarySet],
    built_in: Callable[..., None],
) -> None:
    twin = lexico_set(model, "twin")
    built_in(*sets.values(), twin)
    with pytest.raises(errors.ConfigurationError, match="serve equally: plain, twin"):
        cache_of(client, model, "paper")
    given = cache_of(client, model, "paper", dictionary=twin)
    assert given.spec.dictionary == twin.digest


def test_unknown_names_and_parameters_of_presets(client: Client, model: Any) -> None:
    with pytest.raises(errors.UnknownCodec, match="lossless, near, balanced, small, paper"):
        cache_of(client, model, "best")
    with pytest.raises(errors.ConfigurationError, match="preset paper has its parameters"):
        cache_of(client, model, "paper", codec_config={"sparsity": 4})
    with pytest.raises(errors.InvalidInput, match="no dictionary"):
        cache_of(client, model, "lossless", dictionary=bytes(32))


# Through the service


@pytest.mark.parametrize("name", ["balanced", "paper"])
def test_a_set_that_is_published_is_taken_over(
    name: str, tmp_path: Path, model: Any, sets: dict[str, DictionarySet], built_in: Any
) -> None:
    """Of a model in use: what it shared before is found, what it shares from then on is coded."""
    built_in()
    transport, made = InMemoryTransport(), sets[PRESETS[name].codec]
    eager = replace(PATIENT, sets=1e-9)
    with Client(transport=transport, dictionaries_dir=tmp_path, timeouts=eager) as client:
        shared = cache_of(client, model, name)
        assert shared.spec.codec == LosslessCodec()
        with pytest.raises(errors.Unsupported, match="no set for another yet"):
            shared.load_codes(list(range(20)))
        assert all(torch.equal(ours, theirs) for ours, theirs in through(shared, model))
        client.publish_dictionary(made, shared.spec)
        wait_until(lambda: shared.spec.dictionary == made.digest, "the set")
        ids = torch.randint(0, 97, (1, 41), generator=torch.Generator().manual_seed(3))
        before = shared.load(ids)
        assert (before.tokens, before.reason) == (40, None)  # lossless, as nothing else is there
        cache: Any = before.cache
        assert shared.offload(ids, cache).pages == ("stored",) * 5
        frames = len(transport.pages)
        assert 0 < relative_error(through_again(shared, model, ids)) < 0.7
        assert len(transport.pages) == frames
        fresh = cache_of(client, model, name)
        assert fresh.spec.namespace == shared.spec.namespace


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lossless_gives_back_the_bits(client: Client, dtype: torch.dtype) -> None:
    model = llama(dtype)
    shared = cache_of(client, model, "lossless")
    assert shared.spec.codec == LosslessCodec()
    assert all(torch.equal(ours, theirs) for ours, theirs in through(shared, model))


def test_presets_of_the_transform(
    client: Client, model: Any, sets: dict[str, DictionarySet]
) -> None:
    found = []
    for name in RESIDUAL:
        shared = cache_of(client, model, name, dictionary=sets["lexico-residual"])
        assert shared.spec.codec == codec_from_config("lexico-residual", f'{{"quality":"{name}"}}')
        found.append(relative_error(through(shared, model)))
    assert 0 < found[0] < found[1] < found[2] < 0.7


def test_layers_are_coded_together_as_the_set_has_it(client: Client, model: Any) -> None:
    apart = residual_set(runs=3)
    shared = cache_of(client, model, "near", dictionary=apart)
    assert shared.spec.groups == LAYERS
    assert relative_error(through(shared, model)) < 0.2
    said = {"quality": "near", "run_layers": 1}
    same = cache_of(client, model, "lexico-residual", codec_config=said, dictionary=apart)
    assert same.spec.namespace == shared.spec.namespace
    for wrong, says in ((residual_set(kv_heads=1), "1 KV heads, not 2"), (residual_set(), "codes")):
        with pytest.raises(errors.DictionaryMismatch, match=says):
            cache_of(client, model, "lexico-residual", codec_config=said, dictionary=wrong)


def test_a_digest_of_another_codecs_set_is_named_on_the_way(
    client: Client, model: Any, sets: dict[str, DictionarySet]
) -> None:
    client.register_dictionary(sets["lexico-packed"])
    shared = cache_of(client, model, "paper", dictionary=sets["lexico-packed"].digest)
    with pytest.raises(errors.DictionaryMismatch, match="lexico train --codec lexico"):
        through(shared, model)


# Attention over codes


def test_codes_are_those_of_preset_paper(
    client: Client, sets: dict[str, DictionarySet], model: Any
) -> None:
    ids: Sequence[int] = list(range(20))
    for name in ("lossless", "lexico-packed", *RESIDUAL):
        dictionary = sets.get(PRESETS[name].codec if name in PRESETS else name)
        shared = cache_of(client, model, name, dictionary=dictionary)
        with pytest.raises(errors.Unsupported, match=r"keeps no codes.*preset paper"):
            shared.load_codes(ids)
    shared = cache_of(client, model, "paper", dictionary=sets["lexico"])
    assert shared.spec.codec == LexicoCodec()
    with pytest.raises(errors.ConfigurationError, match="lexico_codes"):  # the codec is right
        shared.load_codes(ids)
