"""Time to the first token in SGLang: a reload, a miss and a store, against recomputing without us.

One engine meets prompts that share nothing, each four times, with its own caches emptied between:
without us, where the storage backend was taken away; where it finds nothing and stores nothing;
where it finds nothing and stores; and where it reloads. Then it meets the prompt once more, which
it has in its own cache by then. What was attached anew is connected, by another prompt, before it
is timed.

- `reload`: seconds to the first token by reload, over those without us.
- `own`: the same of a prompt in SGLang's own cache: on the CPU its attention computes the tokens of
  the cache again, so a reload takes as much at least. `beside own` is `reload` less `own`.
- `miss`: seconds of the question to which the answer is that nothing is stored, over those to the
  first token without us. `miss ratio` is the plain ratio of first tokens.
- `store ratio`: the plain ratio of a whole answer with the store behind it, to one without, and
  `store first ratio` that of first tokens. No thread that computes calls the backend: SGLang's own
  thread stores, behind the prefill, and shares the processors. `stores s` are its seconds.
- `adapter`: seconds of SGLang's calls of the backend for a reload, over those of the client's calls
  underneath, less 1. Calls for several pages at a time count as one, from the first to the last.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.engines.calls import Span, read, seconds, underneath
from bench.fleet.rounds import spread
from tests.support.sglang_engine import THREADS, Engine, Generated, Nursery
from tests.support.waiting import wait_until

TIMED: Final = {"module_path": "bench.engines.sglang_inside", "class_name": "TimedStorage"}
PATIENT: Final = {f"{call}_seconds": 600.0 for call in ("match", "load", "idle", "offload")}

WARM_TOKENS: Final = 320
"""Enough for SGLang to ask the backend for."""

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
        prompts: token ids, a round each; the first one warms the engine.
        answer: tokens that each prompt is answered with.

    Raises:
        SystemExit: a prompt was not reloaded, or was when it should not.
    """
    extra = {**settings, **PATIENT, **TIMED}
    with nursery.engine(extra) as engine:
        one = _Rounds(engine, calls, extra, prompts[0][:WARM_TOKENS], answer)
        one.round(prompts[0][WARM_TOKENS:], turned=False)
        rounds = [
            _figures(one.round(ids, turned=number % 2 > 0))
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


class _Rounds:
    """Of one engine."""

    def __init__(
        self, engine: Engine, calls: Path, extra: dict[str, Any], warm: list[int], answer: int
    ) -> None:
        self._engine = engine
        self._calls = calls
        self._extra = extra
        self._warm = warm
        self._answer = answer

    def round(self, ids: list[int], turned: bool) -> dict[str, Timed]:
        """Each way once; what stores comes before what reloads, and the two others in either
        order."""
        finds = {name: value for name, value in self._extra.items() if name != "offload"}
        both: list[tuple[str, dict[str, Any] | None]] = [("alone", None), ("miss", finds)]
        found: dict[str, Timed] = {}
        for way, config in both[:: -1 if turned else 1]:
            self._attach(config)
            found[way] = self._timed(way, ids)
        self._attach(self._extra)
        for way in ("store", "hit", "own"):
            found[way] = self._timed(way, ids)
        return found

    def _attach(self, extra: dict[str, Any] | None) -> None:
        """Gives SGLang another backend, which then has connected, or none."""
        wait_until(self._engine.detach, "SGLang to be idle")
        if extra is not None:
            self._engine.attach(extra)
        self._engine.generate(self._warm, max_tokens=1)
        self._engine.flush()

    def _timed(self, way: str, ids: list[int]) -> Timed:
        self._calls.write_text("")
        came = self._engine.generate(ids, max_tokens=self._answer, ignore_eos=True)
        if way != "hit":  # whose pages SGLang has itself then
            self._engine.flush()
        if bool(came.loaded[0]) != (way == "hit"):
            raise SystemExit(f"{way}: {came.loaded[0]} tokens were loaded of {len(ids)}")
        return came, read(self._calls)


def _figures(found: dict[str, Timed]) -> dict[str, Any]:
    (alone, _), (missed, miss), (stored, store), (reloaded, hit), (own, _) = (
        found[way] for way in ("alone", "miss", "store", "hit", "own")
    )
    first = alone.first[0]
    match, load = underneath(hit["exists"], hit["match"]), underneath(hit["get"], hit["load"])
    return {
        "loaded": reloaded.loaded[0],
        "recompute s": first,
        "reload s": reloaded.first[0],
        "reload": reloaded.first[0] / first,
        "own s": own.first[0],
        "own": own.first[0] / first,
        "beside own": (reloaded.first[0] - own.first[0]) / first,
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
