"""docs/tutorial.md as a newcomer does it: from a clone, with the installation, timed.

    python -m bench.tutorial

`seconds` are from the clone to the end of the last command. They hold for this machine and network:
most of them are downloads and Ray's start.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from lexico_lab.record import finish, machine
from tests.support.tutorial import ROOT, TUTORIAL, blocks_of, is_as_said, ran

LIMIT_S: Final = 600.0
"""What the tutorial promises, on two cores."""


def main() -> int:
    """Exit code 0; 1 where the document is wrong, or the time too long."""
    described = machine()
    blocks = blocks_of(TUTORIAL.read_text())
    with tempfile.TemporaryDirectory(prefix="lexico-tutorial-") as scratch:
        folder = Path(scratch)
        clone = ["git", "clone", "--quiet", str(ROOT), str(folder / "lexico-offload")]
        started = time.monotonic()
        subprocess.run(clone, check=True)
        foreign = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
        done = ran(blocks, folder, {k: v for k, v in os.environ.items() if k not in foreign})
        seconds = time.monotonic() - started
    for block, output in zip(blocks, done.outputs, strict=False):
        if not is_as_said(output, block.printed):
            sys.stderr.write(f"{block.commands}printed\n{output}in place of\n{block.printed}\n")
            return 1
    if (done.code, len(done.outputs)) != (0, len(blocks)):
        sys.stderr.write(f"{done.errors}\nended with {done.code}\n")
        return 1
    result = {"seconds": seconds, "limit_s": LIMIT_S, "blocks": len(blocks)}
    finish("tutorial", result, described)
    return int(seconds > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
