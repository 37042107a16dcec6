"""What connectors inside engines count: families of `lexico_proto.metrics`."""

from __future__ import annotations

from typing import Final

from lexico_proto.counters import Family, Label

OUTCOMES: Final = ("hit", "local", "miss", "failed", "unusable")
"""Of requests that an engine's scheduler asked about."""
LEFT_ALONE: Final = ("lora", "multimodal", "embeddings", "logprobs", "pooling")
"""Why an engine's requests are left alone."""

ENGINE_REQUESTS: Final = Family(
    "lexico_engine_requests_total",
    "Requests that an engine's scheduler asked about: hit, where tokens were promised; local, "
    "where the engine had them already; miss; failed, where the service did not say; unusable, "
    "once a load of theirs had failed; or why they were left alone.",
    (Label("outcome", frozenset({*OUTCOMES, *LEFT_ALONE})),),
)
ENGINE_TOKENS: Final = Family(
    "lexico_engine_tokens_total",
    "Tokens of an engine's prompts: asked for, promised to its scheduler, loaded into its blocks, "
    "lost, which it computes after all.",
    (Label("what", frozenset({"asked", "promised", "loaded", "lost"})),),
)
ENGINE_PAGES: Final = Family(
    "lexico_engine_pages_total",
    "Pages that an engine computed and the service lacked: sent, present after all, dropped for "
    "want of room for copies, failed.",
    (Label("outcome", frozenset({"sent", "present", "dropped", "failed"})),),
)
ENGINE_STAGED: Final = Family(
    "lexico_engine_staged_bytes",
    "Bytes of copies of an engine's pages that are on their way to the service.",
    gauge=True,
)
OF_ENGINES: Final = (ENGINE_REQUESTS, ENGINE_TOKENS, ENGINE_PAGES, ENGINE_STAGED)
