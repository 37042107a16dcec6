"""What `generate` goes by: its arguments, the config it is given, and the model's. A session, and a
model that is given a hit, go by the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lexico_client.hf import HuggingFaceCache, Session
from lexico_codec.hf_inputs import cache_keyword
from lexico_proto import errors
from tests.support.answers import made
from tests.support.sessions import (
    PAD,
    PLAIN,
    STATIC_COUNTS,
    batch_of,
    chat_tokenizer,
    ids_of,
    sharing,
    warmed,
)

LONG, SHORT, NEW = ids_of(150, 1), ids_of(43, 2), ids_of(61, 3)
BATCH = batch_of([LONG, SHORT, NEW])
ONE: dict[str, Any] = {"input_ids": torch.tensor([LONG])}
STATIC: dict[str, Any] = {"cache_implementation": "static"}


def config(**changes: Any) -> Any:
    kind: Any = GenerationConfig  # whose __init__ is not typed
    return kind(**{"max_new_tokens": 6, "pad_token_id": PAD} | changes)


@pytest.fixture
def model() -> Any:
    return made("llama")


@pytest.fixture
def shared(model: Any, tmp_path: Path) -> Iterator[HuggingFaceCache]:
    with sharing(model, tmp_path) as shared:
        yield shared


@pytest.fixture
def session(shared: HuggingFaceCache) -> Iterator[Session]:
    with Session(shared) as session:
        warmed(session, [LONG, SHORT])
        yield session


@pytest.mark.parametrize(
    "of_the_model",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"prefill_chunk_size": 16},
        {"repetition_penalty": 1.7},
        {"eos_token_id": list(range(1, 90, 4))},
        {"cache_implementation": "hybrid"},
    ],
    ids=str,
)
def test_a_config_leaves_to_the_models_what_it_does_not_say(
    model: Any, session: Session, of_the_model: dict[str, Any]
) -> None:
    for name, value in of_the_model.items():
        setattr(model.generation_config, name, value)
    outputs: list[Any] = []
    for generate in (model.generate, session.generate):
        torch.manual_seed(5)
        outputs.append(generate(**BATCH, generation_config=config()))
    assert torch.equal(outputs[1].output, outputs[0])
    assert outputs[1].report.reloaded_tokens >= 144 + 40
    assert all(outcome.error is None for outcome in outputs[1].report.offloads())


@pytest.mark.parametrize("of_the_model", [{"cache_implementation": "static"}, {"use_cache": False}])
def test_what_the_models_config_says_is_refused_as_if_it_were_an_argument(
    model: Any, shared: HuggingFaceCache, session: Session, of_the_model: dict[str, Any]
) -> None:
    for name, value in of_the_model.items():
        setattr(model.generation_config, name, value)
    with pytest.raises(errors.Unsupported):
        session.generate(**ONE, generation_config=config())
    with pytest.raises(errors.Unsupported):
        model.generate(**ONE, **shared.load(ONE["input_ids"]).inputs, generation_config=config())


def test_padding_is_what_the_models_config_says(model: Any, session: Session) -> None:
    model.generation_config.pad_token_id = LONG[3]
    with pytest.raises(errors.InvalidInput, match="padding token"):
        session.generate(**ONE, generation_config=config(pad_token_id=None))


@pytest.mark.skipif(not STATIC_COUNTS, reason="static caches of this transformers are refused")
@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"max_new_tokens": 6}, 156),
        ({"max_length": 160}, 160),
        ({"generation_config": config(max_new_tokens=None, max_length=161)}, 161),
        ({"max_new_tokens": 6, "max_cache_len": 400}, 400),
        ({"max_new_tokens": 6, "max_cache_len": 10}, 156),
    ],
)
def test_the_size_of_a_static_cache(
    model: Any, session: Session, settings: dict[str, Any], size: int
) -> None:
    """That of `generate`, so that what was compiled for it fits the next call too."""
    wanted: dict[str, Any] = {
        "return_dict_in_generate": True,
        "do_sample": False,
        "pad_token_id": PAD,
    }
    expected = model.generate(**BATCH, **copy.deepcopy(settings), **wanted, **STATIC)
    got = session.generate(**BATCH, **copy.deepcopy(settings), **wanted, **STATIC)
    assert torch.equal(got.sequences, expected.sequences)
    assert got.report.reloaded_tokens == 184
    assert getattr(got.output, cache_keyword(model)).layers[0].keys.shape[2] == size


@pytest.mark.parametrize("what", ["output_hidden_states", "output_attentions"])
def test_outputs_of_the_whole_prompt(tmp_path: Path, what: str) -> None:
    """They are not cut short where a prefix was reloaded: then none is."""
    model = made("llama")
    model.set_attn_implementation("eager")
    settings = PLAIN | {what: True, "return_dict_in_generate": True}
    name = what.removeprefix("output_")
    with sharing(model, tmp_path) as shared, Session(shared) as session:
        warmed(session, [LONG, SHORT])
        for given in (BATCH, batch_of([LONG[:30], *([SHORT[:3]] * 9)])):
            expected = model.generate(**given, **settings)
            got = session.generate(**given, **settings)
            pairs = zip(getattr(got.output, name), getattr(expected, name), strict=True)
            for ours, theirs in pairs:
                for one, other in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
            for prompt in got.report.prompts:
                assert prompt.reloaded_tokens == 0
                assert what in str(prompt.reason)
            assert all(outcome.error is None for outcome in got.report.offloads())
        alone = session.generate(**ONE, **PLAIN | {what: True})
        assert alone.report.reloaded_tokens == 144, "without an object there is no such output"


@pytest.mark.parametrize("name", ["use_mtp", "speculation_type"])
def test_drafts_of_hidden_states(model: Any, shared: HuggingFaceCache, name: str) -> None:
    """The model's own `generate` says what it lacks for them, and a hit that it does not go."""
    if not hasattr(model.generation_config, name):
        pytest.skip("this transformers has no such drafts")
    with Session(shared) as session:
        warmed(session, [LONG])
        if name == "use_mtp":
            with pytest.raises(ValueError, match="mtp"):
                session.generate(**ONE, **PLAIN, use_mtp=True)
        hit = shared.load(ONE["input_ids"])
        with pytest.raises(errors.Unsupported, match="hidden states"):
            model.generate(**ONE, **hit.inputs, **PLAIN, **{name: "dflash"})
        off = {name: None if name == "speculation_type" else False}
        assert torch.equal(
            model.generate(**ONE, **hit.inputs, **PLAIN, **off), model.generate(**ONE, **PLAIN)
        )


def test_tensors_that_are_settings(model: Any, session: Session) -> None:
    ending = PLAIN | {"eos_token_id": torch.tensor([3, 5])}
    got = session.generate(**ONE, **ending)
    assert torch.equal(got.output, model.generate(**ONE, **ending))


def test_an_assistant_with_a_tokenizer_of_its_own(
    model: Any, shared: HuggingFaceCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate` gets both tokenizers, the session's or the call's."""
    seen: list[Any] = []
    generate = type(model).generate

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs.pop("tokenizer", None), kwargs.pop("assistant_tokenizer", None)))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", noted)
    mine, other, its = (chat_tokenizer(name) for name in "abc")
    with Session(shared, tokenizer=mine) as session:
        session.generate(**ONE, **PLAIN)
        session.generate(**ONE, **PLAIN, assistant_tokenizer=its)
        session.generate(**ONE, **PLAIN, assistant_tokenizer=its, tokenizer=other)
    assert seen == [(None, None), (mine, its), (other, its)]


def test_rows_that_must_not_be_brought_up_alone(
    model: Any, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that takes no positions has padded rows at their columns: alone they would stand
    elsewhere."""
    kind, forward = type(model), type(model).forward

    def without(self: Any, input_ids: Any = None, attention_mask: Any = None, **kw: Any) -> Any:
        kw.pop("position_ids", None)
        return forward(self, input_ids, attention_mask=attention_mask, **kw)

    monkeypatch.setattr(kind, "forward", without)
    without.__signature__ = _without_positions(forward)  # type: ignore[attr-defined]
    batch = batch_of([LONG, NEW + SHORT])
    expected = model.generate(**batch, **PLAIN)
    got = session.generate(**batch, **PLAIN)
    assert torch.equal(got.output, expected)
    assert [prompt.reloaded_tokens for prompt in got.report.prompts] == [144, 0]


def _without_positions(forward: Any) -> Any:
    import inspect

    signature = inspect.signature(forward)
    kept = [each for name, each in signature.parameters.items() if name != "position_ids"]
    return signature.replace(parameters=kept)
