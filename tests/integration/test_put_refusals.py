"""Put against a real server: uploads that are refused, each with an error of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lexico_codec.geometry import Geometry
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group
from lexico_codec.spec import make_spec
from lexico_codec.wire import spec_from_wire, spec_to_wire
from lexico_proto import errors
from lexico_proto.v1 import offload_pb2 as pb
from lexico_services.config import OffloadConfig
from tests.support.services import (
    TINY,
    data_messages,
    page_end,
    prompt,
    running_services,
)
from tests.support.uploads import SCOPE, put, refused


def changed(**fields: Any) -> list[pb.PutRequest]:
    made = prompt()
    return [made.header(**fields), *made.body()]


def changed_spec(**fields: Any) -> list[pb.PutRequest]:
    messages = prompt().upload()
    for name, value in fields.items():
        target = messages[0].header.spec
        *path, last = name.split("__")
        for part in path:
            target = getattr(target, part)
        setattr(target, last, value)
    return messages


DATA = prompt().data()
BAD_UPLOADS: dict[str, tuple[list[pb.PutRequest], type[errors.LexicoError]]] = {
    "empty stream": ([], errors.StreamTruncated),
    "no header": (data_messages(DATA), errors.InvalidInput),
    "two headers": ([prompt().header()] * 2, errors.InvalidInput),
    "header alone": ([prompt().header()], errors.StreamTruncated),
    "truncated": ([prompt().header(), *data_messages(DATA[:-1])], errors.StreamTruncated),
    "page without its end": ([prompt().header(), *data_messages(DATA)], errors.StreamTruncated),
    "page ends early": (
        [prompt().header(), *data_messages(DATA[:-4]), page_end(0, DATA[:-4])],
        errors.StreamTruncated,
    ),
    "page too long": (
        [prompt().header(), *data_messages(DATA + b"x"), page_end(0, DATA + b"x")],
        errors.StreamTooLong,
    ),
    "end of another page": (
        [prompt().header(), *data_messages(DATA), page_end(1, DATA)],
        errors.InvalidInput,
    ),
    "altered bytes": (
        [prompt().header(), *data_messages(bytes(len(DATA))), page_end(0, DATA)],
        errors.StreamDamaged,
    ),
    "empty data": ([prompt().header(), pb.PutRequest(data=b"")], errors.InvalidInput),
    "empty message": ([prompt().header(), pb.PutRequest()], errors.InvalidInput),
    "unknown durability": (changed(durability=7), errors.InvalidInput),
    "no pages": (changed(pages=[], page_keys=[]), errors.InvalidInput),
    "fewer keys than pages": (changed(page_keys=prompt().keys[:1]), errors.InvalidInput),
    "descending pages": (changed(pages=[1, 0]), errors.InvalidInput),
    "a parent before page 0": (changed(parent_key=bytes(32)), errors.PageKeyMismatch),
    "a part without a parent": (changed(first_page=1), errors.PageKeyMismatch),
    "a page before its part": (
        changed(first_page=1, parent_key=bytes(32), token_ids=prompt().token_ids[:-1]),
        errors.TokenCountMismatch,
    ),
    "too few tokens": (changed(token_ids=prompt().token_ids[:-1]), errors.TokenCountMismatch),
    "too many tokens": (changed(token_ids=prompt().token_ids * 2), errors.TokenCountMismatch),
    "foreign tokens": (changed(token_ids=prompt(seed=1).token_ids), errors.PageKeyMismatch),
    "foreign key": (changed(page_keys=prompt(seed=1).keys), errors.PageKeyMismatch),
    "foreign inputs": (changed(page_inputs=[b"x" * 32]), errors.PageKeyMismatch),
    "no digest": (changed(page_inputs=[b"", b"short"]), errors.InvalidInput),
    "more inputs than pages": (changed(page_inputs=[b""] * 3), errors.InvalidInput),
    "foreign salt": (changed_spec(salt=b"mine"), errors.PageKeyMismatch),
    "long salt": (changed_spec(salt=b"s" * 257), errors.InvalidInput),
    "short key": (changed(page_keys=[b"short"] * 2), errors.PageKeyMismatch),
    "foreign weights": (changed_spec(weights=b"x" * 32), errors.PageKeyMismatch),
    "short weights": (changed_spec(weights=b"x"), errors.InvalidInput),
    "unknown codec": (changed_spec(codec="zip"), errors.UnknownCodec),
    "unknown codec parameter": (changed_spec(codec_config='{"x":1}'), errors.ConfigurationError),
    "codec config no JSON": (changed_spec(codec_config="{"), errors.ConfigurationError),
    "unknown dtype": (changed_spec(geometry__dtype=9), errors.InvalidInput),
    "no layers": (changed_spec(geometry__layers=0), errors.ShapeMismatch),
    "too many layers": (changed_spec(geometry__layers=10_000), errors.ShapeMismatch),
    "no page tokens": (changed_spec(page_tokens=0), errors.TokenCountMismatch),
    "no group layers": (changed_spec(group_layers=0), errors.InvalidInput),
    "raw with a dictionary": (changed_spec(dictionary=b"d" * 32), errors.InvalidInput),
}


@pytest.mark.parametrize("case", BAD_UPLOADS)
async def test_bad_upload_is_refused_with_its_own_error(case: str) -> None:
    messages, expected = BAD_UPLOADS[case]
    error = await refused(messages)
    assert type(error) is expected
    assert error.message


async def test_another_layer_count_or_dtype_is_noticed_by_its_bytes() -> None:
    for change in ({"geometry__dtype": 2}, {"geometry__layers": 2, "shard__total_layers": 2}):
        messages = changed_spec(**change)
        wire = messages[0].header.spec
        wire.group_layers = 1
        del messages[0].header.page_keys[:]
        messages[0].header.page_keys.extend(page_keys(spec_from_wire(wire), prompt().token_ids))
        assert type(await refused(messages)) is errors.StreamTooLong


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
async def test_nan_and_infinity_are_refused(value: float) -> None:
    made = prompt()
    made.pages[1][-1][0, 1, 2, 1, 3] = value
    async with running_services() as services:
        with pytest.raises(errors.LexicoError) as caught:
            await put(services, made.upload())
        assert type(caught.value) is errors.NonFiniteCache
        # The page before it may be there or not, by who was first; the bad one never is.
        assert services.store.present(SCOPE, made.keys)[1] is False
        assert services.ingress.budget.used == 0


async def test_pages_before_a_failure_are_whole_and_stay() -> None:
    made = prompt()
    cut = [made.header(), *made.page(0), *data_messages(made.data(1)[:-1])]
    more = [*made.upload(), *data_messages(b"more")]
    for messages, expected in ((cut, errors.StreamTruncated), (more, errors.StreamTooLong)):
        async with running_services() as services:
            with pytest.raises(errors.LexicoError) as caught:
                await put(services, messages)
            assert type(caught.value) is expected
            await services.ingress.close()
            for page, present in enumerate(services.store.present(SCOPE, made.keys)):
                if present:
                    frame = services.store.read(SCOPE, [made.keys[page]], 0)[0]
                    assert isinstance(frame, bytes)
                    out = torch.empty(made.spec.group_shape(0))
                    decode_group(made.spec, made.keys[page], page, 0, frame, out)
                    assert torch.equal(out, made.pages[page][0])


async def test_unknown_dictionary() -> None:
    made = prompt(codec="lexico", codec_config='{"sparsity":2}', dictionary=b"d" * 32)
    assert type(await refused(made.upload())) is errors.UnknownDictionary


async def test_message_over_the_limit() -> None:
    error = await refused([prompt().header(), pb.PutRequest(data=bytes(2 << 20))])
    assert isinstance(error, errors.Busy)  # RESOURCE_EXHAUSTED, by gRPC itself


async def test_page_over_the_budget_for_ever() -> None:
    error = await refused(prompt().upload(), offload=OffloadConfig(max_inflight_bytes=100))
    assert type(error) is errors.InvalidInput
    assert "max_inflight_bytes" in error.message


async def test_a_header_cannot_ask_for_endless_hashing() -> None:
    tokens = list(range(70_000))
    made = prompt(pages=1, page_tokens=1)
    error = await refused([made.header(token_ids=tokens, pages=[69_999])])
    assert type(error) is errors.InvalidInput
    assert "sequence" in error.message


async def test_a_group_over_the_stores_cap_is_refused_before_it_is_sent() -> None:
    wide = Geometry(layers=1, kv_heads=1024, head_dim=1024, dtype="float32")
    made = prompt(pages=1, page_tokens=1, geometry=TINY)
    spec = make_spec(weights=b"w" * 32, geometry=wide, codec="raw", page_tokens=16)
    tokens = list(range(16))
    header = made.header(
        spec=spec_to_wire(spec), token_ids=tokens, page_keys=page_keys(spec, tokens)
    )
    error = await refused([header])
    assert type(error) is errors.InvalidInput
    assert "layer group" in error.message
