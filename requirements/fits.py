"""Says whether the lock fits the Python that runs this file, before anything is installed.

python -m requirements.fits    exit 1 and one line on stderr where it does not

It uses the standard library and plain syntax alone: a Python that is too old must get as far as
the line.
"""

import platform
import sys

PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")


def misfit(system: str, machine: str, implementation: str, python: str) -> str:
    """Why the lock does not fit, as one line; empty where it fits.

    `system`, `machine` and `implementation` are `platform`'s words, `python` is "major.minor".
    """
    if system != "Linux" or machine not in MACHINES:
        return f"the lock is for Linux on {' or '.join(MACHINES)}, not for {system} on {machine}"
    if implementation != "CPython" or python not in PYTHONS:
        return (
            f"the lock is for CPython {', '.join(PYTHONS)}, not for {implementation} {python}; "
            f"name another by PYTHON=python{PYTHONS[0]}"
        )
    return ""


if __name__ == "__main__":
    reason = misfit(
        platform.system(),
        platform.machine(),
        platform.python_implementation(),
        ".".join(platform.python_version_tuple()[:2]),
    )
    sys.exit(f"make: {reason}" if reason else 0)
