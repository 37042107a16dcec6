"""Where a report was made, and the digest of the model that it judges."""

from __future__ import annotations

import hashlib
import platform
from typing import Any, Final

import torch
import xxhash

from lexico_codec.tensors import bytes_of
from lexico_lab import machine

_PACKAGES: Final = ("lexico-offload", "torch", "transformers", "numpy", "safetensors", "triton")


def describe() -> dict[str, Any]:
    """The machine, as the report shows it."""
    return {
        **machine.describe(_PACKAGES),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def model_digest(model: Any) -> bytes:
    """BLAKE2b-256 over names, shapes and XXH3-128 of a model's weights, 32 bytes.

    It names what was judged; nodes that share pages have a fingerprint of their own.
    """
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(model.state_dict().items()):
        content = xxhash.xxh3_128_hexdigest(bytes_of(tensor.reshape(-1)))
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {content}\n".encode())
    return digest.digest()
