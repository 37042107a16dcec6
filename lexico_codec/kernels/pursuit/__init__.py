"""Sparse coding of vectors over dictionaries (orthogonal matching pursuit), and its inverse."""
