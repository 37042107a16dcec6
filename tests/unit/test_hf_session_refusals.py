"""What a session refuses at once, before anything is computed, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lexico_client import Client, InMemoryTransport
from lexico_client.hf import HuggingFaceCache, Session
from lexico_proto import errors
from tests.support.answers import IDS, made
from tests.support.sessions import PLAIN, STATIC_COUNTS, batch_of, chat_tokenizer, sharing

MESSAGES = [{"role": "user", "content": "w5 w6"}]


@pytest.fixture(scope="module")
def model() -> Any:
    return made("llama")


@pytest.fixture
def session(model: Any, tmp_path: Path) -> Iterator[Session]:
    with sharing(model, tmp_path) as shared, Session(shared) as session:
        yield session


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({}, errors.InvalidInput, "either input_ids or messages"),
        ({"input_ids": IDS, "messages": MESSAGES}, errors.InvalidInput, "either input_ids or"),
        ({"input_ids": IDS[0]}, errors.ShapeMismatch, r"\[prompts, tokens\]"),
        ({"input_ids": IDS.float()}, errors.ShapeMismatch, "integers"),
        ({"input_ids": [[1, 2]]}, errors.ShapeMismatch, "list"),
        ({"input_ids": IDS[:0]}, errors.ShapeMismatch, "no prompt"),
        ({"input_ids": IDS[:, :0]}, errors.InvalidInput, "no token"),
        ({"input_ids": IDS.repeat(2, 1)}, errors.InvalidInput, "attention_mask"),
        (
            {"input_ids": torch.tensor([[0, 5, 6]]), "pad_token_id": 0},
            errors.InvalidInput,
            "padding token",
        ),
        (
            {"input_ids": IDS, "attention_mask": torch.ones(1, 3)},
            errors.ShapeMismatch,
            "attention_mask",
        ),
        (
            {"input_ids": IDS[:, :3], "attention_mask": torch.tensor([[1, 1, 0]])},
            errors.InvalidInput,
            "padding_side",
        ),
        (
            {"input_ids": IDS[:, :3], "attention_mask": torch.tensor([[0, 0, 0]])},
            errors.InvalidInput,
            "prompt 0 has no token",
        ),
        ({"messages": MESSAGES}, errors.InvalidInput, "tokenizer"),
        (
            {"messages": MESSAGES, "attention_mask": torch.ones(1, 3)},
            errors.InvalidInput,
            "goes with input_ids",
        ),
        ({"messages": "hello", "tokenizer": 1}, errors.InvalidInput, "tokenizer"),
        ({"messages": [], "tokenizer": chat_tokenizer("x")}, errors.InvalidInput, "list of dicts"),
        (
            {"messages": MESSAGES, "tokenizer": chat_tokenizer("{{ raise_exception('no') }}")},
            errors.InvalidInput,
            "template refuses",
        ),
        (
            {"messages": [MESSAGES, MESSAGES], "tokenizer": chat_tokenizer("")},
            errors.InvalidInput,
            "renders conversation 0 as no token",
        ),
    ],
)
def test_prompts(session: Session, given: dict[str, Any], kind: Any, says: str) -> None:
    with pytest.raises(kind, match=says):
        session.generate(**given)


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"cache": object()}, errors.InvalidInput, "brings the cache"),
        ({"past_key_values": object()}, errors.InvalidInput, "brings the cache"),
        ({"position_ids": IDS}, errors.InvalidInput, "token ids alone"),
        ({"inputs_embeds": torch.ones(1, 2, 3)}, errors.InvalidInput, "token ids alone"),
        ({"adapter_names": ["a"]}, errors.InvalidInput, "token ids alone"),
        ({"pixel_values": torch.ones(3)}, errors.InvalidInput, "token ids alone"),
        ({"token_healing": True}, errors.InvalidInput, "prompt"),
        ({"custom_generate": "somebody/else"}, errors.Unsupported, "leave it out"),
        ({"penalty_alpha": 0.6, "top_k": 4}, errors.Unsupported, "leave it out"),
        ({"use_cache": False}, errors.Unsupported, "leave it out"),
        ({"cache_implementation": "quantized"}, errors.Unsupported, "dynamic and static"),
        ({"cache_implementation": "offloaded"}, errors.Unsupported, "dynamic and static"),
        ({"cache_implementation": "offloaded_static"}, errors.Unsupported, "dynamic and static"),
        ({"cache_implementation": "sliding_window"}, errors.Unsupported, "dynamic and static"),
        ({"cache_implementation": "paged"}, errors.Unsupported, "dynamic and static"),
        (
            {"generation_config": GenerationConfig(cache_implementation="static")},
            errors.Unsupported,
            "generation config",
        ),
        (
            {"cache_implementation": "static", "num_beams": 2},
            errors.Unsupported,
            "one answer a prompt",
        ),
        (
            {"cache_implementation": "static", "prompt_lookup_num_tokens": 2},
            errors.Unsupported,
            "assistants",
        ),
        (
            {"cache_implementation": "static", "max_new_tokens": None},
            errors.InvalidInput,
            "max_new_tokens",
        ),
        ({"timeout": 0}, errors.ConfigurationError, "timeout"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, dict) else None,
)
def test_arguments(
    model: Any, session: Session, given: dict[str, Any], kind: Any, says: str
) -> None:
    with pytest.raises(kind, match=says):
        session.generate(IDS, **PLAIN | given)


def test_a_static_cache_that_is_counted_by_what_is_not_zero(model: Any, session: Session) -> None:
    if STATIC_COUNTS:
        pytest.skip("this transformers counts by itself")
    with pytest.raises(errors.Unsupported, match="install a newer one"):
        session.generate(IDS, **PLAIN, cache_implementation="static")


def test_a_padding_token_that_ends_answers_too_is_no_padding(model: Any, session: Session) -> None:
    ids, both = torch.tensor([[5, 7, 6, 7, 9]]), PLAIN | {"pad_token_id": 7, "eos_token_id": [7]}
    assert torch.equal(session.generate(ids, **both).output, model.generate(ids, **both))


def test_what_generate_itself_refuses_is_its_own(model: Any, session: Session) -> None:
    with pytest.raises((ValueError, TypeError)):
        session.generate(IDS, **PLAIN, no_such_argument=1)
    batch = batch_of([[5, 6], [7]])
    with pytest.raises(ValueError, match=r"[Bb]atch"):
        session.generate(**batch, **PLAIN, prompt_lookup_num_tokens=2)
    assert session.generate(IDS, **PLAIN).report.reloaded_tokens == 0


def test_models(model: Any, tmp_path: Path) -> None:
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        decoder = HuggingFaceCache(client, model.get_decoder(), codec="raw")
        with pytest.raises(errors.Unsupported, match="no generate"):
            Session(decoder)
        digests = HuggingFaceCache(client, model, codec="raw", digests=True)
        with pytest.raises(errors.Unsupported, match=r"load\(\) and offload\(\)"):
            Session(digests)
        whole = HuggingFaceCache(client, model, codec="raw")
        with pytest.raises(errors.ConfigurationError, match="max_pending=0"):
            Session(whole, max_pending=0)
        with pytest.raises(errors.ConfigurationError, match="wait="):
            Session(whole, wait="tomorrow")  # type: ignore[arg-type]
        with pytest.raises(errors.ConfigurationError, match="room_tokens=-1"):
            whole.load(IDS, room_tokens=-1)
