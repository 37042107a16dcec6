"""What one tenant does, another cannot see: not in answers, nor errors, nor the length of either.

Two services are given the same calls of tenant blue. One of them is given calls of tenant red in
between: the same prompts, the same dictionary sets, good calls and bad ones. All that blue gets
must be equal, byte by byte. What blue can see is the machine that both share: its bounds, and the
time that calls take (docs/security.md).
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import grpc
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.wire import spec_to_wire
from lexico_proto.request_id import METADATA_KEY
from lexico_proto.v1 import dictionaries_pb2, offload_pb2, reload_pb2
from lexico_services.config import ReloadConfig
from tests.support.dictionaries import random_set
from tests.support.services import TINY, Prompt, Services, prompt, running_services, stream
from tests.support.waiting import PATIENCE_S

RED, BLUE = "token-of-tenant-red", "token-of-tenant-blue"
ROLES = "offload,reload,admin"
CALLS = (
    *("match", "get", "put", "put-coded", "bad-put", "bad-get"),
    *("register", "fetch", "list", "namespaces", "publish", "take-back", "find"),
)

Call = tuple[str, int]
Step = tuple[str, Call]

CALL = st.tuples(st.sampled_from(CALLS), st.integers(0, 1))
HISTORY = st.lists(st.tuples(st.sampled_from([RED, BLUE]), CALL), min_size=4, max_size=12)


@functools.cache
def _set(number: int) -> DictionarySet:
    return random_set(TINY.layers, TINY.head_dim, seed=100 * number, kv_heads=TINY.kv_heads)


@functools.cache
def _prompt(number: int, coded: bool = False) -> Prompt:
    if not coded:
        return prompt(seed=number)
    config = '{"sparsity": 2}'
    return prompt(seed=number, codec="lexico", codec_config=config, dictionary=_set(number).digest)


async def _answers(call: Any) -> list[bytes]:
    """Of a call, as they came."""
    messages = [await call] if hasattr(call, "__await__") else [each async for each in call]
    for message in messages:
        if isinstance(message, offload_pb2.PutResponse):
            message.ClearField("seconds")  # time alone
        for namespace in getattr(message, "namespaces", ()):
            namespace.ClearField("stored_s")
        if isinstance(message, dictionaries_pb2.FindResponse):
            message.ClearField("age_s")
    return [message.SerializeToString(deterministic=True) for message in messages]


def _call(services: Services, token: str, name: str, number: int) -> Any:
    metadata = (("authorization", f"Bearer {token}"),)
    sent, made = _prompt(number), _set(number)
    options: dict[str, Any] = {"metadata": metadata, "timeout": PATIENCE_S}
    if name == "match":
        return services.reload.Match(reload_pb2.MatchRequest(page_keys=sent.keys), **options)
    if name == "namespaces":
        asked = reload_pb2.NamespacesRequest(
            namespace=sent.spec.namespace, page_key=sent.keys[0], spec=spec_to_wire(sent.spec)
        )
        return services.reload.Namespaces(asked, **options)
    if name in ("get", "bad-get"):
        groups = 0 if name == "bad-get" else sent.spec.groups
        request = reload_pb2.GetRequest(page_keys=sent.keys, groups=groups)
        return services.reload.Get(request, **options)
    if name == "put":
        return services.offload.Put(stream(sent.upload()), **options)
    if name == "put-coded":
        return services.offload.Put(stream(_prompt(number, True).upload()), **options)
    if name == "bad-put":
        return services.offload.Put(_cut_short(services, sent, metadata), **options)
    if name == "register":
        header = dictionaries_pb2.RegisterHeader(
            digest=made.digest, artefact_bytes=len(made.to_bytes())
        )
        parts = [
            dictionaries_pb2.RegisterRequest(header=header),
            dictionaries_pb2.RegisterRequest(data=made.to_bytes()),
        ]
        return services.dictionaries.Register(_stream_of(parts), **options)
    if name == "fetch":
        return services.dictionaries.Fetch(
            dictionaries_pb2.FetchRequest(digest=made.digest), **options
        )
    models = [bytes([number]) * 32]
    if name in ("publish", "take-back"):
        digest = made.digest if name == "publish" else b""
        published = dictionaries_pb2.PublishRequest(digest=digest, models=models)
        return services.dictionaries.Publish(published, **options)
    if name == "find":
        looked_for = dictionaries_pb2.FindRequest(models=models, codec="lexico")
        return services.dictionaries.Find(looked_for, **options)
    return services.dictionaries.List(dictionaries_pb2.ListRequest(), **options)


async def _cut_short(services: Services, sent: Any, metadata: Any) -> Any:
    """An upload that ends within its second page, once the first is stored.

    Else it is a matter of time whether the first is.
    """
    async for message in stream([sent.header(), *sent.page(0)]):
        yield message
    present = False
    while not present:
        request = reload_pb2.MatchRequest(page_keys=sent.keys)
        present = (await services.reload.Match(request, metadata=metadata)).present[0]
    async for message in stream(sent.page(1)[:-1]):
        yield message


async def _stream_of(parts: list[Any]) -> Any:
    for part in parts:
        yield part


async def _seen(services: Services, steps: list[Step], who: str) -> list[object]:
    """What a tenant gets for its calls, while all of them are made in turn."""
    seen: list[object] = []
    for token, (name, number) in steps:
        call = _call(services, token, name, number)
        got: object
        try:
            got = await _answers(call)
        except grpc.aio.AioRpcError as error:
            told = sorted(map(str, error.trailing_metadata()))
            told = [text for text in told if METADATA_KEY not in text]  # the id is random
            got = (error.code(), error.details(), told)
        if token == who:
            seen.append((name, got, sorted(map(str, await call.initial_metadata()))))
    return seen


async def _both_worlds(tokens: Path, steps: list[Step]) -> tuple[list[object], list[object]]:
    bounds = ReloadConfig(max_dictionaries=1)
    alone = [step for step in steps if step[0] == BLUE]
    async with (
        running_services(token_file=tokens, reload=bounds) as shared,
        running_services(token_file=tokens, reload=bounds) as own,
    ):
        return await _seen(shared, steps, BLUE), await _seen(own, alone, BLUE)


def _all_of(token: str, names: tuple[str, ...]) -> list[Step]:
    return [(token, (name, 0)) for name in names]


@example(_all_of(RED, CALLS) + _all_of(BLUE, CALLS))
@example(_all_of(RED, ("register", "put-coded")) + _all_of(BLUE, ("put-coded", "list", "fetch")))
@example(
    [(RED, ("register", 0)), (BLUE, ("register", 1)), (BLUE, ("register", 0)), (BLUE, ("list", 0))]
)
@example(_all_of(RED, ("register", "publish")) + _all_of(BLUE, ("find", "take-back", "publish")))
@given(HISTORY)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_tenant_sees_nothing_of_another(tmp_path: Path, steps: list[Step]) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"red:{RED}:{ROLES}\nblue:{BLUE}:{ROLES}\n")
    beside_red, alone = asyncio.run(_both_worlds(tokens, steps))
    assert beside_red == alone


def test_what_would_be_seen_is_looked_at(tmp_path: Path) -> None:
    """The comparison above has eyes: one tenant does see its own earlier calls in each of these."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"red:{RED}:{ROLES}\nblue:{BLUE}:{ROLES}\n")
    for before, after in (
        (("put",), "match"),
        (("put",), "get"),
        (("put",), "namespaces"),
        (("put",), "put"),
        (("register",), "fetch"),
        (("register",), "list"),
        (("register",), "put-coded"),
        (("register",), "register"),
        (("register",), "publish"),
        (("register", "publish"), "find"),
        (("register", "publish"), "take-back"),
    ):
        steps = [*_all_of(BLUE, before), *_all_of(BLUE, (after,))]

        async def last(steps: list[Step]) -> object:
            async with running_services(token_file=tokens) as services:
                return (await _seen(services, steps, BLUE))[-1]

        assert asyncio.run(last(steps)) != asyncio.run(last(steps[-1:])), after


def test_an_unknown_caller_sees_nothing_of_anybody(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"red:{RED}:{ROLES}\n")
    stranger = "token-of-a-stranger"

    async def seen(before: list[Step]) -> list[object]:
        async with running_services(token_file=tokens) as services:
            return await _seen(services, before + _all_of(stranger, CALLS), stranger)

    assert asyncio.run(seen(_all_of(RED, CALLS))) == asyncio.run(seen([]))
