"""What a load costs that finds nothing, against prefilling the same prompt: SmolLM2 on the CPU.

    python -m bench.fleet.miss [--tokens 2000] [--rounds 8]

The store is empty. The load is that of a node whose model may change: `HuggingFaceCache.load`
looks at every weight's stamp, hashes the page keys, asks by one Match and makes the empty cache.
Preset and page size are the defaults. Prefill is the model's forward pass over all tokens, with a
cache of its own.

`miss_overhead` is the median of the rounds' ratios of the two. Peers report 0.03 to 0.15.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Final

import torch
import transformers
from transformers import DynamicCache

from bench.fleet.rounds import against, interleaved
from bench.fleet.servers import embedded_store, reload_servers
from examples.two_nodes.prompts import shared_context
from lexico_client import Client
from lexico_client.hf import HuggingFaceCache
from lexico_codec.hf_inputs import cache_inputs
from lexico_lab.models import load_model
from lexico_lab.record import finish, gate, machine, table

TESTS: Final = ("tests/integration/test_reload.py", "tests/unit/test_hf_identity.py")


def measure(tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of prefill and of a load that misses.

    Raises:
        SystemExit: the documentation has fewer tokens; a load was no plain miss.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded = load_model("smollm2")
    model: Any = loaded.model
    ids = loaded.tokenizer(shared_context()).input_ids[:tokens]
    if len(ids) < tokens:
        raise SystemExit(f"the documentation has {len(ids)} tokens: fewer than asked for")
    prompt = torch.tensor([ids])

    def prefill() -> None:
        cache = DynamicCache(config=model.config)
        model(prompt, **cache_inputs(model, cache), use_cache=True, logits_to_keep=1)

    with (
        torch.inference_mode(),
        embedded_store() as (url, _),
        reload_servers(url, [{}]) as (address,),
        Client(reload=address) as client,
    ):
        shared = HuggingFaceCache(client, model)

        def miss() -> None:
            hit = shared.load(prompt)
            if hit.tokens or hit.reason is not None:
                raise SystemExit(f"{hit.tokens} tokens came, reason {hit.reason}: no plain miss")

        return against(interleaved({"prefill": prefill, "miss": miss}, rounds), "prefill")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate(*TESTS)
    described = machine()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = measure(options.tokens, options.rounds)
    print(table(rows))
    result = {
        "miss_overhead": rows[1]["median"],
        "tokens": options.tokens,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    finish("fleet_miss", result, described)


if __name__ == "__main__":
    main()
