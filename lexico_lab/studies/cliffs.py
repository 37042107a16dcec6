"""Whether codec lexico-residual falls off a cliff: hard caches against plain ones.

    python -m lexico_lab.studies.cliffs [--data FOLDER] [--texts 12] [--long-texts 8]
                                        [--only NAME ...]

SmolLM2-135M and models made from it (`cliff_models`), WikiText-2 test, presets near, balanced
and small, everything through real frames in pages of 64 tokens. KL is from the predictions of a
model's exact cache to those of its reloaded one. A case's `ratio` is its KL over the KL of the
plain case at the same preset; below `LIMIT` there is no cliff. The cases:

- key outliers: channels of 30 times the median norm, in every KV head;
- constant keys: one layer whose keys before RoPE are all the same;
- head_dim 128: KV heads of twice the width;
- long context: a prefix of 7,936 tokens, so that the whole is the model's longest;
- 8th reload: a conversation whose pages were coded on top of coded pages.

A set belongs to a model. The first three cases have sets of their own, trained on a small sample;
their plain case is the plain model with a set of the same sample. What the built-in set does to a
model that it was not trained on is shown beside them, and decides nothing. A set is calibrated to
the KL of its presets, so hard caches may show in bytes: `bytes_ratio_at_kl` has the bytes a token
at the plain case's KL, over the plain case's, where the presets reach that KL.

Sets and points are kept in the state folder: a run that stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lexico_codec.sets.transform import QUALITIES
from lexico_lab.evaluation.curves import curve, fraction_at
from lexico_lab.models import quiet
from lexico_lab.record import finish, gate, machine, table
from lexico_lab.studies.cliff_points import BUILT_IN, OWN, Models, Point, Points
from lexico_lab.studies.texts import DATA

LIMIT: Final = 1.5


@dataclass(frozen=True)
class Case:
    """What is compared: two ways to come to a point a text, `plain` the easy one."""

    name: str
    set_name: str
    """`OWN` or `BUILT_IN`."""
    model: str = "plain"
    kind: str = "prefix"
    """prefix: reload and continue; long: the same after a long prefix; turns; first turn."""
    decides: bool = True


CASES: Final = (
    Case("key outliers", OWN, "outliers"),
    Case("constant keys", OWN, "constant"),
    Case("head_dim 128", OWN, "wide"),
    Case("long context", BUILT_IN, kind="long"),
    Case("8th reload, against coded once", BUILT_IN, kind="turns"),
    Case("8th reload, against the first", BUILT_IN, kind="first turn"),
    Case("key outliers, built-in set", BUILT_IN, "outliers", decides=False),
    Case("constant keys, built-in set", BUILT_IN, "constant", decides=False),
)


def compare(hard: Sequence[Point], plain: Sequence[Point]) -> dict[str, float]:
    """KL of both and their ratio: of means over the same texts, its standard error by the delta
    method.
    """
    ours, theirs = [one["kl"] for one in hard], [one["kl"] for one in plain]
    mean, base, texts = statistics.mean(ours), statistics.mean(theirs), len(ours)
    ratio = mean / base
    left = [a - ratio * b for a, b in zip(ours, theirs, strict=True)]
    many = texts > 1
    spread = (sum(x * x for x in left) / (texts * (texts - 1))) ** 0.5 if many else 0.0
    return {
        "kl": mean,
        "kl_standard_error": statistics.stdev(ours) / texts**0.5 if many else 0.0,
        "kl_plain": base,
        "ratio": ratio,
        "ratio_standard_error": spread / base,
        "texts": texts,
    }


def rows_of(case: Case, points: Points) -> list[dict[str, Any]]:
    """A row a preset."""
    kind = "turns" if case.kind == "first turn" else case.kind
    hard = points.of(case.model, case.set_name, kind)
    if any("refused" in point for ones in hard.values() for point in ones):
        refused = [_refused(case, quality, hard[quality]) for quality in QUALITIES]
        if case.decides:
            named = ", ".join(f"{row['preset']} {row['refused']}" for row in refused)
            raise SystemExit(f"{case.name}: texts refused of {refused[0]['texts']}: {named}")
        return refused
    if kind == "turns":
        against = "kl_first" if case.kind == "first turn" else "kl_once"
        plain = {
            quality: [{**one, "kl": one[against]} for one in ones] for quality, ones in hard.items()
        }
    else:
        plain = points.of("plain", case.set_name, "short" if kind == "long" else kind)

    def mean(one: Sequence[Point], key: str) -> float:
        return statistics.mean(point[key] for point in one)

    reached = curve((mean(one, "token_bytes"), mean(one, "kl")) for one in hard.values())
    rows = []
    for quality in QUALITIES:
        compared = compare(hard[quality], plain[quality])
        size = mean(plain[quality], "token_bytes")
        at_kl = fraction_at(reached, compared["kl_plain"])
        rows.append(
            {
                "case": case.name,
                "preset": quality,
                **compared,
                "fraction": mean(hard[quality], "fraction"),
                "bytes_ratio": mean(hard[quality], "token_bytes") / size,
                "bytes_ratio_at_kl": at_kl / size if at_kl is not None else None,
                "decides": case.decides,
            }
        )
    return rows


def _refused(case: Case, quality: str, hard: Sequence[Point]) -> dict[str, Any]:
    """A row without figures: how many of the texts the codec refused to code with the set."""
    refused = sum("refused" in point for point in hard)
    return {
        "case": case.name,
        "preset": quality,
        "refused": refused,
        "texts": len(hard),
        "decides": False,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--long-texts", type=int, default=8, help="of the long context")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of cases' names")
    parser.add_argument("--no-gate", action="store_true")
    parser.add_argument("--state", type=Path, default=Path(".cache/cliffs"))
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/unit/test_cliffs.py", "tests/contract/test_codec_residual*.py")
    described = machine()
    quiet()
    options.state.mkdir(parents=True, exist_ok=True)
    models = Models(options.data, options.state)
    points = Points(models, options.data, options.state, options.texts, options.long_texts)
    chosen = [case for case in CASES if any(part in case.name for part in options.only)]
    rows = [row for case in chosen for row in rows_of(case, points)]
    print(table([row for row in rows if "refused" not in row]))
    if options.only == [""]:
        finish("cliffs", {**summary(rows), "rows": rows}, described)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The ratios of the rows that decide, and the largest."""
    ratios = {f"{row['case']} {row['preset']}": row["ratio"] for row in rows if row["decides"]}
    return {"worst_ratio": max(ratios.values()), "limit": LIMIT, "ratios": ratios}


if __name__ == "__main__":
    main()
