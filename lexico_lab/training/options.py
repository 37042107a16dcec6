"""The options of `lexico train`, and what they ask for."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lexico_lab.machine import cores
from lexico_lab.run_state import RunState
from lexico_lab.training.device import device_for
from lexico_lab.training.fit_settings import FitSettings
from lexico_lab.training.learn import LearnSettings
from lexico_lab.training.pool import Pool
from lexico_lab.training.run import report, train_all
from lexico_lab.training.settings import LEXICO, PACKED, RESIDUAL, TRAINED, TrainSettings
from lexico_proto.errors import ConfigurationError

_LOG = logging.getLogger(__name__)
_ALL: Final = "all"
_TOKENS: Final = 240_000
_TOKENS_RESIDUAL: Final = 114_688  # 112 windows of 1024; of several codecs each takes as many
_MARKS: Final = {LEXICO: "", PACKED: "-packed", RESIDUAL: "-residual"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lexico train` but `--ray-address`, which is for who has Ray."""
    dictionaries, transform = LearnSettings(), FitSettings()
    parser.add_argument("--model", required=True, help="smollm2, a folder, or a name on the hub")
    parser.add_argument("--text", required=True, type=Path, help="UTF-8 text to sample")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        help="artefact to write; of several codecs that of lexico, the others with -packed and "
        "-residual before the last dot",
    )
    parser.add_argument(
        "--codec",
        choices=(*TRAINED, _ALL),
        action="append",
        help=f"codec that the set is for; can be repeated ({LEXICO})",
    )
    residual = f"; {RESIDUAL} {{}}, and of several codecs always"
    parser.add_argument(
        "--atoms",
        type=int,
        help=f"atoms a dictionary ({dictionaries.atoms}{residual.format(transform.atoms)})",
    )
    parser.add_argument(
        "--sparsity",
        type=int,
        help=f"atoms a vector ({dictionaries.sparsity}{residual.format(transform.sparsity)}); for "
        f"{RESIDUAL} a token, 0 to 4",
    )
    parser.add_argument(
        "--vectors",
        type=int,
        help="vectors coded a dictionary "
        f"({dictionaries.vectors}{residual.format(transform.vectors)})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    parser.add_argument(
        "--tokens",
        type=int,
        help=f"most tokens of the text used ({_TOKENS}; {RESIDUAL} and several codecs "
        f"{_TOKENS_RESIDUAL})",
    )
    parser.add_argument(
        "--joint",
        type=int,
        default=transform.joint,
        help=f"{RESIDUAL}: components across layers (%(default)s)",
    )
    parser.add_argument(
        "--run-layers", type=int, default=0, help=f"{RESIDUAL}: layers coded together (all)"
    )
    parser.add_argument(
        "--blocks",
        type=int,
        default=transform.blocks,
        help=f"{RESIDUAL}: blocks of KV heads that are transformed apart; a set of wide layers is "
        "too large without (%(default)s)",
    )
    parser.add_argument(
        "--importance",
        type=Path,
        help=f"{PACKED}: a set for {RESIDUAL} of the model, which says where errors cost most "
        "(default: measured on the model)",
    )
    parser.add_argument("--state", type=Path, help="folder for resuming (OUT.state)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (cuda where there is any)")
    parser.add_argument(
        "--workers",
        type=int,
        help="dictionaries learned at once on this machine, or workers of a cluster (all cores; "
        "1 with a GPU; all of the cluster's)",
    )


@dataclass(frozen=True, slots=True)
class Trained:
    """What a command made."""

    shown: str
    """Tables for the terminal."""
    document: list[dict[str, Any]]
    """The same for programs, a set each."""


def run(args: argparse.Namespace, pool: Pool | None = None) -> Trained:
    """Trains as the parsed options say.

    Args:
        args: the options.
        pool: workers elsewhere, or None for this machine.

    Raises:
        LexicoError: see `train`.
    """
    runs = settings_of(args, elsewhere=pool is not None)
    made = train_all(runs, pool=pool)
    if args.state is None:
        _clear(runs, _state_of(args))
    return Trained(report(made), [one.document() for one in made])


def _clear(runs: Sequence[TrainSettings], parent: Path) -> None:
    """Removes the state of the runs, and the folder around it unless others keep theirs there.

    The sets are there: what cannot be removed is no failure.
    """
    for folder in [run.state for run in runs]:
        try:
            RunState(folder).remove()
        except OSError as e:
            _LOG.warning("state=%s not_removed=%s", folder, e.strerror or e)
    try:
        if parent.exists() and not any(parent.iterdir()):
            parent.rmdir()
    except OSError as e:
        _LOG.warning("state=%s not_removed=%s", parent, e.strerror or e)


def settings_of(args: argparse.Namespace, elsewhere: bool = False) -> list[TrainSettings]:
    """The sets that the options ask for, in the order in which they are to be made.

    Args:
        args: the options.
        elsewhere: whether a pool on other machines works: `--device` is then one of theirs.

    Raises:
        ConfigurationError, InvalidInput: options that cannot be used.
    """
    asked = args.codec or [LEXICO]
    codecs = [codec for codec in TRAINED if codec in asked or _ALL in asked]
    device = _device(args.device, elsewhere)
    common = TrainSettings(
        model=args.model,
        text=args.text,
        out=args.out,
        state=_state_of(args),
        tokens=_tokens(args, codecs),
        workers=_workers(args, device),
        device=device,
    )
    if args.importance is not None and PACKED not in codecs:
        raise ConfigurationError(f"importance: is for {PACKED}")
    if len(codecs) == 1:
        return [_with_codec(common, codecs[0], args, alone=True)]
    made: list[TrainSettings] = []
    for codec in codecs:
        settings = replace(common, out=_out(args.out, codec), state=common.state / codec)
        made.append(_with_codec(settings, codec, args, alone=False))
    return made


def _with_codec(
    settings: TrainSettings, codec: str, args: argparse.Namespace, alone: bool
) -> TrainSettings:
    """
    Args:
        settings: what all codecs have in common.
        codec: which it is.
        args: the options.
        alone: whether no other codec is trained: numbers of atoms and vectors are for one kind.
    """
    names = ("atoms", "sparsity", "vectors")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if codec == RESIDUAL:
        fit = FitSettings(
            run_layers=args.run_layers,
            joint=args.joint,
            blocks=args.blocks,
            seed=args.seed,
            **given if alone else {},
        )
        return replace(settings, codec=codec, fit=fit)
    importance = args.importance if codec == PACKED else None
    learn = LearnSettings(seed=args.seed, **given)
    return replace(settings, codec=codec, learn=learn, importance=importance)


def _out(out: Path, codec: str) -> Path:
    return out.with_name(out.stem + _MARKS[codec] + out.suffix)


def _state_of(args: argparse.Namespace) -> Path:
    state: Path = args.state or args.out.with_name(args.out.name + ".state")
    return state


def _tokens(args: argparse.Namespace, codecs: Sequence[str]) -> int:
    if args.tokens is not None:
        tokens: int = args.tokens
        return tokens
    return _TOKENS if RESIDUAL not in codecs and len(codecs) == 1 else _TOKENS_RESIDUAL


def _device(name: str | None, elsewhere: bool) -> str:
    """Where this process computes: with workers elsewhere on a GPU only where it has one itself."""
    if elsewhere and name is not None and re.fullmatch(r"cuda(:\d+)?", name):
        return device_for()
    return device_for(name)


def _workers(args: argparse.Namespace, device: str) -> int:
    if args.workers is not None:
        workers: int = args.workers
        return workers
    return 1 if device != "cpu" else cores()
