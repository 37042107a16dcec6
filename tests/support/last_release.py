"""The last release, out of the repository's history, as a process that answers for it.

The process runs `last_release_peer.py` over the tree of that release, with the packages of today's
environment. `REF` moves with each release; the peer is written against the tree that it names.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import google.protobuf
import pytest

ROOT: Final = Path(__file__).parents[2]
REF: Final = "bf0b207c3e2ee13c5341f6645f9e32c18ebbeedf"
"""The last tag; as there is none yet, the commit that the first stage ended with."""
FOLDERS: Final = ("", "proto", "services", "client")
STUB: Final = "proto/lexico_proto/v1/dictionaries_pb2.py"
PEER: Final = Path(__file__).with_name("last_release_peer.py")


def unpacked(folder: Path) -> Path:
    """The tree of the last release under `folder`. Skips where the history does not have it,
    or the protobuf at hand is too old for it.
    """
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "--format=tar", REF], capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"git has no {REF} here (a shallow clone, or no repository)")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        # Before Python 3.11.4 there are no filters; the archive is our own.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tar.extractall(folder)
    needed = re.search(
        r"^# Protobuf Python Version: (.+)$", (folder / STUB).read_text(), re.MULTILINE
    )
    assert needed is not None
    if _numbers(google.protobuf.__version__) < _numbers(needed[1]):
        pytest.skip(f"the last release's stubs need protobuf {needed[1]}")
    return folder


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


class Peer:
    """A process of the last release. One call at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    async def ask(self, call: str, **arguments: Any) -> Any:
        """What the peer answers; an error there is one here, with its traceback. Waits in a thread:
        the peer may be calling a server of this process.
        """
        return await asyncio.to_thread(self._ask, call, arguments)

    def _ask(self, call: str, arguments: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([call, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the last release ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]


@contextmanager
def running_peer(tree: Path, store_url: str, folder: Path) -> Iterator[Peer]:
    """The last release, with both of its servers over a store, for the block.

    Args:
        tree: as `unpacked` made it.
        store_url: of the store.
        folder: for the dictionary sets of its client.
    """
    path = os.pathsep.join(str(tree / name) for name in FOLDERS)
    process = subprocess.Popen(
        [sys.executable, str(PEER), store_url, str(folder)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Peer(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # ends it
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
