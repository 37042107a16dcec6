"""Dictionary sets at the node: fetched once, kept on disk, believed only by their digest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest

from lexico_client import AsyncClient, InMemoryTransport
from lexico_client._dictionaries import MAX_IN_MEMORY
from lexico_proto import errors
from lexico_proto.limits import MAX_DICTIONARY_BYTES
from lexico_proto.v1 import dictionaries_pb2 as dictionaries
from tests.support.client_fixtures import PATIENT, flipped, small_dictionary

DICTIONARY = small_dictionary()
DATA = DICTIONARY.to_bytes()


class Counting(InMemoryTransport):
    """Counts fetches, and may answer with messages of the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.fetches = 0
        self.answer: list[dictionaries.FetchResponse] | None = None

    async def fetch(
        self, request: dictionaries.FetchRequest, timeout: float
    ) -> AsyncGenerator[dictionaries.FetchResponse, None]:
        self.fetches += 1
        await asyncio.sleep(0)
        if self.answer is not None:
            for message in self.answer:
                yield message
            return
        async for message in super().fetch(request, timeout):
            yield message


@pytest.fixture
def service() -> Counting:
    service = Counting()
    service.dictionaries[DICTIONARY.digest] = DICTIONARY
    return service


@pytest.fixture
async def client(service: Counting, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        transport=service, dictionaries_dir=tmp_path / "a" / "b", timeouts=PATIENT
    ) as client:
        yield client


def file_in(tmp_path: Path) -> Path:
    return tmp_path / "a" / "b" / f"{DICTIONARY.digest.hex()}.safetensors"


async def test_memory_then_disk_then_service(
    client: AsyncClient, service: Counting, tmp_path: Path
) -> None:
    first = await client.fetch_dictionary(DICTIONARY.digest)
    assert first.to_bytes() == DATA
    assert await client.fetch_dictionary(DICTIONARY.digest) is first
    assert file_in(tmp_path).read_bytes() == DATA
    assert [path.name for path in file_in(tmp_path).parent.iterdir()] == [file_in(tmp_path).name]
    service.dictionaries.clear()
    async with AsyncClient(
        transport=service, dictionaries_dir=tmp_path / "a" / "b", timeouts=PATIENT
    ) as other:
        assert (await other.fetch_dictionary(DICTIONARY.digest)).digest == DICTIONARY.digest
    assert service.fetches == 1


async def test_many_callers_share_one_fetch(client: AsyncClient, service: Counting) -> None:
    asked = [asyncio.create_task(client.fetch_dictionary(DICTIONARY.digest)) for _ in range(9)]
    await asyncio.sleep(0)
    asked[0].cancel()  # the first caller's going takes nothing from the others
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert len({id(result) for result in results[1:]}) == 1
    assert service.fetches == 1


@pytest.mark.parametrize(
    "content",
    [b"", DATA[:-1], flipped(DATA), DATA + b"\0", small_dictionary(seed=1).to_bytes()],
    ids=["empty", "truncated", "flipped", "longer", "another"],
)
async def test_a_damaged_file_is_fetched_again(
    client: AsyncClient, service: Counting, tmp_path: Path, content: bytes
) -> None:
    path = file_in(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert (await client.fetch_dictionary(DICTIONARY.digest)).to_bytes() == DATA
    assert service.fetches == 1
    assert path.read_bytes() == DATA


async def test_a_folder_that_cannot_be_written(service: Counting, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    async with AsyncClient(
        transport=service, dictionaries_dir=tmp_path / "file" / "x", timeouts=PATIENT
    ) as client:
        assert (await client.fetch_dictionary(DICTIONARY.digest)).digest == DICTIONARY.digest


def answer(*parts: bytes, declared: int = len(DATA)) -> list[dictionaries.FetchResponse]:
    return [dictionaries.FetchResponse(artefact_bytes=declared, data=part) for part in parts]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        (answer(), errors.InternalError),
        (answer(DATA[:-1]), errors.InternalError),
        (answer(DATA, b"x"), errors.InternalError),
        (answer(DATA, declared=0), errors.InternalError),
        (answer(DATA, declared=MAX_DICTIONARY_BYTES + 1), errors.InternalError),
        ([*answer(DATA[:9]), *answer(DATA[9:], declared=7)], errors.InternalError),
        (answer(flipped(DATA)), errors.DamagedFrame),
        (answer(b"x" * len(DATA)), errors.DamagedFrame),
    ],
    ids=["nothing", "short", "long", "zero", "huge", "two-lengths", "flipped", "rubbish"],
)
async def test_a_service_that_sends_something_else(
    client: AsyncClient,
    service: Counting,
    tmp_path: Path,
    messages: list[dictionaries.FetchResponse],
    error: type[errors.LexicoError],
) -> None:
    service.answer = messages
    with pytest.raises(error):
        await client.fetch_dictionary(DICTIONARY.digest)
    assert not file_in(tmp_path).exists()
    service.answer = None
    assert (await client.fetch_dictionary(DICTIONARY.digest)).to_bytes() == DATA


async def test_unknown_and_impossible_digests(client: AsyncClient, service: Counting) -> None:
    with pytest.raises(errors.UnknownDictionary):
        await client.fetch_dictionary(bytes(32))
    with pytest.raises(errors.InvalidInput):
        await client.fetch_dictionary(b"../../etc/passwd")
    assert service.fetches == 1


async def test_a_kept_set_is_not_fetched_and_memory_is_bounded(
    client: AsyncClient, service: Counting
) -> None:
    sets = [small_dictionary(seed=seed) for seed in range(MAX_IN_MEMORY + 1)]
    for kept in sets:
        await client.keep_dictionary(kept)
    assert await client.fetch_dictionary(sets[-1].digest) is sets[-1]
    assert service.fetches == 0
    await client.fetch_dictionary(sets[0].digest)  # the oldest has gone
    assert service.fetches == 1


async def test_closing_ends_a_fetch(service: Counting, tmp_path: Path) -> None:
    client = AsyncClient(transport=service, dictionaries_dir=tmp_path, timeouts=PATIENT)
    task = asyncio.create_task(client.fetch_dictionary(DICTIONARY.digest))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await task
