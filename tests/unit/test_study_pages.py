"""The plot and the tables that `studies.pages` writes, from made-up results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from pkgutil import iter_modules
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from lexico_lab import published
from lexico_lab.evaluation.report import palette
from lexico_lab.published import eviction, methods, titles
from lexico_lab.studies import freed, pages, plot, quality
from lexico_lab.studies.pages import filled, write
from lexico_lab.studies.plot import plot_of
from lexico_lab.studies.shipped_table import tables_of
from lexico_lab.studies.shown import methods_of
from lexico_lab.studies.tables import cliffs_table_of, presets_table_of, table_of
from tests.support.eval_document import DOCUMENT

SVG = "{http://www.w3.org/2000/svg}"
SCALES = {
    "lexico-residual": 0.3,
    "lexico": 1.0,
    "kivi": 1.2,
    "own<way>": 1.5,
    "snapkv": 2.0,
    "snapkv + lexico": 0.9,
}
"""Bytes of each method, in those of another."""
NAMES = {
    ("lexico-residual", 4): "lexico-residual near",
    ("lexico-residual", 2): "lexico-residual balanced",
    ("lexico-residual", 1): "lexico-residual small",
    ("lexico", 4): "lexico s=8",
}
"""Of the settings that are presets."""


def measured(scales: dict[str, float] = SCALES) -> dict[str, Any]:
    rows = [
        {
            "method": method,
            "coder": NAMES.get((method, step), f"{method} {step}"),
            "fraction": scale * 0.05 * step,
            "kl": 0.1 / step**2,
            "kl_standard_error": 0.001,
            "nll": 3.0,
            "nll_exact": 2.9,
        }
        for method, scale in scales.items()
        for step in (1, 2, 4)
    ]
    return {"texts": 12, "points": rows, **quality.summary(rows)}


def result() -> dict[str, Any]:
    return {
        "benchmark": "quality",
        "continuation": 256,
        "wikitext2": measured(),
        "gsm8k": measured({name: 1.1 * scale for name, scale in SCALES.items()}),
        "machine": {"cores": 2},
    }


def hard_result() -> dict[str, Any]:
    rows = [
        {
            "case": case,
            "preset": preset,
            "ratio": 1.0 + number / 10,
            "ratio_standard_error": 0.05,
            "bytes_ratio": 1.25,
            "decides": case == "key outliers",
        }
        for case in ("key outliers", "constant keys")
        for number, preset in enumerate(("near", "small"))
    ]
    return {"benchmark": "cliffs", "worst_ratio": 1.1, "rows": rows}


def folder(tmp_path: Path) -> Path:
    page = (
        "# Quality\n\n<!-- quality:table -->\nold\n<!-- /quality:table -->\n\n"
        "<!-- eval:table -->\nold\n<!-- /eval:table -->\n\n"
        "<!-- cliffs:table -->\nold\n<!-- /cliffs:table -->\n\nafter\n"
    )
    (tmp_path / "quality.md").write_text(page, encoding="utf-8")
    presets = "# Presets\n\n<!-- presets:table -->\n<!-- /presets:table -->\n"
    (tmp_path / "presets.md").write_text(presets, encoding="utf-8")
    return tmp_path


def texts_of(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines_of(svg: str) -> list[str]:
    """The colours of lines in the panels, in the order in which they are drawn."""
    drawn = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="fill: none; ([^"]*)"', svg)
    found = [re.search(r"stroke: (#\w+)", style) for style in drawn]
    return [one[1] for one in found if one is not None and one[1] != palette.GRID]


def test_every_method_has_a_title_and_is_compared() -> None:
    modules = {module.name for module in iter_modules(published.__path__)}
    assert [*methods.CODERS] == [*titles.CODERS]
    assert set(methods.CODERS) <= modules
    assert set(eviction.USUAL) == set(freed.SHARES) <= set(titles.EVICTIONS)


def test_ours_come_first_and_evictions_last() -> None:
    shown = [(one.name, one.group) for one in methods_of(reversed(SCALES))]
    assert shown == [
        ("lexico-residual", 0),
        ("lexico", 0),
        ("kivi", 1),
        ("own<way>", 1),
        ("snapkv", 2),
        ("snapkv + lexico", 3),
    ]


def test_no_two_methods_look_alike() -> None:
    """Ours have one colour, and lines of their own."""
    ours = methods_of(titles.OURS)
    assert len({(one.colour, one.dashes) for one in ours}) == len(ours) == len(titles.OURS)


def test_an_eviction_has_one_colour_alone_and_coded() -> None:
    alone, coded = methods_of(["snapkv", "snapkv + lexico"])
    assert alone.colour == coded.colour
    assert alone.dashes != coded.dashes


def test_the_best_evictions_are_drawn_and_the_table_has_all() -> None:
    scales = {"lexico": 1.0, "snapkv": 2.0, "tova": 2.5, "kvzip": 1.5, "kvzip + lexico": 0.9}
    scales |= {"kvzip + lexico-residual": 0.2, "tova + lexico-residual": 0.3}
    made = {"wikitext2": measured(scales)}
    svg = plot_of(made)
    assert len(lines_of(svg)) == 1 + plot.DRAWN
    texts = set(texts_of(svg))
    assert {"KVzip", "KVzip + lexico", "KVzip + lexico-residual"} <= texts
    table = table_of(made)
    assert "TOVA + lexico-residual" not in texts, "one is drawn of those that are nearly ours"
    names = ("SnapKV", "TOVA", "KVzip + lexico-residual", "TOVA + lexico-residual")
    assert all(f"| {name} |" in table for name in names)


def test_an_eviction_that_never_comes_near_is_not_drawn_for_it() -> None:
    part = measured(dict.fromkeys(("snapkv", "tova", "kvzip", "keydiff"), 1.0))
    for row in part["points"]:
        row["kl"] += row["method"] == "snapkv"
    assert "SnapKV" not in texts_of(plot_of({"wikitext2": part}))


def test_table_has_a_row_a_method_and_the_lead() -> None:
    table = table_of(result())
    assert "| WikiText-2, 12 texts: KL | 0.005 | 0.01 | 0.02 | 0.035 |" in table
    assert "| GSM8K, 12 texts: KL |" in table
    assert "| **lexico-residual** | – | 5.0 |" in table
    assert "| KIVI | – | 19.9 |" in table
    assert "| SnapKV + lexico | – | 14.9 |" in table
    assert "| lead | – | 4.0 |" in table


def test_cliffs_have_a_row_a_case_and_a_column_a_preset() -> None:
    table = cliffs_table_of(hard_result())
    assert table.splitlines()[0].endswith("| near | small |")
    assert "| key outliers | 1.00 ± 0.05; 1.25 | 1.10 ± 0.05; 1.25 |" in table
    assert "| *constant keys* |" in table  # decides nothing


def test_a_cell_of_a_refused_set_says_so_in_place_of_figures() -> None:
    refused = {"case": "foreign set", "refused": 5, "texts": 8, "decides": False}
    made = hard_result()
    made["rows"] += [{**refused, "preset": preset} for preset in ("near", "small")]
    table = cliffs_table_of(made)
    assert table.endswith("\n| *foreign set* | refused, 5 of 8 | refused, 5 of 8 |")
    assert "| key outliers | 1.00 ± 0.05; 1.25 |" in table


def test_plot_is_sound_and_draws_ours_last() -> None:
    svg = plot_of(result())
    lines = lines_of(svg)
    assert len(lines) == 2 * len(SCALES)
    assert lines[len(SCALES) - 2 : len(SCALES)] == [palette.OURS] * 2
    marks = [*ElementTree.fromstring(svg).iter(f"{SVG}use")]
    assert len(marks) == 2 * 3 * len(SCALES)
    told = [title.text for mark in marks for title in mark.iter(f"{SVG}title")]
    assert len(told) == len(marks)
    assert "own<way> 2: 15.0 %, KL 0.025" in told
    assert {"WikiText-2", "GSM8K", "KIVI", "own<way>"} <= set(texts_of(svg))


def test_plot_needs_nothing_from_elsewhere() -> None:
    svg = plot_of(result())
    assert "prefers-color-scheme:dark" in svg
    assert not [word for word in ("<script", "@import", "@font-face", "data:") if word in svg]
    referred = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', svg)
    ids = {element.get("id") for element in ElementTree.fromstring(svg).iter()}
    assert referred
    assert {(one or other).removeprefix("#") for one, other in referred} <= ids
    assert re.findall(r'https?://[^"]*', svg) == ["http://www.w3.org/2000/svg"]


def test_equal_results_give_equal_bytes_whatever_the_users_style(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    svg = plot_of(result())
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert svg == plot_of(json.loads(json.dumps(result())))
    assert matplotlib.rcParams["font.size"] == 30


def test_a_lossless_setting_is_left_out_of_the_plot_alone() -> None:
    part = measured()
    part["points"].append({"method": "raw", "coder": "raw", "fraction": 1.0, "kl": 0.0})
    part["bytes_at_kl"]["raw"] = dict.fromkeys(part["lead"])
    assert "raw" not in texts_of(plot_of({"wikitext2": part}))
    assert "| **raw** | – | – | – | – |" in table_of({"wikitext2": part})


def test_presets_have_a_row_each() -> None:
    heads, _, *rows = presets_table_of(result()).split("\n")
    assert heads.startswith("| preset | WikiText-2: KL | WikiText-2: % of fp16 | GSM8K: KL |")
    assert rows[0] == "| `near` | 0.0063 ± 0.0010 | 6.0 | 0.0063 ± 0.0010 | 6.6 |"
    assert [row.split("`")[1] for row in rows] == ["near", "balanced", "small", "paper"]


def test_check_changes_nothing_and_writing_settles_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "page_of", lambda report: f"<p>{report['settings']['turns']}</p>")
    docs = folder(tmp_path)
    results, page = tmp_path / "results", docs / "quality.md"
    before = page.read_text(encoding="utf-8")
    results.mkdir()
    made = {"quality": result(), "cliffs": hard_result(), "eval": {"report": DOCUMENT}}
    for name, one in made.items():
        (results / f"{name}.json").write_text(json.dumps(one), encoding="utf-8")
    changed = ["quality.md", "presets.md", "quality.svg", "eval-smollm2.html"]
    assert write(results, docs, check=True) == changed
    assert page.read_text(encoding="utf-8") == before
    assert not (docs / "quality.svg").exists()
    assert write(results, docs) == changed
    assert write(results, docs, check=True) == []
    assert (docs / "eval-smollm2.html").read_text(encoding="utf-8") == "<p>2</p>"
    after = page.read_text(encoding="utf-8")
    assert after.endswith("<!-- /cliffs:table -->\n\nafter\n")
    for table in (table_of(result()), tables_of(DOCUMENT), cliffs_table_of(hard_result())):
        assert f"\n\n{table}\n\n" in after


def test_without_a_result_the_page_says_so(tmp_path: Path) -> None:
    docs = folder(tmp_path)
    assert write(docs / "none", docs) == ["quality.md", "presets.md"]
    assert "Not measured yet." in (docs / "presets.md").read_text(encoding="utf-8")
    assert (docs / "quality.md").read_text(encoding="utf-8").count("Not measured yet.") == 3
    assert not (docs / "quality.svg").exists()
    assert not (docs / "eval-smollm2.html").exists()


@pytest.mark.parametrize(
    "text",
    ["", "<!-- quality:table -->", "<!-- /quality:table --><!-- quality:table -->"],
)
def test_a_page_without_both_markers_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="quality:table"):
        filled(text, "table")
