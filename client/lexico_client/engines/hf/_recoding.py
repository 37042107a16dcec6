"""When the newest tokens of a `CodedCache` become codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lexico_codec.codecs.lexico.codec import LexicoCodec
from lexico_proto.errors import ConfigurationError

DEFAULT_BUFFER_TOKENS: Final = 128
DEFAULT_WINDOW_TOKENS: Final = 32


@dataclass(frozen=True)
class Recoding:
    """How and when exact tokens become codes (arXiv 2412.08890)."""

    codec: LexicoCodec
    """Sparsity and tolerance."""
    buffer_tokens: int = DEFAULT_BUFFER_TOKENS
    """Newest tokens that stay exact, the paper's n_b. Sinks do not count."""
    window_tokens: int = DEFAULT_WINDOW_TOKENS
    """Oldest tokens of a buffer that are coded together once it holds more, the paper's n_a."""

    def __post_init__(self) -> None:
        for name in ("buffer_tokens", "window_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigurationError(f"{name}={value!r}: an integer of 0 or more is needed")
        if not 1 <= self.window_tokens <= self.buffer_tokens + 1:
            raise ConfigurationError(
                f"window_tokens={self.window_tokens}: must be 1..{self.buffer_tokens + 1}, as many "
                "as a buffer that overflows holds"
            )

    def due(self, buffered: int) -> int:
        """Oldest tokens of a buffer to code now: whole windows, until `buffer_tokens` or less are
        left."""
        over = max(0, buffered - self.buffer_tokens)
        return -(-over // self.window_tokens) * self.window_tokens
