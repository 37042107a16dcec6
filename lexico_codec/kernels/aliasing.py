"""Whether elements of strided memory share bytes: writing there would be wrong keys and values.

Where one dimension's steps fall into the extent of the others the answer is yes, though a few odd
layouts would be free of it: no engine has such.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from lexico_proto.errors import InvalidInput

_MOST_TRIED: Final = 64  # distances of two tables' elements in one dimension


def check_strides(tensor: Tensor, name: str) -> None:
    """Refuses a tensor whose own elements may share memory.

    Raises:
        InvalidInput: naming it.
    """
    if not tensor.numel():
        return
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < extent:
                raise InvalidInput(
                    f"{name}: elements share memory, strides {list(tensor.stride())} of "
                    f"{list(tensor.shape)}"
                )
            extent += (size - 1) * stride


def check_tables(parts: Sequence[Tensor]) -> None:
    """Refuses tables that may share memory with themselves or one another.

    Raises:
        InvalidInput: naming which.
    """
    spans = []
    for index, part in enumerate(parts):
        check_strides(part, f"parts[{index}]")
        if part.numel():
            start = part.data_ptr()
            spans.append((start, start + _width(_steps(part)), index))
    spans.sort()
    for place, (start, end, index) in enumerate(spans):
        for other_start, _, other in spans[place + 1 :]:
            if other_start >= end:
                break
            if not _apart(parts[index], parts[other], other_start - start):
                raise InvalidInput(f"parts[{index}] and parts[{other}] share memory")


Steps = list[tuple[int, int]]
"""Bytes of a step and how many values it runs over, of dimensions of more than one."""


def _steps(part: Tensor) -> Steps:
    sizes = zip(part.stride(), part.shape, strict=True)
    return [(stride * part.itemsize, size) for stride, size in sizes] + [(1, part.itemsize)]


def _width(steps: Steps) -> int:
    """Bytes from the first to behind the last that is reached."""
    return 1 + sum((size - 1) * step for step, size in steps)


def _apart(one: Tensor, other: Tensor, distance: int) -> bool:
    """Whether two tensors of one shape, free of aliases of their own, share no byte.

    Dimensions of equal strides are walked together: what counts is by how many steps two elements
    differ. The others are taken as one run of bytes.

    Args:
        one, other: the tensors. distance: bytes from the first to the second.
    """
    pairs = list(zip(_steps(one), _steps(other), strict=True))
    common = sorted((a for a, b in pairs if a == b and a[1] > 1), reverse=True)
    widths = [_width([pair[side] for pair in pairs if pair[0] != pair[1]]) for side in (0, 1)]
    return not _meet(common, distance, *widths)


def _meet(common: Steps, distance: int, width: int, other_width: int) -> bool:
    """Whether a run of `width` bytes at 0 meets one of `other_width` at `distance`, or does once
    that is moved by any difference of two elements along `common`.
    """
    if not common:
        return -other_width < distance < width
    (step, size), *rest = common
    reach = sum((count - 1) * inner for inner, count in rest)
    least = max(1 - size, -((distance + other_width + reach) // step))
    most = min(size - 1, (width + reach - distance) // step)
    if most - least > _MOST_TRIED:
        return True
    return any(
        _meet(rest, distance + moved * step, width, other_width) for moved in range(least, most + 1)
    )
