"""docs/reference/metrics.md, out of `lexico_proto.metrics`.

python -m tests.support.metrics_page    # writes it
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lexico_proto import metrics as m
from lexico_proto.counters import MAX_OPEN
from lexico_proto.errors import ERRORS

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

SECTIONS: Final = {
    "Ingress and reload servers": m.OF_SERVERS,
    "Ingress": m.OF_INGRESS,
    "Encoders, shown by the ingress": m.OF_ENCODERS,
    "Reload servers": m.OF_RELOAD,
    "Service process": m.OF_SERVICE,
    "Nodes": m.OF_CLIENTS,
    "Engines on nodes": m.OF_ENGINES,
}
_LONG: Final = 12

_TOP: Final = f"""# Metrics

Every metric of every process, its type, labels and meaning. This page is written from
`lexico_proto/metrics.py` by `python -m tests.support.metrics_page`, and a test compares them.
[Operations](../operations.md#metrics) says where they are shown and how to read them.

Each process also shows `process_cpu_seconds_total`, `process_resident_memory_bytes`,
`process_open_fds`, `process_max_fds`, `process_virtual_memory_bytes` and
`process_start_time_seconds`.

Label `tenant` has the names of the first {MAX_OPEN} tenants that a process saw
(`metrics.max_tenants`), and `other` for all others together. Series appear once there is something
to count; what is named in advance begins at 0.
"""


def lines() -> Iterator[str]:
    """Of the page."""
    yield _TOP
    for title, families in SECTIONS.items():
        yield f"## {title}\n"
        yield "| name | type | labels | meaning |"
        yield "|---|---|---|---|"
        for family in families:
            labels = ", ".join(f"`{label.name}`" for label in family.labels) or "-"
            yield f"| `{family.name}` | {family.kind} | {labels} | {family.help} |"
        yield ""
    yield "## Values of labels\n"
    yield "| metric | label | values |"
    yield "|---|---|---|"
    for family in m.FAMILIES:
        for label in family.labels:
            yield f"| `{family.name}` | `{label.name}` | {_values(label)} |"
    yield ""
    yield "Reasons are those of [the errors](../failures.md#what-the-node-sees), in"
    yield (
        "`lexico_proto/errors.py`: " + ", ".join(f"`{reason}`" for reason in sorted(ERRORS)) + "."
    )
    yield ""
    yield "## Buckets of histograms\n"
    yield "| metric | upper bounds |"
    yield "|---|---|"
    for family in m.FAMILIES:
        if family.buckets:
            yield f"| `{family.name}` | {', '.join(f'{bound:g}' for bound in family.buckets)} |"


def page() -> str:
    """The page."""
    return "\n".join(lines()) + "\n"


def _values(label: m.Label) -> str:
    if label.values is None:
        return "names of tenants" if label.name == "tenant" else "this process's release"
    if len(label.values) > _LONG:
        more = sorted(label.values - set(ERRORS))
        named = ", ".join(f"`{value}`" for value in more)
        return (
            f"{named}, and every reason"
            if named and set(ERRORS) <= label.values
            else (named or "every reason")
        )
    return ", ".join(f"`{value}`" for value in sorted(label.values))


def main() -> None:
    """Writes the page."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
