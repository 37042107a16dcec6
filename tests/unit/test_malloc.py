"""Freed memory stays with the processes that asked for it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import sys

from lexico_worker.malloc import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (1 << 20) for _ in range(32)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults()
print(faults())
"""


def second_round(mode: str) -> int:
    """Page faults of 32 MiB in blocks of 1 MiB, taken and freed for the second time."""
    command = [sys.executable, "-c", PROGRAM, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_blocks_are_used_again_without_page_faults() -> None:
    pages = (32 << 20) // 4096
    assert second_round("keep") < pages / 20
    assert second_round("default") > pages / 2  # else there is nothing to keep
