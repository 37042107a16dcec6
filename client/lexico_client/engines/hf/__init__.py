"""Hugging Face transformers. Its public names are those of `lexico_client.hf`."""

from lexico_client.engines.hf._coded_cache import CodedCache
from lexico_client.engines.hf._hits import CodedHit, Hit
from lexico_client.engines.hf._shared_cache import HuggingFaceCache
from lexico_client.engines.hf._weights import weights_fingerprint

__all__ = ["CodedCache", "CodedHit", "Hit", "HuggingFaceCache", "weights_fingerprint"]
