"""Log records as text and as JSON, and the request that they belong to."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from lexico_proto import request_id
from lexico_proto.logs import FORMATS, formatter


def record(message: str, *arguments: object, error: BaseException | None = None) -> Any:
    info = (type(error), error, None) if error is not None else None
    return logging.LogRecord("lexico.x", logging.WARNING, "", 1, message, arguments, info)


def written(*arguments: Any, **more: Any) -> dict[str, Any]:
    line = formatter("json").format(record(*arguments, **more))
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert (found.pop("level"), found.pop("logger")) == ("warning", "lexico.x")
    return found


@pytest.mark.parametrize(
    ("message", "arguments", "fields"),
    [
        ("plain", (), {}),
        ("damaged pages=%d group=%d: removed", (3, 0), {"pages": 3, "group": 0}),
        ("put pages=%d seconds=%s", (2, [1.5]), {"pages": 2, "seconds": "[1.5]"}),
        ("a=%s %s b=%.3f", ("x", "passed over", 0.1234567), {"a": "x", "b": 0.1234567}),
        ("share=100%% left=%d", (4,), {"left": 4}),
        ("time=%s level=%s", ("never", "none"), {}),
        ("listening=%s port=%5d", ("h", 7), {"listening": "h", "port": 7}),
        ("line=%s", ('"\n\u2028',), {"line": '"\n\u2028'}),
    ],
)
def test_json_has_the_fields_of_the_message(
    message: str, arguments: tuple[object, ...], fields: dict[str, object]
) -> None:
    assert written(message, *arguments) == {
        "message": message % arguments if arguments else message,
        **fields,
    }


def test_json_has_the_traceback() -> None:
    assert "ValueError: x" in written("failed", error=ValueError("x"))["exception"]


def test_a_line_of_a_call_names_it() -> None:
    text = formatter("text")
    assert text.format(record("a=%d", 1)).endswith("level=WARNING logger=lexico.x a=1")
    with request_id.request("abc"):
        assert text.format(record("a=%d", 1)).endswith("logger=lexico.x a=1 request=abc")
        assert written("a=%d", 1) == {"message": "a=1", "a": 1, "request": "abc"}
        lines = text.format(record("failed", error=ValueError("x"))).splitlines()
        assert lines[0].endswith("failed request=abc")
    assert FORMATS == ("text", "json")


@pytest.mark.parametrize(
    "given", ["", " ", "a b", "a\n", "a=b", "-a", "é", "x" * 65, "a\x00", "a;b"]
)
def test_what_is_no_id_is_replaced(given: str) -> None:
    assert not request_id.is_sound(given)
    assert request_id.given_in(((request_id.METADATA_KEY, given),)) == ""
    with request_id.request(given) as made:
        assert request_id.is_sound(made)
        assert made == request_id.current() != given
        with request_id.request(given) as inner:
            assert inner == made
    assert request_id.current() == ""


@pytest.mark.parametrize(
    "given",
    ["a", "x" * 64, "cmpl-7f3a/0:1.2_b", request_id.made()],
    ids=["short", "longest", "of-vllm", "ours"],
)
def test_ids_are_taken_as_they_are(given: str) -> None:
    pair = (request_id.METADATA_KEY, given)
    assert request_id.given_in((("a", "b"), pair)) == given
    assert request_id.given_in((pair, pair)) == ""
    assert request_id.given_in(((request_id.METADATA_KEY, given.encode()),)) == ""
    with request_id.request(given) as made:
        assert made == given
