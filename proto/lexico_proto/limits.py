"""Bounds that client, services and store must agree on; those of the codec are in its `limits`."""

from __future__ import annotations

from typing import Final

DIGEST_BYTES: Final = 32
"""Length of a weights fingerprint, a dictionary digest, a namespace and a page key: BLAKE2b-256."""
MAX_GROUPS: Final = 64
"""Layer groups of a page, and so its frames: what the store takes in one transaction."""
MAX_FRAME_BYTES: Final = 64 << 20
"""Longest frame that is stored and sent."""
MAX_DICTIONARY_BYTES: Final = 64 << 20
"""Longest artefact of a dictionary set."""
PIECE_BYTES: Final = 1 << 20
"""Most bytes of payload in one message, either way."""
MESSAGE_BYTES: Final = PIECE_BYTES + (64 << 10)
"""Most bytes of one message: a piece and the fields around it, or the header of a Put."""
MAX_SECONDS: Final = 10 * 365 * 86400.0
"""Longest time that a setting may give, ten years: sockets, threads and servers, which count in
milliseconds, take it."""
MAX_CALL_PAGES: Final = 4096
"""Pages of one Match or Get: clients ask about longer sequences in parts. A server may be told to
take less (`reload.max_pages`)."""
