"""Time to the first token in SGLang: a reload, a miss and a store, against recomputing without us.

One engine meets prompts that share nothing, each four times, with its own caches emptied between:
without us, where the storage backend was taken away; where it finds nothing and stores nothing;
where it finds nothing and stores; and where it reloads.

- `reload`: seconds to the first token by reload, over those without us.
- `miss`: seconds of the question to which the answer is that nothing is stored, over those to the
  first token without us. `miss ratio` is the plain ratio of first tokens.
- `store ratio`: the plain ratio of a whole answer with the store behind it, to one without, and
  `store first ratio` that of first tokens. SGLang's own thread stores: `stores s` are its seconds.
- `adapter`: seconds of SGLang's calls of the backend for a reload, over those of the client's calls
  underneath, less 1. Calls for several pages at a time count as one, from the first to the last.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.engines.sglang_calls import Span, read, seconds, underneath
from bench.fleet.rounds import spread
from tests.support.sglang_engine import THREADS, Engine, Generated, Nursery
from tests.support.waiting import wait_until

TIMED: Final = {"module_path": "bench.engines.sglang_inside", "class_name": "TimedStorage"}
PATIENT: Final = {f"{call}_seconds": 600.0 for call in ("match", "load", "idle", "offload")}

Timed = tuple[Generated, dict[str, list[Span]]]


def measure(
    nursery: Nursery,
    calls: Path,
    settings: dict[str, Any],
    prompts: list[list[int]],
    answer: int,
) -> dict[str, Any]:
    """A row.

    Args:
        nursery: of the engine.
        calls: the file that `sglang_inside` writes.
        settings: of the backend: addresses, codec and set.
        prompts: token ids, a round each; the beginning of the first one warms the engine.
        answer: tokens that each prompt is answered with.

    Raises:
        SystemExit: a prompt was not reloaded, or was when it should not.
    """
    extra = {**settings, **PATIENT, **TIMED}
    with nursery.engine(extra) as engine:
        _round(engine, calls, extra, prompts[0][:320], answer, turned=False)
        rounds = [
            _figures(_round(engine, calls, extra, ids, answer, turned=number % 2 > 0))
            for number, ids in enumerate(prompts[1:])
        ]
    return {
        "codec": settings["codec"],
        "prompt": len(prompts[-1]),
        "loaded": rounds[-1].pop("loaded"),
        "threads": THREADS,
        "rounds": len(rounds),
        "recompute s": median(each.pop("recompute s") for each in rounds),
        "reload s": median(each.pop("reload s") for each in rounds),
        **{name: spread([each[name] for each in rounds]) for name in sorted(rounds[-1])},
    }


def _round(
    engine: Engine,
    calls: Path,
    extra: dict[str, Any],
    ids: list[int],
    answer: int,
    turned: bool,
) -> dict[str, Timed]:
    """Each way once; what stores comes before what reloads, and the two others in either order."""
    finds = {name: value for name, value in extra.items() if name != "offload"}
    order: list[tuple[str, dict[str, Any] | None]] = [("alone", None), ("miss", finds)]
    order = [*order[:: -1 if turned else 1], ("store", extra), ("hit", extra)]
    found: dict[str, Timed] = {}
    for way, config in order:
        engine.flush()
        wait_until(engine.detach, "SGLang to be idle")
        if config is not None:
            engine.attach(config)
        calls.write_text("")
        came = engine.generate(ids, max_tokens=answer, ignore_eos=True)
        engine.flush()
        if bool(came.loaded[0]) != (way == "hit"):
            raise SystemExit(f"{way}: {came.loaded[0]} tokens were loaded of {len(ids)}")
        found[way] = came, read(calls)
    return found


def _figures(found: dict[str, Timed]) -> dict[str, Any]:
    (alone, _), (missed, miss), (stored, store), (reloaded, hit) = (
        found[way] for way in ("alone", "miss", "store", "hit")
    )
    first = alone.first[0]
    match, load = underneath(hit["exists"], hit["match"]), underneath(hit["get"], hit["load"])
    return {
        "loaded": reloaded.loaded[0],
        "recompute s": first,
        "reload s": reloaded.first[0],
        "reload": reloaded.first[0] / first,
        "miss": seconds(miss["exists"]) / first,
        "miss s": seconds(miss["exists"]),
        "miss ratio": missed.first[0] / first,
        "store ratio": stored.seconds[0] / missed.seconds[0],
        "store first ratio": stored.first[0] / missed.first[0],
        "stores s": seconds(store["set"]),
        "adapter": (seconds(hit["exists"]) + seconds(hit["get"])) / (match + load) - 1,
        "match s": match,
        "load s": load,
    }
