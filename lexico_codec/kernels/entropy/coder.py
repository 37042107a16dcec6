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

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_codec.kernels.dispatch import choose, choose_on_cpu
from lexico_codec.kernels.entropy import compiled, naive
from lexico_codec.kernels.entropy.streams import split
from lexico_codec.kernels.entropy.tables import Tables, check_tensor
from lexico_proto.errors import InvalidInput

_CPU: Final = torch.device("cpu")


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
    check_tensor(classes, (torch.int16,), (-1,), "classes")
    check_tensor(levels, (torch.int32,), (len(classes), -1), "levels")
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
    check_tensor(classes, (torch.int16,), (-1,), "classes")
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


def _offsets(offsets: Tensor | None, tokens: int) -> Tensor | None:
    if offsets is None:
        return None
    check_tensor(offsets, (torch.int8,), (tokens,), "offsets")
    return offsets.contiguous()


def _wide(tensor: Tensor) -> npt.NDArray[np.int64]:
    return tensor.numpy().astype(np.int64)
