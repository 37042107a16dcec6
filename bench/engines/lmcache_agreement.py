"""How far answers of vLLM agree after LMCache loaded a prompt in a lossy codec from the service.

Greedy answers of an engine without LMCache are what others are compared with: `free` and `forced`
as in vllm_agreement.py. A server of LMCache stored the prompts; another one, whose memory is empty,
loads them for each answer: the engine has no prefix cache of its own, and LMCache drops what it
loaded.
"""

from __future__ import annotations

from typing import Any, Final

from bench.engines.parts import Answer, agreement
from tests.support.lmcache_fakes import LOCKS
from tests.support.lmcache_pairs import Counted, Pair, Pairs
from tests.support.lmcache_server import CHUNK_TOKENS, MODULE, SENT
from tests.support.vllm_engine import BLOCK_TOKENS, Engine

LOADED: Final = "lexico_engine_tokens_total loaded"


def measure(
    pairs: Pairs, settings: dict[str, Any], codec: str, prompts: list[list[int]], answer: int
) -> dict[str, Any]:
    """One codec's row.

    Args:
        pairs: servers and engines, which run one after another.
        settings: of the adapter, without a codec.
        codec: a preset.
        prompts: token ids.
        answer: tokens of an answer.

    Raises:
        SystemExit: a prompt was not loaded.
    """
    engine = pairs.alone()
    expected = [_answer(engine, ids, answer) for ids in prompts]
    layout = {"layout": "vllm-cpu", "block_tokens": BLOCK_TOKENS}
    params = {**settings, **LOCKS, **layout, "codec": codec}
    adapter = {
        "type": "plugin",
        "module_path": MODULE,
        "class_name": "LexicoL2Adapter",
        "adapter_params": params,
    }
    pair = pairs.like(adapter)
    counted, chunks = Counted(pair.server), 0
    for ids in prompts:
        _answer(pair.engine, ids, 1)
        chunks += len(ids) // CHUNK_TOKENS
        counted.reach(SENT, chunks)
    return _row(pairs.again(), codec, prompts, expected)


def _row(
    pair: Pair, codec: str, prompts: list[list[int]], expected: list[list[int]]
) -> dict[str, Any]:
    free, forced, loaded = list[Answer](), list[Answer](), 0
    for ids, theirs in zip(prompts, expected, strict=True):
        counted = Counted(pair.server)
        said = _answer(pair.engine, ids, len(theirs))
        came = counted.changes()[LOADED]
        if not came:
            raise SystemExit(f"{codec}: a prompt was not loaded")
        loaded += came
        places = range(1, len(theirs))
        nexts = [_answer(pair.engine, ids + theirs[:place], 1)[0] for place in places]
        if counted.changes()[LOADED] < came * len(theirs):
            raise SystemExit(f"{codec}: a prompt was not loaded each time")
        free.append(said)
        forced.append([said[0], *nexts])
    return agreement(codec, prompts, loaded, expected, free, forced)


def _answer(engine: Engine, ids: list[int], tokens: int) -> list[int]:
    return engine.generate(ids, max_tokens=tokens, params={"ignore_eos": True}).tokens[0]
