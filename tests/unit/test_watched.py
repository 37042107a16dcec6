"""Files that change under a running process."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from lexico_proto.errors import ConfigurationError
from lexico_proto.metrics import FILE_READS, Metrics
from lexico_proto.watched import MAX_FILE_BYTES, WatchedFiles, look_again


def _text(contents: Sequence[bytes]) -> str:
    text = b"+".join(contents).decode()
    if "unforeseen" in text:
        return str(1 / 0)
    if "bad" in text:
        raise ConfigurationError(f"words: {len(text)} of them are bad")
    return text


def _now(files: WatchedFiles[str]) -> str:
    look_again()
    return files.now()


def test_a_change_is_seen_by_the_next_use(tmp_path: Path) -> None:
    file = tmp_path / "words"
    file.write_text("one")
    files = WatchedFiles("words", (file,), _text)
    assert (files.numbered(), _now(files)) == ((0, "one"), "one")
    file.write_text("two")
    assert _now(files) == "two"
    assert files.numbered() == (1, "two")


def test_without_a_word_they_are_looked_at_every_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("lexico_proto.watched.time.monotonic", lambda: clock[0])
    file = tmp_path / "words"
    file.write_text("one")
    files = WatchedFiles("words", (file,), _text)
    file.write_text("two")
    clock[0] += 0.9
    assert files.now() == "one"
    clock[0] += 0.1
    assert files.now() == "two"


def test_contents_count_and_not_times(tmp_path: Path) -> None:
    file = tmp_path / "words"
    file.write_text("one")
    files = WatchedFiles("words", (file,), _text)
    before = file.stat()
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _now(files) == "two"


def test_a_folder_that_a_link_swaps(tmp_path: Path) -> None:
    """As the kubelet does it: `file` → `..data/file`, and `..data` is replaced by a rename."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "words").write_text(name)
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "words").symlink_to("..data/words")
    files = WatchedFiles("words", (tmp_path / "words",), _text)
    assert files.now() == "old"
    (tmp_path / "..data_tmp").symlink_to("new")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert _now(files) == "new"


def test_what_makes_no_sense_is_logged_once_and_counts_for_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, metrics = tmp_path / "words", Metrics()
    file.write_text("good")
    files = WatchedFiles("words", (file,), _text, metrics)

    def logged() -> list[str]:
        texts = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        caplog.clear()
        return texts

    file.write_text("bad")
    assert [_now(files), _now(files)] == ["good", "good"]
    assert logged() == ["words: 3 of them are bad: what it said before stays in force"]
    file.write_text("unforeseen")
    assert [_now(files), _now(files)] == ["good", "good"]
    assert logged() == ["words: ZeroDivisionError: what it said before stays in force"]
    file.unlink()
    assert [_now(files), _now(files)] == ["good", "good"]
    (line,) = logged()
    assert line.startswith(f"words {file}: No such file")
    file.write_bytes(bytes(MAX_FILE_BYTES + 1))
    assert _now(files) == "good"
    assert len(logged()) == 1
    file.write_text("good")  # as it was: nothing has changed
    assert files.numbered() == (1, "good") or _now(files) == "good"
    assert metrics.snapshot()[FILE_READS] == {("taken",): 1, ("refused",): 4}


def test_several_files_are_one_thing(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("a")
    second.write_text("b")
    files = WatchedFiles("words", (first, second), _text)
    second.write_text("c")
    assert _now(files) == "a+c"


def test_at_the_start_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    pipe, absent = tmp_path / "pipe", tmp_path / "absent"
    os.mkfifo(pipe)
    (tmp_path / "bad").write_text("bad")
    for path, said in ((pipe, "is no file"), (absent, "No such"), (tmp_path / "bad", "are bad")):
        with pytest.raises(ConfigurationError, match=said):
            WatchedFiles("words", (path,), _text)
