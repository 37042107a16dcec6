"""Describe: both servers say what they are, to those who may call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lexico_client import AsyncClient, Client
from lexico_codec.formats import own_formats
from lexico_proto import errors
from lexico_proto.metrics import CALLS
from tests.support.client_fixtures import PATIENT
from tests.support.services import running_services

TOKEN = "t" * 20


async def test_both_servers(tmp_path: Path) -> None:
    async with running_services() as services:
        client = AsyncClient(
            reload=services.reload_address,
            offload=services.offload_address,
            dictionaries_dir=tmp_path,
            timeouts=PATIENT,
        )
        async with client:
            described = await client.describe()
        assert described.reload == described.offload == own_formats()
        assert services.counts(CALLS) == {("describe", "ok"): 2}


async def test_a_node_that_only_reloads(tmp_path: Path) -> None:
    async with running_services() as services:
        client = AsyncClient(
            reload=services.reload_address, dictionaries_dir=tmp_path, timeouts=PATIENT
        )
        async with client:
            described = await client.describe()
        assert (described.reload, described.offload) == (own_formats(), None)


async def test_strangers_are_told_nothing(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"one:{TOKEN}\n")
    async with running_services(token_file=tokens) as services:
        for token in (None, "x" * 20):
            client = AsyncClient(
                reload=services.reload_address,
                token=token,
                dictionaries_dir=tmp_path,
                timeouts=PATIENT,
            )
            async with client:
                with pytest.raises(errors.Unauthenticated):
                    await client.describe()


def test_nobody_there(tmp_path: Path) -> None:
    with (
        Client(reload="127.0.0.1:1", dictionaries_dir=tmp_path) as client,
        pytest.raises(errors.Unavailable),
    ):
        client.describe()
