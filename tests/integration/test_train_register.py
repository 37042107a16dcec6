"""From a model without a set to one that is coded, by commands alone.

What trains is replaced by what has a set ready: tests/unit/test_training*.py train.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lexico_codec.sets.dictionary import DictionarySet
from lexico_lab.training.options import Trained
from tests.support.cli_shapes import SHAPES, misfits
from tests.support.dictionaries import random_set
from tests.support.lexico_command import Lexico
from tests.support.saved_model import letters, save_tiny
from tests.support.services import running_services

NODE, ADMIN = "token-of-a-node-that-has-no-more", "token-of-the-admin-of-all"


@pytest.fixture
async def lexico(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Lexico]:
    monkeypatch.setattr("lexico_client._async_client.cache_folder", lambda name: tmp_path / name)
    for name in ("LEXICO_RELOAD", "LEXICO_OFFLOAD"):
        monkeypatch.delenv(name, raising=False)
    tokens = tmp_path / "tokens"
    tokens.write_text(f"red:{NODE}\nred:{ADMIN}:offload,reload,admin,operator\n")
    async with running_services(token_file=tokens) as services:
        yield Lexico(services, capsys)


async def test_a_set_is_trained_and_published_in_one_command(
    lexico: Lexico, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = save_tiny(tmp_path / "model"), tmp_path / "made.safetensors"
    (tmp_path / "prompt").write_text(letters(80, seed=1))
    explain = ("explain", "--model", model, "--text", tmp_path / "prompt", "--codec", "paper")
    monkeypatch.setenv("LEXICO_TOKEN", NODE)

    def trained(options: argparse.Namespace, pool: object) -> Trained:
        made = random_set(2, 8, kv_heads=2)
        made.save(options.out)
        return Trained("trained", [])

    monkeypatch.setattr("lexico_lab.training.options.run", trained)

    before = await lexico(*explain, "--json")
    assert (before.code, misfits(before.document, SHAPES["explain"])) == (0, [])
    assert before.document["waits_for_set"] is True
    assert before.document["identity"]["codec"] == "lossless"
    told = (await lexico(*explain)).out
    assert "published for the model with paper: nodes run lossless" in " ".join(told.split())

    train = ("train", "--model", model, "--text", tmp_path / "text", "--out", out)
    refused = await lexico(*train, "--register")
    assert refused.code == 4
    assert "role" in refused.err
    assert f"lexico dictionaries register {out} --for {model}" in refused.err
    refused = await lexico(*train, "--register", "--json")
    assert (refused.code, refused.document) == (4, {"sets": [], "registered": []})
    assert (await lexico(*explain, "--json")).document["waits_for_set"] is True

    monkeypatch.setenv("LEXICO_TOKEN", ADMIN)
    again = await lexico("dictionaries", "register", out, "--for", model)
    assert (again.code, "lexico, lexico-adaptive" in again.out) == (0, True)
    monkeypatch.setenv("LEXICO_TOKEN", NODE)
    after = (await lexico(*explain, "--json")).document
    assert after["waits_for_set"] is False
    assert after["identity"]["dictionary"] == DictionarySet.load(out).digest.hex()

    monkeypatch.setenv("LEXICO_TOKEN", ADMIN)
    taken = await lexico("dictionaries", "take-back", model)
    assert (taken.code, "lexico" in taken.out) == (0, True)
    assert "nothing was published" in (await lexico("dictionaries", "take-back", model)).out
    done = await lexico(*train, "--register")
    assert (done.code, done.out.startswith("trained\n")) == (0, True)
    assert "code with it" in done.out
    (registered,) = (await lexico(*train, "--register", "--json")).document["registered"]
    assert misfits(registered, SHAPES["dictionaries register"]) == []
    assert registered["codecs"] == ["lexico", "lexico-adaptive"]
    assert (await lexico(*explain, "--json")).document["waits_for_set"] is False

    listed = (await lexico("dictionaries", "list", "--json")).document
    assert misfits(listed, SHAPES["dictionaries list"]) == []

    status = await lexico("status", "--interval", "0")
    assert "for the set of their model while none was published" in " ".join(status.out.split())


async def test_options_that_go_together(lexico: Lexico, tmp_path: Path) -> None:
    train = ("train", "--model", tmp_path, "--text", tmp_path / "text", "--out", tmp_path / "out")
    refused = await lexico(*train, "--shared")
    assert (refused.code, "go with --register" in refused.err) == (2, True)
