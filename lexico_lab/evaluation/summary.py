"""From finished units to the figures of the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from lexico_lab.evaluation.curves import curve, fraction_at
from lexico_lab.evaluation.intervals import LEVEL, RESAMPLES, Interval, interval
from lexico_lab.evaluation.peers import Evicting, Published
from lexico_lab.evaluation.retrieval import MODES
from lexico_lab.evaluation.state import Unit, Units
from lexico_lab.evaluation.ways import Chosen, Way

FORMAT: Final = 1
KLS: Final = (0.005, 0.01, 0.02, 0.05)
"""At which methods' bytes are compared."""

Row = dict[str, Any]


def document_of(
    units: Units,
    sources: Sequence[tuple[str, str, int]],
    chosen: Chosen,
    peers: Sequence[Published],
    about: dict[str, Any],
    *,
    token_bytes: int,
    seed: int,
) -> dict[str, Any]:
    """What `report.json` holds.

    Args:
        units: all finished.
        sources: name, digest and number of texts of each file.
        chosen: codecs of ours.
        peers: published methods.
        about: settings and environment, taken over as they are.
        token_bytes: of a token's keys and values in 16 bits an element.
        seed: of the bootstrap.
    """
    settings = about["settings"]
    named = bool(settings["peer"])
    ways = [*map(_way_row, chosen.ways), *(_peer_row(peer, named) for peer in peers)]
    every = [name for name, _, _ in sources]
    not_run = {left_out: [*every] for left_out in chosen.left_out}
    made, times = [], []
    for index, (name, digest, texts) in enumerate(sources):
        found: dict[str, list[Unit]] = {}
        for way in ways:
            of_way = [units.get(index, text, way["name"]) for text in range(texts)]
            for reason in _reasons(of_way):
                not_run.setdefault((way["name"], reason), []).append(name)
            if not any("failed" in unit for unit in of_way):
                found[way["name"]] = of_way
        made.append(
            {"name": name, "digest": digest, "texts": texts}
            | _source(found, ways, settings, token_bytes, seed)
        )
        times += _times(found, name, seed)
    return {
        "format": FORMAT,
        **about,
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "over": "texts"},
        "ways": ways,
        "not_run": [
            {"name": name, "reason": reason, "sources": missing}
            for (name, reason), missing in not_run.items()
        ],
        "sources": made,
        "times": times,
    }


def _peer_row(one: Published, named: bool) -> Row:
    row = {"name": one.name, "method": one.method, "ours": False}
    if isinstance(one, Evicting):  # no pages come back
        coded = {} if one.through is None else {"set": one.through.set_name}
        return {**row, "every_section": False, **coded}
    return {**row, "every_section": named}


def _way_row(one: Way) -> Row:
    return {
        "name": one.name,
        "method": one.method,
        "ours": True,
        "every_section": True,
        "codec": one.spec.codec.name,
        "config": one.spec.codec.config_json(),
        "set": one.set_name,
        "frames_a_page": one.spec.groups,
    }


def _reasons(some: Sequence[Unit]) -> Iterable[str]:
    """Why a way has no figures of a file, or none in some sections: those of one of its texts are
    missing."""
    failed = [unit["failed"] for unit in some if "failed" in unit]
    if failed:
        return failed[:1]
    sections: dict[str, list[str]] = {}
    for section in ("turns", "retrieval"):
        missing = [unit["missing"][section] for unit in some if section in unit.get("missing", ())]
        if missing:
            sections.setdefault(missing[0], []).append(section)
    return [f"{' and '.join(names)}: {reason}" for reason, names in sections.items()]


def _source(
    found: dict[str, list[Unit]],
    ways: Sequence[Row],
    settings: Mapping[str, Any],
    token_bytes: int,
    seed: int,
) -> dict[str, Any]:
    method_of = {way["name"]: way["method"] for way in ways}
    coded_bytes = settings["coded"] * token_bytes
    fidelity = [_fidelity(name, some, coded_bytes, seed) for name, some in found.items()]
    methods = list(dict.fromkeys(method_of[row["name"]] for row in fidelity))
    curves = {
        method: curve(
            (row["fraction"]["mean"], row["kl"]["mean"])
            for row in fidelity
            if method_of[row["name"]] == method
        )
        for method in methods
    }
    reloaded, asked = (
        {name: some for name, some in found.items() if all(section in unit for unit in some)}
        for section in ("turns", "retrieval")
    )
    return {
        "fidelity": fidelity,
        "bytes_at_kl": {
            method: {str(kl): fraction_at(points, kl) for kl in KLS}
            for method, points in curves.items()
        },
        "turns": [
            row for name, some in reloaded.items() for row in _turns(name, some, token_bytes, seed)
        ],
        "retrieval": _retrieval(asked, seed),
        "per_text": {
            name: [{k: v for k, v in unit.items() if k != "times"} for unit in some]
            for name, some in found.items()
        },
    }


def _fidelity(name: str, some: Sequence[Unit], coded_bytes: int, seed: int) -> Row:
    texts = [unit["fidelity"] for unit in some]

    def over(value: Callable[[Any], float]) -> Interval:
        return interval([value(text) for text in texts], seed)

    apart = all("layers" in text for text in texts)  # not of what evicts
    layers = {
        part: [_mean(column) for column in zip(*(t["layers"][part] for t in texts), strict=True)]
        for part in (("keys", "values") if apart else ())
    }
    return {
        "name": name,
        "fraction": over(lambda text: text["bytes"] / coded_bytes),
        "kl": over(lambda text: text["kl"]),
        "kl_keys": over(lambda text: text["kl_keys"]) if apart else None,
        "kl_values": over(lambda text: text["kl_values"]) if apart else None,
        "nll": over(lambda text: text["nll"]),
        "nll_exact": over(lambda text: text["nll_exact"]),
        "nll_more": over(lambda text: text["nll"] - text["nll_exact"]),
        "layers": layers if apart else None,
    }


def _turns(name: str, some: Sequence[Unit], token_bytes: int, seed: int) -> Iterable[Row]:
    for turns in zip(*(unit["turns"] for unit in some), strict=True):
        yield {
            "name": name,
            "turn": turns[0]["turn"],
            "reloaded": turns[0]["reloaded"],
            "pages": turns[0]["pages"],
            "stored": turns[0]["stored"],
            "fraction": interval([t["bytes"] / (t["stored"] * token_bytes) for t in turns], seed),
            "kl": interval([turn["kl"] for turn in turns], seed),
            "kl_once": interval([turn["kl_once"] for turn in turns], seed),
            "nll_more": interval([turn["nll"] - turn["nll_exact"] for turn in turns], seed),
        }


def _retrieval(asked: dict[str, list[Unit]], seed: int) -> list[Row]:
    """A row for each way, mode and kind of question; the exact cache's first."""
    if not asked:
        return []
    first = next(iter(asked.values()))
    sets = {"exact cache": ("retrieval_exact", first)}
    sets |= {name: ("retrieval", some) for name, some in asked.items()}
    rows = []
    for name, (key, some) in sets.items():
        if not some[0][key]:
            continue
        for mode in MODES:
            for kind in ("key-value", "needle"):
                texts = [[a for a in unit[key][mode] if a["kind"] == kind] for unit in some]
                rows.append(
                    {
                        "name": name,
                        "mode": mode,
                        "kind": kind,
                        "questions": sum(map(len, texts)),
                        **{
                            value: interval([_mean(a[value] for a in text) for text in texts], seed)
                            for value in ("right", "score", "kl")
                        },
                    }
                )
    return rows


def _times(found: dict[str, list[Unit]], source: str, seed: int) -> list[Row]:
    """Over the time that the model takes to prefill the same tokens, in the same run."""
    rows = []
    for name, some in found.items():
        if "times" not in some[0]:
            continue
        times = [unit["times"] for unit in some]
        rows.append(
            {
                "name": name,
                "source": source,
                "prefill_s": _mean(time["prefill_s"] for time in times),
                "encode": interval([time["encode_s"] / time["prefill_s"] for time in times], seed),
                "decode": interval([time["decode_s"] / time["prefill_s"] for time in times], seed),
            }
        )
    return rows


def _mean(values: Iterable[float]) -> float:
    found = [float(value) for value in values]
    return math.fsum(found) / len(found)
