"""`lexico eval` of what ships: SmolLM2-135M, its built-in sets, WikiText-2 test and GSM8K.

    python -m lexico_lab.studies.shipped [--data FOLDER] [--texts 8] [--state FOLDER]

All figures but those of single texts go to results/eval.json; `python -m lexico_lab.studies.pages`
makes docs/eval-smollm2.html and docs/quality.md's tables of them. Published methods learn from
WikiText-2 validation text, as the sets did. A run that stopped goes on; remove the state folder
after a change of codec or evaluator.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Final

import torch

from lexico_lab.evaluation.run import evaluate
from lexico_lab.evaluation.settings import EvalSettings
from lexico_lab.machine import threads
from lexico_lab.models import quiet
from lexico_lab.record import finish, gate, machine
from lexico_lab.studies.shipped_table import lines_of
from lexico_lab.studies.texts import DATA

WAYS: Final = ("near", "balanced", "small", 'lexico-packed:{"sparsity":8}', "paper")
PEERS: Final = ("KVTC 5 %", "KIVI 3 bit, groups of 64")


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
            "tests/unit/test_evaluation_refusals.py",
            "tests/unit/test_evaluation_report.py",
        )
    described = machine()
    torch.set_num_threads(threads())
    quiet()
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
    for source in document["sources"]:
        del source["per_text"]
        print("\n" + "\n".join(lines_of(document, source)))
    finish("eval", {"threads": torch.get_num_threads(), "report": document}, described)


if __name__ == "__main__":
    main()
