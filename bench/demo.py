"""Two inference nodes share a prompt cache: `make demo`.

Starts the service, then two node processes with SmolLM2-135M. Node A prefills a shared context,
offloads it and answers a question. Node B, which has never seen the context, reloads it and answers
other questions, then continues A's conversation for a second turn.

    python -m bench.demo [--codecs lossless paper]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.service import Service
from lexico_codec.codecs import CODECS as ALL_CODECS
from lexico_codec.presets import PRESETS
from lexico_codec.spec import DEFAULT_PAGE_TOKENS
from lexico_lab.record import table

CODECS = ("lossless", "balanced")
CONTEXT_TOKENS = 1600
ANSWER_TOKENS = 48
SHOWN_CHARACTERS = 160
QUESTION_A = "In one sentence: what does this service share between inference nodes?"
QUESTIONS_B = (
    "Which store holds the compressed pages?",
    "What does a node do when a stored page is damaged?",
)
FOLLOW_UP = "Thank you. And why is that useful?"


def shared_context() -> str:
    """Text of our own: the project's documentation."""
    root = Path(__file__).parent.parent
    return "\n\n".join((root / name).read_text() for name in ("README.md", "docs/glossary.md"))


def run_node(role: str, settings: dict[str, Any], exchange: Path) -> None:
    """One node process; what it reports goes into the exchange folder as JSON."""
    import torch

    from bench.node import Node
    from lexico_client import Client

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with Client(offload=settings["offload"], reload=settings["reload"]) as client:
        node = Node(client, codecs=tuple(settings["codecs"]), page_tokens=DEFAULT_PAGE_TOKENS)
        report = {"a": node_a, "b": node_b}[role](node, exchange)
    (exchange / f"{role}.json").write_text(json.dumps(report))


def _prompt(node: Any, question: str) -> list[int]:
    ids = node.tokenizer(shared_context()).input_ids[:CONTEXT_TOKENS]
    context = node.tokenizer.decode(ids)
    messages = [
        {"role": "system", "content": "Answer from this documentation.\n\n" + context},
        {"role": "user", "content": question},
    ]
    encoded = node.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True
    )
    return list(encoded["input_ids"])


def node_a(node: Any, exchange: Path) -> dict[str, Any]:
    """Prefills, answers, offloads the conversation in every codec."""
    ids = _prompt(node, QUESTION_A)
    first = node.recompute(ids)
    answer = node.answer(first, ANSWER_TOKENS)
    conversation = ids + answer
    offloads = {}
    for codec, cache in node.caches.items():
        started = time.perf_counter()
        report = cache.offload(conversation, first.cache)
        offloads[codec] = {
            "tokens": report.tokens,
            "bytes_raw": report.tokens * cache.spec.geometry.token_bytes,
            "bytes_stored": report.bytes_stored,
            "seconds": time.perf_counter() - started,
        }
    return {
        "answer": node.tokenizer.decode(answer),
        "prompt_tokens": len(ids),
        "conversation": conversation,
        "seconds": first.seconds,
        "offloads": offloads,
    }


def node_b(node: Any, exchange: Path) -> dict[str, Any]:
    """Reloads what A left, answers other questions, takes A's conversation on."""
    from lexico_lab.caches import divergence

    conversation = json.loads((exchange / "a.json").read_text())["conversation"]
    turn = f"<|im_end|>\n<|im_start|>user\n{FOLLOW_UP}<|im_end|>\n<|im_start|>assistant\n"
    prompts = {question: _prompt(node, question) for question in QUESTIONS_B}
    prompts[FOLLOW_UP] = conversation + node.tokenizer(turn).input_ids
    rows, answers = [], []
    for question, ids in prompts.items():
        whole = node.recompute(ids)
        expected = node.answer(whole, ANSWER_TOKENS)
        answers.append((question, "recomputed", node.tokenizer.decode(expected)))
        exact = node.distributions(node.recompute(ids), expected)
        for codec in node.caches:
            first = node.reload(ids, codec)
            made = node.distributions(node.reload(ids, codec), expected)
            text = node.tokenizer.decode(node.answer(first, ANSWER_TOKENS))
            answers.append((question, codec, text))
            rows.append(
                {
                    "question": question,
                    "codec": codec,
                    "prompt tokens": len(ids),
                    "tokens hit": first.hit.tokens,
                    "reload s": first.seconds,
                    "recompute s": whole.seconds,
                    "faster": whole.seconds / first.seconds,
                    "KL": divergence(exact, made),
                    "same answer": "yes" if text == node.tokenizer.decode(expected) else "no",
                    "received": first.hit.loaded.bytes_received,
                    "reason": str(first.hit.reason) if first.hit.reason else "",
                }
            )
    return {"rows": rows, "answers": answers}


def _start_node(role: str, service: Service, codecs: list[str], exchange: Path) -> None:
    addresses = {"offload": service.offload, "reload": service.reload}
    settings = json.dumps({"codecs": codecs, **addresses})
    command = [sys.executable, "-m", "bench.demo", "--role", role]
    command += ["--settings", settings, "--exchange", str(exchange)]
    if subprocess.run(command, check=False).returncode != 0:
        raise SystemExit(f"node {role} failed; the service's log:\n{service.log.read_text()}")


def main() -> None:
    """Runs the demo, or one of its nodes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--codecs",
        nargs="+",
        default=CODECS,
        choices=sorted({*PRESETS, *ALL_CODECS}),
        metavar="NAME",
        help="presets or codecs to show",
    )
    parser.add_argument("--role", choices=("a", "b"), help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    parser.add_argument("--exchange", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        run_node(options.role, json.loads(options.settings), options.exchange)
        return
    started = time.perf_counter()
    print("starting the service (embedded store, Ray on loopback) ...", flush=True)
    with Service() as service, tempfile.TemporaryDirectory() as scratch:
        exchange = Path(scratch)
        print(f"offload at {service.offload}, reload at {service.reload}", flush=True)
        print("node A: prefill, answer, offload ...", flush=True)
        _start_node("a", service, options.codecs, exchange)
        print("node B: reload, answer, take the conversation on ...", flush=True)
        _start_node("b", service, options.codecs, exchange)
        _print_report(
            json.loads((exchange / "a.json").read_text()),
            json.loads((exchange / "b.json").read_text()),
        )
    print(f"\ndone in {time.perf_counter() - started:.0f} s")


def _print_report(a: dict[str, Any], b: dict[str, Any]) -> None:
    print(f"\nNode A prefilled {a['prompt_tokens']} tokens in {a['seconds']:.2f} s and answered:")
    print(f"  {QUESTION_A}\n  > {a['answer'].strip()}\n")
    print("What A offloaded (the cache is float32; fp16 would be half of raw):")
    offloads = []
    for codec, offload in a["offloads"].items():
        raw = offload["bytes_raw"]
        offloads.append(
            {
                "codec": codec,
                "tokens": offload["tokens"],
                "bytes raw": raw,
                "bytes stored": offload["bytes_stored"],
                "of fp16": f"{offload['bytes_stored'] / (raw / 2):.1%}",
                "offload s": offload["seconds"],
            }
        )
    print(table(offloads))
    print("\nNode B, which never saw the context (time to first token; KL over the answer):")
    hidden = ("question", "reason")
    for question in dict.fromkeys(row["question"] for row in b["rows"]):
        print(f"\n  {question}")
        mine = [row for row in b["rows"] if row["question"] == question]
        shown = [{k: v for k, v in row.items() if k not in hidden} for row in mine]
        print("  " + table(shown).replace("\n", "\n  "))
        for row in mine:
            if row["reason"]:
                print(f"  {row['codec']}: {row['reason']}")
        for asked, how, text in b["answers"]:
            if asked == question:
                print(f"  {how:>10} > {' '.join(text.split())[:SHOWN_CHARACTERS]}")


if __name__ == "__main__":
    main()
