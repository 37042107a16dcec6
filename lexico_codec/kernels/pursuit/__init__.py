"""Sparse coding of vectors over dictionaries (orthogonal matching pursuit), and its inverse."""

from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import Scoring, encode, reconstruct, reconstruct_into
from lexico_codec.kernels.pursuit.preparation import Preparation

__all__ = [
    "Atoms",
    "Codes",
    "Preparation",
    "Scoring",
    "encode",
    "reconstruct",
    "reconstruct_into",
]
