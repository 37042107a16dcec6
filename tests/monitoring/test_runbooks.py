"""Runbooks: their form, and their commands as far as that needs no service."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from k8s.checks.pods import Pod, pods
from k8s.checks.rendering import Rendering, base_with, overlay
from k8s.monitoring.alerts import ALERTS, NAMES
from lexico_proto import metrics as m
from lexico_services.parsers.command_line import make_parser
from lexico_services.parsers.lab import LAB
from tests.monitoring.test_sources import OF_PROCESSES, faults_of
from tests.support.promql import selectors
from tests.support.runbooks import PAGES, Block, blocks

SECTIONS: Final = ["What it means", "What nodes see", "Look", "Mend", "Prevent"]
BLOCKS: Final = list(blocks())
VERBS: Final = {"describe", "get", "logs", "port-forward"}
"""What changes nothing."""
SHORT: Final = {"hpa": "horizontalpodautoscaler"}
OF_FILES: Final = ("process_open_fds", "process_max_fds")
"""That no panel has."""
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
    quoted = re.findall(r"'([^']*lexico_[^']*)'", text)
    found = [fault for query in quoted for each in selectors(query) for fault in faults_of(each)]
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
    looked = lines_of("kubectl")
    assert looked
    for words in looked:
        verb, *rest = [word for word in words[1:] if word not in ("--namespace", "lexico")]
        assert verb in VERBS
        for word in rest:
            kind, slash, name = word.partition("/")
            if slash and "=" not in word and " in " not in word:
                assert f"{SHORT.get(kind, kind)}/{name}" in objects, words
            if word.startswith("app.kubernetes.io/"):
                assert unseen(word) == "", words


def unseen(selector: str) -> str:
    """What is wrong with a selector of labels: a value that no pod has; or none of its pods must be
    there, such as encoders without an ingress, of which there are none until load brings them.
    """
    key, values = read_selector(selector)
    steady: dict[str, bool] = {}
    for rendering in (base_with("monitoring"), overlay("production")):
        for pod in pods(rendering):
            there = steady.get(pod.labels.get(key, ""), False)
            steady[pod.labels.get(key, "")] = there or least(rendering, pod) > 0
    for value in values:
        if value not in steady:
            return f"no pod has {key}={value}"
    return "" if any(steady[value] for value in values) else f"{selector} may select no pod"


def read_selector(selector: str) -> tuple[str, list[str]]:
    """Label and values."""
    key, within, values = selector.partition(" in ")
    if within:
        return key, values.removeprefix("(").removesuffix(")").split(",")
    key, _, value = selector.partition("=")
    return key, [value]


def least(rendering: Rendering, pod: Pod) -> int:
    """Pods of this template that there are without any load."""
    kind, _, name = pod.owner.partition("/")
    name, _, group = name.partition(" ")
    owner = rendering.find(kind, name)
    assert owner is not None
    if kind != "RayService":
        return int(owner["spec"].get("replicas", 1))
    groups = owner["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return next((g["minReplicas"] for g in groups if g["groupName"] == group), 1)


@pytest.mark.parametrize(
    "selector",
    [
        "app.kubernetes.io/component=encoder",
        "app.kubernetes.io/component=encoders",
        "app.kubernetes.io/component in (encoder,ingresses)",
        "app.kubernetes.io/part=lexico-offload",
    ],
)
def test_selectors_that_may_show_nothing_are_found(selector: str) -> None:
    assert unseen(selector)


def lines_shown() -> list[str]:
    """A line of /metrics for each series that a process may show."""
    lines = [f"{name} 1" for name in (*OF_PROCESSES, *OF_FILES)]
    for family in m.FAMILIES:
        ends = ("_bucket", "_count", "_sum") if family.buckets else ("",)
        labels = ["x", *(["le"] if family.buckets else [])] if family.labels else []
        shown = "{" + ",".join(f'{label}="1"' for label in labels) + "}" if labels else ""
        lines += [f"{family.name}{end}{shown} 1" for end in ends]
    return lines


def alternatives(pattern: str) -> list[str]:
    """A regular expression without brackets of its own for each thing that it looks for."""
    inner = re.search(r"\(([^()]*)\)", pattern)
    if inner is None:
        return pattern.split("|")
    return [
        each
        for choice in inner[1].split("|")
        for each in alternatives(pattern[: inner.start()] + choice + pattern[inner.end() :])
    ]


def looked_for() -> Iterator[str]:
    """Patterns of what is looked for in /metrics."""
    for block in BLOCKS:
        for line in block.text.splitlines():
            first, pipe, rest = line.partition(" | ")
            words = shlex.split(rest.partition("||")[0])
            if pipe and '/metrics"' in first and words[:1] == ["grep"]:
                yield words[-1]


def test_lines_of_metrics_that_are_looked_for_are_shown() -> None:
    patterns = sorted(set(looked_for()))
    assert len(patterns) > 10
    lines = lines_shown()
    dead = [
        f"{pattern}: {each}"
        for pattern in patterns
        for each in alternatives(pattern)
        if not any(re.search(each.partition(".*")[0], line) for line in lines)
    ]
    assert dead == []


def test_patterns_are_looked_at_in_each_of_their_parts() -> None:
    assert set(alternatives("^a_(b|c_(d|e))")) == {"^a_b", "^a_c_d", "^a_c_e"}


def test_our_own_commands_have_these_options() -> None:
    for words in lines_of("lexico"):
        end = words.index("|") if "|" in words else len(words)
        make_parser(LAB & frozenset(words[1:2])).parse_args(words[1:end])
