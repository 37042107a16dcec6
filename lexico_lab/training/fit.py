"""Fits the transform of codec lexico-residual to what `observe` wrote.

All passes read one window at a time. The last windows are held out of everything but choices.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from lexico_codec.sets.transform import (
    CLASSES_AN_OCTAVE,
    Transform,
    features,
)
from lexico_lab.training.counts import Counts
from lexico_lab.training.fit_atoms import count_levels, fit_atoms
from lexico_lab.training.fit_settings import FitSettings, Held, Progress, thinned
from lexico_lab.training.observe import GRADIENT_TOKENS, WINDOW_TOKENS, Observations

_RIDGE: Final = 0.02  # of each number's own Fisher information: the rest may be chance
_FLOOR: Final = 5e-4  # of a table's mean: what is never felt still counts a bit
_SIGNIFICANT: Final = 0.2  # share of components that decide what tokens and steps are weighed by
_RIDGE_OF_GAINS: Final = 3e-3
_GAIN_WINDOWS: Final = 128
_SAMPLE_BYTES: Final = 2 << 30  # of components that are kept for atoms and tables


def fit_bases(seen: Observations, settings: FitSettings, progress: Progress) -> dict[str, Tensor]:
    """Means, and the first transform of every table: whitened by the Fisher information, then
    turned so that its components are uncorrelated.
    """
    tables, width = 2 * seen.geometry.layers, seen.row // (2 * seen.geometry.layers)
    d = width // settings.blocks
    total = torch.zeros(tables * width, dtype=torch.float64)
    moment = torch.zeros(tables * settings.blocks, d, d)
    fisher = torch.zeros_like(moment)
    fitted = Held.of(len(seen.windows)).fitted
    tokens = 0
    near = seen.states(fitted[0]).float().mean(0)  # large means would drown what float32 adds up
    for window in progress(fitted, "moments"):
        x = seen.states(window).float() - near
        tokens += len(x)
        total += x.double().sum(0)
        _add_outer(moment, x, d)
        _add_outer(fisher, seen.gradients(window), d)
    off = (total / tokens).view(-1, d)
    covariance = moment.double() / tokens - off[:, :, None] * off[:, None]
    means = (near.double() + off.flatten()).float()
    fisher = fisher.double() / (len(fitted) * GRADIENT_TOKENS)
    felt = fisher.diagonal(dim1=1, dim2=2)
    level = felt.mean(1, keepdim=True).clamp(min=1e-300)
    fisher += torch.diag_embed(_RIDGE * felt + _FLOOR * level)
    values, vectors = torch.linalg.eigh(fisher)
    root = (vectors * values.sqrt()[:, None]) @ vectors.mT
    unroot = (vectors / values.sqrt()[:, None]) @ vectors.mT
    variances, turned = torch.linalg.eigh(root @ covariance @ root)
    bases = (unroot @ turned.flip(2)).view(tables, settings.blocks, d, d)
    scales = bases.abs().amax((1, 2, 3)) / 1024
    stored = (bases / scales[:, None, None, None]).half()
    return {
        "means": means.view(tables, seen.geometry.kv_heads, -1),
        "bases": stored,
        "scales": scales.float(),
        "variances": variances.flip(1).clamp(min=1e-30).float().view(tables, width),
    }


def fit_cross(
    seen: Observations, settings: FitSettings, bases: dict[str, Tensor], progress: Progress
) -> dict[str, Tensor]:
    """The second transform of every run, over the components that vary most."""
    runs = seen.geometry.layers // settings.run_layers
    variances = bases["variances"].view(runs, -1)
    joint = min(settings.joint, variances.shape[1])
    selected = variances.topk(joint).indices.sort().values
    if not joint:
        return {
            "selected": selected.to(torch.int32),
            "cross": torch.zeros(runs, 0, 0, dtype=torch.int8),
            "cross_scales": torch.zeros(runs, 0),
        }
    first = _bare(bases, selected[:, :0], torch.zeros(runs, 0, 0), settings)
    moments = torch.zeros(runs, joint, joint)
    for window in progress(Held.of(len(seen.windows)).fitted, "across layers"):
        for run, prepared in enumerate(_prepared(seen, window, runs)):
            z = first.analyse(run, prepared)[selected[run]]
            moments[run].addmm_(z, z.T)
    stored, scales = [], []
    for moment in moments:
        vectors = torch.linalg.eigh(moment).eigenvectors.flip(1)
        scale = vectors.abs().amax(0) / 127
        stored.append((vectors / scale).round().to(torch.int8))
        scales.append(scale)
    return {
        "selected": selected.to(torch.int32),
        "cross": torch.stack(stored),
        "cross_scales": torch.stack(scales),
    }


def fit_rest(
    seen: Observations,
    settings: FitSettings,
    bases: dict[str, Tensor],
    cross: dict[str, Tensor],
    progress: Progress,
) -> dict[str, Tensor]:
    """Order, gains, atoms and entropy tables, and a first guess of a step."""
    runs = seen.geometry.layers // settings.run_layers
    matrices = cross["cross"].float() * cross["cross_scales"][:, None]
    bare = _bare(bases, cross["selected"].long(), matrices, settings)
    some = Held.of(len(seen.windows)).some()
    squares = torch.zeros(runs, bare.order.shape[1], dtype=torch.float64)
    for window in progress(some, "deviations"):
        for run, prepared in enumerate(_prepared(seen, window, runs)):
            squares[run] += bare.analyse(run, prepared).double().square().mean(1)
    deviations, order = (squares / len(some)).sqrt().sort(1, descending=True)
    deviations = deviations.float().clamp(min=1e-30)
    variances = bases["variances"].flatten().sort(descending=True).values
    threshold = float(variances[int(_SIGNIFICANT * len(variances))])
    step = math.sqrt(threshold)
    counted = (bases["variances"] > threshold).sum(1).float()
    made: list[dict[str, Tensor]] = []
    counts = Counts()
    for run in range(runs):
        transform = replace(bare, order=order, deviations=deviations)
        gains = _fit_gains(seen, settings, transform, run, counted, progress)
        transform = replace(transform, gains=gains[None].expand(runs, -1))
        samples = []
        fewer = max(1, _SAMPLE_BYTES // (4 * WINDOW_TOKENS * order.shape[1]))
        for window in progress(thinned(some[::2], fewer), "components"):
            components = transform.analyse(run, _prepared(seen, window, runs)[run])
            of = transform.gains_of(run, components)
            samples.append((components * torch.exp2(of.float() / CLASSES_AN_OCTAVE), of))
        atoms = fit_atoms(samples, settings, step)
        count_levels(counts, samples, deviations[run], atoms, step, progress)
        made.append({"gains": gains, **atoms})
    tables = counts.tables()
    return {
        "order": order.to(torch.int32),
        "deviations": deviations,
        **{name: torch.stack([one[name] for one in made]) for name in made[0]},
        "frequencies": tables.frequencies.to(torch.int32),
        "shifts": tables.shifts.to(torch.int32),
        "points": tables.points,
        "guess": torch.tensor([step]),
    }


def _fit_gains(
    seen: Observations,
    settings: FitSettings,
    transform: Transform,
    run: int,
    counted: Tensor,
    progress: Progress,
) -> Tensor:
    """Weights that predict the logarithm of a token's Fisher information, by gamma regression.

    Args:
        counted: `[2 layers]`, how much the information of each table counts.
    """
    tables = 2 * transform.run_layers
    at = slice(run * tables, (run + 1) * tables)
    rows, wanted = [], []
    predictors = min(settings.predictors, transform.order.shape[1])
    windows = thinned(Held.of(len(seen.windows)).fitted, _GAIN_WINDOWS)
    for window in progress(windows, "gains"):
        prepared = _prepared(seen, window, transform.runs)[run][:, :, :GRADIENT_TOKENS]
        components = transform.analyse(run, prepared)
        rows.append(features(components, transform.deviations[run], predictors).half())
        felt = seen.gradients(window).T.reshape(*transform.bases.shape[:3], -1)[at]
        whitened = (transform.bases[at].mT @ felt).flatten(1, 2).square().mean(1)
        wanted.append(counted[at] @ whitened)
    x, y = torch.cat(rows, 1).float(), torch.cat(wanted)
    y = y / y.mean().clamp(min=1e-30)
    mean, deviation = x.mean(1), x.std(1).clamp(min=1e-3)
    x.sub_(mean[:, None]).div_(deviation[:, None])
    weights = torch.zeros(len(x) + 1, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=40, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        search.zero_grad()
        eta = (weights[:-1] @ x + weights[-1]).clamp(-8, 8)
        loss = (y * torch.exp(-eta) + eta).mean()
        loss = loss + _RIDGE_OF_GAINS * weights[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(cost)  # type: ignore[no-untyped-call]
    found = weights.detach()
    scaled = found[:-1] / deviation
    return torch.cat([scaled, (found[-1] - scaled @ mean)[None]])


def _add_outer(to: Tensor, rows: Tensor, d: int) -> None:
    """Adds `Σ x xᵀ` of `[tokens, blocks * d]` to `[blocks, d, d]`."""
    columns = rows.T.reshape(-1, d, len(rows))
    to.baddbmm_(columns, columns.mT)


def _prepared(seen: Observations, window: int, runs: int) -> Tensor:
    """`[runs, 2 run layers, D, tokens]` float32 of a window."""
    states = seen.states(window).float().T
    tables = 2 * seen.geometry.layers // runs
    return states.reshape(runs, tables, -1, states.shape[1])


def _bare(
    bases: dict[str, Tensor], selected: Tensor, cross: Tensor, settings: FitSettings
) -> Transform:
    """A transform of the first or of both stages, its components in their own order."""
    runs = len(selected)
    count = bases["variances"].numel() // runs
    scales = bases["scales"][:, None, None, None]
    return Transform(
        means=bases["means"],
        bases=bases["bases"].float() * scales,
        selected=selected,
        cross=cross,
        order=torch.arange(count).expand(runs, -1),
        deviations=torch.ones(runs, count),
        gains=torch.zeros(runs, 1),
        atoms=torch.zeros(runs, 0, 0),
        remaining=torch.zeros(runs, 0),
        coefficients=torch.zeros(runs, 0),
        tables=Counts().tables(),
        steps={},
    )
