"""The table of conversations and retrieval that `studies.shipped` makes of a report."""

from __future__ import annotations

import copy

from lexico_codec.geometry import Geometry
from lexico_lab.evaluation.peers import load_peers
from lexico_lab.evaluation.ways import _requested
from lexico_lab.studies.shipped import PEERS, WAYS
from lexico_lab.studies.shipped_table import tables_of
from tests.support.eval_document import DOCUMENT


def test_a_row_a_method_and_the_exact_cache() -> None:
    heads, rule, near, kivi, exact = tables_of(DOCUMENT).split("\n")
    assert heads.startswith("| a.txt, 3 texts | bytes % | KL | reload 1 | reload 2 |")
    assert {line.count("|") for line in (heads, rule, near, kivi, exact)} == {11}
    assert near == (
        "| **near** | 4.6 | 0.0051 | 0.0040 | 0.0060 | 0.0050 | 48 % | 100 % | 0.25 | 0.07 |"
    )
    assert kivi == "| KIVI | 25.1 | 0 | 0.0100 | 0.0200 | 0.0300 | – | – | – | – |"
    assert exact == "| *exact cache* | 100.0 | 0 | 0 | 0 | 0 | 78 % | – | – | – |"


def test_what_a_method_lacks_is_left_open() -> None:
    document = copy.deepcopy(DOCUMENT)
    (source,) = document["sources"]
    source["turns"] = [row for row in source["turns"] if row["name"] != "KIVI"]
    source["retrieval"] = []
    _, _, near, kivi, exact = tables_of(document).split("\n")
    assert "| 0.0040 | 0.0060 | 0.0050 | – | – |" in near
    assert kivi == "| KIVI | 25.1 | 0 | – | – | – | – | – | – | – |"
    assert exact.endswith("| – | – | – | – |")


def test_what_is_asked_for_is_there() -> None:
    geometry = Geometry(30, 3, 64, "float16")
    assert [len(_requested(way, geometry)[1]) for way in WAYS] == [1] * len(WAYS)
    assert sorted(one.name for one in load_peers(PEERS)) == sorted(PEERS)
