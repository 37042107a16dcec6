"""Entropy coding of integer levels: interleaved rANS with static tables."""
