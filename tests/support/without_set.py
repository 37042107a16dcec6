"""A model without a set, and a service that is asked for one: fixtures of the coding's tests."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from lexico_client import AsyncClient, Coding, InMemoryTransport
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.sets.models import model_names
from lexico_codec.spec import CacheSpec
from lexico_proto import errors
from lexico_proto.metrics import CLIENT_MODELS, Metrics
from lexico_proto.v1 import dictionaries_pb2 as pb
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import (
    PATIENT,
    small_dictionary,
    small_spec,
)
from tests.support.waiting import until

BASE = small_spec("lossless")
SET = small_dictionary()
EAGER = replace(PATIENT, sets=1e-9)
"""Asks whenever the coding is used."""


class Service(InMemoryTransport):
    """Counts questions, and fails as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.finds, self.fetches = 0, 0
        self.matched: list[bytes] = []
        self.refuses: errors.LexicoError | None = None

    async def find(self, request: pb.FindRequest, timeout: float) -> pb.FindResponse:
        self.finds += 1
        if self.refuses is not None:
            raise self.refuses
        return await super().find(request, timeout)

    async def fetch(self, request: pb.FetchRequest, timeout: float):  # type: ignore[no-untyped-def]
        self.fetches += 1
        async for part in super().fetch(request, timeout):
            yield part

    async def match(self, request: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        self.matched.append(request.namespace)
        return await super().match(request, timeout)

    def offer(self, dictionary: DictionarySet, spec: CacheSpec = BASE) -> None:
        """Registers and publishes a set, whether it fits or not."""
        self.dictionaries[dictionary.digest] = dictionary
        for name in model_names(spec.weights, spec.geometry):
            self.published[name, "lexico"] = dictionary.digest, math.inf


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def client(service: Service, metrics: Metrics, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        transport=service, dictionaries_dir=tmp_path, timeouts=EAGER, metrics=metrics
    ) as client:
        yield client


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings of ours: asyncio complains whenever it collects what an earlier test left."""
    ours = [record for record in caplog.records if record.name.startswith("lexico")]
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


async def taken(coding: Coding) -> CacheSpec:
    await until(lambda: coding.spec(BASE) != BASE, "the set is taken over")
    return coding.spec(BASE)


def models(metrics: Metrics) -> dict[tuple[str, ...], int | float]:
    return {key: n for key, n in metrics.snapshot()[CLIENT_MODELS].items() if n}
