"""`lexico eval` of what ships: SmolLM2-135M, its built-in sets, WikiText-2 test and GSM8K.

    python -m bench.eval [--data FOLDER] [--texts 8] [--state FOLDER]

The whole report goes to docs/eval-smollm2.html, its figures but those of single texts to
results/eval.json; `python -m bench.quality_plot` makes docs/quality.md's table of them. Published
methods learn from WikiText-2 validation text, as the sets did. A run that stopped goes on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from bench.fidelity import DATA
from bench.report import finish, gate, machine
from lexico_codec.evaluation.run import REPORT, evaluate
from lexico_codec.evaluation.settings import EvalSettings

WAYS: Final = ("near", "balanced", "small", 'lexico-packed:{"sparsity":8}', "paper")
PEERS: Final = ("KVTC 5 %", "KIVI 3 bit, groups of 64")
PAGE: Final = Path(__file__).parent.parent / "docs" / "eval-smollm2.html"
SOURCES: Final = {"test.raw.txt": "WikiText-2", "train.jsonl": "GSM8K"}
_HEADS: Final = (
    *("bytes %", "KL", "reload 1", "reload 8", "8, coded once"),
    *("asked at once", "in turns", "encode", "decode"),
)


def main() -> None:
    """Runs the evaluation and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--no-gate", action="store_true")
    parser.add_argument("--state", type=Path, default=Path(".cache/eval"))
    options = parser.parse_args()
    if not options.no_gate:
        gate(
            "tests/unit/test_evaluation_measures.py",
            "tests/unit/test_evaluation_peers.py",
            "tests/unit/test_evaluation_report.py",
        )
    described = machine()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    transformers.utils.logging.disable_progress_bar()
    options.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        settings = EvalSettings(
            model="smollm2",
            sources=(
                options.data / "wikitext2" / "test.raw.txt",
                options.data / "gsm8k" / "train.jsonl",
            ),
            out=Path(scratch),
            state=options.state,
            codecs=WAYS,
            texts=options.texts,
            peer=PEERS,
            peer_text=options.data / "wikitext2" / "valid.txt",
        )
        document = evaluate(settings)
        PAGE.write_bytes((settings.out / REPORT).read_bytes())
    for source in document["sources"]:
        del source["per_text"]
        print(f"\n{source['name']}\n" + "\n".join(lines_of(document, source)))
    finish("eval", {"threads": torch.get_num_threads(), "report": document}, described)


def tables_of(document: Mapping[str, Any]) -> str:
    """Markdown: a table a source, a row a method."""
    parts = []
    for source in document["sources"]:
        title = SOURCES.get(source["name"], source["name"])
        parts.append("\n".join(lines_of(document, source, f"{title}, {source['texts']} texts")))
    return "\n\n".join(parts)


def lines_of(
    document: Mapping[str, Any], source: Mapping[str, Any], title: str = ""
) -> Iterator[str]:
    """Lines of one source's table."""
    yield f"| {title} | {' | '.join(_HEADS)} |"
    yield "|---" * (len(_HEADS) + 1) + "|"
    last = document["settings"]["turns"]
    ours = {row["name"] for row in document["ways"] if row["ours"]}
    for row in source["fidelity"]:
        name = row["name"]
        turns = {turn["turn"]: turn for turn in source["turns"] if turn["name"] == name}
        cells = [f"{100 * row['fraction']['mean']:.1f}", _number(row["kl"])]
        cells += [_number(turns[1]["kl"]), _number(turns[last]["kl"])]
        cells.append(_number(turns[last]["kl_once"]))
        cells += [_right(source, name, mode) for mode in ("requests", "turns")]
        cells += [_time(document, source, name, part) for part in ("encode", "decode")]
        shown = f"**{name}**" if name in ours and name != "raw" else name
        yield f"| {shown} | {' | '.join(cells)} |"
    right = [_right(source, "exact cache", mode) for mode in ("requests", "turns")]
    yield f"| *exact cache* | 100.0 | 0 | 0 | 0 | 0 | {' | '.join(right)} | – | – |"


def _right(source: Mapping[str, Any], name: str, mode: str) -> str:
    """Share of questions of both kinds that were answered right."""
    rows = [row for row in source["retrieval"] if (row["name"], row["mode"]) == (name, mode)]
    asked = sum(row["questions"] for row in rows)
    right = sum(row["right"]["mean"] * row["questions"] for row in rows)
    return f"{100 * right / asked:.0f} %" if asked else "–"


def _time(document: Mapping[str, Any], source: Mapping[str, Any], name: str, part: str) -> str:
    """Over that of prefilling."""
    for row in document["times"]:
        if (row["name"], row["source"]) == (name, source["name"]):
            return f"{row[part]['mean']:.2f}"
    return "–"


def _number(value: Mapping[str, float]) -> str:
    return "0" if value["mean"] < 1e-6 else f"{value['mean']:.4f}"


if __name__ == "__main__":
    main()
