"""What a transport is: every one passes this suite. Subclasses give the fixture `transport`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lexico_client import AbsenceCause, AsyncClient, PageOutcome, Transport, input_digests
from lexico_client._dictionaries import register_messages
from lexico_codec.checksum import Checksum
from lexico_codec.codecs.lexico.codec import LexicoCodec
from lexico_codec.geometry import DTYPES
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.spec import Shard
from lexico_codec.wire import spec_to_wire
from lexico_proto import errors
from lexico_proto.v1 import dictionaries_pb2 as dictionaries
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    PATIENT,
    TOKENS,
    Landing,
    counted,
    random_cache,
    small_dictionary,
    small_spec,
    views_of,
)
from tests.support.waiting import PATIENCE_S


def put_header(tokens: list[int], pages: list[int]) -> offload.PutHeader:
    spec = small_spec()
    keys = page_keys(spec, tokens)
    return offload.PutHeader(
        spec=spec_to_wire(spec),
        token_ids=tokens,
        pages=pages,
        page_keys=[keys[page] for page in pages],
    )


async def put_messages(
    header: offload.PutHeader | None, data: bytes
) -> AsyncGenerator[bytes, None]:
    """An upload as protobuf writes it."""
    if header is not None:
        yield offload.PutRequest(header=header).SerializeToString()
    size = small_spec().page_bytes
    pages = list(header.pages) if header else []
    for page, first in zip(pages, range(0, len(data), size), strict=False):
        last = page == pages[-1]
        body = data[first:] if last else data[first : first + size]
        checksum = Checksum()
        checksum.add(body)
        for start in range(0, len(body), 1000):
            yield offload.PutRequest(data=body[start : start + 1000]).SerializeToString()
        end = offload.PageEnd(page=page, checksum=checksum.value())
        yield offload.PutRequest(page_end=end).SerializeToString()
    if header is None:
        yield offload.PutRequest(data=data[:1000]).SerializeToString()


class TransportContract:
    """Round trips through the client, and refusals at the transport itself."""

    @pytest.fixture
    def client(self, transport: Transport, tmp_path: Path) -> AsyncClient:
        return AsyncClient(
            transport=transport, dictionaries_dir=tmp_path / "dictionaries", timeouts=PATIENT
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    async def test_raw_comes_back_bit_by_bit(self, client: AsyncClient, dtype: str) -> None:
        spec, landing = small_spec(dtype=dtype), Landing(small_spec(dtype=dtype))
        cache = random_cache(spec, 4)
        report = await client.offload(spec, TOKENS, views_of(spec, cache))
        assert report.pages == (PageOutcome.STORED,) * 4
        assert report.bytes_sent == 4 * spec.page_bytes
        assert report.bytes_stored > report.bytes_sent
        loaded = await client.load(spec, TOKENS, landing)
        assert (loaded.tokens, loaded.pages, loaded.reason) == (4 * PAGE_TOKENS, 4, None)
        assert loaded.bytes_received == report.bytes_stored
        assert torch.equal(landing.cache.view(torch.uint8), cache.view(torch.uint8))
        await client.close()

    async def test_lexico_comes_back_as_the_codec_says(self, client: AsyncClient) -> None:
        dictionary = small_dictionary()
        spec = small_spec("lexico", dictionary=dictionary.digest)
        landing = Landing(spec)
        cache = random_cache(spec, 2)
        source = views_of(spec, cache)
        with pytest.raises(errors.UnknownDictionary):
            await client.offload(spec, TOKENS[: 2 * PAGE_TOKENS], source)
        assert await client.register_dictionary(dictionary)
        assert not await client.register_dictionary(dictionary)
        await client.offload(spec, TOKENS[: 2 * PAGE_TOKENS], source)
        loaded = await client.load(spec, TOKENS, landing)
        assert (loaded.pages, loaded.reason) == (2, None)
        keys, expected = page_keys(spec, TOKENS), torch.empty_like(cache)
        for page in range(2):
            for group in range(spec.groups):
                tensor = source(page, group).contiguous()
                frame = encode_group(spec, keys[page], page, group, tensor, dictionary)
                out = views_of(spec, expected)(page, group)
                decode_group(spec, keys[page], page, group, frame, out, dictionary)
        assert isinstance(spec.codec, LexicoCodec)
        assert torch.equal(landing.cache, expected)
        await client.close()

    async def test_inputs_and_salt_are_part_of_a_key(self, client: AsyncClient) -> None:
        spec = replace(small_spec(), salt="mine")
        cache, landing = random_cache(spec, 4), Landing(spec)
        spans = [(PAGE_TOKENS + 1, 2, torch.ones(3))]
        inputs = input_digests(spans, PAGE_TOKENS, len(TOKENS))
        report = await client.offload(spec, TOKENS, views_of(spec, cache), inputs=inputs)
        assert report.pages == (PageOutcome.STORED,) * 4
        assert (await client.match(small_spec(), TOKENS, inputs=inputs)).pages == 0
        assert (await client.match(spec, TOKENS)).pages == 1
        assert (await client.load(spec, TOKENS, landing, inputs=inputs)).pages == 4
        assert torch.equal(landing.cache, cache)
        explained = await client.explain(spec, TOKENS, inputs=inputs, against=small_spec())
        assert (explained.first_absent, explained.differs) == (None, ("salt",))
        await client.close()

    async def test_a_slice_of_a_model_is_no_page(
        self, client: AsyncClient, transport: Transport
    ) -> None:
        whole = small_spec()
        part, g = replace(whole.geometry, kv_heads=1), whole.geometry
        held = replace(whole, geometry=part, shard=Shard(0, g.layers, 1, g.kv_heads))
        header = put_header(TOKENS[:PAGE_TOKENS], [0])
        header.spec.CopyFrom(spec_to_wire(held))
        with pytest.raises(errors.InvalidInput, match="slices of a model need an assembly"):
            await transport.put(put_messages(header, bytes(100)), PATIENCE_S)
        with pytest.raises(errors.InvalidInput, match="slices of a model need an assembly"):
            await client.offload(held, TOKENS, views_of(held, random_cache(held, 4)))
        with pytest.raises(errors.Unsupported, match="a slice of a model"):
            await client.load(held, TOKENS, Landing(held))
        await client.offload(whole, TOKENS, views_of(whole, random_cache(whole, 4)))
        assert (await client.match(held, TOKENS)).pages == 4, "it has the name of the whole"
        await client.close()

    async def test_explain_names_the_nearest_namespace(self, client: AsyncClient) -> None:
        spec, other = small_spec(), replace(small_spec(), salt="another's", lora="red")
        assert (await client.explain(spec, TOKENS)).stored == ()
        for stored, pages in ((other, 4), (replace(spec, lora="red"), 3)):
            source = views_of(stored, random_cache(stored, 4))
            await client.offload(stored, TOKENS, source, pages=pages)
        explained = await client.explain(spec, TOKENS)
        assert [[d.part for d in each.differences] for each in explained.stored] == [
            ["lora"],
            ["lora", "salt"],
        ]
        assert [each.tokens for each in explained.stored] == [3 * PAGE_TOKENS, None]
        assert explained.absence is not None
        assert explained.absence.cause is AbsenceCause.NO_TRACE
        assert explained.untold is None
        mine = (await client.explain(other, TOKENS)).nearest
        assert mine is not None
        assert mine.identity == other.identity
        await client.close()

    async def test_match_says_which_pages_are_there(self, client: AsyncClient) -> None:
        spec = small_spec()
        assert (await client.match(spec, TOKENS)).present == (False,) * 4
        await client.offload(spec, TOKENS, views_of(spec, random_cache(spec, 4)), pages=2)
        match = await client.match(spec, TOKENS)
        assert match.present == (True, True, False, False)
        assert (match.pages, match.tokens) == (2, 2 * PAGE_TOKENS)
        assert match.page_keys == tuple(page_keys(spec, TOKENS))
        await client.close()

    async def test_pages_that_are_no_sequence_are_matched_in_one_call(
        self, client: AsyncClient
    ) -> None:
        """Each at position 0, as it is offloaded by itself."""
        spec, cut = small_spec(), [TOKENS[i : i + PAGE_TOKENS] for i in range(0, 32, PAGE_TOKENS)]
        digests = [b"", bytes([1]) * 32, b"", bytes([2]) * 32]
        for page in (1, 2):
            source = views_of(spec, random_cache(spec, 1, seed=page))
            inputs = digests[page : page + 1]
            await client.offload(spec, cut[page], source, inputs=inputs)
        match = await client.match(spec, TOKENS, inputs=digests, apart=True)
        assert match.present == (False, True, True, False)
        assert match.page_keys[1:3] == (
            *page_keys(spec, cut[1], digests[1:2]),
            *page_keys(spec, cut[2]),
        )
        assert not any((await client.match(spec, TOKENS, inputs=digests)).present)
        await client.close()

    async def test_only_missing_pages_travel(
        self, client: AsyncClient, transport: Transport
    ) -> None:
        spec, asked = small_spec(), list[tuple[int, int]]()
        cache = random_cache(spec, 4)
        data = b"".join(
            bytes(views_of(spec, cache)(1, group).contiguous().view(torch.uint8).flatten().numpy())
            for group in range(spec.groups)
        )
        header = put_header(TOKENS[: 2 * PAGE_TOKENS], [1])
        await transport.put(put_messages(header, data), PATIENCE_S)
        report = await client.offload(spec, TOKENS, counted(views_of(spec, cache), asked))
        assert report.pages == ("stored", "present", "stored", "stored")
        assert asked == [(page, group) for page in (0, 2, 3) for group in range(spec.groups)]
        again = await client.offload(spec, TOKENS, counted(views_of(spec, cache), asked))
        assert again.pages == ("present",) * 4
        assert (again.bytes_sent, len(asked)) == (0, 9)
        landing = Landing(spec)
        assert (await client.load(spec, TOKENS, landing)).pages == 4
        assert torch.equal(landing.cache, cache)
        await client.close()

    async def test_a_fault_of_the_source_passes_and_the_bad_page_is_not_kept(
        self, client: AsyncClient
    ) -> None:
        spec = small_spec()
        cache = random_cache(spec, 4)
        cache[2, 1, 2 * PAGE_TOKENS + 3, 0, 5] = float("inf")
        with pytest.raises(errors.NonFiniteCache, match="page 2 group 1"):
            await client.offload(spec, TOKENS, views_of(spec, cache))
        assert not (await client.match(spec, TOKENS)).present[2]
        await client.close()

    async def test_a_page_that_is_gone_is_a_miss(self, transport: Transport) -> None:
        request = reload.GetRequest(page_keys=[bytes(32)], groups=3)
        async with aclosing(transport.get(request, PATIENCE_S)) as stream:
            parts = [message.WhichOneof("part") async for message in stream]
        assert parts == ["miss"]
        await transport.close()

    @pytest.mark.parametrize(
        ("header", "extra", "error"),
        [
            (True, -1, errors.StreamTruncated),
            (True, +1, errors.StreamTooLong),
            (False, 0, errors.InvalidInput),
        ],
        ids=["truncated", "too-long", "no-header"],
    )
    async def test_uploads_that_are_refused(
        self, transport: Transport, header: bool, extra: int, error: type[errors.LexicoError]
    ) -> None:
        spec = small_spec()
        messages = put_messages(
            put_header(TOKENS[:PAGE_TOKENS], [0]) if header else None,
            bytes(spec.page_bytes + extra),
        )
        with pytest.raises(error):
            await transport.put(messages, PATIENCE_S)
        await transport.close()

    async def test_a_key_of_other_tokens_is_refused(self, transport: Transport) -> None:
        header = put_header(TOKENS[:PAGE_TOKENS], [0])
        header.token_ids[3] += 1
        with pytest.raises(errors.PageKeyMismatch):
            await transport.put(put_messages(header, b""), PATIENCE_S)
        await transport.close()

    async def test_a_part_of_a_long_prompt_says_what_it_follows(
        self, client: AsyncClient, transport: Transport
    ) -> None:
        spec, cache = small_spec(), random_cache(small_spec(), 4)
        data = b"".join(
            views_of(spec, cache)(page, group).contiguous().numpy().tobytes()
            for page in (1, 3)
            for group in range(spec.groups)
        )

        def part(**changes: object) -> offload.PutHeader:
            header = put_header(TOKENS[: 4 * PAGE_TOKENS], [1, 3])
            del header.token_ids[:PAGE_TOKENS]
            header.first_page, header.parent_key = 1, page_keys(spec, TOKENS)[0]
            for name, value in changes.items():
                setattr(header, name, value)
            return header

        for changes, error in (
            ({"parent_key": bytes(32)}, errors.PageKeyMismatch),
            ({"parent_key": b""}, errors.PageKeyMismatch),
            ({"parent_key": b"x" * 31}, errors.PageKeyMismatch),
            ({"first_page": 0}, errors.PageKeyMismatch),
            ({"first_page": 2}, errors.TokenCountMismatch),
            ({"first_page": 0, "parent_key": b""}, errors.TokenCountMismatch),
            ({"first_page": 2**32 - 1}, errors.TokenCountMismatch),
        ):
            with pytest.raises(error):
                await transport.put(put_messages(part(**changes), data), PATIENCE_S)
        late = part(first_page=2**32 - 3)
        late.pages[:] = [2**32 - 3, 2**32 - 1]
        with pytest.raises(errors.InvalidInput, match="32 bits"):
            await transport.put(put_messages(late, data), PATIENCE_S)
        assert (await client.match(spec, TOKENS)).present == (False,) * 4
        await transport.put(put_messages(part(), data), PATIENCE_S)
        assert (await client.match(spec, TOKENS)).present == (False, True, False, True)
        await client.offload(spec, TOKENS, views_of(spec, cache))
        landing = Landing(spec)
        assert (await client.load(spec, TOKENS, landing)).pages == 4
        assert torch.equal(landing.cache, cache)
        await client.close()

    async def test_dictionaries_are_registered_listed_and_fetched(
        self, client: AsyncClient, transport: Transport
    ) -> None:
        dictionary = small_dictionary()
        with pytest.raises(errors.UnknownDictionary):
            await client.fetch_dictionary(dictionary.digest)
        await client.register_dictionary(dictionary)
        (entry,) = await client.list_dictionaries()
        assert (entry.digest, entry.layers) == (dictionary.digest, dictionary.layers)
        assert entry.artefact_bytes == len(dictionary.to_bytes())
        request = dictionaries.FetchRequest(digest=dictionary.digest)
        async with aclosing(transport.fetch(request, PATIENCE_S)) as stream:
            data = b"".join([message.data async for message in stream])
        assert data == dictionary.to_bytes()
        await client.close()

    async def test_sets_are_published_found_and_taken_back(self, transport: Transport) -> None:
        made, models = small_dictionary(), [b"m" * 32, b"s" * 32]
        published = dictionaries.PublishRequest(digest=made.digest, models=models)
        with pytest.raises(errors.UnknownDictionary, match="register"):
            await transport.publish(published, PATIENCE_S)
        await transport.register(register_messages(made), PATIENCE_S)
        answer = await transport.publish(published, PATIENCE_S)
        assert sorted(answer.codecs) == ["lexico", "lexico-adaptive"]

        async def found(codec: str, *names: bytes) -> bytes:
            asked = dictionaries.FindRequest(models=names, codec=codec)
            said = await transport.find(asked, PATIENCE_S)
            assert said.page_ttl_s > said.age_s >= 0
            assert not said.shared
            return said.digest

        assert await found("lexico", b"x" * 32, b"s" * 32) == made.digest
        assert await found("lexico-adaptive", b"m" * 32) == made.digest
        assert await found("lexico-residual", *models) == b""
        assert await found("lexico", b"x" * 32) == b""
        back = dictionaries.PublishRequest(models=models[:1])
        assert len((await transport.publish(back, PATIENCE_S)).codecs) == 2
        assert len((await transport.publish(back, PATIENCE_S)).codecs) == 0
        assert await found("lexico", b"m" * 32) == b""
        assert await found("lexico", *models) == made.digest
        await transport.close()

    async def test_a_message_over_the_limit_is_refused(self, transport: Transport) -> None:
        request = reload.MatchRequest(page_keys=[bytes(32)] * 40_000)
        with pytest.raises(errors.MessageTooLarge):
            await transport.match(request, PATIENCE_S)
        await transport.close()
