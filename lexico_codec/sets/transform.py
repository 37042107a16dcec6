"""The learned transform of codec lexico-residual, as a dictionary set carries it.

A token's keys (before RoPE) and values in a run of layers are one long vector x. Its components are
brought to where an error of one means the same everywhere, and to where they do not depend on one
another:

1. Of each table (a layer's keys, or its values) the mean is removed and `z = B⁻¹ (x - mean)` taken.
   B whitens what the model's predictions feel: |z|² weighs an error of x as its mean effect on them
   does (`training.observe`), and the components of z are uncorrelated.
2. The components that vary most, over all tables of the run, pass through a second, orthogonal
   transform Q, which takes out what layers, keys and values have in common.

All components are then quantised with one step. What is coded of a token is its components ordered
by falling deviation, each multiplied by the token's own gain: tokens that many will attend to get a
finer step. The gain is predicted from the components themselves (`gains_of`), and stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lexico_codec.kernels.dispatch import choose_on_cpu
from lexico_codec.kernels.entropy.tables import Tables
from lexico_codec.kernels.forms import Forms
from lexico_codec.kernels.layout import compiled as layout
from lexico_codec.kernels.memory import TableMemory
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.synthesis import compiled, products
from lexico_codec.kernels.synthesis.compiled import (
    Arranged,
    Laid,
    PackedFactors,
    Shorts,
    panels_of,
    shorts_of,
)
from lexico_codec.kernels.synthesis.products import Factors
from lexico_proto.errors import InvalidInput, ShapeMismatch

QUALITIES: Final = ("near", "balanced", "small")
"""Names of the calibrated steps, finest first."""
CLASSES_AN_OCTAVE: Final = 3
"""Classes, and steps of a token's gain, that double a deviation."""
LEAST_OCTAVE: Final = -6
"""log2 of deviation over step in class 0: what varies less is not coded."""
GAINS: Final = range(-8, 8)
"""Of a token, in thirds of octaves: four bits."""
ENERGIES: Final = range(-4, 4)
"""Of a token, and of a band of components, in thirds of octaves: three bits, see `energies`."""
COEFFICIENT_STEPS: Final = 4
"""Steps of an atom's coefficient, in steps of components."""
_BAND_ENDS: Final = (0, 8, 32, 128, 512, 1024, 2048, 4096)
BANDS: Final = len(_BAND_ENDS)
"""Groups of components whose mean square is a feature."""
_FEATURE_LIMIT: Final = 6.0


@dataclass(frozen=True, slots=True, eq=False)
class Transform:
    """The transform of a model, all tensors on the CPU; not to be written to."""

    means: Tensor
    """`[2 layers, kv_heads, head_dim]` float32, keys' before values' of each layer."""
    bases: Tensor
    """`[2 layers, blocks, d, d]` float32: B, which gives x from z."""
    selected: Tensor
    """`[runs, R]` int64: components of a run in the second transform."""
    cross: Tensor
    """`[runs, R, R]` float32: Q, which gives z of `selected` from the second components."""
    order: Tensor
    """`[runs, C]` int64: components as they are coded."""
    deviations: Tensor
    """`[runs, C]` float32, of the components in that order: falling."""
    gains: Tensor
    """`[runs, F + 9]` float32: what predicts a token's gain, see `gains_of`."""
    atoms: Tensor
    """`[runs, N, m]` float32, unit rows."""
    remaining: Tensor
    """`[runs, m]` float32: deviations of the first components with the atoms taken off."""
    coefficients: Tensor
    """`[runs, s]` float32."""
    tables: Tables
    steps: dict[str, float]
    """Step of each quality."""
    _forms: Forms = field(default_factory=Forms, init=False, repr=False)

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return self.means.shape[0] // 2

    @property
    def runs(self) -> int:
        """How many runs of equally many layers there are."""
        return self.order.shape[0]

    @property
    def run_layers(self) -> int:
        """Layers that are coded together."""
        return self.layers // self.runs

    @property
    def sparsity(self) -> int:
        """Atoms a token and run, s."""
        return self.coefficients.shape[1]

    def means_of(self, run: int, device: torch.device) -> Tensor:
        """`[2 run_layers, D]` float32: the means of a run's tables."""
        means: Tensor = self._on("means", device, lambda: self.means.flatten(1))[self._tables(run)]
        return means

    def analyse(self, run: int, prepared: Tensor) -> Tensor:
        """Components `[C, tokens]` as they are coded, of `[2 run_layers, D, tokens]`.

        Args:
            run: which run of layers.
            prepared: float32, keys before RoPE, means not removed yet.
        """
        return self.components(run, prepared - self.means_of(run, prepared.device)[:, :, None])

    def components(self, run: int, centred: Tensor) -> Tensor:
        """As `analyse`, of tokens whose means are removed, in memory of any order."""
        on = centred.device
        tables, _, tokens = centred.shape
        blocks, d = self.bases.shape[1:3]
        bases = self._on("inverse", on, lambda: _inverse(self.bases))[self._tables(run)]
        if blocks == 1:
            z = torch.matmul(bases[:, 0], centred).view(-1, tokens)
        else:
            z = torch.matmul(bases, centred.reshape(tables, blocks, d, tokens)).view(-1, tokens)
        if self.selected.shape[1]:
            selected = self._on("selected", on, lambda: self.selected)[run]
            uncross = self._factor("uncross", on, lambda: _inverse(self.cross))[run]
            z[selected] = torch.matmul(uncross, z[selected].to(uncross.dtype)).to(z.dtype)
        ordered: Tensor = z[self._on("order", on, lambda: self.order)[run]]
        return ordered

    def synthesise(self, run: int, components: Tensor) -> Tensor:
        """`[2 run_layers, tokens, D]` float32 from the first components: inverse of `analyse`.

        Args:
            run: which run of layers.
            components: `[c, tokens]` float32, c <= C; those that are missing are zero.
        """
        on = components.device
        arranged = components.new_zeros(self.rows, components.shape[1])
        arranged[self.places(run, on)[: len(components)].long()] = components
        arranged = arranged.to(self.product_dtype(on))
        made = self.restored(run, arranged, len(components), kernel="naive")
        return made + self.means_of(run, on)[:, None]

    @property
    def rows(self) -> int:
        """Rows that `restored` takes: C, then one for each component of the second transform."""
        return self.order.shape[1] + self.selected.shape[1]

    def places(self, run: int, device: torch.device) -> Tensor:
        """`[C]` int32: where `restored` looks for each component as it is coded."""

        def make() -> Tensor:
            at = torch.arange(self.order.shape[1]).repeat(self.runs, 1)
            second = torch.arange(self.order.shape[1], self.rows).expand(self.runs, -1)
            at.scatter_(1, self.selected, second)
            return at.gather(1, self.order).to(torch.int32)

        return self._on("places", device, make)[run]

    def restored(
        self,
        run: int,
        arranged: Tensor,
        count: int,
        wanted: range | None = None,
        columns: slice | None = None,
        *,
        kernel: str | None = None,
    ) -> Tensor:
        """`[tables, tokens, D]` of the type of `arranged`, means not added yet.

        Args:
            run: which run of layers.
            arranged: `[rows, tokens]` of `product_dtype`, its components at `places`; overwritten.
            count: components from which on all are zero.
            wanted: consecutive tables of the run; None for all of them.
            columns: those of the D components of a table that are wanted; None for all of them.
            kernel: "compiled" or "naive" to force one.
        """
        wanted = wanted or range(2 * self.run_layers)
        among = range(*(columns or slice(None)).indices(self.means[0].numel()))
        kept = self._columns(run, count) if self.selected.shape[1] else 0
        on = arranged.device
        served = on.type == "cpu" and arranged.dtype == torch.float32
        if served and choose_on_cpu("synthesise", kernel) == "compiled":
            return compiled.synthesise(arranged, self._packed(run), kept, wanted, among)
        here = slice(None)  # of the rows that Q makes: they rise
        if len(wanted) < 2 * self.run_layers:  # found on the CPU: a device would be waited for
            size = self.means[0].numel()
            ends = [wanted.start * size, wanted.stop * size]
            here = slice(*np.searchsorted(self.selected[run].numpy(), ends))
        factors = Factors(
            self._on("selected", on, lambda: self.selected)[run, here],
            self._factor("cross", on, lambda: self.cross)[run, here],
            self._factor("turned bases", on, lambda: self.bases.mT.contiguous())[self._tables(run)],
        )
        return products.synthesise(arranged, factors, kept, wanted, among)

    def restores(self, memory: TableMemory) -> bool:
        """Whether `restore` serves a memory."""
        on = memory.device
        if self.product_dtype(on) != torch.float32 or not layout.serves(memory):
            return False
        return choose_on_cpu("synthesise", None) == "compiled"

    def restore(
        self, run: int, arranged: Arranged, count: int, wanted: range, columns: slice, laid: Laid
    ) -> None:
        """`restored` and `layout.scatter` in one, into memory that it `restores`.

        Args:
            run, arranged, count, wanted, columns: see `restored`.
            laid: where the rows go.
        """
        kept = self._columns(run, count) if self.selected.shape[1] else 0
        among = range(columns.start, columns.stop)
        compiled.synthesise_into(arranged, self._packed(run), kept, wanted, among, laid)

    def product_dtype(self, device: torch.device) -> torch.dtype:
        """In which a device multiplies fastest: bfloat16 or float32."""
        return torch.bfloat16 if _quick_bfloat16(device) else torch.float32

    def dictionary(self, run: int, device: torch.device) -> Atoms:
        """The atoms of a run, ready for `kernels.encode`."""
        found: Atoms = self._forms.once(
            ("dictionary", run, device), lambda: Atoms.of(self.atoms[run].to(device)), device
        )
        return found

    def atoms_as_columns(self, run: int, device: torch.device) -> Tensor:
        """`[m, N]` float32: the atoms, each a column."""
        return self._on("columns", device, lambda: self.atoms.mT.contiguous())[run]

    def gains_of(self, run: int, components: Tensor) -> Tensor:
        """How much finer each token's step is, in thirds of octaves: `[tokens]` int8 in `GAINS`.

        Half the logarithm of how strongly the model's predictions depend on the token, predicted
        linearly from the first F components, cut to six deviations, and from the logarithms of the
        mean square of eight bands of components.
        """
        weights = self._on("gains", components.device, lambda: self.gains)[run]
        predictors = len(weights) - BANDS - 1
        eta = features(components, self.deviations_on(run, components.device), predictors)
        octaves = (weights[:-1] @ eta + weights[-1]) / (2 * math.log(2))
        thirds = torch.nan_to_num(octaves * CLASSES_AN_OCTAVE)  # of what overflowed
        return thirds.round().clamp(GAINS[0], GAINS[-1]).to(torch.int8)

    def deviations_on(self, run: int, device: torch.device) -> Tensor:
        """`[C]`: deviations of a run's components."""
        return self._on("deviations", device, lambda: self.deviations)[run]

    def classes(self, run: int, step: float) -> Tensor:
        """Classes of coefficients and components at a step, `[s + C]` int16; negative: none."""

        def make() -> Tensor:
            left = self.deviations[run].clone()
            if self.sparsity:
                left[: self.remaining.shape[1]] = self.remaining[run]
            both = (self.coefficients[run] / COEFFICIENT_STEPS, left)
            return classes_of(torch.cat(both), step, self.tables.classes)

        classes: Tensor = self.known("classes", run, step, make)
        return classes

    def known(self, name: str, run: int, step: float, make: Callable[[], Any]) -> Any:
        """What `make` gives, kept for the steps of the qualities."""
        if step not in self.steps.values():  # whoever names a cache may name any step
            return make()
        return self._forms.once((name, run, step), make)

    def _columns(self, run: int, count: int) -> int:
        """How many columns of Q the first coded components need."""

        def make() -> Tensor:
            place = torch.full((self.order.shape[1],), -1)
            place[self.selected[run]] = torch.arange(self.selected.shape[1])
            most = place[self.order[run]].cummax(0).values + 1
            return torch.cat([torch.zeros(1, dtype=torch.int64), most])

        return int(self._forms.once(("columns", run), make)[count])

    def _packed(self, run: int) -> PackedFactors:
        """A run's matrices as the library reads them."""
        cross: Shorts = self._forms.once("shorts", lambda: shorts_of(panels_of(self.cross.mT)))
        bases = self._forms.once("panels of bases", lambda: panels_of(self.bases.mT))
        return PackedFactors(self.selected[run], cross.of(run), bases[self._tables(run)])

    def _tables(self, run: int) -> slice:
        """Of a run, among those of the model."""
        size = 2 * self.run_layers
        return slice(run * size, (run + 1) * size)

    def _factor(self, name: str, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """A matrix in `product_dtype`."""
        dtype = self.product_dtype(device)
        found: Tensor = self._forms.once((name, device), lambda: make().to(device, dtype), device)
        return found

    def _on(self, name: str, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        found: Tensor = self._forms.once((name, device), lambda: make().to(device), device)
        return found


@cache
def _quick_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are several times faster than those of float32.

    Only the second transform, orthogonal, is analysed so: its rounding, 2^-9 of the components'
    root mean square in each of them, is some thousandths of what the finest quality takes off.
    """
    if device.type == "cpu":
        return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def features(components: Tensor, deviations: Tensor, count: int) -> Tensor:
    """What gains are predicted from: `[count + 8, tokens]` float32.

    Args:
        components: `[C, tokens]` as they are coded. deviations: `[C]`, theirs.
        count: how many of the first components are features themselves.
    """
    unit = components / deviations[:, None]
    last = len(components)
    ends = [*(min(last, end) for end in _BAND_ENDS), last]
    bands = [
        unit[a:b].square().mean(0) if b > a else unit.new_ones(unit.shape[1])
        for a, b in pairwise(ends)
    ]
    energies = torch.stack(bands).clamp(1e-4, 1e8).log()
    return torch.cat([unit[:count].clamp(-_FEATURE_LIMIT, _FEATURE_LIMIT), energies])


def classes_of(deviations: Tensor, step: float, count: int) -> Tensor:
    """Class of each deviation at a step: thirds of octaves from `LEAST_OCTAVE` on, int16."""
    octaves = (deviations.double() / step).clamp(1e-30, 1e30).log2() - LEAST_OCTAVE
    most, least = GAINS[-1] + 2 * ENERGIES[-1], GAINS[0] + 2 * ENERGIES[0]  # that may be added
    found = (octaves * CLASSES_AN_OCTAVE).round().clamp(-most - 1, count - 1 - least)
    return found.to(torch.int16)


def _inverse(matrices: Tensor) -> Tensor:
    """Inverses, in double precision where they are small.

    By numpy: oneMKL's batched LU, which torch calls, was seen to hang after `set_num_threads`.
    """
    wide = matrices.double() if matrices.shape[-1] <= 1024 else matrices
    try:
        inverse = np.linalg.inv(wide.cpu().numpy()).astype(np.float32)
    except np.linalg.LinAlgError as error:  # of an artefact that no training made
        raise InvalidInput("dictionary set: residual: a matrix without an inverse") from error
    return torch.from_numpy(inverse).contiguous()


def check_run(transform: Transform, first_layer: int, layers: int, heads: int, dim: int) -> int:
    """Which run a layer group is.

    Raises:
        ShapeMismatch: a group that is no run of the transform.
    """
    if (heads, dim) != tuple(transform.means.shape[1:]):
        raise ShapeMismatch(
            f"the set codes {transform.means.shape[1]} KV heads of {transform.means.shape[2]} "
            f"components together, not {heads} of {dim}"
        )
    run, rest = divmod(first_layer, transform.run_layers)
    if layers != transform.run_layers or rest or run >= transform.runs:
        raise ShapeMismatch(
            f"the set codes runs of {transform.run_layers} layers, not layers "
            f"{first_layer}..{first_layer + layers - 1}: give the codec run_layers="
            f"{transform.run_layers}"
        )
    return run
