"""`lexico train` with few and small sets, as options."""

from __future__ import annotations

import argparse
from pathlib import Path

from lexico_lab.training import options
from tests.support.saved_model import letters

NAMES = {
    "lexico-residual": "set-residual.safetensors",
    "lexico-packed": "set-packed.safetensors",
    "lexico": "set.safetensors",
}
"""Files of a run of all codecs, in the order in which they are made."""


def parsed(*words: str) -> argparse.Namespace:
    """The options of these words."""
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return parser.parse_args(list(words))


def asked(folder: Path, *more: str) -> argparse.Namespace:
    """A quick run of a text in the folder, on the CPU."""
    text = folder / "text.txt"
    text.write_text(letters(5 * 1024 + 100))
    words = ["--model", "tiny", "--text", str(text), "--out", str(folder / "set.safetensors")]
    few = ["--atoms", "16", "--sparsity", "2", "--vectors", "1500", "--workers", "1"]
    return parsed(*words, *few, "--device", "cpu", *more)
