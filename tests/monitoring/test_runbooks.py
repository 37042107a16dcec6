"""Runbooks: their form, and their commands as far as that needs no service."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Final

import pytest

from k8s.checks.pods import pods
from k8s.checks.rendering import base_with, overlay
from k8s.monitoring.alerts import ALERTS, NAMES
from lexico_services.parsers.command_line import make_parser
from lexico_services.parsers.lab import LAB
from tests.monitoring.test_sources import faults_of
from tests.support.promql import selectors
from tests.support.runbooks import PAGES, Block, blocks

SECTIONS: Final = ["What it means", "What nodes see", "Look", "Mend", "Prevent"]
BLOCKS: Final = list(blocks())
VERBS: Final = {"describe", "get", "logs", "port-forward"}
"""What changes nothing."""
SHORT: Final = {"hpa": "horizontalpodautoscaler"}
GIVEN: Final = {
    *("INGRESS", "RELOAD", "NODE", "PROMETHEUS"),
    *("SERVER", "CA", "LEXICO_STORE", "SETTINGS"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_all_that_is_needed_at_night(name: str) -> None:
    text = (PAGES / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    (told,) = re.findall(r"^Severity: (.*)\.$", text, re.MULTILINE)
    assert all(alert.severity in told for alert in ALERTS if alert.name == name)
    assert any(block.kind == "bash" for block in BLOCKS if block.page == name)
    assert f"[{name}]({name}.md)" in (PAGES / "README.md").read_text()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}-{block.kind}")
def test_commands_are_of_a_kind_that_is_looked_at(block: Block) -> None:
    assert block.kind in ("bash", "console")
    shell = ["bash", "-n", "-c", block.text]
    done = subprocess.run(shell, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if block.kind == "bash":
        assert set(re.findall(r"\$(\w+)", block.text)) <= GIVEN
        assert "kubectl" not in block.text


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_numbers_that_are_named_are_counted(path: Path) -> None:
    text = path.read_text()
    whole = [query for query in re.findall(r"'([^']*lexico_[^']*)'", text) if "(" in query]
    found = [fault for query in whole for each in selectors(query) for fault in faults_of(each)]
    assert found == []


def lines_of(program: str) -> list[list[str]]:
    lines = [line for block in BLOCKS for line in block.text.splitlines()]
    return [words for line in lines if (words := shlex.split(line))[:1] == [program]]


def test_kubectl_looks_at_what_the_manifests_have() -> None:
    renderings = [base_with("monitoring"), overlay("production")]
    objects = {
        f"{item['kind'].lower()}/{item['metadata']['name']}"
        for rendering in renderings
        for item in rendering.objects
    }
    labels = {f"{k}={v}" for r in renderings for pod in pods(r) for k, v in pod.labels.items()}
    looked = lines_of("kubectl")
    assert looked
    for words in looked:
        verb, *rest = [word for word in words[1:] if word not in ("--namespace", "lexico")]
        assert verb in VERBS
        for word in rest:
            kind, slash, name = word.partition("/")
            if slash and "=" not in word:
                assert f"{SHORT.get(kind, kind)}/{name}" in objects, words
            if word.startswith("app.kubernetes.io/"):
                assert word in labels, words


def test_our_own_commands_have_these_options() -> None:
    for words in lines_of("lexico"):
        end = words.index("|") if "|" in words else len(words)
        make_parser(LAB & frozenset(words[1:2])).parse_args(words[1:end])
