"""One layer group of a source as data messages: the only copy that a node makes of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lexico_codec.checksum import Checksum
from lexico_codec.memory import CacheMemory
from lexico_codec.pages import check_whole
from lexico_codec.put_messages import DataMessage
from lexico_codec.spec import CacheSpec
from lexico_codec.tensors import all_finite, tensor_from
from lexico_proto.errors import NonFiniteCache
from lexico_proto.limits import PIECE_BYTES

GroupSource = Tensor | CacheMemory
"""A layer group where it lies: a tensor of `spec.group_shape(group)`, or an engine's memory."""


def group_messages(
    spec: CacheSpec, page: int, group: int, source: GroupSource, checksum: Checksum
) -> list[bytes]:
    """The group as data messages: its bytes are copied once, from where they lie into what is sent.

    Args:
        source: of the geometry's dtype.
        checksum: the page's so far; takes the group's bytes.

    Raises:
        TypeError: the source is neither a tensor nor a `CacheMemory`.
        ShapeMismatch: the source does not fit the spec.
        NonFiniteCache: NaN or infinity in it.
    """
    parts, messages = _checked_parts(spec, page, group, source), []
    for run in _runs(parts, spec.geometry.itemsize):
        message = DataMessage(sum(tensor.nbytes for tensor in run))
        _write(run, message.payload)
        # Here too, though the encoder looks again: nothing is sent in vain, and with
        # wait="received" its refusal would not be heard.
        if not all_finite(tensor_from(message.payload, run[0].dtype, (len(run), *run[0].shape))):
            raise NonFiniteCache(f"page {page} group {group} holds NaN or infinity: recompute it")
        checksum.add(message.payload)
        messages.append(message.seal())
    return messages


def _checked_parts(spec: CacheSpec, page: int, group: int, source: GroupSource) -> Sequence[Tensor]:
    """Keys and values of each layer, once they have proved to be what the spec says."""
    if not isinstance(source, Tensor | CacheMemory):
        raise TypeError(
            f"the source gave no torch.Tensor and no CacheMemory for page {page} group {group}"
        )
    check_whole(spec, page, group, source)
    if isinstance(source, CacheMemory):
        views = source.tables.views()
        if views is not None:
            return [part.detach() for part in views]
        source = source.read()
    return [part for layer in source.detach().unbind(0) for part in layer.unbind(0)]


def _runs(parts: Sequence[Tensor], itemsize: int) -> Iterator[Sequence[Tensor]]:
    """What goes into one message each: tensors of one shape, to be written one behind another."""
    if parts[0].nbytes <= PIECE_BYTES:
        count = PIECE_BYTES // parts[0].nbytes
        for start in range(0, len(parts), count):
            yield parts[start : start + count]
        return
    for part in parts:
        if part[0].nbytes > PIECE_BYTES:  # one token alone is
            part = part.reshape(-1)
        rows = PIECE_BYTES // part[0].nbytes
        for start in range(0, len(part), rows):
            yield [part[start : start + rows]]


def _write(run: Sequence[Tensor], payload: memoryview) -> None:
    """Copies tensors behind one another; as bytes, since a payload may lie at an odd address."""
    rows = [_as_bytes(tensor) for tensor in run]
    out = torch.frombuffer(payload, dtype=torch.uint8).view(len(rows), *rows[0].shape)
    with torch.no_grad():
        if all(row.device.type == "cpu" for row in rows):
            torch.stack(list(rows), out=out)
        else:
            out.copy_(torch.stack(list(rows)))


def _as_bytes(tensor: Tensor) -> Tensor:
    if tensor.ndim and tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return tensor.view(torch.uint8)
