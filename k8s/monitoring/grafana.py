"""Dashboards as Grafana imports them: typed panels, laid out in rows of 24 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

SCHEMA: Final = 41
"""Of the classic model, as Grafana 12 writes it; Grafana 13 imports it."""
COLUMNS: Final = 24
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}

Kind = Literal["stat", "timeseries", "table"]
_HEIGHT: Final[Mapping[Kind, int]] = {"stat": 4, "timeseries": 8, "table": 8}
Steps = Sequence[tuple[float | None, str]]
"""Value from which on → colour; None for whatever is below the others."""
PLAIN: Final[Steps] = ((None, "blue"),)
NONE_IS_GOOD: Final[Steps] = ((None, "green"), (1e-9, "red"))
ALL_IS_GOOD: Final[Steps] = ((None, "red"), (1, "green"))


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    expr: str
    legend: str = ""
    """Of each series, with its labels in braces."""


@dataclass(frozen=True)
class Panel:
    """What is seen, and what it means."""

    title: str
    what: str
    """Its meaning, and what to think of it."""
    unit: str
    """Grafana's name of it."""
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 12
    steps: Steps = PLAIN
    most: float | None = None
    """Upper end of the axis."""
    stacked: bool = False
    words: Mapping[str, str] = field(default_factory=dict)
    """Value → what is shown in its place."""
    nothing: str = "nothing yet"
    """What is shown where there is no number, such as the share of calls where none came."""


@dataclass(frozen=True)
class Variable:
    """A choice above the panels; all of it at first, also where nothing has the label."""

    name: str
    query: str


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    name: str
    title: str
    what: str
    variables: tuple[Variable, ...]
    rows: Mapping[str, Sequence[Panel]]
    """Title of a row → its panels."""

    @property
    def panels(self) -> Iterator[Panel]:
        """Of all rows."""
        return (panel for row in self.rows.values() for panel in row)

    def json(self) -> dict[str, Any]:
        """As Grafana imports it."""
        return {
            "uid": f"lexico-{self.name}",
            "title": self.title,
            "description": self.what,
            "tags": ["lexico-offload"],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "timepicker": {},
            "timezone": "",
            "fiscalYearStartMonth": 0,
            "annotations": {"list": []},
            "links": [_LINK],
            "templating": {"list": [_SOURCE, *(_variable(each) for each in self.variables)]},
            "panels": _laid_out(self.rows),
        }


_LINK: Final = {
    "type": "dashboards",
    "title": "Lexico Offload",
    "tags": ["lexico-offload"],
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
}
_SOURCE: Final = {
    "type": "datasource",
    "name": "datasource",
    "label": "Data source",
    "query": "prometheus",
    "regex": "",
    "refresh": 1,
    "hide": 0,
    "multi": False,
    "includeAll": False,
    "options": [],
}


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.name.capitalize(),
        "datasource": DATASOURCE,
        "definition": variable.query,
        "query": {"qryType": 1, "query": variable.query, "refId": "variable"},
        "regex": "",
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": True,
        "includeAll": True,
        # Matches what has no such label too: outside Kubernetes nothing has a namespace.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def _laid_out(rows: Mapping[str, Sequence[Panel]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    top = 0
    for title, panels in rows.items():
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        top, left, height = top + 1, 0, 0
        for panel in panels:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            size = {"w": panel.width, "h": _HEIGHT[panel.kind]}
            made.append(_panel(panel, len(made) + 1, {"x": left, "y": top, **size}))
            left, height = left + panel.width, max(height, size["h"])
        top += height
    return made


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": [_target(query, at, panel.kind) for at, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
    } | ({"transformations": _AS_TABLE} if panel.kind == "table" else {})


def _target(query: Query, at: int, kind: Kind) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + at),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "range": kind == "timeseries",
        "instant": kind != "timeseries",
        "format": "table" if kind == "table" else "time_series",
    }


def _field(panel: Panel) -> dict[str, Any]:
    found: dict[str, Any] = {
        "unit": panel.unit,
        "noValue": panel.nothing,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in panel.steps],
        },
        "mappings": [
            {"type": "value", "options": {value: {"text": text, "index": at}}}
            for at, (value, text) in enumerate(panel.words.items())
        ],
    }
    if panel.kind == "timeseries":
        lines = panel.steps is not PLAIN
        found["min"] = 0
        found["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacked else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if lines else "off"},
        }
    if panel.most is not None:
        found["max"] = panel.most
    return found


_OPTIONS: Final[Mapping[Kind, Mapping[str, Any]]] = {
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
    },
    "timeseries": {
        "legend": {
            "displayMode": "list",
            "placement": "bottom",
            "showLegend": True,
            "calcs": [],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "table": {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}},
}
_AS_TABLE: Final = [
    {"id": "merge", "options": {}},
    {"id": "organize", "options": {"excludeByName": {"Time": True}}},
]
