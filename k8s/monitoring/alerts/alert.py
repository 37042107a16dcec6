"""One alert, and the expressions that several are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

RUNBOOKS: Final = "docs/runbooks"
"""Where runbooks are found, unless whoever runs this has a place for them."""


@dataclass(frozen=True)
class Alert:
    """A symptom that a person acts on."""

    name: str
    """Also the name of its runbook."""
    severity: Literal["critical", "warning"]
    """critical: somebody is woken up. warning: somebody looks at it on the next working day."""
    expr: str
    """PromQL that has a series for each thing that is wrong."""
    lasting: str
    """How long it must be so, as Prometheus writes durations."""
    summary: str
    """One line, with the labels of the series."""
    description: str
    """What it means for nodes."""

    def rule(self, runbooks: str = RUNBOOKS) -> dict[str, object]:
        """As Prometheus takes it.

        Args:
            runbooks: what stands before the name of a runbook's file.
        """
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasting,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{runbooks}/{self.name}.md",
            },
        }


def share(part: str, whole: str, window: str, by: str = "namespace") -> str:
    """How much of a counter's growth another one is.

    Args:
        part: selector of the counter above.
        whole: selector of the counter below.
        window: such as 5m.
        by: labels that are told apart.
    """
    return f"sum by ({by}) (rate({part}[{window}])) / sum by ({by}) (rate({whole}[{window}]))"


def at_least(number: int, counter: str, window: str, by: str = "namespace") -> str:
    """That so much happened: a share of three calls says nothing."""
    return f"sum by ({by}) (increase({counter}[{window}])) >= {number}"


def grew(counter: str, window: str) -> str:
    """That a counter grew, its first step included: a series that begins at 1 has no increase.

    Args:
        counter: selector of counters that appear once there is something to count.
        window: such as 30m.
    """
    return f"increase({counter}[{window}]) > 0 or ({counter} > 0 unless {counter} offset {window})"
