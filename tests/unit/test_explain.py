"""`client.explain` and `lexico explain`: why a prompt is found, or not."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_client import Client, InMemoryTransport, fingerprint_files, input_digests
from lexico_client.commands import connection
from lexico_client.commands.prompts import lossless_spec
from lexico_client.hf import HuggingFaceCache
from lexico_codec.spec_text import spec_from_json, spec_to_json
from lexico_lab.models import SMOLLM2, model_folder
from lexico_proto.errors import InvalidInput
from lexico_services.cli import main
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    TOKENS,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.saved_model import letters, save_tiny


@pytest.fixture(autouse=True)
def no_kept_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexico_client._weights_files.default_folder", lambda: None)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path / "sets") as client:
        yield client


@pytest.fixture
def known(client: Client, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The command's client is this one."""

    class Kept:
        def __init__(self, **arguments: Any) -> None:
            assert arguments["reload"].address == "there:7412"

        def __enter__(self) -> Client:
            return client

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(connection, "Client", Kept)
    return client


def test_the_first_absent_page_and_what_is_behind_it(client: Client) -> None:
    spec = small_spec()
    source = views_of(spec, random_cache(spec, 4))
    client.offload(spec, TOKENS, source)
    keys = client.match(spec, TOKENS).page_keys
    transport: Any = client._client._transport
    del transport.pages[keys[1]]
    explained = client.explain(spec, TOKENS)
    assert explained.namespace == spec.namespace
    assert (explained.first_absent, explained.unreachable) == (1, (2, 3))
    assert explained.match.tokens == PAGE_TOKENS
    text = explained.text()
    for line in (
        spec.namespace.hex(),
        f"first absent  page 1, tokens {PAGE_TOKENS} to {2 * PAGE_TOKENS - 1}",
        keys[1].hex(),
        "out of reach  pages 2-3",
        "stored        pages 0, 2-3",
    ):
        assert line in text
    client.offload(spec, TOKENS, source)
    assert client.explain(spec, TOKENS).first_absent is None
    assert "absent" not in client.explain(spec, TOKENS).text()
    assert "can be loaded 0 tokens\n\nnearest" in client.explain(spec, []).text()


def test_the_part_that_differs_is_named(client: Client) -> None:
    spec = small_spec()
    other = replace(spec, lora="red", salt="mine")
    explained = client.explain(spec, TOKENS, against=other)
    assert explained.differs == ("lora", "salt")
    text = explained.text()
    assert "DIFFERS: the other has red" in text
    assert "DIFFERS: the other has 6d696e65" in text
    same = client.explain(spec, TOKENS, against=spec)
    assert same.differs == ()
    assert "the other identity is the same" in same.text()


def test_inputs_are_told(client: Client) -> None:
    inputs = input_digests([(PAGE_TOKENS, 2 * PAGE_TOKENS, "a")], PAGE_TOKENS, len(TOKENS))
    assert (
        "beside token ids, in pages 1-2"
        in client.explain(small_spec(), TOKENS, inputs=inputs).text()
    )


def test_the_command_with_a_spec(
    known: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small_spec()
    known.offload(spec, TOKENS, views_of(spec, random_cache(spec, 2)), pages=2)
    (tmp_path / "spec.json").write_text(spec_to_json(spec))
    (tmp_path / "other.json").write_text(spec_to_json(replace(spec, weights=bytes(32))))
    (tmp_path / "ids").write_text(str(list(TOKENS)))
    arguments = ["explain", "--model", str(tmp_path / "spec.json"), "--reload", "there:7412"]
    arguments += ["--tokens", str(tmp_path / "ids"), "--against", str(tmp_path / "other.json")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "stored        pages 0-1" in said
    assert "nearest       this one: pages of it are stored" in said
    assert f"DIFFERS: the other has {'00' * 32}" in said
    assert spec_from_json((tmp_path / "spec.json").read_text()) == spec


@torch.inference_mode()
def test_the_command_with_a_model_folder(
    known: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It knows the identity of a node without loading the model."""
    from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM

    from lexico_codec.hf_inputs import cache_inputs

    folder = save_tiny(tmp_path / "model")
    model: Any = LlamaForCausalLM.from_pretrained(folder)
    shared = HuggingFaceCache(known, model, codec="lossless", page_tokens=8)
    assert shared.spec.weights == fingerprint_files(folder)
    (tmp_path / "text").write_text(letters(30))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(letters(30)).input_ids])
    cache = DynamicCache(config=model.config)
    model(ids, **cache_inputs(model, cache))
    shared.offload(ids, cache)
    arguments = [
        "explain",
        "--model",
        str(folder),
        "--text",
        str(tmp_path / "text"),
        "--codec",
        "lossless",
    ]
    arguments += ["--page-tokens", "8", "--reload", "there:7412"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert shared.spec.namespace.hex() in said
    assert "prompt        30 tokens: 3 pages, 6 tokens in none" in said
    assert "stored        pages 0-2" in said
    assert main([*arguments, "--salt", "mine"]) == 0
    said = capsys.readouterr().out
    assert "stored        no page" in said
    assert "              salt  6d696e65  none" in said
    assert "elsewhere     24 tokens, in a namespace with other salt" in said


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"spec.json": "{"}, "no JSON of a spec"),
        ({}, "neither a model folder nor a spec"),
        ({"spec.json": None, "ids": "1 2 x"}, "token ids are integers"),
        ({"spec.json": None, "ids": "1 2", "inputs": '["zz"]'}, "list of digests as hex"),
        ({"spec.json": None}, "cannot read"),
    ],
)
def test_files_that_cannot_be_used(
    known: Client,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, str | None],
    word: str,
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(spec_to_json(small_spec()) if text is None else text)
    arguments = ["explain", "--model", str(tmp_path / "spec.json"), "--reload", "there:7412"]
    arguments += ["--tokens", str(tmp_path / "ids")]
    if "inputs" in files:
        arguments += ["--inputs", str(tmp_path / "inputs")]
    assert main(arguments) == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    "config", ["{", "[]", "{}", '{"model_type": "nothing"}', '{"model_type": 3}', None]
)
def test_folders_that_hold_no_model(
    known: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str | None
) -> None:
    (tmp_path / "ids").write_text("1 2 3")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    arguments = ["explain", "--model", str(tmp_path), "--tokens", str(tmp_path / "ids")]
    assert main([*arguments, "--reload", "there:7412"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}: transformers cannot read its config.json" in said
    assert said.count("\n") == 1


def test_no_tokens_a_page_are_refused() -> None:
    options = argparse.Namespace(page_tokens=0)
    with pytest.raises(InvalidInput, match="page_tokens=0"):
        lossless_spec(Path(model_folder(SMOLLM2)), options)
