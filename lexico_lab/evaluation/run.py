"""`lexico eval`: from a model, dictionary sets and texts to a report.

The run keeps each finished part, one text stored one way, in a state folder. Started again with the
same settings it goes on from there, and all figures but times are those of a run that was never
stopped. Nothing is written at the target before everything is there.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lexico_codec.files import write_atomically
from lexico_codec.geometry import Geometry
from lexico_codec.hf_geometry import geometry_of
from lexico_lab.evaluation.environment import describe, model_digest
from lexico_lab.evaluation.evictions import choose_evictions
from lexico_lab.evaluation.peers import Evicting, Peer, Published, choose_peers, load_peers
from lexico_lab.evaluation.prefixes import Source, read_sources, read_text
from lexico_lab.evaluation.retrieval import Task, make_task
from lexico_lab.evaluation.settings import EvalSettings, check_target
from lexico_lab.evaluation.state import Unit, Units
from lexico_lab.evaluation.summary import document_of
from lexico_lab.evaluation.units import Judge, JudgedText
from lexico_lab.evaluation.ways import Chosen, Way, choose_ways, load_sets
from lexico_lab.models import LoadedModel, load_model
from lexico_proto.errors import ConfigurationError

REPORT, DATA = "report.html", "report.json"


@dataclass(frozen=True, eq=False)
class Plan:
    """All that a run will do."""

    settings: EvalSettings
    loaded: LoadedModel
    geometry: Geometry
    chosen: Chosen
    peers: tuple[Published, ...]
    sources: tuple[Source, ...]
    tasks: tuple[tuple[Task | None, ...], ...]
    """A task for every text of every source."""
    training: tuple[tuple[int, ...], ...]
    """Texts that peers learn from."""
    instruction: tuple[int, ...]
    """Asks to repeat a text, for peers that evict."""
    facts: dict[str, Any]
    """Of model and sets, for the report."""
    peers_note: str
    """Which peers ran, and what they learned from."""


def evaluate(settings: EvalSettings, loaded: LoadedModel | None = None) -> dict[str, Any]:
    """Runs or resumes an evaluation and writes the report.

    Args:
        settings: the run.
        loaded: the model, where it is in memory already.

    Returns:
        What `report.json` holds.

    Raises:
        InvalidInput: a text is too short, or the model cannot be read.
        ConfigurationError: an unusable file or folder, a state folder of other settings, a
            published method that was asked for by name and cannot run, or a library of the report
            that is not installed.
        DictionaryMismatch: a set for another model, or none that serves a codec asked for.
        UnknownCodec, Unsupported: a codec or a model that this version does not cover.
    """
    check_target(settings.out)
    page = _page()
    learned_from = () if settings.peer_text is None else (settings.peer_text,)
    for path in (*settings.sources, *learned_from):
        read_text(path)  # what cannot be read is said before the model is loaded
    peers = load_peers(settings.peer) if settings.peers else []
    plan = _plan(settings, loaded or load_model(settings.model), peers)
    units = Units.claim(settings.state, _what_decides(plan))
    _measure(plan, units)
    document = document_of(
        units,
        [(source.name, source.digest, len(source.texts)) for source in plan.sources],
        plan.chosen,
        plan.peers,
        {
            "settings": _shown(settings),
            "facts": plan.facts,
            "peers": plan.peers_note,
            "environment": describe(),
            "command": _command(settings),
        },
        token_bytes=2 * plan.geometry.token_bytes // plan.geometry.itemsize,
        seed=settings.seed,
    )
    _write(settings.out, document, page)
    return document


def _plan(settings: EvalSettings, loaded: LoadedModel, peers: Sequence[Published]) -> Plan:
    geometry = geometry_of(loaded.model.config, settings.dtype)
    weights = model_digest(loaded.model)
    sets = load_sets(settings.sets, geometry)
    chosen = choose_ways(settings, geometry, weights, sets)
    _check_positions(loaded.model, settings)
    sources = tuple(read_sources(settings, loaded.tokenizer))
    tasks = tuple(
        tuple(
            make_task(loaded.tokenizer, ids, settings, number) if settings.pairs else None
            for number, ids in enumerate(source.texts)
        )
        for source in sources
    )
    evictions = choose_evictions(settings, loaded, geometry, weights, sets, peers)
    chosen = replace(chosen, left_out=(*chosen.left_out, *evictions.left_out))
    fitting, training, note = choose_peers(
        settings, loaded.tokenizer, geometry, sources[0], evictions.peers
    )
    facts = {
        "model": {
            "name": loaded.name,
            "class": type(loaded.model).__name__,
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
            "weights": weights.hex(),
            "layers": geometry.layers,
            "kv_heads": geometry.kv_heads,
            "head_dim": geometry.head_dim,
        },
        "sets": [
            {
                "name": one.name,
                "digest": one.content.digest.hex(),
                "bytes": len(one.content.to_bytes()),
                "model": one.content.info.model,
                "corpus": one.content.info.corpus_digest,
            }
            for one in sets
        ],
    }
    return Plan(
        settings=settings,
        loaded=loaded,
        geometry=geometry,
        chosen=chosen,
        peers=fitting,
        sources=sources,
        tasks=tasks,
        training=training,
        instruction=evictions.instruction,
        facts=facts,
        peers_note=note,
    )


def _check_positions(model: Any, settings: EvalSettings) -> None:
    text = model.config.get_text_config(decoder=True)
    most = getattr(text, "max_position_embeddings", None)
    if most is not None and settings.window > most:
        raise ConfigurationError(
            f"texts of {settings.window} tokens: the model takes {most}; ask for a shorter "
            "--prefix, or fewer --turns"
        )


def _measure(plan: Plan, units: Units) -> None:
    judge = Judge(plan.loaded.model, plan.settings, plan.training)
    every: tuple[Way | Published, ...] = (*plan.chosen.ways, *plan.peers)
    names = [one.name for one in every]
    places = [(s, t) for s, source in enumerate(plan.sources) for t in range(len(source.texts))]
    done = sum(units.has(s, t, name) for s, t in places for name in names)
    with _progress(total=len(places) * len(names), initial=done, unit="unit") as bar:
        for source, number in places:
            ids = plan.sources[source].texts[number]
            task = plan.tasks[source][number]
            text = JudgedText(plan.loaded.model, plan.settings, ids, task, plan.instruction)
            for one in every:
                if units.has(source, number, one.name):
                    continue
                bar.set_description(f"{plan.sources[source].name} {number + 1}: {one.name}")
                units.put(source, number, one.name, _unit(plan, judge, text, one))
                bar.update()


def _unit(plan: Plan, judge: Judge, text: JudgedText, one: Way | Published) -> Unit:
    if isinstance(one, Way):
        return judge.of_way(text, one)
    if isinstance(one, Evicting):
        return judge.of_eviction(text, one)
    coding = [peer for peer in plan.peers if isinstance(peer, Peer)]
    if plan.geometry.rope is None or not isinstance(one, Peer):
        raise TypeError(f"{one.name}: no way to store")  # cannot be: see choose_peers
    return judge.of_peer(text, one, coding, plan.geometry.rope)


def _progress(**options: Any) -> Any:
    try:
        from tqdm import tqdm
    except ImportError as e:
        raise ConfigurationError("tqdm is not installed: lexico-offload[train]") from e
    return tqdm(**options)


def _what_decides(plan: Plan) -> dict[str, Any]:
    """All that figures depend on; paths are not among it."""
    shown = _shown(plan.settings)
    for path in ("text", "set", "peer_text"):
        shown.pop(path)
    learned = hashlib.blake2b(json.dumps(plan.training).encode(), digest_size=16)
    return {
        **shown,
        "weights": plan.facts["model"]["weights"],
        "sources": [source.digest for source in plan.sources],
        "ways": [[way.name, way.spec.namespace.hex()] for way in plan.chosen.ways],
        "peers": [peer.name for peer in plan.peers],
        "kept_through": [
            peer.through.spec.namespace.hex()
            for peer in plan.peers
            if isinstance(peer, Evicting) and peer.through is not None
        ][:1],
        "learned_from": learned.hexdigest() if plan.training else "",
    }


def _command(settings: EvalSettings) -> str:
    """The command that repeats the run, with file names for paths, which differ by machine."""
    shown = _shown(settings)
    words = ["lexico eval"]
    for name, found in shown.items():
        option = "--" + name.replace("_", "-")
        default = EvalSettings.__dataclass_fields__.get(name)
        if name == "coded" or (default is not None and found == default.default):
            continue
        if name == "peers":
            words.append("--no-peers")
            continue
        many = found if isinstance(found, list) else [found]
        words += [f"{option} {shlex.quote(str(one))}" for one in many if one is not None]
    return " ".join([*words, "--out report"])  # it does not decide anything


def _shown(settings: EvalSettings) -> dict[str, Any]:
    """Settings as JSON, with file names for paths, which differ by machine."""
    found = asdict(settings)
    for name in ("out", "state", "sources", "sets", "codecs"):
        found.pop(name)
    return {
        **found,
        "peer": list(settings.peer),
        "text": [path.name for path in settings.sources],
        "set": [Path(name).name for name in settings.sets],
        "codec": list(settings.codecs),
        "peer_text": settings.peer_text.name if settings.peer_text else None,
        "coded": settings.coded,
    }


def _page() -> Callable[[dict[str, Any]], str]:
    """What draws the report: missing libraries are told of before anything is measured."""
    try:
        from lexico_lab.evaluation.report.page import page
    except ImportError as e:
        raise ConfigurationError(f"{e.name} is not installed: lexico-offload[train]") from e
    return page


def _write(out: Path, document: dict[str, Any], page: Callable[[dict[str, Any]], str]) -> None:
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"out {out}: cannot be made ({error})") from error
    text = json.dumps(document, indent=1, allow_nan=False)
    write_atomically(out / DATA, text.encode() + b"\n")
    write_atomically(out / REPORT, page(document).encode())
