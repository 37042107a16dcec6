"""Codec lexico-packed, and what only its bodies need."""

from lexico_codec.codecs.packed.codec import PackedCodec

__all__ = ["PackedCodec"]
