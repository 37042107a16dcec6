"""The compiled CPU kernels: the C++ of `native/` through ctypes.

`hatch_build.py` compiles the library where there is a C++ compiler; without it `available` is False
and the plain twins serve. The library picks an instruction set when it is loaded; the variable
LEXICO_CPU_ISA (amx, vnni, avx2 or generic) forces one, for tests.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import torch
from torch import Tensor

from lexico_codec.kernels.memory import Addresses, TableMemory
from lexico_proto.errors import ConfigurationError, InternalError

LIBRARY: Final = Path(__file__).parent / "native" / "liblexico.so"
ISA_VARIABLE: Final = "LEXICO_CPU_ISA"
MAX_DIM: Final = 65536
"""Components of a vector that the library takes, so that sums of int8 products fit an int32."""
MAX_HEAD: Final = 1024  # kMostHead of native/lexico.h
"""Components of a vector that may lie apart, or be turned."""

_ABI: Final = 9  # of `lexico_abi`: a library of another version is not used
_ISAS: Final = {"amx": 3, "vnni": 2, "avx2": 1, "generic": 0}  # best first
_DTYPES: Final = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_NO_MEMORY: Final = 1  # Status of native/lexico.h


def available() -> bool:
    """Whether the compiled library is there and loads."""
    return _library() is not None


def isa() -> str:
    """The instruction set that `omp` runs on: amx, vnni, avx2 or generic.

    Raises:
        ConfigurationError: LEXICO_CPU_ISA names none, or one that this machine lacks.
    """
    forced = os.environ.get(ISA_VARIABLE)
    if not forced:
        return supported()[0]
    if forced not in _ISAS:
        raise ConfigurationError(f"{ISA_VARIABLE}: {forced!r} is none of {', '.join(_ISAS)}")
    if forced not in supported():
        raise ConfigurationError(f"{ISA_VARIABLE}: this machine has no {forced}")
    return forced


def isa_number() -> int:
    """What the library calls `isa()`; raises what that raises."""
    return _ISAS[isa()]


@cache
def supported() -> tuple[str, ...]:
    """The instruction sets that this machine can run, best first."""
    library = loaded()
    return tuple(name for name, number in _ISAS.items() if library.lexico_supported(number))


def takes(dtype: torch.dtype) -> bool:
    """Whether the library reads and writes caches of that type."""
    return dtype in _DTYPES


def dtype_number(dtype: torch.dtype) -> int:
    """What the library calls a type that it `takes`."""
    return _DTYPES[dtype]


def reaches(memory: TableMemory) -> bool:
    """Whether the library reads and writes a memory: long vectors must lie in one run."""
    if memory.device.type != "cpu" or not takes(memory.dtype):
        return False
    return memory.m <= MAX_HEAD or bool((memory.addresses().strides[:, 3] == 1).all())


class Reached(NamedTuple):
    """A memory as the library takes it; to be kept while the call runs."""

    addresses: Addresses
    blocks: Tensor | None
    """The block table, int64."""

    @classmethod
    def of(cls, memory: TableMemory) -> Reached:
        """Of a memory that the library `reaches`."""
        blocks = None if memory.block_table is None else memory.block_table.long().contiguous()
        return cls(memory.addresses(), blocks)

    def arguments(self) -> tuple[int, int, int, int | None]:
        """Addresses of pointers and strides, from one table's strides to the next, block table."""
        pointers, strides = self.addresses
        step = 4 if len(strides) > 1 else 0
        blocks = None if self.blocks is None else self.blocks.data_ptr()
        return pointers.ctypes.data, strides.ctypes.data, step, blocks


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.lexico_abi() != _ABI:
            return None
    except (OSError, AttributeError):  # not built here, built for another machine, or not ours
        return None
    number, size, address = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    real, offsets, pointer = ctypes.c_float, ctypes.POINTER(size), ctypes.POINTER(address)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "lexico_supported": (number, [number]),
        "lexico_packed_bytes": (size, [size, size, offsets]),
        "lexico_pack": (number, [size, address, size, size, offsets, address]),
        "lexico_omp": (
            number,
            [number, size, address, address, offsets, address, *[size] * 4, real, *[address] * 3],
        ),
        "lexico_reconstruct": (
            number,
            [number, size, *[address] * 4, offsets, *[size] * 4, address],
        ),
        "lexico_restore": (
            number,
            [
                *(number, size, *[address] * 5, offsets, *[size] * 5, number),
                *(address, address, size, address, size, size),  # memory
            ],
        ),
        "lexico_entropy_encode": (
            number,
            [size, *[address] * 3, size, size, address, address, size, pointer, offsets],
        ),
        "lexico_entropy_take": (None, [address, address]),
        "lexico_entropy_drop": (None, [address]),
        "lexico_entropy_decode": (
            number,
            [number, size, *[address] * 4, size, size, *[address] * 4, size, number, address],
        ),
        "lexico_choose_levels": (
            number,
            [size, *[address] * 3, size, size, *[address] * 3, size, real, address],
        ),
        "lexico_gather": (
            number,
            [number, size, offsets, number, address, address, size, *[address] * 5],
        ),
        "lexico_scatter": (
            number,
            [number, size, offsets, number, address, address, size, *[address] * 5, number],
        ),
        "lexico_arrange": (
            number,
            [
                *(number, *[size] * 4, address, address),  # out of what
                *(*[size] * 3, address, address, real),  # atoms
                *(address, number, address),  # where to
            ],
        ),
        "lexico_entropy_arrange": (
            number,
            [
                *(number, size, *[address] * 4, size, size, *[address] * 4, size),  # streams
                *(address, *[size] * 3, address, address, real),  # scales and atoms
                *(address, size, address, address),  # where to
            ],
        ),
        "lexico_synthesise": (
            number,
            [
                *(number, size, offsets, *[address] * 6),
                *(address, offsets, number, address, address, size, *[address] * 4),  # where to
            ],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def loaded() -> ctypes.CDLL:
    """The library.

    Raises:
        InternalError: it is not there.
    """
    library = _library()
    if library is None:
        raise InternalError(f"{LIBRARY.name}: not built; run `python hatch_build.py`")
    return library


def fail(status: int) -> NoReturn:
    """Raises what a status means that no input explains."""
    if status == _NO_MEMORY:
        raise MemoryError("liblexico: no memory for scratch")
    raise InternalError(f"liblexico: status {status}")
