"""Prompt caches of Hugging Face models: `DynamicCache` in, `DynamicCache` out.

shared = HuggingFaceCache(client, model)
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
    Hit,
    HuggingFaceCache,
    weights_fingerprint,
)

__all__ = ["CodedCache", "CodedHit", "Hit", "HuggingFaceCache", "weights_fingerprint"]
