"""Each alert by Prometheus's own tool: series that make it fire, and series that do not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.monitoring.alerts import ALERTS, NAMES
from k8s.monitoring.files import RULES
from tests.monitoring.rule_cases import CASES, Case
from tests.support.prometheus import MONITORING

under_make = pytest.mark.skipif(
    not MONITORING, reason="seconds of Prometheus's work: make monitoring-check"
)
KEYS = sorted({(alert.name, alert.severity) for alert in ALERTS})


def cases_of(name: str, severity: str) -> list[Case]:
    return [case for case in CASES if (case.alert, case.severity) == (name, severity)]


def rule_test(case: Case) -> dict[str, Any]:
    """As promtool takes it."""
    own = {"alertname": case.alert, "severity": case.severity, "alertstate": "firing"}
    asked = ", ".join(f'{label}="{value}"' for label, value in own.items())
    samples = []
    for labels in case.fires:
        told = ", ".join(f'{k}="{v}"' for k, v in sorted({**own, **labels}.items()))
        samples.append({"labels": f"ALERTS{{{told}}}", "value": 1})
    series = []
    for line in case.series.splitlines():
        end = line.index("} ") + 1 if "{" in line else line.index(" ")
        series.append({"series": line[:end], "values": line[end:].strip()})
    return {
        "name": f"{case.alert} {case.severity}: {case.what}",
        "interval": case.step,
        "input_series": series,
        "promql_expr_test": [
            {"expr": f"ALERTS{{{asked}}}", "eval_time": case.at, "exp_samples": samples}
        ],
    }


@pytest.mark.parametrize(("name", "severity"), KEYS)
def test_each_alert_has_series_that_make_it_fire_and_series_that_do_not(
    name: str, severity: str
) -> None:
    assert {bool(case.fires) for case in cases_of(name, severity)} == {True, False}


def test_each_case_is_of_an_alert() -> None:
    assert {(case.alert, case.severity) for case in CASES} == set(KEYS)


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: prometheus): make monitoring-check")
    return found


def files_of(name: str, rules: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """A file with the cases of an alert, and beside it one with its rules alone: all rules in every
    minute of every case would take minutes.
    """
    file, test = folder / f"{name}.yaml", folder / f"{name}_test.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": name, "rules": [*rules]}]}))
    cases = [rule_test(case) for case in CASES if case.alert == name]
    (step,) = {case["interval"] for case in cases}
    made = {"rule_files": [str(file)], "evaluation_interval": step, "tests": cases}
    test.write_text(yaml.safe_dump(made))
    return str(test)


def rules_of(name: str) -> list[dict[str, Any]]:
    return [alert.rule() for alert in ALERTS if alert.name == name]


def said_by(*command: str) -> str:
    """What a command says; empty where it has nothing against it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_promtool_takes_the_rules(promtool: str) -> None:
    assert said_by(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(RULES)) == ""


@under_make
def test_promtool_sees_each_fire_and_be_silent(promtool: str, tmp_path: Path) -> None:
    tests = [files_of(name, rules_of(name), tmp_path) for name in NAMES]
    assert said_by(promtool, "test", "rules", *tests) == ""


@pytest.mark.parametrize("threshold", ["> 9", ">= 0"])
def test_an_alert_that_is_always_silent_or_never_is_found(
    threshold: str, promtool: str, tmp_path: Path
) -> None:
    (rule,) = rules_of("LexicoStoreRetries")
    assert "> 0.1" in rule["expr"]
    rule["expr"] = rule["expr"].replace("> 0.1", threshold)
    told = said_by(promtool, "test", "rules", files_of("LexicoStoreRetries", [rule], tmp_path))
    assert "FAILED" in told
