"""Pages whose position is not known: their sets are told from others, and code them alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient
from lexico_codec.codecs import CODECS, LosslessCodec, ResidualCodec, codec_from_config
from lexico_codec.codecs.residual.sinks import sinks_among
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.rope import rotate
from lexico_codec.sets import choose as choosing
from lexico_codec.sets.choose import check_model, choose, fitting_builtin, geometry_for
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_lab.training.stored_keys import moved
from lexico_proto.errors import ConfigurationError, DictionaryMismatch
from tests.support.dictionaries import as_stored, random_set, told
from tests.support.packed_sets import packed_set
from tests.support.residual_sets import residual_set
from tests.support.waiting import until
from tests.support.without_set import Service, client, metrics, said, service

__all__ = ["client", "metrics", "service"]  # fixtures

LAYERS, HEADS, DIM, TOKENS = 2, 3, 16, 24
ROPE = Rope(tuple(10000 ** (-i / 8) for i in range(8)))
KNOWN = Geometry(LAYERS, HEADS, DIM, "float16", ROPE)
"""Of pages at their positions."""
UNKNOWN = replace(KNOWN, rope=None)
SAID = {"inv_freq": list(ROPE.inv_freq), "pairing": "half", "scale": 1.0}
SETS = {
    "lexico": random_set(LAYERS, DIM, kv_heads=HEADS),
    "lexico-packed": packed_set(LAYERS, DIM, heads=HEADS),
    "lexico-residual": residual_set(LAYERS, HEADS, DIM),
}
USUAL = {name: told(made, rope=SAID) for name, made in SETS.items()}
STORED = {name: as_stored(made) for name, made in SETS.items()}


def base(geometry: Geometry) -> CacheSpec:
    return CacheSpec(bytes(range(32)), geometry, LosslessCodec(), page_tokens=TOKENS)


def keys_and_values(pages: int = 1) -> Tensor:
    """`[layers, 2, tokens, heads, dim]` float16, of the size that the random sets expect."""
    generator = torch.Generator().manual_seed(3)
    group = torch.randn(LAYERS, 2, pages * TOKENS, HEADS, DIM, generator=generator)
    group[:, 0] *= 4
    return group.half()


# Which set serves which pages


@pytest.mark.parametrize("name", SETS)
def test_each_kind_of_set_serves_its_kind_of_pages(name: str) -> None:
    usual, stored = USUAL[name], STORED[name]
    assert (usual.info.keys_as_stored, stored.info.keys_as_stored) == (False, True)
    for dictionary, geometry in ((usual, KNOWN), (stored, UNKNOWN)):
        assert geometry_for(dictionary, KNOWN) == geometry
        assert choose(CODECS[name](), dictionary, geometry)[1] is dictionary
    with pytest.raises(DictionaryMismatch) as error:
        choose(CODECS[name](), stored, KNOWN)
    assert "of keys as they are stored; the position of these is known" in error.value.message
    assert "without --keys-as-stored" in error.value.message
    with pytest.raises(DictionaryMismatch) as error:
        check_model(usual, UNKNOWN, "mine")
    assert "set mine, of random: made for" in error.value.message
    assert "a rotary embedding, not none; for pages" in error.value.message
    assert "`lexico train --keys-as-stored`" in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize("name", SETS)
def test_built_in_ones_are_found_for_their_pages(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = {"usual": USUAL[name], "stored": STORED[name]}
    monkeypatch.setattr(choosing, "builtin_sets", lambda: tuple(shelf))
    monkeypatch.setattr(choosing, "load_builtin", shelf.__getitem__)
    assert [found for found, _ in fitting_builtin(KNOWN)] == ["usual"]
    assert [found for found, _ in fitting_builtin(UNKNOWN)] == ["stored"]
    assert choose(CODECS[name](), None, UNKNOWN)[1] is STORED[name]
    del shelf["stored"]
    with pytest.raises(ConfigurationError, match=f"train --codec {name} --keys-as-stored` for"):
        choose(CODECS[name](), None, UNKNOWN)
    del shelf["usual"]
    with pytest.raises(ConfigurationError, match=f"train --codec {name}` for"):
        choose(CODECS[name](), None, KNOWN)


@pytest.mark.parametrize("asked", ["near", "balanced", "small"])
async def test_an_engine_without_positions_waits_for_a_set_of_its_own(
    asked: str, client: AsyncClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    usual, stored = USUAL["lexico-residual"], STORED["lexico-residual"]
    knowing = await client.coding(base(KNOWN), asked, model="mine")
    unknowing = await client.coding(base(UNKNOWN), asked, model="mine")
    first, second = said(caplog)
    assert first.endswith(
        "--model mine --text TEXT --out SET.safetensors --codec lexico-residual --register"
    )
    assert second.endswith("--codec lexico-residual --keys-as-stored --register")

    # Published by the spec of either kind of page: the set says which it is for.
    for spec in (base(KNOWN), base(UNKNOWN)):
        assert await client.publish_dictionary(stored, spec) == ("lexico-residual",)
    await until(lambda: unknowing.spec(base(UNKNOWN)) != base(UNKNOWN), "the set is taken over")
    spec = unknowing.spec(base(UNKNOWN))
    assert spec.dictionary == stored.digest
    assert spec.codec == ResidualCodec(asked, sinks=0)
    finds = service.finds
    await until(lambda: knowing.spec(base(KNOWN)) is None or service.finds > finds + 1, "a look")
    assert knowing.waiting

    with pytest.raises(DictionaryMismatch, match="a rotary embedding, not none"):
        await client.publish_dictionary(usual, base(UNKNOWN))
    await client.publish_dictionary(usual, base(KNOWN))
    await until(lambda: knowing.spec(base(KNOWN)) != base(KNOWN), "the set is taken over")
    assert knowing.spec(base(KNOWN)).codec == ResidualCodec(asked)

    assert await client.take_back_dictionary(base(UNKNOWN)) == ("lexico-residual",)
    assert (await client.coding(base(UNKNOWN), asked)).waiting
    assert not (await client.coding(base(KNOWN), asked)).waiting


@pytest.mark.parametrize("known", [True, False])
async def test_a_published_set_of_the_other_kind_is_refused_in_one_line(
    known: bool, client: AsyncClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    spec = base(KNOWN if known else UNKNOWN)
    service.offer((STORED if known else USUAL)["lexico"], spec)
    coding = await client.coding(spec, "paper")
    refused, without = said(caplog)
    assert refused.startswith("published set not taken for the model with preset paper")
    assert ("is known" if known else "--keys-as-stored") in refused
    assert without.startswith("no set for the model")
    assert coding.waiting


async def test_the_list_of_sets_says_which_they_are(client: AsyncClient, tmp_path: Path) -> None:
    for made in (USUAL["lexico"], STORED["lexico"]):
        await client.register_dictionary(made)
    found = {each.digest: each.keys_as_stored for each in await client.list_dictionaries()}
    assert found[USUAL["lexico"].digest] is False
    assert found[STORED["lexico"].digest] is True


# How pages are coded


def test_first_tokens_are_a_parameter_that_the_usual_names_do_not_hold() -> None:
    usual, stored = ResidualCodec(), ResidualCodec(sinks=0)
    assert usual.config_json() == '{"quality":"balanced","run_layers":0,"step":null}'
    assert codec_from_config("lexico-residual", stored.config_json()) == stored
    assert codec_from_config("lexico-residual", '{"sinks":4}') == usual
    assert [codec.sink_tokens(0, TOKENS) for codec in (usual, stored)] == [4, 0]
    for wrong in (-1, 2, 5, True, 4.0, None):
        with pytest.raises(ConfigurationError, match="sinks"):
            ResidualCodec(sinks=wrong)  # type: ignore[arg-type]


def stored_spec(dictionary: DictionarySet, codec: str, geometry: Geometry = UNKNOWN) -> CacheSpec:
    chosen, _ = choose(CODECS[codec](), dictionary, geometry)
    return replace(base(geometry), codec=chosen, dictionary=dictionary.digest, group_layers=0)


def through(spec: CacheSpec, group: Tensor, dictionary: DictionarySet | None) -> tuple[int, Tensor]:
    """Bytes of pages that are sequences of their own, and what comes back."""
    out, size = torch.full_like(group, float("nan")), 0
    for first in range(0, group.shape[2], TOKENS):
        page = slice(first, first + TOKENS)
        key = page_keys(spec, [first] * TOKENS)[0]
        for number in range(spec.groups):
            layers = spec.group_range(number)
            part = group[layers.start : layers.stop, :, page].contiguous()
            frame = bytes(encode_group(spec, key, 0, number, part, dictionary))
            into = out[layers.start : layers.stop, :, page]
            decode_group(spec, key, 0, number, frame, into, dictionary)
            size += len(frame)
    return size, out


@pytest.mark.parametrize("name", SETS)
def test_a_page_is_coded_alike_wherever_it_lies(name: str) -> None:
    """Nothing is turned: a page that is stored twice, by two of its places, has the same bytes."""
    dictionary, group = STORED[name], keys_and_values(pages=2)
    group[:, :, TOKENS:] = group[:, :, :TOKENS]
    spec = stored_spec(dictionary, name)
    _, out = through(spec, group, dictionary)
    assert torch.equal(out[:, :, TOKENS:], out[:, :, :TOKENS])
    assert bool(out.isfinite().all())
    exact = 0 if name == "lexico-residual" else 4
    same = (out == group)[:, :, :TOKENS].flatten(3).all(3).all(0).all(0)
    assert int(same.sum()) == exact


def test_attention_sinks_stay_exact_wherever_they_lie() -> None:
    """No page tells that it has the first token: it is known by its values."""
    dictionary, group = STORED["lexico-residual"], keys_and_values(pages=2)
    for at in (0, TOKENS + 5):
        group[:, 1, at] *= 0.2
    spec = stored_spec(dictionary, "lexico-residual")
    _, out = through(spec, group, dictionary)
    same = (out == group).flatten(3).all(3).all(0).all(0)
    assert same.nonzero().flatten().tolist() == [0, TOKENS + 5]


@pytest.mark.parametrize("tokens", [1, 2, 7, 64])
def test_ordinary_tokens_are_no_sinks(tokens: int) -> None:
    """Whatever their length is, if others have it too; and where nothing is to be compared."""
    values = torch.randn(4, tokens, HEADS, DIM, generator=torch.Generator().manual_seed(tokens))
    for scale in (0.0, 1e-3, 1.0, 1e3):
        assert not bool(sinks_among(values * scale).any())
    if tokens > 4:
        values[1:, 3] *= 0.1  # in most layers is enough
        assert sinks_among(values).nonzero().flatten().tolist() == [3]
        values[0] = 0
        assert sinks_among(values).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_lossless_gives_keys_back_to_the_bit_in_the_usual_bytes(dtype: str) -> None:
    known, unknown = (base(replace(one, dtype=dtype)) for one in (KNOWN, UNKNOWN))
    group = keys_and_values(pages=2).to(known.geometry.torch_dtype)
    group[:, 0] = torch.stack(
        [rotate(keys, torch.arange(len(keys)) + 700, ROPE) for keys in group[:, 0]]
    )
    size, out = through(unknown, group, None)
    assert torch.equal(out, group)
    usual = sum(
        len(encode_group(known, bytes(32), page, number, part.contiguous(), None))
        for page, whole in enumerate(group.split(TOKENS, 2))
        for number in range(known.groups)
        for part in [whole[known.group_range(number).start : known.group_range(number).stop]]
    )
    assert size == usual
    assert unknown.namespace != known.namespace


def test_keys_are_moved_along_the_sequence() -> None:
    keys = torch.randn(5, HEADS, DIM, generator=torch.Generator().manual_seed(1))
    scaled = replace(ROPE, scale=1.5)
    at = torch.arange(5)
    expected = rotate(keys, at + 300, scaled)
    there = moved(rotate(keys, at, scaled), 300, scaled)
    torch.testing.assert_close(there, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved(there, -300, ROPE), rotate(keys, at, scaled))
