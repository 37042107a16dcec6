"""LMCache's TurboQuant serde on a CPU: what its kernels compute, in plain PyTorch.

LMCache runs it on CUDA devices alone. Its serializer and deserializer are used as they are; of the
two Triton kernels that they call, `install` puts twins in the place. `check` runs the kernels
themselves, in Triton's interpreter, and compares: bytes must be the same, and values within two
units in the last place of float16, in which the kernels give them. The one thing that it cannot
compare is the rounding of keys to FP8, of preset k8v4: the interpreter loses carries there. The
twin takes PyTorch's, to the nearest, ties to even, as devices do.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import torch
from torch import Tensor

_PACKAGE: Final = "lmcache.v1.distributed.serde.turboquant"
_STORE: Final = ("store_kernel", "triton_turboquant_store")
_DECODE: Final = ("decode_kernel", "_tq_full_dequant_kv")
_ULP: Final = 2.0**-10
"""Of float16, as a part of the value."""


def store(
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    rotation: Tensor,
    midpoints: Tensor,
    *,
    mse_bits: int,
    key_packed_size: int,
    value_quant_bits: int,
    key_fp8: bool,
) -> None:
    """The twin of `triton_turboquant_store`: codes one layer.

    Args:
        key, value: `[tokens, heads, head_dim]`.
        kv_cache: `[blocks, block, heads, slot]` uint8, filled in the order of `slot_mapping`.
        slot_mapping: a token's slot.
        rotation: `[head_dim, head_dim]`, of keys.
        midpoints: borders between the levels of a rotated key's coordinate.
        mse_bits: of such a coordinate.
        key_packed_size: bytes of a key; its value follows.
        value_quant_bits: of a coordinate of a value.
        key_fp8: keys are FP8 E4M3 in place of all that.
    """
    heads, slot = kv_cache.shape[2:]
    rows = kv_cache.view(-1, heads, slot)
    if key_fp8:
        keys = key.to(torch.float8_e4m3fn).view(torch.uint8)
    else:
        vectors = key.float()
        norms = vectors.reshape(-1, vectors.shape[-1]).norm(dim=1, keepdim=True)
        unit = vectors.reshape(-1, vectors.shape[-1]) / (norms + 1e-8)
        levels = torch.searchsorted(midpoints, unit @ rotation, right=True)
        packed = _packed(levels.view(vectors.shape), mse_bits)
        keys = torch.cat([packed, _half(norms.view(*key.shape[:2], 1))], dim=-1)
    least, most = value.float().amin(-1, keepdim=True), value.float().amax(-1, keepdim=True)
    top = 2**value_quant_bits - 1
    scale = ((most - least) / top).clamp_min(1e-8)
    levels = ((value.float() - least) / scale + 0.5).int().clamp(0, top)
    values = torch.cat([_packed(levels, value_quant_bits), _half(scale), _half(least)], dim=-1)
    rows[slot_mapping.long(), :, :key_packed_size] = keys
    rows[slot_mapping.long(), :, key_packed_size : key_packed_size + values.shape[-1]] = values


class Dequantize:
    """The twin of `_tq_full_dequant_kv`, called as a kernel is: for all slots and heads."""

    def __getitem__(self, grid: tuple[int, int]) -> Dequantize:
        return self

    def __call__(
        self,
        kv_cache: Tensor,
        block_table: Tensor,
        centroids: Tensor,
        k_out: Tensor,
        v_out: Tensor,
        *strides: int,
        **constants: Any,
    ) -> None:
        dim, key_bytes, bits = constants["HEAD_DIM"], constants["KPS"], constants["VQB"]
        cache = kv_cache[block_table[0].long()].flatten(0, 1).transpose(0, 1)
        if constants["KEY_FP8"]:
            keys = cache[..., :dim].contiguous().view(torch.float8_e4m3fn).float()
        else:
            packed, norm = cache[..., : key_bytes - 2], cache[..., key_bytes - 2 : key_bytes]
            keys = centroids[_unpacked(packed, constants["MSE_BITS"]).long()]
            if constants["NORM_CORRECTION"]:
                keys = keys / (keys.square().sum(-1, keepdim=True) + 1e-16).sqrt()
            keys = keys * _whole(norm)
        levels, rest = cache[..., key_bytes:].split_with_sizes(
            [dim * bits // 8, cache.shape[-1] - key_bytes - dim * bits // 8], dim=-1
        )
        k_out[0] = keys.half()
        v_out[0] = (_unpacked(levels, bits) * _whole(rest[..., :2]) + _whole(rest[..., 2:4])).half()


def install() -> None:
    """From now on the serde runs on the CPU, by the twins."""
    _on_the_cpu()
    _use(store, Dequantize())


def check(content: Tensor) -> dict[str, Any]:
    """Compares the twins with the kernels, for every preset. `install` comes later.

    Args:
        content: an object, `[2, layers, tokens, heads * head_dim]`, of whole blocks of 16 tokens.

    Returns:
        Which presets, and how many bytes were the same.

    Raises:
        AssertionError: they differ.
    """
    _on_the_cpu()
    serde = importlib.import_module(f"{_PACKAGE}.turboquant")
    ways = ((_kernel(*_STORE), _kernel(*_DECODE)), (store, Dequantize()))
    compared = 0
    for preset in serde.TQ_PRESETS:
        config = serde.TurboQuantSerdeConfig(
            preset, head_dim=64, skip_first_layers=0, skip_last_layers=0
        )
        shape = serde._compressed_layout_for_shape(content.shape, config)
        coded = [torch.zeros(shape, dtype=torch.uint8) for _ in ways]
        back = [torch.empty_like(content) for _ in ways]
        for way, bytes_of in zip(ways, coded, strict=True):
            _use(*way)
            flat = _Memory(bytes_of.view(-1))
            serde.TurboQuantSerializer(config).serialize(_Memory(content), flat, None)
        for way, into in zip(ways, back, strict=True):
            _use(*way)
            flat = _Memory(coded[1].view(-1))
            serde.TurboQuantDeserializer(config).deserialize(flat, _Memory(into), None)
        first = config.key_packed_size if config.key_fp8 else 0  # the interpreter misrounds FP8
        theirs, ours = (each[..., first : config.slot_size] for each in coded)
        assert torch.equal(ours, theirs), f"{preset}: other bytes"
        torch.testing.assert_close(back[1], back[0], rtol=2 * _ULP, atol=2 * _ULP)
        compared += ours.numel()
    return {"presets": list(serde.TQ_PRESETS), "bytes": compared}


def _kernel(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)


def _use(coding: Any, decoding: Any) -> None:
    """Has the serde call these."""
    for (module, name), kernel in ((_STORE, coding), (_DECODE, decoding)):
        setattr(importlib.import_module(f"{_PACKAGE}.{module}"), name, kernel)


class _Memory:
    """A tensor as the serde sees LMCache's objects."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _on_the_cpu() -> None:
    """The serde asks for no CUDA device; FP8 is E4M3, as on devices of the last years."""
    serde = importlib.import_module(f"{_PACKAGE}.turboquant")
    serde.__dict__["_select_cuda_device"] = lambda *_: torch.device("cpu")
    importlib.import_module(f"{_PACKAGE}.decode_kernel").__dict__["_FP8_E4B15"][0] = 0


def _packed(levels: Tensor, bits: int) -> Tensor:
    """Numbers below `2**bits` as bytes, the first one in the lowest bits; 3 or 4 bits."""
    many = 2 if bits == 4 else 8
    groups = levels.long().view(*levels.shape[:-1], -1, many)
    whole = (groups << (bits * torch.arange(many))).sum(-1)
    count = many * bits // 8
    found: Tensor = whole[..., None] >> (8 * torch.arange(count)) & 0xFF
    return found.flatten(-2).to(torch.uint8)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    many = 2 if bits == 4 else 8
    count = many * bits // 8
    groups = packed.long().view(*packed.shape[:-1], -1, count)
    whole = (groups << (8 * torch.arange(count))).sum(-1)
    levels: Tensor = whole[..., None] >> (bits * torch.arange(many)) & (2**bits - 1)
    return levels.flatten(-2).float()


def _half(numbers: Tensor) -> Tensor:
    """`[..., 1]` numbers as float16's two bytes."""
    return numbers.half().view(torch.uint8)


def _whole(pair: Tensor) -> Tensor:
    return pair.contiguous().view(torch.float16).float()
