"""Pages that are no prompt, by the calls of a client: one question, each page by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from lexico_client import AsyncClient, InMemoryTransport
from lexico_client.engines._apart import PagesApart
from lexico_client.engines._hashed import hashed_pages
from lexico_codec.geometry import Rope
from lexico_codec.keys import page_keys
from lexico_proto.errors import InvalidInput
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


async def test_keys_are_turned_by_no_position(tmp_path: Path) -> None:
    spec = small_spec()
    turned = replace(spec, geometry=replace(spec.geometry, rope=Rope((1.0,))))
    async with AsyncClient(transport=Asked(), dictionaries_dir=tmp_path) as client:
        with pytest.raises(InvalidInput, match="positions are not known"):
            await PagesApart(client, "engine").stored(turned, HASHES, PATIENCE_S)
