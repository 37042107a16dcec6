"""Codec lexico-residual, and what only its bodies need."""

from lexico_codec.codecs.residual.codec import ResidualCodec

__all__ = ["ResidualCodec"]
