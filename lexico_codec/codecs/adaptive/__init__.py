"""Codec lexico-adaptive, and what only its bodies need."""

from lexico_codec.codecs.adaptive.codec import AdaptiveCodec

__all__ = ["AdaptiveCodec"]
