"""Commands that call servers, in this process, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lexico_client.cache_file import CacheFile
from lexico_codec.geometry import Geometry
from lexico_codec.keys import page_keys
from lexico_codec.spec import CacheSpec, make_spec
from lexico_codec.spec_text import spec_to_json
from lexico_proto.errors import ConfigurationError
from lexico_store import MemoryStore
from lexico_store.scopes import tenant_scope
from tests.support.cli_shapes import SHAPES, misfits
from tests.support.client_fixtures import PAGE_TOKENS, small_spec
from tests.support.dictionaries import random_set
from tests.support.lexico_command import Lexico
from tests.support.services import running_services

SPEC = small_spec("lossless")
OTHERS = {"doctor", "config", "size", "serve", "offload-server", "reload-server", "train", "eval"}
"""Commands that call no server: their documents are looked at where they are run."""


def saved(folder: Path, spec: CacheSpec = SPEC, tokens: int = 3 * PAGE_TOKENS) -> Path:
    """A cache file of random keys and values."""
    g, generator = spec.geometry, torch.Generator().manual_seed(tokens)
    shape = (tokens, g.kv_heads, g.head_dim)
    rows = [torch.randn(shape, generator=generator).to(g.torch_dtype) for _ in range(2 * g.layers)]
    path = folder / f"{spec.codec.name}-{tokens}.safetensors"
    ids = np.arange(100, 100 + tokens, dtype=np.uint32)
    CacheFile(spec, ids, rows[: g.layers], rows[g.layers :]).write(path)
    return path


@pytest.fixture
async def lexico(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Lexico]:
    """On loopback without tokens, where everybody has every role."""
    for name in ("LEXICO_TOKEN", "LEXICO_RELOAD", "LEXICO_OFFLOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("lexico_client._async_client.cache_folder", lambda name: tmp_path / name)
    policy = tmp_path / "policy.toml"
    policy.write_text('[default]\nmax_pinned_bytes = "1 MiB"\n[tenants.research]\n')
    async with running_services(policy_file=policy) as services:
        yield Lexico(services, capsys)


async def test_documents_have_the_shape_that_is_documented(lexico: Lexico, tmp_path: Path) -> None:
    file, given, back = saved(tmp_path), tmp_path / "set", tmp_path / "back.safetensors"
    random_set(3, 8).save(given)
    seen = {}

    async def ask(name: str, *words: object, code: int = 0) -> Any:
        ended = await lexico(*words, "--json")
        assert (ended.code, ended.err) == (code, ""), name
        assert misfits(ended.document, SHAPES[name]) == [], name
        seen[name] = ended.document
        return ended.document

    await ask("put", "put", file)
    await ask("status", "status", "--interval", "0.001")
    await ask("inspect", "inspect", "--prompt", file)
    await ask("inspect", "inspect", "--namespace", SPEC.namespace.hex())
    await ask("explain", "explain", "--prompt", file)
    await ask("get", "get", "--prompt", file, "--out", back)
    registered = await ask("dictionaries register", "dictionaries", "register", given)
    of_model = tmp_path / "model.json"
    shape = Geometry(layers=3, kv_heads=1, head_dim=8)
    spec = make_spec(weights=bytes(32), geometry=shape, codec="raw")
    of_model.write_text(spec_to_json(spec))
    published = await ask(
        "dictionaries register", "dictionaries", "register", given, "--for", of_model
    )
    assert published["codecs"] == ["lexico", "lexico-adaptive"]
    gone = await ask("dictionaries take-back", "dictionaries", "take-back", of_model)
    assert gone == {"codecs": ["lexico", "lexico-adaptive"]}
    await ask("dictionaries list", "dictionaries", "list")
    out = tmp_path / "fetched"
    await ask("dictionaries fetch", "dictionaries", "fetch", registered["digest"], "--out", out)
    assert out.read_bytes() == given.read_bytes()
    await ask("tenants", "tenants")
    pin = await ask("pin", "pin", "--prompt", file, "--label", "greeting")
    await ask("quota", "quota")
    await ask("unpin", "unpin", pin["pin"])
    await ask("forget", "forget", "--everything")
    version = await ask("version", "version", "--servers")
    assert version["here"]["codecs"] == version["offload"]["codecs"]
    assert seen.keys() == SHAPES.keys() - OTHERS
    assert seen["status"]["servers"][0]["reload"]["store"]["up"] is True
    assert {each["tenant"] for each in seen["tenants"]["tenants"]} == {"default", "research"}


@pytest.mark.parametrize("codec", ["raw", "lossless"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
async def test_a_cache_file_goes_there_and_back(
    lexico: Lexico, tmp_path: Path, codec: str, dtype: str
) -> None:
    file, back = saved(tmp_path, small_spec(codec, dtype)), tmp_path / "back.safetensors"
    assert (await lexico("get", "--prompt", file, "--out", back)).code == 3
    assert not back.exists()
    put = await lexico("put", file)
    assert (put.code, put.err) == (0, "")
    assert "3 pages, 24 tokens: 3 stored" in put.out
    assert "3 present" in (await lexico("put", file)).out
    got = await lexico("get", "--prompt", file, "--out", back)
    assert (got.code, got.err) == (0, "")
    assert back.read_bytes() == file.read_bytes()
    assert back.stat().st_mode & 0o777 == 0o600


async def test_what_fills_no_page_stays_behind(lexico: Lexico, tmp_path: Path) -> None:
    file, back = saved(tmp_path, tokens=2 * PAGE_TOKENS + 3), tmp_path / "back.safetensors"
    await lexico("put", file)
    assert (await lexico("get", "--prompt", file, "--out", back)).code == 0
    whole, leading = CacheFile.read(file), CacheFile.read(back)
    assert leading.tokens == 2 * PAGE_TOKENS
    assert torch.equal(leading.values[1], whole.values[1][: leading.tokens])
    short = await lexico("put", saved(tmp_path, tokens=PAGE_TOKENS - 1))
    assert (short.code, "fill no page" in short.err) == (2, True)


async def test_a_prompt_is_inspected_page_by_page(lexico: Lexico, tmp_path: Path) -> None:
    file = saved(tmp_path)
    await lexico("put", file)
    scope, keys = tenant_scope("default"), page_keys(SPEC, CacheFile.read(file).token_ids)
    store = lexico.services.store
    await lexico("pin", "--prompt", file)
    store.expire(scope, keys[1:], 100.0, 1)
    store.discard(scope, keys[2:])
    ended = await lexico("inspect", "--prompt", file, "--json")
    found = ended.document
    assert ended.code == 3
    assert (found["stored_pages"], found["leading_pages"], found["codec"]) == (2, 2, "lossless")
    first, second, third = found["pages"]
    assert [each["present"] for each in found["pages"]] == [True, True, False]
    frames = store.read_page(scope, keys[0])
    assert frames is not None
    assert (first["pinned"], first["left_s"], first["groups"]) == (True, None, len(frames))
    assert first["bytes"] == sum(map(len, frames))
    assert (second["pinned"], third["left_s"]) == (False, None)
    assert 0 < second["left_s"] <= 100
    life_s = found["page_ttl_s"] - 0.01
    assert second["unused_s"] == pytest.approx(life_s - second["left_s"])
    said = (await lexico("inspect", "--prompt", file)).out
    assert "2 of 3 pages are stored" in said
    assert "absent" in said
    assert "pinned" in said


@pytest.mark.parametrize("tokens", [0, PAGE_TOKENS - 1])
async def test_a_prompt_that_fills_no_page(lexico: Lexico, tmp_path: Path, tokens: int) -> None:
    """The life of a page is the tenant's, not 0; and the server has been asked for it."""
    (tmp_path / "spec.json").write_text(spec_to_json(SPEC))
    (tmp_path / "ids").write_text(str([7] * tokens))
    model = ("--model", tmp_path / "spec.json", "--tokens", tmp_path / "ids")
    quota = (await lexico("quota", "--json")).document
    ended = await lexico("inspect", *model, "--json")
    assert (ended.code, ended.document["pages"], ended.document["stored_pages"]) == (0, [], 0)
    assert ended.document["page_ttl_s"] == quota["page_ttl_s"] > 0
    assert "fills no page" in (await lexico("inspect", *model)).out


async def test_pages_that_only_keys_name(lexico: Lexico, tmp_path: Path) -> None:
    """The codec is what the service has noted of the namespace."""
    file, prompt = saved(tmp_path), tmp_path / "prompt.json"
    await lexico("put", file)
    keys = [key.hex() for key in page_keys(SPEC, CacheFile.read(file).token_ids)]
    prompt.write_text(json.dumps({"namespace": SPEC.namespace.hex(), "page_keys": keys}))
    found = (await lexico("inspect", "--prompt", prompt, "--json")).document
    assert (found["codec"], found["raw_page_bytes"]) == ("lossless", SPEC.page_bytes)
    assert found["stored_pages"] == 3
    refused = await lexico("get", "--prompt", prompt, "--out", tmp_path / "x.safetensors")
    assert (refused.code, "page keys alone" in refused.err) == (2, True)
    spec = json.loads(spec_to_json(SPEC))
    ids = CacheFile.read(file).token_ids.tolist()
    prompt.write_text(json.dumps({"spec": spec, "token_ids": ids}))
    assert (await lexico("inspect", "--prompt", prompt)).code == 0
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    (tmp_path / "ids").write_text(str(ids))
    model = ("--model", tmp_path / "spec.json", "--tokens", tmp_path / "ids")
    assert (await lexico("inspect", *model)).code == 0
    assert (await lexico("forget", *model)).out == "forgotten: 3 pages were removed\n"
    assert (await lexico("inspect", *model)).code == 3
    assert (await lexico("pin", *model)).code == 3
    absent = await lexico("inspect", "--namespace", SPEC.namespace.hex())
    assert (absent.code, "lexico quota" in absent.out) == (3, True)


async def test_a_store_that_does_not_tell_ages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mute(MemoryStore):
        def _lives(self, names: Any) -> list[int]:
            raise ConfigurationError("no right to PTTL")

    file = saved(tmp_path)
    async with running_services(Mute()) as services:
        lexico = Lexico(services, capsys)
        await lexico("put", file)
        ended = await lexico("inspect", "--prompt", file, "--json")
        assert ended.code == 0
        assert [each["left_s"] for each in ended.document["pages"]] == [None] * 3


async def test_pins_and_quota(lexico: Lexico, tmp_path: Path) -> None:
    file = saved(tmp_path)
    await lexico("put", file)
    assert "3 pages" in (await lexico("pin", "--prompt", file, "--label", "\x1b[31mred")).out
    said = await lexico("quota")
    assert SPEC.namespace.hex() in said.out
    assert "�[31mred" in said.out, "a label cannot reach into the terminal"
    found = (await lexico("quota", "--json")).document
    assert found["pinned_bytes"] == found["pins"][0]["bytes"] == found["stored_bytes"]
    pin = found["pins"][0]["pin"]
    assert (await lexico("unpin", pin)).out == "3 pages expire from now on\n"
    gone = await lexico("unpin", pin)
    assert (gone.code, "lexico quota" in gone.err) == (2, True)
    assert (await lexico("forget", "--namespace", SPEC.namespace.hex())).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["forget", "--namespace", "xy"], "not hexadecimal"),
        (["unpin", "00"], "40 hexadecimal digits"),
        (["put", "none.safetensors"], "cannot read"),
        (["put", "text.json"], "no cache file of ours"),
        (["pin", "--prompt", "text.json"], "needs JSON with"),
        (["pin", "--prompt", "none.json"], "cannot read"),
        (["inspect", "--model", "none.json", "--tokens", "x"], "neither a model folder nor a spec"),
        (["inspect", "--model", "text.json"], "--tokens FILE or --text FILE"),
        (["inspect", "--prompt", "text.json", "--tokens", "x"], "leave --tokens"),
        (["inspect", "--prompt", "text.json", "--inputs", "x"], "leave --inputs"),
        (
            ["inspect", "--prompt", "text.json", "--codec", "near", "--salt", "x"],
            "--codec and --salt: for a model folder",
        ),
        (
            ["inspect", "--model", "text.json", "--tokens", "x", "--page-tokens", "0"],
            "--page-tokens: for a model folder",
        ),
        (["get", "--prompt", "text.json", "--out", "x"], "cache files end with"),
        (["quota", "--bearer-file", "none"], "cannot read"),
        (["quota", "--bearer-file", "empty"], "should hold the token"),
        (["quota", "--tls-key", "x"], "go together"),
        (["quota", "--tls-ca", "none"], "none"),
        (["quota", "--timeout", "0"], "--timeout"),
        (["status", "--watch", "0"], "--watch"),
        (["quota", "--reload", "nowhere"], "--reload='nowhere'"),
        (["dictionaries", "register", "text.json"], "dictionary set"),
        (["dictionaries", "register", "text.json", "--shared"], "dictionary set"),
        (["dictionaries", "take-back", "nowhere"], "neither a model folder"),
        (["dictionaries", "fetch", "00", "--out", "x"], "64 hexadecimal digits"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
async def test_what_cannot_be_used_is_one_line(
    lexico: Lexico,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("{}")
    (tmp_path / "empty").write_text("\n")
    ended = await lexico(*words, servers={"--timeout", "--reload"}.isdisjoint(words))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("lexico: ")
    assert said in ended.err
    assert ended.err.count("\n") == 1


async def test_a_set_that_is_not_there(lexico: Lexico, tmp_path: Path) -> None:
    ended = await lexico("dictionaries", "fetch", "00" * 32, "--out", tmp_path / "x")
    assert ended.code == 3
    spec = small_spec("lexico", dictionary=bytes(32))
    refused = await lexico("put", saved(tmp_path, spec))
    assert refused.code == 3
