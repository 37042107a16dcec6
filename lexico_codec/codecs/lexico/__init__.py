"""Codec lexico, and what only its bodies need."""

from lexico_codec.codecs.lexico.codec import LexicoCodec

__all__ = ["LexicoCodec"]
