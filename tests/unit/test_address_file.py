"""The file of addresses: one server's, and there only while it listens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lexico_proto import errors
from lexico_services.address_file import claimed

ADDRESSES = {"offload": "127.0.0.1:1", "reload": "127.0.0.1:2"}


def test_it_is_written_whole_and_goes_with_its_server(tmp_path: Path) -> None:
    file = tmp_path / "address.json"
    with claimed(file) as claim:
        assert not file.exists()
        claim.write(ADDRESSES)
        assert json.loads(file.read_text()) == ADDRESSES
        assert list(tmp_path.iterdir()) == [file]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written", [False, True])
def test_a_second_server_is_told_and_the_first_one_is_unharmed(
    tmp_path: Path, written: bool
) -> None:
    file = tmp_path / "address.json"
    with claimed(file) as first:
        if written:
            first.write(ADDRESSES)
        with pytest.raises(errors.ConfigurationError, match="another server uses it"):
            with claimed(file):
                pytest.fail("claimed twice")
        if not written:
            first.write(ADDRESSES)
        assert json.loads(file.read_text()) == ADDRESSES
        assert list(tmp_path.iterdir()) == [file]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["address.json", "address.json.part"])
def test_what_a_killed_server_left_tells_nobody_anything(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("127.0.0.1:1, and much more that a new file has not")
    file = tmp_path / "address.json"
    with claimed(file) as claim:
        assert not file.exists()
        claim.write(ADDRESSES)
        assert json.loads(file.read_text()) == ADDRESSES


def test_a_server_that_does_not_come_up_leaves_none(tmp_path: Path) -> None:
    with claimed(tmp_path / "address.json"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["absent/address.json", "."])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" if place == "." else tmp_path / place
    with pytest.raises(errors.ConfigurationError, match="address file"):
        with claimed(file):
            pytest.fail("claimed")


def test_no_file_is_asked_for() -> None:
    with claimed(None) as claim:
        claim.write(ADDRESSES)
