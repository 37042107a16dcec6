"""Atoms of codec lexico-residual, and the entropy tables of what they leave."""

from __future__ import annotations

from functools import cache, partial
from typing import Final

import torch
from torch import Tensor

from lexico_codec.codecs.residual import energies
from lexico_codec.kernels.pursuit.coding import encode, reconstruct
from lexico_codec.sets.transform import CLASSES_AN_OCTAVE, COEFFICIENT_STEPS, classes_of
from lexico_lab.training.counts import Counts
from lexico_lab.training.fit_settings import FitSettings, Progress
from lexico_lab.training.learn import LearnSettings, learn
from lexico_lab.training.rounding import in_steps

_PAGE: Final = 64  # tokens that energies are measured over
_STEPS: Final = tuple(2.0**k for k in (-2, -1, 0, 1, 2))  # that tables are counted at, relative


def fit_atoms(
    samples: list[tuple[Tensor, Tensor]], settings: FitSettings, step: float
) -> dict[str, Tensor]:
    """Atoms over the first components, and deviations of what they leave and of coefficients.

    Deviations are those of a gain of 0, as a token's gain is added to their classes.

    Args:
        samples: components `[C, tokens]` with their gains, and these `[tokens]`.
    """
    width = min(settings.width, len(samples[0][0]))
    vectors = torch.cat([scaled[:width] for scaled, _ in samples], 1).T.contiguous()
    gains = torch.cat([of for _, of in samples])
    bare = torch.exp2(-gains.float() / CLASSES_AN_OCTAVE)[:, None]
    atoms_wanted = min(settings.atoms, len(vectors) // 8)
    sparsity = min(settings.sparsity, atoms_wanted, width)
    if not sparsity:
        return {
            "atoms": torch.zeros(0, width, dtype=torch.int8),
            "remaining": _deviations((vectors * bare).T),
            "coefficients": torch.zeros(0),
        }
    held = vectors[:: max(1, len(vectors) // 2000)]
    how = LearnSettings(atoms_wanted, sparsity, settings.vectors, 8192, settings.seed)
    weights, rounding = _even_saving(vectors, step), in_steps(COEFFICIENT_STEPS * step)
    learned = learn(vectors, held, how, weights, rounding=rounding).atoms.float()
    stored = (learned * (127 / learned.abs().amax(1, keepdim=True))).round().to(torch.int8)
    atoms = stored.float() / stored.float().norm(dim=1, keepdim=True)
    left, coefficients = _take_off(vectors, atoms, sparsity, step)
    return {
        "atoms": stored,
        "remaining": _deviations((left * bare).T),
        "coefficients": _deviations((coefficients * bare).T),
    }


def _take_off(vectors: Tensor, atoms: Tensor, sparsity: int, step: float) -> tuple[Tensor, Tensor]:
    """What atoms with rounded coefficients leave of `[n, m]`, and the coefficients `[n, s]`."""
    codes = encode(vectors, atoms, sparsity)
    rounded = in_steps(COEFFICIENT_STEPS * step)(codes, vectors, atoms)
    return vectors - reconstruct(rounded, atoms), rounded.coefficients


def _even_saving(vectors: Tensor, step: float) -> Tensor:
    """Weights `[n]` by which learning counts bits: an atom that takes off a given share of a vector
    saves as many, be it loud or not, unless it is lost in the noise of the step.
    """
    noise = vectors.shape[1] * step**2
    weights = 1 / (vectors.square().sum(1) + noise)
    return weights / weights.mean()


def count_levels(
    counts: Counts,
    samples: list[tuple[Tensor, Tensor]],
    deviations: Tensor,
    atoms: dict[str, Tensor],
    guess: float,
    progress: Progress,
) -> None:
    """Counts the levels of components, atoms taken off, at several steps in turn.

    Twice over: the levels that are chosen depend on the tables, which are then made again from what
    was chosen with those of the first time.
    """
    left = deviations.clone()
    width, sparsity = len(atoms["remaining"]), len(atoms["coefficients"])
    if sparsity:
        left[:width] = atoms["remaining"]
    unit = atoms["atoms"].float()
    unit = unit / unit.norm(dim=1, keepdim=True)
    all_deviations = torch.cat([atoms["coefficients"] / COEFFICIENT_STEPS, left])
    trial = Counts()
    for to, tables in (
        (trial, partial(trial.tables, shifted=False)),
        (counts, cache(trial.tables)),
    ):
        for number in progress(range(len(samples)), "tables"):
            (scaled, gains), step = samples[number], guess * _STEPS[number % len(_STEPS)]
            rest = scaled.clone()
            coefficients = rest[:0]
            if sparsity:
                some, found = _take_off(scaled[:width].T.contiguous(), unit, sparsity, step)
                rest[:width], coefficients = some.T, found.T / COEFFICIENT_STEPS
            values = torch.cat([coefficients, rest]) / step
            bare = scaled * torch.exp2(-gains.float() / CLASSES_AN_OCTAVE)
            classes = classes_of(all_deviations, step, counts.classes)
            for page in range(0, len(gains), _PAGE):
                at = slice(page, page + _PAGE)
                told = energies.measure(bare[:, at], deviations, step)
                louder = classes.clone()
                louder[sparsity:] += energies.spread(told.bands, len(deviations))
                to.add(values[:, at], louder, gains[at] + told.tokens, tables())


def _deviations(rows: Tensor) -> Tensor:
    return rows.double().square().mean(1).sqrt().float().clamp(min=1e-30)
