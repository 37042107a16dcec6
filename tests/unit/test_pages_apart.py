"""Pages that are no prompt, by the calls of a client: one question, each page by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from lexico_client import AsyncClient, InMemoryTransport
from lexico_client.engines._apart import PagesApart
from lexico_client.engines._hashed import hashed_pages
from lexico_codec.codecs import Codec, LexicoCodec, ResidualCodec
from lexico_codec.keys import page_keys
from lexico_proto.errors import LexicoError
from lexico_proto.v1 import reload_pb2 as pb
from tests.support.client_fixtures import small_spec
from tests.support.waiting import PATIENCE_S

HASHES: Final = [bytes([n]) * 32 for n in range(3)]


class Asked(InMemoryTransport):
    """Remembers what was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.matches: list[pb.MatchRequest] = []

    async def match(self, request: pb.MatchRequest, timeout: float) -> pb.MatchResponse:
        self.matches.append(request)
        return await super().match(request, timeout)


@pytest.mark.parametrize("renew", [False, True])
async def test_one_question_names_each_page_by_itself(tmp_path: Path, renew: bool) -> None:
    spec, transport = small_spec(), Asked()
    async with AsyncClient(transport=transport, dictionaries_dir=tmp_path) as client:
        apart = PagesApart(client, "engine")
        assert await apart.stored(spec, HASHES, PATIENCE_S, renew=renew) == [False] * 3
        assert await apart.stored(spec, [], PATIENCE_S) == []
    (asked,) = transport.matches
    assert asked.renew is renew
    assert list(asked.page_keys) == [
        page_keys(spec, *hashed_pages("engine", [each], spec.page_tokens))[0] for each in HASHES
    ]


@pytest.mark.parametrize(
    ("codec", "error"),
    [
        (ResidualCodec(), "give `codec.without_positions"),
        (ResidualCodec(sinks=0), "give `codec.without_positions"),
        (LexicoCodec(), "needs the position of each page"),
    ],
)
async def test_codecs_that_ask_for_positions_are_refused(
    tmp_path: Path, codec: Codec, error: str
) -> None:
    spec = replace(small_spec(), codec=codec, dictionary=bytes(32), group_layers=0)
    async with AsyncClient(transport=Asked(), dictionaries_dir=tmp_path) as client:
        apart = PagesApart(client, "engine")
        with pytest.raises(LexicoError, match=error):
            await apart.stored(spec, HASHES, PATIENCE_S)
        found = replace(spec, codec=ResidualCodec().without_positions())
        assert await apart.stored(found, HASHES, PATIENCE_S) == [False] * 3
