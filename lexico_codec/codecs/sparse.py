"""What codecs have in common that code each vector as a sum of a few atoms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeGuard

import torch
from torch import Tensor

from lexico_codec.codecs.codec import Codec, Place, leading_sinks
from lexico_codec.codecs.parameters import check_sparsity
from lexico_codec.geometry import Geometry
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import reconstruct_into
from lexico_codec.kernels.pursuit.preparation import Preparation
from lexico_codec.memory import CacheMemory
from lexico_codec.sets.choose import at_hand
from lexico_codec.sets.dictionary import AtomSet, DictionarySet
from lexico_proto.errors import DictionaryMismatch, Unsupported


@dataclass(frozen=True, slots=True, eq=False)
class GroupCodes:
    """A layer group as codes: what `decode` reconstructs, and attention over codes keeps."""

    sinks: Tensor
    """`[layers, 2, sinks, kv_heads, head_dim]`, exact: the first tokens of a sequence."""
    codes: Codes
    """Quantised, of `[2 * layers, tokens - sinks, kv_heads]` vectors, keys before values."""
    atoms: Atoms
    """The group's dictionaries, keys' before values' in each layer."""
    kv_heads: int


@dataclass(frozen=True)
class SparseCodec(Codec):
    """Codes vectors over the dictionaries of an `AtomSet`; sinks lie in front, exact."""

    needs_dictionary: ClassVar[bool] = True
    has_codes: ClassVar[bool] = False
    """Whether `read` gives codes."""

    sparsity: int = 8
    """Most atoms a vector (s)."""

    def check_geometry(self, geometry: Geometry) -> None:
        """More atoms than components are never needed, and are refused."""
        check_sparsity(self.name, self.sparsity, geometry.head_dim)

    def sink_tokens(self, first_token: int, tokens: int) -> int:
        """Those of the first four tokens of the sequence that lie in the page."""
        return leading_sinks(first_token, tokens)

    def read(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> GroupCodes:
        """The group as codes, checked but not reconstructed: for attention over codes.

        A codec whose codes are over the dictionary set alone says so in `has_codes` and overrides
        this.

        Args:
            body, place, dictionary: as for `decode`.
            shape: `(layers, 2, tokens, kv_heads, head_dim)` of the group.
            dtype: element type of the model's cache.
            device: where the codes go.

        Raises:
            Unsupported: the codec has no codes.
            DamagedFrame: the body is none that `encode` makes for this shape.
        """
        raise _no_codes(self)

    def _set_for(
        self, dictionary: DictionarySet | None, place: Place, layers: int, dim: int
    ) -> AtomSet:
        """The set to code a group with, if it is one for the codec and has the group's layers.

        Raises:
            UnknownDictionary: there is no set.
            DictionaryMismatch: a set for another codec, of another head_dim, or without the layers.
        """
        found = at_hand(self, dictionary, AtomSet)
        end = place.first_layer + layers
        if found.head_dim != dim or end > found.layers:
            raise DictionaryMismatch(
                f"a dictionary set of {found.layers} layers, head_dim {found.head_dim} "
                f"for layers up to {end}, head_dim {dim}"
            )
        return found


def keeps_codes(codec: Codec) -> TypeGuard[SparseCodec]:
    """Whether the codec's `read` gives codes."""
    return isinstance(codec, SparseCodec) and codec.has_codes


def with_codes(codec: Codec) -> SparseCodec:
    """The codec, whose `read` gives codes.

    Raises:
        Unsupported: it keeps none.
    """
    if not keeps_codes(codec):
        raise _no_codes(codec)
    return codec


def _no_codes(codec: Codec) -> Unsupported:
    return Unsupported(
        f"codec {codec.name} keeps no codes: decode its pages into tensors, or use codec lexico"
    )


def write_sums(
    target: CacheMemory,
    exact: Tensor,
    codes: Codes,
    atoms: Atoms,
    preparation: Preparation | None = None,
) -> None:
    """Fills a memory: the first tokens exact, the others as sums of atoms.

    Args:
        target: where to.
        exact: `[layers, 2, sinks, kv_heads, head_dim]` of the target's layers and all heads of the
            frame.
        codes: of the other tokens, of the target's layers and heads alone; on any device.
        atoms: dictionaries of the target's tables, on its device.
        preparation: what is undone, or None.
    """
    sinks = exact.shape[2]
    target.leading(sinks).write(exact)
    # A sum of atoms may pass the largest float16: it is kept from becoming infinity.
    where = target.tables.behind(sinks)
    reconstruct_into(codes.to(target.device), atoms, where, preparation=preparation)
