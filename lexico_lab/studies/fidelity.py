"""What codec lexico does to a model's predictions: KL on WikiText-2 test, with every stored byte
counted.

    python -m lexico_lab.studies.fidelity [--data FOLDER] [--texts 16] [--sparsity 8]

SmolLM2-135M. Of a 768-token prefix the first 4 tokens (sinks) and the last 32 (the tail that fills
no page) stay exact and the rest goes through real frames in float16. The next 256 tokens are then
predicted from that cache and from the uncompressed one: KL(uncompressed || compressed) in nats,
mean over tokens and texts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lexico_codec.sets.builtin import builtin_sets, load_builtin
from lexico_codec.sets.dictionary import DictionarySet
from lexico_lab.evaluation.fidelity import Quality, compare, predicted, through_frames
from lexico_lab.evaluation.prefixes import exact_text
from lexico_lab.evaluation.ways import Way, way_of
from lexico_lab.models import load_model, quiet
from lexico_lab.record import finish, gate, machine, table
from lexico_lab.studies.ours import PAPER_SET, stored_geometry
from lexico_lab.studies.texts import DATA, SPLIT, windows


@torch.inference_mode()
def measure(model: Any, ids: Sequence[int], ways: Sequence[Way]) -> dict[str, Quality]:
    """KL, NLL and bytes of one text for each way of storing it."""
    exact = exact_text(model, ids, SPLIT)
    found = {}
    for way in ways:
        made, shelf = through_frames(exact, way, SPLIT.coded)
        found[way.name] = compare(exact, predicted(model, exact, made), shelf.size)
    return found


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with wikitext2/")
    parser.add_argument("--set", default=None, help="artefact, or the name of a built-in set")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--sparsity", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/contract/test_codec_lexico.py", "tests/unit/test_omp.py")
    described = machine()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    quiet()
    loaded = load_model("smollm2")
    name = options.set or PAPER_SET
    built_in = name in builtin_sets()
    dictionary = load_builtin(name) if built_in else DictionarySet.load(name)
    path = options.data / "wikitext2" / "test.raw.txt"
    texts = windows(loaded.tokenizer, path, options.texts)
    geometry = stored_geometry(loaded.model)
    ways = [way_of("raw", "raw", {}, geometry, SPLIT.page_tokens)]
    for sparsity in options.sparsity:
        config = {"sparsity": sparsity}
        way = f"lexico s={sparsity}"
        ways.append(way_of(way, "lexico", config, geometry, SPLIT.page_tokens, dictionary))
    measured = [measure(loaded.model, ids, ways) for ids in texts]
    whole = SPLIT.coded * geometry.token_bytes
    rows: list[dict[str, Any]] = []
    for one in ways:
        mine = [text[one.name] for text in measured]
        kls = [text["kl"] for text in mine]
        rows.append(
            {
                "codec": one.name,
                "bytes fraction": statistics.mean(text["bytes"] for text in mine) / whole,
                "KL": statistics.mean(kls),
                "KL standard error": statistics.stdev(kls) / len(kls) ** 0.5,
                "NLL": statistics.mean(text["nll"] for text in mine),
                "NLL exact": statistics.mean(text["nll_exact"] for text in mine),
            }
        )
    print(table(rows))
    headline = rows[1]
    finish(
        "fidelity",
        {
            "kl": headline["KL"],
            "bytes_fraction": headline["bytes fraction"],
            "texts": len(texts),
            "sparsity": options.sparsity[0],
            "dictionary": dictionary.digest.hex(),
            "text_digest": hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(),
            "rows": rows,
        },
        described,
    )


if __name__ == "__main__":
    main()
