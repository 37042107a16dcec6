"""Entropy decoding on CUDA: the streams of many bodies in one launch.

What a body is, and what its values mean, `entropy` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_codec.kernels.entropy.streams import split
from lexico_codec.kernels.entropy.tables import LANES, Tables
from lexico_codec.kernels.entropy.triton_decode_kernel import RUNTIME, unpack
from lexico_codec.kernels.variants import Variant
from lexico_proto.errors import DamagedFrame, InvalidInput, ShapeMismatch

DTYPES: Final = (torch.float32, torch.bfloat16)
"""Of the output."""

_WARPS: Final = 1  # a lane a token: prefix sums stay within the warp
_MOST_WORDS: Final = 1 << 30  # of a stream: places in it are int32


def decode(
    bodies: Sequence[bytes | memoryview],
    classes: Tensor,
    offsets: Tensor | None,
    tables: Tables,
    tokens: Sequence[int],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The values of all bodies, `[components, sum of tokens]`, in units of the step; see
    `entropy.decode`.

    Waits for the device, to know that the streams are sound.

    Args:
        bodies: what `entropy.encode` gave.
        classes: `[components]` int16 for all bodies, or `[bodies, components]`; on the CPU.
        offsets: `[sum of tokens]` int8 on the CPU, or None for zeros.
        tables: of the classes.
        tokens: of each body.
        device: where the values go.
        dtype: float32 or bfloat16.

    Raises:
        DamagedFrame: a body that no encoder of these classes gives; damage may also go unseen.
        ShapeMismatch: a shape or dtype that does not fit.
        InvalidInput: a negative number of tokens, or not one for each body.
    """
    if len(tokens) != len(bodies) or any(count < 0 for count in tokens):
        raise InvalidInput("tokens: as many as bodies, none negative")
    if dtype not in DTYPES:
        raise ShapeMismatch(f"dtype: must be one of {DTYPES}, not {dtype}")
    fits = classes.ndim == 1 or (classes.ndim == 2 and len(classes) == len(bodies))
    if classes.dtype != torch.int16 or not fits:
        raise ShapeMismatch("classes: must be int16, [components] or [bodies, components]")
    if offsets is not None and (offsets.dtype, *offsets.shape) != (torch.int8, sum(tokens)):
        raise ShapeMismatch("offsets: must be int8, one for each token")
    words, streams = _streams(bodies, tokens, rows=classes.ndim == 2)
    out = torch.empty(classes.shape[-1], sum(tokens), dtype=dtype, device=device)
    status = torch.empty(len(streams), dtype=torch.int32, device=device)
    if not len(streams):
        return out
    slots, values, shifts = tables.slots(), tables.values(), tables.shifts
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        unpack[(len(streams),)](
            torch.from_numpy(words).to(device),
            torch.from_numpy(streams).to(device),
            _classes(classes, offsets, tables).to(device),
            None if offsets is None else offsets.to(device).contiguous(),
            tables.form(f"slots {device}", lambda: slots.to(device)),
            tables.form(f"shifts {device}", lambda: shifts.to(device)),
            tables.form(f"values {device}", lambda: values.to(device)),
            out,
            status,
            out.shape[0],
            out.shape[1],
            tables.classes - 1,
            LANES=LANES,
            num_warps=_WARPS,
        )
    wrong = int(status.count_nonzero())
    if wrong:
        raise DamagedFrame(f"entropy coded blocks: {wrong} do not end where they should")
    return out


def variants(architecture: int) -> list[Variant]:
    """What the compile report builds; the same for every architecture."""
    return [
        _variant("fp32", out="fp32", shifted=True),
        _variant("bf16", out="bf16", shifted=True),
        _variant("bf16 without offsets", out="bf16", shifted=False),
    ]


def _variant(name: str, *, out: str, shifted: bool) -> Variant:
    signature = {
        "words": "*i16",
        "streams": "*i64",
        "classes": "*i32",
        "offsets": "*i8" if shifted else "constexpr",
        "slots": "*i32",
        "shifts": "*u8",
        "values": "*fp32",
        "out": f"*{out}",
        "status": "*i32",
        **dict.fromkeys(RUNTIME, "i32"),
        "LANES": "constexpr",
    }
    constexprs: dict[str, Any] = {} if shifted else {"offsets": None}
    constexprs |= {"LANES": LANES}
    return Variant(f"entropy {name}", unpack, signature, constexprs, _WARPS, 3)


def _streams(
    bodies: Sequence[bytes | memoryview], tokens: Sequence[int], *, rows: bool
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """The words of all bodies, and what the kernel wants to know of each stream in them."""
    data, described = [], []
    words = first = 0
    for number, (body, count) in enumerate(zip(bodies, tokens, strict=True)):
        some, begins = split(body, count)
        lanes = np.minimum(count - LANES * np.arange(len(begins) - 1), LANES)
        starts, lengths = begins[:-1] // 2, np.diff(begins) // 2
        if (lengths > _MOST_WORDS).any():
            raise DamagedFrame("entropy coded body: a stream over 2 GiB")
        places = first + LANES * np.arange(len(lanes))
        row = np.full(len(lanes), number if rows else 0)
        described.append(np.stack([words + starts, lengths, places, lanes, row], 1))
        data.append(some.view("<i2"))
        words, first = words + len(some) // 2, first + count
    if not described:
        return np.empty(0, np.int16), np.empty((0, 5), np.int64)
    return np.concatenate(data), np.concatenate(described).astype(np.int64)


def _classes(classes: Tensor, offsets: Tensor | None, tables: Tables) -> Tensor:
    """`classes` of the kernel: twice the class, plus 1 where a token's class may have raw bits."""
    least, most = (0, 0) if offsets is None else (int(of) for of in offsets.aminmax())
    raw = torch.cat([torch.zeros(1), (tables.shifts > 0).cumsum(0)])
    wide, last = classes.to(torch.int32), tables.classes - 1
    from_, to = ((wide + by).clamp(0, last).long() for by in (least, most))
    return (2 * wide + (raw[to + 1] > raw[from_]).int()).contiguous()
