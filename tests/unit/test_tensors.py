"""Tensors as bytes, bytes as tensors, and the search for NaN."""

from __future__ import annotations

import pytest
import torch

from lexico_codec.tensors import FLOAT8, WIDE, all_finite, bytes_of, tensor_from
from lexico_proto.errors import ShapeMismatch

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8, torch.int16], ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 0, 7), (0,)], ids=str)
def test_round_trip(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(100).to(dtype)[: torch.Size(shape).numel()].reshape(shape)
    data = bytes_of(tensor)
    assert (len(data), data.nbytes) == (tensor.nbytes, tensor.nbytes)
    back = tensor_from(data, dtype, shape)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_bytes_are_little_endian() -> None:
    assert bytes(bytes_of(torch.tensor([1.0, -2.0]))) == b"\0\0\x80\x3f\0\0\0\xc0"
    assert bytes(bytes_of(torch.tensor([258], dtype=torch.int16))) == b"\x02\x01"


def test_contiguous_tensors_are_not_copied() -> None:
    tensor = torch.zeros(8)
    data = bytes_of(tensor)
    tensor[0] = 1.0
    assert bytes(data[:4]) == b"\0\0\x80\x3f"
    buffer = bytearray(16)
    view = tensor_from(buffer, torch.float32, (4,))
    buffer[3] = 0x40
    assert float(view[0]) == 2.0


def test_strides_do_not_show_in_the_bytes() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    assert bytes(bytes_of(tensor.T)) == bytes(bytes_of(tensor.T.contiguous()))
    assert bytes(bytes_of(tensor[:, 1:3])) == bytes(bytes_of(tensor[:, 1:3].clone()))
    assert bytes(bytes_of(torch.ones(2, requires_grad=True))) == bytes(bytes_of(torch.ones(2)))


@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_and_read_only_bytes(offset: int, dtype: torch.dtype) -> None:
    tensor = torch.arange(6).to(dtype).reshape(2, 3)
    data = bytes(offset) + bytes(bytes_of(tensor))
    for source in (data, bytearray(data), memoryview(data)):
        assert torch.equal(tensor_from(memoryview(source)[offset:], dtype, (2, 3)), tensor)


@pytest.mark.parametrize("length", [0, 1, 23, 25, 48])
def test_another_length_is_refused(length: int) -> None:
    with pytest.raises(ShapeMismatch, match=f"{length} bytes .* needs 24"):
        tensor_from(bytes(length), torch.float32, (2, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_is_found(dtype: torch.dtype, bad: float) -> None:
    for place in (0, 1, 4999, 5000, 9999):
        tensor = torch.ones(10000, dtype=dtype)
        tensor[place] = bad
        assert not all_finite(tensor)
        assert not all_finite(tensor.view(50, 200).T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opposite_infinities_do_not_cancel(dtype: torch.dtype) -> None:
    assert not all_finite(torch.tensor([float("inf"), float("-inf")], dtype=dtype))
    assert not all_finite(torch.tensor([float("inf"), 1.0, float("-inf"), 2.0], dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sum_that_overflows_is_no_verdict(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    assert all_finite(torch.full((70000,), most, dtype=dtype))
    assert all_finite(torch.full((70000,), -most, dtype=dtype))
    mixed = torch.full((70000,), most, dtype=dtype)
    mixed[30000:] = -most  # partial sums may be infinities of both signs
    assert all_finite(mixed)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_every_number_of_eight_bits(dtype: torch.dtype) -> None:
    """Torch sums none of them, so each is looked at; a wider type has them all."""
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    for place in range(256):
        assert all_finite(every[place : place + 1]) == bool(every[place].float().isfinite())
        repeated = torch.zeros(999, dtype=dtype)
        repeated[998] = every[place]
        assert all_finite(repeated[::2]) == all_finite(every[place : place + 1])
    sound = every[every.float().isfinite()]
    assert torch.equal(sound.to(WIDE).to(dtype).view(torch.uint8), sound.view(torch.uint8))
    assert bytes(bytes_of(tensor_from(bytes(range(256)), dtype, (4, 64)))) == bytes(range(256))


def test_nothing_is_finite() -> None:
    assert all_finite(torch.empty(0))
