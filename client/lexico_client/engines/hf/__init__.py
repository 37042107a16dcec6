"""Hugging Face transformers. Its public names are those of `lexico_client.hf`."""

from lexico_client.engines.hf._coded_cache import CodedCache
from lexico_client.engines.hf._hits import CodedHit, Hit
from lexico_client.engines.hf._reports import (
    Generated,
    GenerateReport,
    OffloadOutcome,
    PromptReport,
)
from lexico_client.engines.hf._session import Session
from lexico_client.engines.hf._shared_cache import HuggingFaceCache
from lexico_client.engines.hf._weights import weights_fingerprint

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
