"""The checks find nothing in what is there."""

from __future__ import annotations

from pathlib import Path

from k8s.checks import containerfile, images
from k8s.checks.all_checks import problems
from k8s.checks.rendering import everything


def test_nothing_is_wrong_with_what_is_there() -> None:
    found = [f"{r.name}: {problem}" for r in everything() for problem in problems(r)]
    assert found == []
    assert images.check() == []
    assert containerfile.check(everything()) == []


def test_a_containerfile_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "Containerfile"
    file.write_text("FROM debian\nRUN cd /tmp\n")
    told = [str(problem) for problem in images.check([file])]
    assert any("DL3006" in each for each in told)
    assert any("DL3003" in each for each in told)
