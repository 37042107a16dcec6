"""The entropy coder, compiled: `native/entropy.cpp` through ctypes. `entropy` says what it does."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.entropy.tables import Tables
from lexico_proto.errors import DamagedFrame, InvalidInput

_BAD_LEVEL, _DAMAGED = 6, 7  # Status of native/lexico.h


def encode(levels: Tensor, classes: Tensor, offsets: Tensor | None, tables: Tables) -> bytes:
    """See `entropy.encode`; all contiguous, shapes checked."""
    native = library.loaded()
    frequencies = tables.form("frequencies", lambda: tables.frequencies.to(torch.int32))
    bodies, size = ctypes.c_void_p(), ctypes.c_int64()
    status = native.lexico_entropy_encode(
        torch.get_num_threads(),
        levels.data_ptr(),
        classes.data_ptr(),
        None if offsets is None else offsets.data_ptr(),
        *levels.shape,
        frequencies.data_ptr(),
        tables.form("shifts", lambda: tables.shifts).data_ptr(),
        tables.classes,
        ctypes.byref(bodies),
        ctypes.byref(size),
    )
    if status == _BAD_LEVEL:
        raise InvalidInput("levels: one is 2^30 or more, or is not 0 where nothing is coded")
    if status:
        library.fail(status)
    try:
        body = np.empty(size.value, np.uint8)
        native.lexico_entropy_take(bodies, body.ctypes.data)
        return body.tobytes()
    finally:
        native.lexico_entropy_drop(bodies)


def decode(
    body: npt.NDArray[np.uint8],
    begins: npt.NDArray[np.int64],
    classes: Tensor,
    offsets: Tensor | None,
    tables: Tables,
    tokens: int,
    *,
    levels: bool,
) -> Tensor:
    """See `entropy.decode`; `begins` is what `entropy.split` gives."""
    native = library.loaded()
    kind = torch.int32 if levels else torch.float32
    out = torch.empty(len(classes), tokens, dtype=kind, device="cpu")
    status = native.lexico_entropy_decode(
        library.isa_number(),
        torch.get_num_threads(),
        body.ctypes.data,
        begins.ctypes.data,
        classes.data_ptr(),
        None if offsets is None else offsets.data_ptr(),
        len(classes),
        tokens,
        tables.slots().data_ptr(),
        tables.starts().data_ptr(),
        tables.values().data_ptr(),
        tables.form("shifts", lambda: tables.shifts).data_ptr(),
        tables.classes,
        levels,
        out.data_ptr(),
    )
    raise_for(status)
    return out


def raise_for(status: int) -> None:
    """Raises what a decoder's status means, if it is no success."""
    if status == _DAMAGED:
        raise DamagedFrame("entropy coded block: does not end where it should")
    if status:
        library.fail(status)


def choose_levels(
    values: Tensor,
    classes: Tensor,
    offsets: Tensor,
    tables: Tables,
    bits: Tensor,
    weight: float,
) -> Tensor:
    """See `levels.choose_levels`; all contiguous, shapes checked. bits: `[E, 17]` float32."""
    native = library.loaded()
    out = torch.empty(values.shape, dtype=torch.int32, device="cpu")
    status = native.lexico_choose_levels(
        torch.get_num_threads(),
        values.data_ptr(),
        classes.data_ptr(),
        offsets.data_ptr(),
        *values.shape,
        bits.data_ptr(),
        tables.form("points", lambda: tables.points).data_ptr(),
        tables.form("shifts", lambda: tables.shifts).data_ptr(),
        tables.classes,
        weight,
        out.data_ptr(),
    )
    if status:
        library.fail(status)
    return out
