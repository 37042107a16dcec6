"""A conversation on two nodes that take turns: `python -m examples.chat`.

Each turn is answered by the node that did not answer the one before. It reloads the conversation so
far from the service, in place of computing it again. SmolLM2-135M, a service of its own, all on
this machine.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import Any, Final

import transformers

from examples.two_nodes.service import Service
from lexico_client import Client
from lexico_client.hf import HuggingFaceCache, Session
from lexico_lab.models import load_model

CONTEXT: Final = (
    "You answer in one sentence. The lighthouse keeper wrote in his log every evening, and on the "
    "last page he noted that the sea had been calm for nine days. He had three lamps, one of which "
    "he never lit, and a boat that leaked. Once a month a ship brought him oil, flour, letters and "
    "the newspapers of four weeks, which he read one a day, in order."
)
QUESTIONS: Final = (
    "How many lamps did the keeper have?",
    "What did the ship bring him?",
    "And how did he read the newspapers?",
)


def main() -> None:
    """Runs the conversation."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.chat", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--codec", default="lossless", help="preset or codec of the pages")
    parser.add_argument("--new-tokens", type=int, default=40)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded = load_model("smollm2")
    with ExitStack() as stack:
        service = stack.enter_context(Service())
        nodes = []
        for _ in range(2):  # each has a connection and a session of its own, as two hosts would
            client = stack.enter_context(Client(reload=service.reload, offload=service.offload))
            # Short pages for a short conversation: whole pages alone are shared.
            shared = HuggingFaceCache(client, loaded.model, codec=options.codec, page_tokens=16)
            nodes.append(stack.enter_context(Session(shared, tokenizer=loaded.tokenizer)))
        messages = [{"role": "system", "content": CONTEXT}]
        for turn, question in enumerate(QUESTIONS):
            messages.append({"role": "user", "content": question})
            made = nodes[turn % 2].generate(
                messages=messages, max_new_tokens=options.new_tokens, do_sample=False
            )
            answer: Any = loaded.tokenizer.decode(made.answers[0], skip_special_tokens=True)
            messages.append({"role": "assistant", "content": answer})
            sys.stdout.write(f"\n{question}\n  {answer.strip()}\n")
            sys.stdout.write(f"  node {turn % 2 + 1}: {made.report.prompts[0]}\n")
            # Offloads run behind answers. The other node is to find this one: wait for it.
            for outcome in made.report.offloads():
                pages = len(outcome.report.pages) if outcome.report else outcome.error
                sys.stdout.write(f"  offloaded: {pages} pages\n")


if __name__ == "__main__":
    main()
