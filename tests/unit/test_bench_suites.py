"""What is recorded of a suite that ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.engines import suites

REPORT = """<?xml version="1.0"?>
<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1" time="12.5">
<testcase classname="tests.vllm.test_engine" name="test_a"/>
<testcase classname="tests.vllm.test_engine" name="test_b"/>
<testcase classname="tests.vllm.test_engine" name="test_c"><failure message="other tokens"/>
</testcase>
<testcase classname="tests.vllm.test_own" name="test_d"><skipped message="not named"/></testcase>
</testsuite></testsuites>
"""


def test_what_a_report_says(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert suites.outcome(report) == {
        "passed": 2,
        "failed": 1,
        "skipped": 1,
        "seconds": 12.5,
        "not passed": [
            "tests.vllm.test_engine::test_c: other tokens",
            "tests.vllm.test_own::test_d: not named",
        ],
    }


@pytest.mark.parametrize("content", [None, "", "no report"])
def test_a_suite_that_left_none_is_no_record(tmp_path: Path, content: str | None) -> None:
    report = tmp_path / "report.xml"
    if content is not None:
        report.write_text(content)
    with pytest.raises(SystemExit, match="left no report"):
        suites.outcome(report)
