"""The machine that a figure belongs to."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lexico_proto import cgroup


def describe(packages: Iterable[str]) -> dict[str, Any]:
    """Hardware, versions of those of the packages that are installed, and today's date."""
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
        "date": datetime.now(UTC).date().isoformat(),
    }


def cores() -> int:
    """Cores that this process may use: by affinity, and by the quota of its cgroup."""
    return cgroup.cores()


def threads() -> int:
    """As many as OMP_NUM_THREADS says, or as there are cores."""
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or cores()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a kernel benchmark runs without the services
        return None
