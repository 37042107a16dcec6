"""Prompt caches of Hugging Face models: reloaded before an answer, offloaded behind it.

shared = HuggingFaceCache(client, model)
with Session(shared, tokenizer=tokenizer) as session:
    answer = session.generate(messages=messages, max_new_tokens=64)
    print(answer.report)

By hand it is `DynamicCache` in, `DynamicCache` out:

hit = shared.load(input_ids)
out = model.generate(input_ids, **hit.inputs, return_dict_in_generate=True)
shared.offload(out.sequences, hit.cache, wait="received")

A node that is short of memory keeps the reloaded prefix as codes, and attends over them:

model.set_attn_implementation("lexico_codes")
hit = shared.load_codes(input_ids)
out = model.generate(input_ids, **hit.inputs)
"""

from lexico_client.engines.hf import (
    CodedCache,
    CodedHit,
    Generated,
    GenerateReport,
    Hit,
    HuggingFaceCache,
    OffloadOutcome,
    PromptReport,
    Session,
    weights_fingerprint,
)

__all__ = [
    "CodedCache",
    "CodedHit",
    "GenerateReport",
    "Generated",
    "Hit",
    "HuggingFaceCache",
    "OffloadOutcome",
    "PromptReport",
    "Session",
    "weights_fingerprint",
]
