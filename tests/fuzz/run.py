"""One target under the fuzzer, in a process of its own: libFuzzer ends it.

python -m tests.fuzz.run TARGET CORPUS [options of libFuzzer]
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(include=["lexico_codec", "lexico_client", "lexico_proto"]):
    from tests.fuzz.targets import TARGETS, attempt, seeds

SPARE_BYTES: Final = 1 << 30
"""Address space that an attack may take beyond what the process has: a length that nobody checked
asks for more, and ends as a MemoryError."""


def main() -> None:
    """Attacks until an option of libFuzzer ends it, or a defect does."""
    name, corpus = sys.argv[1], Path(sys.argv[2])
    target = TARGETS[name]
    for number, seed in enumerate(seeds(name)):
        attempt(target, seed)  # also loads what is loaded when first used
        (corpus / f"seed-{number}").write_bytes(seed)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + SPARE_BYTES, taken + SPARE_BYTES))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: attempt(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
