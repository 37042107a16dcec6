"""The shape of a model's cache, and how its keys were turned by RoPE."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import torch

from lexico_codec.limits import MAX_HEAD_DIM, MAX_KV_HEADS, MAX_LAYERS
from lexico_proto.errors import ConfigurationError, ShapeMismatch

Pairing = Literal["half", "interleaved"]

DTYPES: Final[dict[str, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
"""Element types of a cache, by the name that travels. No name begins with another one."""

_STEPS: Final = 64  # an octave: a step is about one percent


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of a model.

    Component pair i of a head at position p is turned by `p * inv_freq[i]` radians and multiplied
    by `scale` (Su et al., arXiv 2104.09864). Components from `rotary_dim` on are left alone.
    """

    inv_freq: tuple[float, ...]
    """Radians a token, float32 values."""
    pairing: Pairing = "half"
    """`half`: pair i is (i, i + rotary_dim / 2). `interleaved`: pair i is (2 i, 2 i + 1)."""
    scale: float = 1.0
    """What the model multiplies into cos and sin."""

    def __post_init__(self) -> None:
        *inv_freq, scale = _as_float32(*self.inv_freq, self.scale)
        object.__setattr__(self, "inv_freq", tuple(inv_freq))
        object.__setattr__(self, "scale", scale)
        if not self.inv_freq:
            raise ConfigurationError("rope: inv_freq is empty; leave rope out for a model without")
        if self.pairing not in ("half", "interleaved"):
            raise ConfigurationError(f"rope: pairing {self.pairing!r}: half or interleaved")
        finite = all(0 <= f < float("inf") for f in self.inv_freq)
        if not finite or not 0 < self.scale < float("inf"):
            raise ConfigurationError("rope: inv_freq and scale must be finite and positive")

    @property
    def rotary_dim(self) -> int:
        """Leading components of a head that are turned."""
        return 2 * len(self.inv_freq)

    def difference(self, other: Rope) -> str:
        """What `other` does otherwise, in words; empty where they agree to about one percent.

        Unlike `canonical`, which cuts the numbers into steps, this has no borders between them: two
        ropes that differ in a last bit always agree.
        """
        if self.pairing != other.pairing:
            return f"it pairs components {self.pairing}, not {other.pairing}"
        if self.rotary_dim != other.rotary_dim:
            return f"it turns {self.rotary_dim} components, not {other.rotary_dim}"
        if not _close(self.scale, other.scale):
            return f"its scale is {self.scale:.4g}, not {other.scale:.4g}"
        for pair, (ours, theirs) in enumerate(zip(self.inv_freq, other.inv_freq, strict=True)):
            if not _close(ours, theirs):
                return f"it turns pair {pair} by {ours:.4g} radians a token, not {theirs:.4g}"
        return ""

    def canonical(self) -> bytes:
        """Bytes that name the rope: pairing, scale and frequencies to about one percent.

        Libraries and machines differ in the last bit of the powers that make inv_freq; exact bits
        would keep their nodes from sharing. What is finer, the weights' fingerprint binds: it
        covers the model's configuration.
        """
        steps = [-(1 << 15) if f == 0 else round(_STEPS * math.log2(f)) for f in self.inv_freq]
        scale = round(_STEPS * math.log2(self.scale))
        head = struct.pack("<BhH", self.pairing == "half", scale, len(steps))
        return head + struct.pack(f"<{len(steps)}h", *steps)


def _close(a: float, b: float) -> bool:
    """Whether two numbers that are not negative are within a step of each other."""
    return a == b or (min(a, b) > 0 and abs(math.log2(a / b)) <= 1 / _STEPS)


def _as_float32(*numbers: float) -> tuple[float, ...]:
    """The numbers as float32 has them; -0.0 as 0.0, since both turn keys alike."""
    code = f"<{len(numbers)}f"
    try:
        rounded = struct.unpack(code, struct.pack(code, *numbers))
    except (struct.error, OverflowError) as error:
        raise ConfigurationError(f"rope: inv_freq or scale is no float32: {error}") from error
    return tuple(number + 0.0 for number in rounded)


@dataclass(frozen=True)
class Geometry:
    """Shape of the cache that one shard of a model holds."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str = "float16"
    """One of `DTYPES`. Of a cache in 8 bits elements are what is stored: an engine's scales are not
    multiplied in."""
    rope: Rope | None = None
    """None for a model without rotary positions."""

    def __post_init__(self) -> None:
        for name, value, most in (
            ("layers", self.layers, MAX_LAYERS),
            ("kv_heads", self.kv_heads, MAX_KV_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
        ):
            if not 1 <= value <= most:
                raise ShapeMismatch(f"geometry: {name}={value} is outside 1..{most}")
        if self.dtype not in DTYPES:
            raise ShapeMismatch(f"geometry: dtype {self.dtype!r}: one of {', '.join(DTYPES)}")
        if self.rope is not None and self.rope.rotary_dim > self.head_dim:
            raise ShapeMismatch(
                f"geometry: rope turns {self.rope.rotary_dim} of {self.head_dim} components"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Element type of keys and values."""
        return DTYPES[self.dtype]

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return self.torch_dtype.itemsize

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of one token in all layers."""
        return self.layers * 2 * self.kv_heads * self.head_dim * self.itemsize

    def canonical(self) -> bytes:
        """Bytes that name the geometry; see `Rope.canonical` for how exactly."""
        numbers = struct.pack("<HHH", self.layers, self.kv_heads, self.head_dim)
        rope = b"" if self.rope is None else self.rope.canonical()
        return numbers + self.dtype.encode().ljust(8, b"\0") + rope

    def digest(self) -> bytes:
        """BLAKE2b-128 of the canonical form, 16 bytes."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:  # every frame's header has it
        return hashlib.blake2b(self.canonical(), digest_size=16, person=b"lexico-geometry").digest()
