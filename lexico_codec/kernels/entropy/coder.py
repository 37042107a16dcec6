"""Entropy coding of quantised components: interleaved rANS with static tables, one lane a token.

Tokens are cut into blocks of 32, the last one shorter; a token is a lane of its block. A body is a
u32 for each block, the bytes of its stream, then the streams. A stream is the lanes' states, u32,
then u16 words; all little endian. States are 32 bits, at least 2^16, probabilities 12 bits, and a
state that falls below 2^16 takes in a word. The decoder takes the components in turn, for each:

1. lanes of class >= 0 decode a symbol: `slot = x & 4095; x = f * (x >> 12) + slot - start`;
2. of those, lanes of a class with k > 0 raw bits: `low = x & (2^k - 1); x >>= k`;
3. lanes with an escape read a word: 15 bits of the zigzag of `high`, and whether there are more;
4. lanes with more read them: a word, bits 15..30.

Lanes take their words in order in each of these, so that a prefix sum over lanes says where a
lane's word is. The encoder does all of it backwards from 2^16 in every lane: states of 2^16 and no
word left are what a sound stream ends with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_codec.kernels.dispatch import choose, choose_on_cpu
from lexico_codec.kernels.entropy import compiled, naive
from lexico_codec.kernels.entropy.naive import LANES, MIDDLE
from lexico_codec.kernels.forms import Forms
from lexico_proto.errors import DamagedFrame, InvalidInput, ShapeMismatch

BLOCK_TOKENS: Final = LANES
"""Tokens whose words are interleaved; blocks are decoded side by side."""
SYMBOLS: Final = 32
"""-15..15, then the escape."""
TOTAL: Final = 4096
"""What frequencies of a class add up to."""
MAX_SHIFT: Final = 12
MAX_CLASSES: Final = 1024
"""A class takes 16 KiB of the decoder's memory."""
LEVEL_LIMIT: Final = naive.MOST_LEVEL
"""The largest value either way."""

_CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """How the values of each of E classes are coded; not to be written to.

    Raises:
        ShapeMismatch: another shape or dtype, or not in the CPU's memory.
        InvalidInput: numbers out of range.
    """

    frequencies: Tensor
    """`[E, 32]` int32 or uint16: of each symbol, 4096 in all. The escape's is at least 1, and what
    has none is escaped."""
    shifts: Tensor
    """`[E]` uint8: low bits that are stored as they are, 0..12."""
    points: Tensor
    """`[E, 16]` float32: what the magnitudes 0..15 stand for in units of the step, where the shift
    is 0; a value of 0 is 0 whatever they say."""
    _forms: Forms = field(default_factory=Forms, init=False, repr=False)

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises what the class says it raises."""
        classes = self.frequencies.shape[0] if self.frequencies.ndim else 0
        _check(self.frequencies, (torch.int32, torch.uint16), (classes, SYMBOLS), "frequencies")
        _check(self.shifts, (torch.uint8,), (classes,), "shifts")
        _check(self.points, (torch.float32,), (classes, MIDDLE + 1), "points")
        if not 1 <= classes <= MAX_CLASSES:
            raise InvalidInput(f"tables: 1..{MAX_CLASSES} classes, not {classes}")
        counted = self.frequencies.to(torch.int64)
        sound = bool((counted >= 0).all()) and bool((counted[:, -1:] > 0).all())
        if not sound or bool((counted.sum(1) != TOTAL).any()):
            raise InvalidInput(f"frequencies: {TOTAL} in all in each class, some for the escape")
        if bool((self.shifts > MAX_SHIFT).any()):
            raise InvalidInput(f"shifts: 0..{MAX_SHIFT}")
        if not bool(self.points.isfinite().all()):
            raise InvalidInput("points: must be finite")

    @property
    def classes(self) -> int:
        """E."""
        return len(self.shifts)

    def slots(self) -> Tensor:
        """`[E, 4096]` int32: of each slot the symbol, its frequency << 5 and its place << 17."""

        def make() -> Tensor:
            counted = self.frequencies.to(torch.int64)
            starts = counted.cumsum(1) - counted
            symbols = torch.arange(SYMBOLS).expand_as(counted).flatten()
            symbols = symbols.repeat_interleave(counted.flatten()).view(-1, TOTAL)
            places = torch.arange(TOTAL) - starts.gather(1, symbols)
            return (symbols | counted.gather(1, symbols) << 5 | places << 17).to(torch.int32)

        return self.form("slots", make)

    def values(self) -> Tensor:
        """`[E, 32]` float32: what symbols of classes without raw bits stand for."""

        def make() -> Tensor:
            middle = torch.zeros(self.classes, 1)
            larger = self.points[:, 1:]
            return torch.cat([-larger.flip(1), middle, larger, middle], 1)

        return self.form("values", make)

    def form(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, made once under that name."""
        form: Tensor = self._forms.once(name, lambda: make().contiguous())
        return form


def encode(
    levels: Tensor,
    classes: Tensor,
    offsets: Tensor | None,
    tables: Tables,
    *,
    kernel: str | None = None,
) -> bytes:
    """The body of some tokens' values.

    A value's class is that of its component plus its token's offset, E - 1 at most. Where that is
    negative nothing is coded.

    Args:
        levels: `[components, tokens]` int32, each under 2^30 either way, on the CPU.
        classes: `[components]` int16.
        offsets: `[tokens]` int8, or None for zeros.
        tables: of the classes.
        kernel: "compiled" or "naive" to force one.

    Raises:
        ShapeMismatch: a shape or dtype that does not fit.
        InvalidInput: a value of 2^30 or more, or one that is not 0 where nothing is coded.
        ConfigurationError: a forced kernel that is unknown or not there.
    """
    _check(classes, (torch.int16,), (-1,), "classes")
    _check(levels, (torch.int32,), (len(classes), -1), "levels")
    offsets, levels = _offsets(offsets, levels.shape[1]), levels.contiguous()
    if choose_on_cpu("entropy_encode", kernel) == "compiled":
        return compiled.encode(levels, classes.contiguous(), offsets, tables)
    of = torch.zeros(levels.shape[1], dtype=torch.int8) if offsets is None else offsets
    return naive.encode(levels.numpy(), _wide(classes), _wide(of), tables)


def decode(
    body: bytes | memoryview,
    classes: Tensor,
    offsets: Tensor | None,
    tables: Tables,
    tokens: int,
    *,
    levels: bool = False,
    device: torch.device = _CPU,
    kernel: str | None = None,
) -> Tensor:
    """The values that `encode` was given, `[components, tokens]`.

    float32 in units of the step: the signed point of the value's magnitude where its class has no
    raw bits and the magnitude is 15 at most, else the value. With `levels` the values, int32.

    Args:
        body: what `encode` gave; anything else costs no more memory than a sound body would.
        classes, offsets, tables, kernel: see `encode`. tokens: how many the body has.
        device: where the values go. A CUDA device decodes them itself, but for `levels`.

    Raises:
        DamagedFrame: a body that no `encode` of these classes gives. Damage may also go unseen, and
            change values.
        ShapeMismatch, ConfigurationError: see `encode`.
        InvalidInput: a negative number of tokens.
    """
    if tokens < 0:
        raise InvalidInput(f"tokens: must not be negative, not {tokens}")
    _check(classes, (torch.int16,), (-1,), "classes")
    if device.type == "cuda" and not levels and _serves_triton(device, kernel):
        from lexico_codec.kernels.entropy import triton_decode as triton_entropy

        return triton_entropy.decode([body], classes, offsets, tables, [tokens], device=device)
    data, begins = split(body, tokens)
    offsets = _offsets(offsets, tokens)
    if choose_on_cpu("entropy_decode", kernel) == "compiled":
        given = (data, begins, classes.contiguous(), offsets, tables)
        return compiled.decode(*given, tokens, levels=levels).to(device)
    of = torch.zeros(tokens, dtype=torch.int8) if offsets is None else offsets
    made = naive.decode(data, begins, _wide(classes), _wide(of), tables, levels=levels)
    return torch.from_numpy(made).to(device)


def _serves_triton(device: torch.device, kernel: str | None) -> bool:
    return choose("entropy_decode", device, torch.float32, 1, 1, kernel) == "triton"


def split(
    body: bytes | memoryview, tokens: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of a body, and `[blocks + 1]` where its streams begin, the end after them.

    Every stream has room for its states, a whole number of words follows, and none is left over.

    Raises:
        DamagedFrame: anything else.
    """
    blocks = -(-tokens // LANES)
    data = np.frombuffer(body, np.uint8)
    if len(data) < 4 * blocks + 4 * tokens:  # before anything is made whose size tokens set
        raise DamagedFrame("entropy coded body: shorter than its states")
    begins = np.empty(blocks + 1, np.int64)
    begins[0] = 4 * blocks
    lengths = data[: 4 * blocks].view("<u4").astype(np.int64)
    np.cumsum(lengths, out=begins[1:])
    begins[1:] += 4 * blocks
    least = np.full(blocks, 4 * LANES)
    least[-1:] = 4 * (tokens - LANES * (blocks - 1))
    if begins[-1] != len(data) or (lengths < least).any() or (lengths % 2).any():
        raise DamagedFrame("entropy coded body: streams of wrong lengths")
    return data, begins


def _offsets(offsets: Tensor | None, tokens: int) -> Tensor | None:
    if offsets is None:
        return None
    _check(offsets, (torch.int8,), (tokens,), "offsets")
    return offsets.contiguous()


def _wide(tensor: Tensor) -> npt.NDArray[np.int64]:
    return tensor.numpy().astype(np.int64)


def _check(
    tensor: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...], name: str
) -> None:
    if tensor.dtype not in dtypes or tensor.device.type != "cpu":
        raise ShapeMismatch(f"{name}: must be {' or '.join(map(str, dtypes))}, on the CPU")
    fits = tensor.ndim == len(shape) and all(
        wanted in (-1, length) for wanted, length in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ShapeMismatch(f"{name}: must be {list(shape)}, not {list(tensor.shape)}")
