from __future__ import annotations

import pytest

from requirements import fits
from tests.compatibility import page
from tests.compatibility.combinations import COMBINATIONS, Combination, locked
from tests.compatibility.environments import counted

REPORT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_a" name="test_1"/>
<testcase classname="tests.unit.test_a" name="test_2"><skipped/></testcase>
<testcase classname="tests.unit.test_a" name="test_3"><failure/></testcase>
<testcase classname="tests.unit.test_a" name="test_4"><failure/><error/></testcase>
</testsuite></testsuites>"""


def test_names_are_unique_and_every_pattern_names_tests() -> None:
    assert len({each.name for each in COMBINATIONS}) == len(COMBINATIONS)
    assert all(each.files() for each in COMBINATIONS)
    with pytest.raises(FileNotFoundError, match="what-1: there is no tests/nowhere"):
        Combination("what", "1", ("tests/nowhere",)).files()


def test_every_python_of_the_lock_is_tried() -> None:
    tried = [each.version for each in COMBINATIONS if each.subject == "Python"]
    assert tried == list(fits.PYTHONS)


def test_locked_versions_are_read() -> None:
    assert locked("torch").count(".") == 2
    with pytest.raises(LookupError, match="no-such-package"):
        locked("no-such-package")


def test_a_report_is_counted() -> None:
    failures = ["tests.unit.test_a::test_3", "tests.unit.test_a::test_4"]
    assert counted(REPORT) == (1, 1, failures)


def test_the_page_says_how_it_went_and_what_failed() -> None:
    went = {"passed": 2, "failed": 13, "skipped": 0, "date": "2030-01-02"}
    failures = [f"tests.unit.test_a::test_{number}" for number in range(13)]
    first, second = COMBINATIONS[:2]
    text = page.page(
        {
            first.name: {**went, "failures": failures, "installed": {"torch": "2.13.0"}},
            second.name: {"refused": "no versions fit together", "date": "2030-01-03"},
        }
    )
    row = f"| {first.subject} | {first.version} | {first.python} |"
    assert f"{row} 2 passed, 13 failed | torch 2.13.0 | 2030-01-02 |" in text
    assert "| no versions fit together |  | 2030-01-03 |" in text
    assert text.count("| not run |") == len(COMBINATIONS) - 2
    assert "and 1 more" in text
