from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from requirements import fits, lock

LOCKED = {part: (lock.HERE / f"{part}.lock").read_text() for part in lock.PARTS}


@pytest.mark.parametrize("python", fits.PYTHONS)
@pytest.mark.parametrize("machine", fits.MACHINES)
def test_the_lock_fits(python: str, machine: str) -> None:
    assert fits.misfit("Linux", machine, "CPython", python) == ""


@pytest.mark.parametrize(
    ("machine", "word"),
    [
        (("Linux", "x86_64", "CPython", "3.10"), "CPython 3.10"),
        (("Linux", "x86_64", "CPython", "3.14"), "CPython 3.14"),
        (("Linux", "x86_64", "PyPy", "3.11"), "PyPy 3.11"),
        (("Linux", "riscv64", "CPython", "3.11"), "Linux on riscv64"),
        (("Darwin", "arm64", "CPython", "3.12"), "Darwin on arm64"),
    ],
)
def test_what_the_lock_does_not_fit_is_named_in_one_line(
    machine: tuple[str, str, str, str], word: str
) -> None:
    line = fits.misfit(*machine)
    assert word in line
    assert "\n" not in line


def test_every_version_is_exact_and_in_one_part() -> None:
    lines = [line for text in LOCKED.values() for line in text.splitlines()]
    entries = [line.removesuffix(" \\") for line in lines if not line.startswith(("#", " "))]
    exact = [re.fullmatch(r"([a-z0-9-]+)==[a-z0-9.]+(?: ; (.+))?", entry) for entry in entries]
    assert [e for e, found in zip(entries, exact, strict=True) if found is None] == []
    named = [(found[1], found[2]) for found in exact if found]
    assert len(set(named)) == len(named)


def test_only_torch_is_without_hashes_and_brings_its_own_cuda() -> None:
    for part, text in LOCKED.items():
        for name, entries in lock.entries(text).items():
            assert not name.startswith(lock.CUDA)
            assert all("--hash=sha256:" in entry for entry in entries) == (part != "torch")
    assert list(lock.entries(LOCKED["torch"])) == ["torch"]


def test_no_lock_says_where_packages_come_from() -> None:
    texts = [path.read_text() for path in lock.files().values()]
    assert not any("://" in text or "index" in text for text in texts)


def test_a_changed_range_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lock.main(["--check"]) == 0
    changed = tmp_path / "pyproject.toml"
    text = lock.PROJECT.read_text()
    changed.write_text(f"# a comment changes nothing\n{text}")
    assert lock.inputs_digest(changed) == lock.inputs_digest()
    changed.write_text(text.replace('"numpy>=', '"numpy>1,>='))
    head = lock.header(lock.inputs_digest(changed))
    monkeypatch.setattr(lock, "header", lambda digest: head)
    assert lock.main(["--check"]) == 1
    assert (
        "demo.lock is empty or older than pyproject.toml: run make lock" in capsys.readouterr().err
    )


def test_entries_keep_every_version_of_a_name() -> None:
    text = "# top\na==1 ; x \\\n    --hash=sha256:0\na==2 ; y \\\n    --hash=sha256:1\nb-c==3\n"
    found = lock.entries(text)
    assert list(found) == ["a", "b-c"]
    assert "".join(found["a"]) + "".join(found["b-c"]) == text.removeprefix("# top\n")


def test_what_the_groups_name_is_in_a_lock() -> None:
    groups = tomllib.loads(lock.PROJECT.read_text())["dependency-groups"]
    wanted = {lock.entries(each).popitem()[0] for group in groups.values() for each in group}
    texts = [path.read_text() for path in lock.files().values()]
    assert wanted <= {name for text in texts for name in lock.entries(text)}


def test_what_an_engine_has_is_no_older_answer_of_ours(tmp_path: Path) -> None:
    """Its versions are its own, and were taken where no part had one of that name."""
    (tmp_path / "images").mkdir()
    for name in ("demo", "images/build", "vllm"):
        (tmp_path / f"{name}.lock").write_text(f"{name.replace('/', '-')}==1\n")
    assert list(lock.entries(lock.locked(tmp_path))) == ["demo", "images-build"]
