"""Hardware, versions and the model that figures belong to."""

from __future__ import annotations

import hashlib
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
import xxhash

from lexico_codec.tensors import bytes_of

_PACKAGES: Final = ("lexico-offload", "torch", "transformers", "numpy", "safetensors", "triton")


def describe() -> dict[str, Any]:
    """Where and with what a run is made."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "date": datetime.now(UTC).date().isoformat(),
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


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
