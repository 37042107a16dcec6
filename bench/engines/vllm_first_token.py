"""Time to the first token in vLLM: a reload, a miss and a store, against recomputing without us.

One engine meets prompts that share nothing, each four times, with its own prefix cache emptied
between: without us, where the connector is not asked; where it finds nothing and stores nothing;
where it finds nothing and stores; and where it reloads.

- `reload`: seconds to the first token by reload, over those without us.
- `miss`: what the connector adds to a prompt of which nothing is stored: seconds that the request
  waits for its match, and those of the engine's thread in the connector until the answer's end,
  over those to the first token without us. `miss ratio` is the plain ratio of first tokens.
- `store`: seconds of the engine's thread for the copies of a store, over those to the first token.
  `store ratio` is the plain ratio of a whole answer with the store behind it, to one without.
- `adapter`: seconds that a reloaded request waits for its match and its load, over those of the two
  client calls underneath, less 1.
"""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from bench.fleet.rounds import spread
from tests.support.vllm_engine import Engine, Generated, Nursery

INSIDE: Final = "bench.engines.vllm_inside"
PATIENT: Final = {f"{call}_seconds": 600.0 for call in ("match", "load", "idle", "offload")}

Timed = tuple[Generated, dict[str, float]]


def measure(
    nursery: Nursery,
    addresses: dict[str, str],
    codec: str,
    prompts: list[list[int]],
    answer: int,
) -> dict[str, Any]:
    """A row.

    Args:
        nursery: of the engine.
        addresses: of the service, as the connector has them.
        codec: preset.
        prompts: token ids, a round each; the beginning of the first one warms the engine.
        answer: tokens that each prompt is answered with.

    Raises:
        SystemExit: a prompt was not reloaded, or was when it should not.
    """
    with nursery.engine({**addresses, **PATIENT, "codec": codec}) as engine:
        engine.call(f"{INSIDE}:watch")
        threads = engine.call(f"{INSIDE}:threads")["threads"]
        _round(engine, prompts[0][:256], answer, turned=False)
        rounds = [
            _figures(_round(engine, ids, answer, turned=number % 2 > 0))
            for number, ids in enumerate(prompts[1:])
        ]
    return {
        "codec": codec,
        "prompt": len(prompts[-1]),
        "loaded": rounds[-1].pop("loaded"),
        "threads": threads,
        "rounds": len(rounds),
        "recompute s": median(each.pop("recompute s") for each in rounds),
        "reload s": median(each.pop("reload s") for each in rounds),
        **{name: spread([each[name] for each in rounds]) for name in sorted(rounds[-1])},
    }


def _round(engine: Engine, ids: list[int], answer: int, turned: bool) -> dict[str, Timed]:
    """Each way once; what stores comes before what reloads, and the two others in either order."""
    ways = {
        "alone": {"shares": False, "stores": False},
        "miss": {"shares": True, "stores": False},
    }
    order = list(ways.items())[:: -1 if turned else 1]
    order += [(way, {"shares": True, "stores": True}) for way in ("store", "hit")]
    found: dict[str, Timed] = {}
    for way, does in order:
        engine.reset()
        engine.call(f"{INSIDE}:doing", **does)
        engine.call(f"{INSIDE}:taken")
        came = engine.generate(ids, max_tokens=answer, params={"ignore_eos": True})
        engine.settle()
        if bool(came.cached[0]) != (way == "hit"):
            raise SystemExit(f"{way}: {came.cached[0]} tokens were loaded of {len(ids)}")
        found[way] = came, engine.call(f"{INSIDE}:taken")
    return found


def _figures(found: dict[str, Timed]) -> dict[str, Any]:
    (alone, _), (missed, miss), (stored, store), (reloaded, hit) = (
        found[way] for way in ("alone", "miss", "store", "hit")
    )
    first = alone.first[0]
    held = miss["held"] + miss["thread"] - miss["thread get_num_new_matched_tokens"]
    return {
        "loaded": reloaded.cached[0],
        "recompute s": first,
        "reload s": reloaded.first[0],
        "reload": reloaded.first[0] / first,
        "miss": held / first,
        "held s": miss["held"],
        "thread s": held - miss["held"],
        "miss ratio": missed.first[0] / first,
        "store": store["thread wait_for_save"] / first,
        "copies s": store["thread wait_for_save"],
        "store ratio": stored.seconds / missed.seconds,
        "store first ratio": stored.first[0] / missed.first[0],
        "adapter": (hit["held"] + hit["loading"]) / (hit["call match"] + hit["call load"]) - 1,
        "match s": hit["call match"],
        "load s": hit["call load"],
    }
