"""What each node does, in a process of its own. It prints its progress as JSON lines."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch

from examples.two_nodes.node import Node
from examples.two_nodes.prompts import FOLLOW_UP, QUESTION_A, QUESTIONS_B, next_turn, prompt_of
from lexico_client import Client
from lexico_codec.spec import DEFAULT_PAGE_TOKENS
from lexico_lab.caches import divergence

ANSWER_TOKENS: Final = 48


def say(step: str) -> None:
    """Tells the parent process what comes next."""
    sys.stdout.write(json.dumps({"step": step}) + "\n")
    sys.stdout.flush()


def prefill_and_offload(node: Node, exchange: Path) -> dict[str, Any]:
    """Node A prefills the context, answers a question, and offloads the conversation."""
    ids = prompt_of(node.tokenizer, QUESTION_A)
    say(f"prefills {len(ids):,} tokens and answers")
    first = node.recompute(ids)
    answer, _ = node.answer(first, ANSWER_TOKENS)
    conversation = ids + answer
    offloads = {}
    for codec, cache in node.caches.items():
        say(f"offloads its cache, {codec}")
        started = time.perf_counter()
        report = cache.offload(conversation, first.cache)
        offloads[codec] = {
            "tokens": report.tokens,
            "cache bytes": report.tokens * cache.spec.geometry.token_bytes,
            "stored bytes": report.bytes_stored,
            "seconds": time.perf_counter() - started,
        }
    say("ends: the store alone has its cache now")
    return {
        "answer": node.tokenizer.decode(answer),
        "prompt tokens": len(ids),
        "conversation": conversation,
        "dtype": node.caches[codec].spec.geometry.dtype,
        "seconds": first.seconds,
        "offloads": offloads,
    }


def reload_and_answer(node: Node, exchange: Path) -> dict[str, Any]:
    """Node B reloads what A left, answers other questions, and takes A's conversation on."""
    conversation = json.loads((exchange / "a.json").read_text())["conversation"]
    prompts = {question: prompt_of(node.tokenizer, question) for question in QUESTIONS_B}
    prompts[FOLLOW_UP] = next_turn(node.tokenizer, conversation, FOLLOW_UP)
    asked = []
    for number, (question, ids) in enumerate(prompts.items(), 1):
        say(f"question {number} of {len(prompts)}: prefills, to compare")
        whole = node.recompute(ids)
        expected, exact = node.answer(whole, ANSWER_TOKENS)
        text = node.tokenizer.decode(expected)
        reloads = {}
        for codec in node.caches:
            say(f"question {number} of {len(prompts)}: reloads, {codec}")
            first = node.reload(ids, codec)
            hit = first.hit
            if hit is None or hit.reason is not None:
                raise SystemExit(f"the reload missed: {hit and hit.reason}")
            along = node.distributions(first, expected)
            answer, _ = node.answer(first, ANSWER_TOKENS)
            reloads[codec] = {
                "tokens": hit.tokens,
                "seconds": first.seconds,
                "received bytes": hit.loaded.bytes_received,
                "KL": divergence(exact[: len(along)], along[: len(exact)]),
                "answer": node.tokenizer.decode(answer),
            }
        asked.append(
            {
                "question": question,
                "tokens": len(ids),
                "seconds": whole.seconds,
                "answer": text,
                "reloads": reloads,
            }
        )
    return {"questions": asked}


def main() -> None:
    """Runs one node; what it reports goes into the exchange folder as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=("a", "b"))
    parser.add_argument("--offload", required=True)
    parser.add_argument("--reload", required=True)
    parser.add_argument("--codecs", nargs="+", required=True)
    parser.add_argument("--exchange", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    say("loads SmolLM2-135M (the first time converts it)")
    with Client(offload=options.offload, reload=options.reload) as client:
        node = Node(client, codecs=tuple(options.codecs), page_tokens=DEFAULT_PAGE_TOKENS)
        work = {"a": prefill_and_offload, "b": reload_and_answer}[options.role]
        report = work(node, options.exchange)
    (options.exchange / f"{options.role}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
