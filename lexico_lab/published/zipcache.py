"""ZipCache (He et al., arXiv 2405.14256): salient tokens in 4 bits, the others in 2.

Keys, with RoPE on, are quantised channelwise: a scale and a minimum for each channel of each head,
over all salient tokens, and others over all the rest. Values are quantised tokenwise with channels
separated: each channel is divided by the square root of its largest magnitude over all tokens, then
each token has a scale and a minimum over all channels of all heads. Asymmetric, all parameters
float16, the salient tokens of each layer a bitmap. The share of salient tokens is fixed.

Details are those of the authors' code (ThisisBillhe/ZipCache), not checked in the paper's text.
Where this differs:
- Saliency is the normalised attention score over all tokens of the prefix. Theirs is an
  estimate from a tenth of them, to spare the full attention matrix: this is the better score.
- `Prefix.importance` is one score a layer. Theirs ranks the tokens of each KV head; this
  ranking is the coarser, and its bitmap the smaller.
- They requantise every 100 tokens that are generated; a prefix is quantised once.
- They divide by zero where all values are alike; here the scale is 0 and so are the codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lexico_lab.published.coder import Coder, Prefix, Stored
from lexico_lab.published.per_token import Uniform, as_float16, packed_size

SALIENT_BITS, REGULAR_BITS = 4, 2


def rank_tokens(importance: Tensor, percent: int) -> tuple[Tensor, Tensor]:
    """Tokens of each layer that are salient and those that are not, in order of position.

    Of `[layers, tokens]`, the regular are `percent` short of 100 percent, rounded down. Of equals
    the earlier token is the more salient.
    """
    tokens = importance.shape[1]
    salient = tokens - tokens * (100 - percent) // 100
    order = importance.argsort(dim=1, descending=True, stable=True)
    return order[:, :salient].sort(dim=1).values, order[:, salient:].sort(dim=1).values


class ZipCache(Coder):
    """ZipCache at one share of salient tokens."""

    weighs = True

    def __init__(self, percent: int) -> None:
        """`percent`: share of salient tokens."""
        self.percent = percent
        self.name = f"ZipCache 4/2 bit, {percent} % salient"

    def code(self, prefix: Prefix) -> Stored:
        """The bitmap, channel scales, and codes of either class of tokens."""
        shape = prefix.keys.shape  # [layers, tokens, kv_heads, head_dim]
        keys, values = (
            prefix.keys.flatten(2),
            prefix.values.flatten(2),
        )  # [layers, tokens, channels]
        channel = values.abs().amax(dim=1, keepdim=True).sqrt().to(torch.float16)
        # A channel of zeros stays as it is.
        divisor = torch.where(channel == 0, 1, channel.to(torch.float32))
        separated = values / divisor

        size = shape[0] * packed_size(shape[1], 1) + 2 * channel.numel()
        key_back, value_back = torch.empty_like(keys), torch.empty_like(values)
        classes = rank_tokens(prefix.importance, self.percent)
        for tokens, bits in zip(classes, (SALIENT_BITS, REGULAR_BITS), strict=True):
            if tokens.shape[1] == 0:
                continue
            index = tokens[:, :, None].expand(-1, -1, keys.shape[2])
            channelwise = Uniform.encode(keys.gather(1, index), bits, dim=1)
            tokenwise = Uniform.encode(separated.gather(1, index), bits, dim=2)
            key_back.scatter_(1, index, channelwise.decode())
            value_back.scatter_(1, index, tokenwise.decode())
            size += channelwise.size + tokenwise.size
        values = (value_back * channel.to(torch.float32)).view(shape)
        return Stored(as_float16(key_back.view(shape)), as_float16(values), size)


def coders() -> list[Coder]:
    """Every setting worth plotting."""
    return [ZipCache(percent) for percent in (20, 30, 40, 50, 60, 80, 100)]
