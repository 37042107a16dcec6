"""Launch parameters of the Triton encoder: a table, nothing is searched at run time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

SCRATCH_BYTES: Final = 1 << 30
"""Most scratch of one launch; longer codes get fewer programs instead of more memory."""
MANY_ATOMS: Final = 2048
"""From this size on a dictionary counts as large."""


_forced: list[Launch] = []


@dataclass(frozen=True, slots=True)
class Launch:
    """How the encoder is compiled and launched."""

    block_rows: int
    """BM: vectors a program codes together; a power of two, 16 or more."""
    block_atoms: int
    """BN: atoms scored together; a power of two, 16 or more. log2 of it is taken off the 23
    mantissa bits by which scores are compared."""
    part_rows: int
    """HB: rows that are orthogonalised together; a power of two, at most `block_rows`. With the
    padded m it must give each thread an element of its own, or threads would race."""
    warps: int
    stages: int
    """Triton's num_stages of the scoring loop: tiles of atoms in shared memory."""
    ahead: int
    """The same of the loop over former directions; 1 loads them into registers."""
    registers: int | None
    """Most a thread may have, or None."""
    programs: int
    """Programs a multiprocessor holds at once."""
    cache: str = ""
    """`.ca` keeps tiles of atoms in the first cache as well, for the other program there."""


# From compiling for sm_90 with triton 3.9.0, s = 16 (3.6.0 agrees but for spills outside the loop);
# none was timed yet: `make bench-gpu BENCH=--tune` is to replace them. 128 registers let two
# programs share a multiprocessor, so that one scores while the other orthogonalises. With them HB
# 64 spills inside the scoring loop at m = 128, HB 32 does not; BN 128 takes fewest instructions a
# score. Behind an entry: registers; local loads in the kernel / in the scoring loop; shared KiB;
# instructions a score in that loop, of them on the half-rate integer pipe.
_HOPPER: Final = {
    # (padded m, bits of a factor, large N)
    (64, 16, False): Launch(128, 128, 32, 8, 3, 3, 128, 2),
    (64, 16, True): Launch(128, 128, 32, 8, 3, 3, 128, 2),  # 128; 48/0; 64; 3.06, 1.75
    (64, 8, False): Launch(128, 128, 32, 8, 3, 3, 128, 2),
    (64, 8, True): Launch(128, 128, 32, 8, 3, 3, 128, 2),  # 128; 45/0; 32; 2.67, 1.72
    (128, 16, False): Launch(128, 128, 32, 8, 2, 3, 128, 2),
    (128, 16, True): Launch(128, 128, 32, 8, 2, 3, 128, 2),  # 128; 59/0; 96; 3.58, 1.84
    (128, 8, False): Launch(128, 128, 32, 8, 3, 3, 128, 2),
    (128, 8, True): Launch(128, 128, 32, 8, 3, 3, 128, 2),  # 128; 127/0; 64; 2.91, 1.78
    (256, 16, False): Launch(128, 128, 16, 8, 2, 3, None, 1),
    (256, 16, True): Launch(128, 128, 16, 8, 2, 3, None, 1),  # 229; 0/0; 192; 4.83, 1.97
    (256, 8, False): Launch(128, 128, 8, 8, 2, 3, 128, 2),
    (256, 8, True): Launch(128, 128, 8, 8, 2, 3, 128, 2),  # 128; 50/0; 96; 3.72, 1.81
}

# Ampere, Ada and workstation Blackwell, where a block may have but 99 KiB of shared memory. By m on
# sm_80: 32, 53, 0 local loads, none in the scoring loop; 36, 52, 68 KiB; 6.1, 8.0, 16.6
# instructions a score.
_SMALL: Final = {
    (64, 16): Launch(128, 64, 32, 8, 3, 2, 128, 2),
    (64, 8): Launch(128, 64, 32, 8, 3, 2, 128, 2),
    (128, 16): Launch(128, 64, 32, 8, 2, 2, 128, 2),
    (128, 8): Launch(128, 64, 32, 8, 2, 2, 128, 2),
    (256, 16): Launch(64, 64, 16, 8, 2, 2, None, 1),
    (256, 8): Launch(64, 64, 16, 8, 2, 2, None, 1),
}


CANDIDATES: Final = (
    *dict.fromkeys(_HOPPER.values()),
    Launch(128, 128, 32, 8, 2, 3, 128, 2, ".ca"),
    Launch(128, 128, 32, 8, 3, 3, 128, 2, ".ca"),
    Launch(128, 128, 16, 8, 2, 3, 128, 2),
    Launch(128, 128, 64, 8, 2, 3, 128, 2),
    Launch(128, 128, 64, 8, 2, 3, None, 1),
    Launch(128, 128, 32, 8, 3, 1, 128, 2),
    Launch(128, 128, 32, 8, 4, 3, 128, 2),
    Launch(128, 64, 32, 8, 3, 3, 128, 2),
    Launch(128, 64, 32, 8, 4, 3, 128, 2),  # 2 stages wait for a tile as soon as it is asked for
    Launch(128, 256, 32, 8, 2, 3, None, 1),
    Launch(64, 128, 32, 4, 2, 3, 128, 2),
    Launch(256, 128, 64, 16, 2, 3, 128, 1),  # halves the traffic of atoms; spills none in the loop
    Launch(256, 128, 64, 16, 3, 3, 128, 1),
)
"""What is worth timing, for any m and scoring; some need more shared memory than there is."""


def tune(padded_m: int, scoring: str, atoms: int, capability: tuple[int, int]) -> Launch:
    """The launch parameters for dictionaries of up to `atoms` atoms of `padded_m` components."""
    if _forced:
        return _forced[-1]
    width, bits = max(64, padded_m), 8 if scoring == "fp8" else 16
    if capability[0] == 9:
        return _HOPPER[width, bits, atoms >= MANY_ATOMS]
    if capability[0] == 10:  # scores come out of tensor memory there: 128 registers are too few
        launch = _HOPPER[width, bits, atoms >= MANY_ATOMS]
        return replace(launch, registers=None, programs=1)
    return _SMALL[width, bits]


@contextlib.contextmanager
def forced(launch: Launch) -> Iterator[None]:
    """Uses these parameters for every launch meanwhile: for tests and tuning, not for threads."""
    _forced.append(launch)
    try:
        yield
    finally:
        _forced.pop()
