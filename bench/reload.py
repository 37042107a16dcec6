"""Reload and first token, against prefilling the same prompt: SmolLM2 on this machine's CPU.

    python -m bench.reload [--tokens 1500] [--rounds 5]

The service runs in its own processes; both sides are interleaved in one run, with the same threads.
The prompt is the project's documentation. What a reload leaves of it the model computes: of a
lossy preset the newest 64 tokens (ADR 0031), of lossless what is behind its last whole page. `of it
model s` is what that takes, beside the load.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

import torch

from examples.two_nodes.node import Node
from examples.two_nodes.prompts import shared_context
from examples.two_nodes.service import Service
from lexico_client import Client
from lexico_client.hf import Hit
from lexico_lab.caches import divergence
from lexico_lab.record import finish, gate, machine, table

CODECS = ("balanced", "paper", "lossless")  # `speedup` is of the second, codec lexico


def compare(
    node: Node, ids: list[int], rounds: int, page_tokens: int, codec: str
) -> dict[str, Any]:
    """Interleaved rounds of reload and recompute of one prompt."""
    cache = node.caches[codec]
    cache.offload(ids, node.recompute(ids).cache)
    node.reload(ids, codec)  # warms both sides
    recomputed, reloaded, behind, hits = [], [], list[float](), list[Hit]()
    for number in range(rounds):
        for side in ("recompute", "reload")[:: 1 if number % 2 else -1]:
            if side == "recompute":
                exact = node.recompute(ids)
                recomputed.append(exact.seconds)
            else:
                first = node.reload(ids, codec)
                hit = first.hit
                if hit is None or hit.reason is not None:
                    raise SystemExit(f"the reload missed: {hit and hit.reason}")
                reloaded.append(first.seconds)
                behind.append(first.seconds - hit.loaded.seconds.total)
                hits.append(hit)
    ratios = [whole / part for whole, part in zip(recomputed, reloaded, strict=True)]
    return {
        "codec": codec,
        "page tokens": page_tokens,
        "prompt": len(ids),
        "hit": hits[-1].tokens,
        "prefill s": statistics.median(recomputed),
        "reload s": statistics.median(reloaded),
        "computed": len(ids) - hits[-1].tokens,
        "of it model s": statistics.median(behind),
        "of it load s": statistics.median(hit.loaded.seconds.total for hit in hits),
        "of it decode s": statistics.median(hit.loaded.seconds.decode for hit in hits),
        "speedup": statistics.median(ratios),
        "speedup min": min(ratios),
        "received": hits[-1].loaded.bytes_received,
        "KL first token": divergence(
            exact.logits[None].log_softmax(-1), first.logits[None].log_softmax(-1)
        ),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page-tokens", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/contract/test_codec_lexico.py", "tests/integration/test_reload.py")
    described = machine()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    with Service() as service, Client(offload=service.offload, reload=service.reload) as client:
        for page_tokens in options.page_tokens:
            node = Node(client, codecs=CODECS, page_tokens=page_tokens)
            ids = node.tokenizer(shared_context()).input_ids[: options.tokens]
            if len(ids) < options.tokens:
                raise SystemExit(f"the documentation has {len(ids)} tokens: fewer than asked for")
            for codec in CODECS:
                rows.append(compare(node, ids, options.rounds, page_tokens, codec))
    print(table(rows))
    finish(
        "reload",
        {
            "speedup": rows[1]["speedup"],
            "speedup_balanced": rows[0]["speedup"],
            "threads": torch.get_num_threads(),
            "rows": rows,
        },
        described,
    )


if __name__ == "__main__":
    main()
