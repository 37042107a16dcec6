"""Tests in Triton's interpreter are skipped where it cannot run."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
from packaging.version import Version

_BROKEN = Version(importlib.metadata.version("triton")) < Version("3.7") and Version(
    np.__version__
) >= Version("2.4")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton 3.6 takes a scalar of an array, which NumPy 2.4 refuses."""
    if not _BROKEN:
        return
    reason = "the interpreter of Triton 3.6 does not run beside NumPy 2.4"
    for item in items:
        if "test_triton" in item.nodeid and "tests/kernels/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=reason))
