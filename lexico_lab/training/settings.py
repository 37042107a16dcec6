"""What is asked of a training run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lexico_lab.training.fit_settings import FitSettings
from lexico_lab.training.learn import LearnSettings
from lexico_lab.training.sample import WINDOW_LENGTHS
from lexico_proto.errors import ConfigurationError

LEXICO: Final = "lexico"
PACKED: Final = "lexico-packed"
RESIDUAL: Final = "lexico-residual"
TRAINED: Final = (RESIDUAL, PACKED, LEXICO)
"""Codecs that sets are trained for, in the order in which one run makes them."""

_CHARACTERS_A_TOKEN: Final = 32  # at most; a text has 3 to 5


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One set to make."""

    model: str
    """`smollm2`, a folder, or a name on the hub."""
    text: Path
    """UTF-8 text to sample."""
    out: Path
    """The artefact."""
    state: Path
    """Folder of what is done so far; a few GB of samples."""
    learn: LearnSettings = field(default_factory=LearnSettings)
    """How dictionaries are learned; not for lexico-residual."""
    fit: FitSettings = field(default_factory=FitSettings)
    """How a transform is fitted; for lexico-residual alone."""
    tokens: int = 240_000
    """Most tokens of the text that are used."""
    workers: int = 1
    """Dictionaries learned at once, one thread each, where no pool is given."""
    window_lengths: tuple[int, ...] = WINDOW_LENGTHS
    codec: str = LEXICO
    """Codec that the set is for: lexico, lexico-packed, whose keys are coded before RoPE, or
    lexico-residual, which has a transform."""
    importance: Path | None = None
    """For lexico-packed: a set for lexico-residual, which says how much errors cost where. None to
    measure it."""
    device: str = "cpu"
    """Where dictionaries are learned. The model runs where it was loaded."""

    def __post_init__(self) -> None:
        if self.codec not in TRAINED:
            raise ConfigurationError(
                f"codec {self.codec!r}: sets are trained for {', '.join(TRAINED)}"
            )
        if self.importance is not None and self.codec != PACKED:
            raise ConfigurationError(f"importance: codec {self.codec} makes no use of it")
        if self.workers < 1:
            raise ConfigurationError("workers: must be positive")

    def read_text(self) -> str:
        """As much of the text as `tokens` can take, so that memory does not grow with the rest.

        Raises:
            ConfigurationError: it cannot be read.
        """
        try:
            with self.text.open(encoding="utf-8") as f:
                return f.read(_CHARACTERS_A_TOKEN * max(1, self.tokens))
        except (OSError, UnicodeDecodeError) as e:
            why = getattr(e, "strerror", None) or e
            raise ConfigurationError(f"text {self.text}: cannot read ({why})") from e

    def check_target(self) -> None:
        """
        Raises:
            ConfigurationError: the artefact cannot be written.
        """
        if not self.out.parent.is_dir() or not os.access(self.out.parent, os.W_OK):
            raise ConfigurationError(f"out {self.out}: its folder cannot be written")
        if self.out.is_dir():
            raise ConfigurationError(f"out {self.out}: is a folder")

    @property
    def command(self) -> str:
        """The command that repeats the run, with file names for paths, which differ by machine."""
        how = self.fit if self.codec == RESIDUAL else self.learn
        codec = "" if self.codec == LEXICO else f" --codec {self.codec}"
        further = ""
        if self.codec == RESIDUAL:
            fit = self.fit
            further = f" --joint {fit.joint} --run-layers {fit.run_layers} --blocks {fit.blocks}"
        if self.importance is not None:
            further = f" --importance {self.importance.name}"
        return (
            f"lexico train{codec} --model {self.model} --text {self.text.name} "
            f"--out {self.out.name} --atoms {how.atoms} --sparsity {how.sparsity} "
            f"--seed {how.seed} --tokens {self.tokens} --vectors {how.vectors}{further}"
        )
