"""Bounds of what the codec is given: checked before any length is used.

What a kernel takes is the kernel's own business; bounds that client, services and store share are
in `lexico_proto.limits`.
"""

from __future__ import annotations

from typing import Final

# A cache and what names it

MAX_LAYERS: Final = 512
"""Of a model, and of a set."""
MAX_KV_HEADS: Final = 1024
"""Of a model, and of a set."""
MAX_HEAD_DIM: Final = 1024
"""Of a cache. Sets have less: `MAX_SET_HEAD_DIM`."""
MAX_PAGE_TOKENS: Final = 4096
MAX_LORA_BYTES: Final = 256
"""UTF-8 of an adapter's identity."""
MAX_SALT_BYTES: Final = 256
"""What a caller keeps its pages apart by."""
MAX_CONFIG_BYTES: Final = 4096
"""JSON of a codec's parameters."""
MAX_PARSED_FRAME_BYTES: Final = 256 << 20
"""A frame that is read. The store takes less: `lexico_proto.limits.MAX_FRAME_BYTES`."""

# Sparse codes

MAX_SPARSITY: Final = 255
"""Atoms of a vector: a count is a byte."""

# Dictionary sets

MAX_METADATA_BYTES: Final = 1 << 20
MAX_SET_HEAD_DIM: Final = 512
MAX_SET_ATOMS: Final = 16384
"""Of one dictionary of an `AtomSet`."""
MAX_SET_ERRORS: Final = 256
"""Numbers of atoms that `packed.errors` has an error of, 0 included."""
MAX_TRANSFORM_ATOMS: Final = 4096
"""Of one run of a `TransformSet`."""
MAX_TRANSFORM_SPARSITY: Final = 4
"""Atoms of a token, in one run of a `TransformSet`."""
MAX_COMPONENTS: Final = 1 << 16
"""Of a token, in one run of a `TransformSet`."""

# Uploads

MAX_CHAIN_PAGES: Final = 1 << 16
"""Pages that the token ids of one upload make: bounds the hashing that one header can ask for."""
MAX_GROUP_BYTES: Final = 63 << 20
"""Raw bytes of a layer group of an upload, so that its frame fits the store's cap."""
MAX_SLICES: Final = 1024
"""Slices that one page may come in: a model's tensor-parallel ranks times its pipeline stages."""
MIN_ASSEMBLY_BYTES: Final = 16
"""Of the name of a computation; shorter ones could meet by chance."""
MAX_ASSEMBLY_BYTES: Final = 64
