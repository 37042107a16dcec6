"""Decoded components, multiplied back into keys and values."""
