"""The error tree and its one table of status codes."""

from __future__ import annotations

import re

import grpc
import pytest

from lexico_proto import errors
from lexico_proto.errors import ERRORS, InternalError, LexicoError, from_wire

STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
DRAWN = re.compile(r"^ {4}(?P<bars>[│├└─ ]+) (?P<name>\w+) +(?P<status>[A-Z_]+) +\S", re.MULTILINE)
CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, LexicoError) and value is not LexicoError
]


def test_table_holds_every_class() -> None:
    assert set(ERRORS.values()) == set(CLASSES)
    assert len(CLASSES) == 29


def test_reason_and_class_are_a_bijection() -> None:
    assert len({cls.reason for cls in CLASSES}) == len(CLASSES)
    assert {cls: reason for reason, cls in ERRORS.items()} == {cls: cls.reason for cls in CLASSES}
    for cls in CLASSES:
        assert "reason" in vars(cls), f"{cls.__name__} inherits its reason"
        # What may travel as the value of ASCII metadata.
        assert re.fullmatch("[a-z]+(-[a-z]+)*", cls.reason)


def test_status_and_reason_name_one_class_and_back() -> None:
    pairs = {(cls.status, cls.reason): cls for cls in CLASSES}
    assert len(pairs) == len(CLASSES)
    for (status, reason), cls in pairs.items():
        assert type(from_wire(status, reason, "")) is cls


def test_each_status_stands_for_one_branch() -> None:
    """Without a reason, a status gives the direct child of the root that bears it."""
    branches = LexicoError.__subclasses__()
    assert len({cls.status for cls in branches}) == len(branches)
    for cls in CLASSES:
        (branch,) = [b for b in branches if issubclass(cls, b)]
        assert cls.status == branch.status
        assert type(from_wire(cls.status, None, "")) is branch


def test_tree_is_drawn_as_it_is() -> None:
    """Name, status and parent of each class, in the docstring of the module."""
    assert errors.__doc__ is not None
    drawn, parents = [], [LexicoError]
    for line in DRAWN.finditer(errors.__doc__):
        depth = len(line["bars"]) // 4 + 1
        cls = getattr(errors, line["name"])
        assert line["status"] == STATUS_NAMES[cls.status], line["name"]
        del parents[depth:]
        assert cls.__bases__ == (parents[-1],), line["name"]
        parents.append(cls)
        drawn.append(cls)
    assert drawn == list(ERRORS.values())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_survives_the_wire(cls: type[LexicoError]) -> None:
    sent = cls("page 3: what and why, in ünïcode")
    got = from_wire(sent.status, sent.reason, sent.message)
    assert type(got) is cls
    assert got.message == str(got) == sent.message


@pytest.mark.parametrize("code", [*range(1, 17), 17, 99, -1])
@pytest.mark.parametrize("reason", [None, "", "no-such-reason", "Damaged-Frame"])
def test_any_status_gives_a_class_of_the_tree(code: int, reason: str | None) -> None:
    error = from_wire(code, reason, "text")
    assert type(error) in CLASSES
    assert error.message == "text"
    if type(error) is not InternalError:
        assert error.status == code
    assert (type(error) is InternalError) == (code in (2, 6, 10, 11, 13, 17, 99, -1))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_reason_that_contradicts_the_status_is_not_believed(cls: type[LexicoError]) -> None:
    for code in set(range(1, 17)) - {cls.status}:
        assert type(from_wire(code, cls.reason, "")) is type(from_wire(code, None, ""))


def test_statuses_are_grpc_codes() -> None:
    assert {cls.status for cls in CLASSES} <= set(STATUS_NAMES) - {0}
