"""`lexico train --codec lexico-residual`: observe, fit, calibrate; each step once, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from lexico_codec.canonical import canonical_json
from lexico_codec.files import write_atomically
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.limits import MAX_COMPONENTS, MAX_TRANSFORM_ATOMS, MAX_TRANSFORM_SPARSITY
from lexico_codec.sets.dictionary import TransformSet
from lexico_codec.sets.info import SetInfo
from lexico_codec.sets.transform import QUALITIES
from lexico_lab.models import LoadedModel
from lexico_lab.run_state import RunState
from lexico_lab.training.calibrate import TARGETS, Ruler, step_for
from lexico_lab.training.fit import fit_bases, fit_cross, fit_rest
from lexico_lab.training.fit_settings import FitSettings, Held
from lexico_lab.training.observe import WINDOW_TOKENS, Observations, observe
from lexico_lab.training.pool import Pool
from lexico_lab.training.sample import cut_windows, digest_of
from lexico_proto.errors import ConfigurationError, InvalidInput
from lexico_proto.limits import MAX_DICTIONARY_BYTES

LEAST_WINDOWS: Final = 4
"""Windows that a text must fill: three to fit to and one to hold out."""
IMPORTANCE: Final = "importance"
"""Entry of `SetInfo.training`: see `importance_of`."""


@dataclass(frozen=True, slots=True)
class ResidualSettings:
    """One run."""

    model: str
    """Name of the model, for the artefact."""
    state: Path
    """Folder of what is done so far."""
    tokens: int
    """Most tokens of the text that are used."""
    fit: FitSettings
    command: str
    """For the artefact."""
    calibrated: int = 24
    """Most windows that steps are measured on."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of a text, `WINDOW_TOKENS` token ids each."""

    observed: tuple[tuple[int, ...], ...]
    calibrating: tuple[tuple[int, ...], ...]
    """What nothing is fitted to: the last of those, and what the text has after them."""


def windows_of(settings: ResidualSettings, text: str, loaded: LoadedModel) -> Windows:
    """Windows of a text, once it is known that a set can be made of them.

    Raises:
        InvalidInput: the text is too short.
        ConfigurationError: settings that no set of the model could hold.
        Unsupported: a model whose cache the codecs do not cover.
    """
    geometry = geometry_of(loaded.model.config, "float32")
    _check_caps(_resolved(settings.fit, geometry), geometry)
    count = settings.tokens // WINDOW_TOKENS
    tokens = settings.tokens + settings.calibrated * WINDOW_TOKENS
    windows = cut_windows(text, loaded.tokenizer, tokens, (WINDOW_TOKENS,))
    observed = windows[:count]
    if len(observed) < LEAST_WINDOWS:
        raise InvalidInput(
            f"text: fills {len(observed)} windows of {WINDOW_TOKENS} tokens; at least "
            f"{LEAST_WINDOWS} are needed"
        )
    unseen = windows[Held.of(len(observed)).held_out.start :]
    return Windows(observed, unseen[: settings.calibrated])


def check_residual(settings: ResidualSettings, text: str, loaded: LoadedModel) -> None:
    """Raises what `train_residual` would before it begins. Writes nothing.

    Raises:
        InvalidInput, Unsupported: see `windows_of`.
        ConfigurationError: see `windows_of`; a state folder of other settings.
    """
    windows = windows_of(settings, text, loaded)
    geometry = geometry_of(loaded.model.config, "float32")
    RunState.check(settings.state, _what_decides(settings, geometry, windows))


def train_residual(
    settings: ResidualSettings,
    text: str,
    loaded: LoadedModel,
    progress: Any,
    pool: Pool | None = None,
) -> TransformSet:
    """Makes the set, going on where a run with the same settings stopped.

    Args:
        settings: the run.
        text: what the model reads.
        loaded: the model.
        progress: makes a progress bar, as tqdm does.
        pool: whose workers observe the model; None for this process.

    Raises:
        InvalidInput: the text is too short, or the model cannot be observed.
        ConfigurationError: a state folder of other settings, or one that cannot be used.
        Unsupported: a model whose cache the codecs do not cover.
        Unavailable: see `Pool`.
    """
    windows = windows_of(settings, text, loaded)
    geometry = geometry_of(loaded.model.config, "float32")
    fit = _resolved(settings.fit, geometry)
    seen = Observations(settings.state / "observations", windows.observed, geometry)
    decides = _what_decides(settings, geometry, windows)
    state = RunState.claim(settings.state, decides)

    def bar(items: Iterable[int], what: str) -> Iterable[int]:
        shown: Iterable[int] = progress(items, desc=what, leave=False)
        return shown

    total, done = len(windows.observed), seen.finished()
    with progress(total=total, initial=done, desc="observing", unit="window") as shown:
        for _ in observe(loaded, seen, fit.seed, pool):
            shown.update()
    costs = _stage(state, "importance", lambda: {"importance": importance_of(seen, bar)})
    bases = _stage(state, "bases", lambda: fit_bases(seen, fit, bar))
    cross = _stage(state, "cross", lambda: fit_cross(seen, fit, bases, bar))
    rest = _stage(state, "rest", lambda: fit_rest(seen, fit, bases, cross, bar))
    tensors = {**bases, **cross, **rest}
    guess = float(tensors.pop("guess"))
    del tensors["variances"]
    info = SetInfo(
        model=settings.model,
        kv_heads=geometry.kv_heads,
        rope=json.loads(canonical_json(asdict(geometry.rope))) if geometry.rope else {},
        sparsity=rest["coefficients"].shape[1],
        training={**decides, IMPORTANCE: costs["importance"].tolist()},
        corpus_digest=digest_of(windows.observed),
        held_out=[],
        command=settings.command,
    )

    def build(steps: Tensor) -> TransformSet:
        return TransformSet.build({**tensors, "steps": steps}, info)

    def calibrate() -> dict[str, Tensor]:
        ruler = Ruler(loaded.model, geometry, windows.calibrating)
        return {"steps": _steps(ruler, build, guess, progress)}

    return build(_stage(state, "steps", calibrate)["steps"])


def importance_of(
    seen: Observations, progress: Callable[[Iterable[int], str], Iterable[int]]
) -> Tensor:
    """How much a squared error of one component of a layer's keys and of its values costs.

    The mean square of the gradients, over tokens and components: the mean of the diagonal of the
    Fisher information, whose half is nats a squared error. Errors of lexico-packed too are means
    over components of keys before RoPE and of values, and all tables have equally many: this is
    their weight, but for a factor that is the same for all.

    Returns:
        `[layers, 2]` float64, keys before values.
    """
    fitted = Held.of(len(seen.windows)).fitted
    total = torch.zeros(2 * seen.geometry.layers, dtype=torch.float64)
    for window in progress(fitted, "importance"):
        squares = seen.gradients(window).double().square().mean(0)
        total += squares.view(len(total), -1).mean(1)
    return (total / len(fitted)).view(-1, 2)


def _what_decides(
    settings: ResidualSettings, geometry: Geometry, windows: Windows
) -> dict[str, Any]:
    """All that the artefact's bytes depend on."""
    return {
        "codec": "lexico-residual",
        "model": settings.model,
        "corpus": digest_of(windows.observed),
        "calibrated": digest_of(windows.calibrating),
        "tokens": sum(map(len, windows.observed)),
        "layers": geometry.layers,
        "kv_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        **asdict(_resolved(settings.fit, geometry)),
    }


def _resolved(fit: FitSettings, geometry: Geometry) -> FitSettings:
    """With a number of layers that makes runs of the model's."""
    made = replace(fit, run_layers=fit.run_layers or geometry.layers)
    if geometry.layers % made.run_layers:
        raise ConfigurationError(
            f"run_layers: {geometry.layers} layers are no runs of {made.run_layers}"
        )
    return made


def _check_caps(fit: FitSettings, geometry: Geometry) -> None:
    """Refuses at once what no set could hold when all is done."""
    if fit.sparsity > MAX_TRANSFORM_SPARSITY or fit.atoms > MAX_TRANSFORM_ATOMS:
        raise ConfigurationError(
            f"a transform has at most {MAX_TRANSFORM_SPARSITY} atoms a token, of "
            f"{MAX_TRANSFORM_ATOMS}; not {fit.sparsity} of {fit.atoms}"
        )
    if geometry.kv_heads % fit.blocks:
        raise ConfigurationError(f"blocks: {geometry.kv_heads} KV heads are no {fit.blocks} blocks")
    width = geometry.kv_heads * geometry.head_dim
    count = 2 * fit.run_layers * width
    if count > MAX_COMPONENTS:
        raise ConfigurationError(
            f"run_layers: {fit.run_layers} layers have {count} components, at most "
            f"{MAX_COMPONENTS} are coded together"
        )
    of_bases = 4 * geometry.layers * width * width // fit.blocks
    of_runs = min(fit.joint, count) ** 2
    size = of_bases + geometry.layers // fit.run_layers * of_runs
    if size > MAX_DICTIONARY_BYTES:
        raise ConfigurationError(
            f"the set would have over {size} bytes, at most {MAX_DICTIONARY_BYTES} are read: "
            f"{of_bases} for the layers, which --blocks divides, and joint² for each run of them"
        )


def _steps(
    ruler: Ruler, build: Callable[[Tensor], TransformSet], guess: float, progress: Any
) -> Tensor:
    """Steps of the qualities, finest first."""
    trial = build(torch.full((len(QUALITIES),), guess))
    found: dict[str, float] = {}
    with progress(desc="calibrating", unit="step") as shown:

        def kl_of(step: float) -> float:
            shown.update()
            return ruler.bound(trial, step)

        for quality in QUALITIES:
            begin = guess if not found else list(found.values())[-1] * 2
            found[quality] = step_for(TARGETS[quality], begin, kl_of)
    return torch.tensor([found[quality] for quality in QUALITIES])


def _stage(state: RunState, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `make` gives, from the state folder where it is there already."""
    path = state.folder / f"{name}.safetensors"
    if not path.exists():
        made = {key: tensor.contiguous() for key, tensor in make().items()}
        write_atomically(path, save(made))
    try:
        with safetensors.safe_open(path, framework="pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - no dict
    except (OSError, safetensors.SafetensorError) as e:
        raise ConfigurationError(f"{path}: not a finished step of a run ({e})") from e
