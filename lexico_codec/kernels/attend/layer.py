"""Coded tokens of one layer, in the two forms that attention over them reads.

Why the two forms: a score is a sum over the atoms of one key, so keys lie by token; an output is a
sum over tokens of the weight of one atom, so values lie by atom. README.md has the account.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_proto.errors import InvalidInput, ShapeMismatch

CHUNK: Final = 4096
"""Tokens whose value entries are sorted together; a token within them fits 14 bits."""
LANES: Final = 256
RUN: Final = 8
"""Entries of a lane: a block has LANES * RUN, which one program adds up at a time."""
BLOCK: Final = 1024
"""Tokens dense at a time, where they are reconstructed."""

_START: Final = -(1 << 15)  # of a word
_END: Final = 1 << 14
_GRANULE: Final = 64  # tokens


@dataclass(slots=True, eq=False)
class CodedLayer:
    """Coded tokens of one layer of one sequence. Make one with `empty`, fill it with `append`."""

    atoms: Atoms
    """The layer's key dictionary, then its value dictionary."""
    kv_heads: int
    sparsity: int
    """Entries a vector, s: rows of fewer are filled up with coefficient 0."""
    chunk: int
    """Tokens whose value entries are sorted together."""
    count: int
    key_atoms: Tensor
    """`[kv_heads, s, capacity]` int16."""
    key_bits: Tensor
    """`[kv_heads, s, capacity]` uint8: E4M3 coefficients."""
    key_exponents: Tensor
    """`[kv_heads, capacity]` int8: a coefficient is `E4M3(bits) * 2^-exponent`."""
    value_words: Tensor
    """`[kv_heads, blocks, RUN, lanes]` int16: token within the chunk; bit 15 where a run starts,
    bit 14 where it ends. The block's entry `lane * RUN + i` is at `[i, lane]`.

    A chunk's entries are sorted by atom, then token, those of coefficient 0 last and in no run. A
    run is what one block holds of one atom. A chunk begins a block.
    """
    value_bits: Tensor
    """`[kv_heads, blocks, RUN, lanes]` uint8."""
    value_exponents: Tensor
    """`[kv_heads, capacity]` int8."""
    runs: Tensor
    """`[kv_heads, chunks, N + 1]` int16 or int32: the chunk's runs before each atom; N is the
    value dictionary's."""
    bases: Tensor
    """`[kv_heads, chunks, blocks_a_chunk + 1]` int32: the chunk's runs before each block."""

    @classmethod
    def empty(
        cls, atoms: Atoms, kv_heads: int, sparsity: int, *, chunk: int = CHUNK, lanes: int = LANES
    ) -> CodedLayer:
        """No tokens yet.

        Args:
            atoms: two dictionaries, keys' then values', float32, of at most 32768 atoms.
            kv_heads: vectors a token, of keys and of values.
            sparsity: the widest row that `append` will bring, 1..255.
            chunk, lanes: for tests.

        Raises:
            InvalidInput: dictionaries or numbers out of range.
        """
        if atoms.tables != 2 or max(atoms.sizes) > 32768 or atoms.stack.dtype != torch.float32:
            raise InvalidInput("atoms: must be two float32 dictionaries of at most 32768 atoms")
        if kv_heads < 1 or not 1 <= sparsity <= 255 or not 1 <= chunk <= _END:
            raise InvalidInput(f"kv_heads, sparsity, chunk: {kv_heads}, {sparsity}, {chunk}")
        blocks = -(-chunk * sparsity // (lanes * RUN))  # of a chunk
        narrow = atoms.sizes[1] + blocks <= 32767
        runs = torch.int16 if narrow else torch.int32
        i8, u8, i16, i32 = torch.int8, torch.uint8, torch.int16, torch.int32

        def none(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(kv_heads, *shape, dtype=dtype, device=atoms.stack.device)

        return cls(
            atoms,
            kv_heads,
            sparsity,
            chunk,
            0,
            none(sparsity, 0, dtype=i16),
            none(sparsity, 0, dtype=u8),
            none(0, dtype=i8),
            none(0, RUN, lanes, dtype=i16),
            none(0, RUN, lanes, dtype=u8),
            none(0, dtype=i8),
            none(0, atoms.sizes[1] + 1, dtype=runs),
            none(0, blocks + 1, dtype=i32),
        )

    @property
    def tokens(self) -> int:
        """Tokens appended so far."""
        return self.count

    @property
    def held_bytes(self) -> int:
        """Bytes of codes in memory, spare capacity included, dictionaries not."""
        return sum(tensor.nbytes for tensor in self._storage().values())

    def append(self, codes: Codes) -> None:
        """Adds tokens behind the others.

        Costs a copy of the new codes, a new sort of the chunk that was not full, and now and then a
        move of everything into a quarter more memory. A layer whose `append` broke off for another
        reason than those below (memory that ran out) must not be used any more.

        Args:
            codes: quantised, of `2 * tokens * kv_heads` vectors: keys then values, rows by token,
                then head; any strides; on the device of the atoms.

        Raises:
            ShapeMismatch: codes of another form, width or device.
            InvalidInput: an index outside its dictionary.
        """
        exponents = self._check(codes)  # [2, kv_heads, tokens]
        tokens = exponents.shape[2]
        if tokens == 0:
            return
        shape = (2, tokens, self.kv_heads)
        fill = (0, self.sparsity - codes.indices.shape[1])
        indices = torch.nn.functional.pad(codes.indices, fill).reshape(*shape, self.sparsity)
        bits = torch.nn.functional.pad(codes.coefficients, fill).reshape(*shape, self.sparsity)
        self._reserve(self.count + tokens)
        new = slice(self.count, self.count + tokens)
        self.key_atoms[:, :, new] = indices[0].permute(1, 2, 0)
        self.key_bits[:, :, new] = bits[0].permute(1, 2, 0)
        self.key_exponents[:, new] = exponents[0]
        self.value_exponents[:, new] = exponents[1]
        start, end = self.count, self.count + tokens
        for chunk in range(start // self.chunk, -(-end // self.chunk)):
            first = max(start, chunk * self.chunk)
            last = min(end, (chunk + 1) * self.chunk)
            rows = slice(first - start, last - start)
            places = torch.arange(first, last, device=indices.device) - chunk * self.chunk
            fresh = (
                indices[1, rows].transpose(0, 1).long().flatten(1),  # [kv_heads, tokens * s]
                places.repeat_interleave(self.sparsity).expand(self.kv_heads, -1),
                bits[1, rows].transpose(0, 1).flatten(1),
            )
            if first > chunk * self.chunk:
                former = self.value_entries(chunk)
                fresh = (
                    torch.cat([former[0], fresh[0]], 1),
                    torch.cat([former[1], fresh[1]], 1),
                    torch.cat([former[2], fresh[2]], 1),
                )
            self._sort(chunk, *fresh)
            self.count = last

    def tokens_in(self, chunk: int) -> int:
        """Tokens of one chunk."""
        return min(self.chunk, self.count - chunk * self.chunk)

    def value_entries(self, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        """Atom, token within the chunk and E4M3 bits `[kv_heads, tokens * s]` of a chunk's entries.

        In order of atoms; entries of coefficient 0 come last and have any atom of the dictionary.
        """
        words, bits = self._entries(chunk)
        run = (words < 0).cumsum(1) - 1
        atom = torch.searchsorted(self.runs[:, chunk].long(), run, right=True) - 1
        return atom.clamp_(min=0), words.long() & (_END - 1), bits

    def value_bags(self, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        """A chunk's entries as bags, one a kv head and atom.

        Token within the chunk, int32, and E4M3 bits `[kv_heads, tokens * s]`, and where in both,
        flat, each bag begins: int32 `[kv_heads * N]`. Entries of coefficient 0 are in any bag.
        """
        words, bits = self._entries(chunk)
        begins = (words < 0).flatten().nonzero()[:, 0]  # of every run
        begins = torch.nn.functional.pad(begins, (0, 1), value=words.numel())
        runs = self.runs[:, chunk].long()
        runs, totals = runs[:, :-1], runs[:, -1:]
        bags = begins[(runs + totals.cumsum(0) - totals).flatten()]
        bags[0] = 0
        return words.int() & (_END - 1), bits, bags.int()

    def value_rows(self, chunk: int) -> tuple[Tensor, Tensor]:
        """A chunk's value codes by token: atoms and E4M3 bits, `[kv_heads, tokens, s]`."""
        atom, token, bits = self.value_entries(chunk)
        order = token.argsort(dim=1, stable=True)  # each token has s entries
        shape = (self.kv_heads, -1, self.sparsity)
        return atom.gather(1, order).view(shape), bits.gather(1, order).view(shape)

    def dense(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values `[kv_heads, tokens, m]` that the codes stand for."""
        shape = (self.kv_heads, self.count, self.atoms.m)
        keys, values = (self.atoms.stack.new_empty(shape, dtype=dtype) for _ in range(2))
        wide = torch.promote_types(dtype, torch.float32)
        for first, key, value in self.blocks(wide):
            keys[:, first : first + key.shape[1]] = key
            values[:, first : first + key.shape[1]] = value
        return keys, values

    def blocks(
        self, dtype: torch.dtype = torch.float32, tokens: int = BLOCK
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """First token, keys and values `[kv_heads, at most tokens, m]` of the tokens in turn."""
        keys, values = (self.atoms.dictionary(part).to(dtype) for part in (0, 1))
        for chunk in range(-(-self.count // self.chunk)):
            begin, size = chunk * self.chunk, self.tokens_in(chunk)
            atoms, bits = self.value_rows(chunk)
            for first in range(0, size, tokens):
                part = slice(first, min(first + tokens, size))
                here = slice(begin + part.start, begin + part.stop)
                key = _sum(
                    self.key_atoms[:, :, here].transpose(1, 2),
                    self.key_bits[:, :, here].transpose(1, 2),
                    self.key_exponents[:, here],
                    keys,
                )
                value = _sum(atoms[:, part], bits[:, part], self.value_exponents[:, here], values)
                yield here.start, key, value

    def _entries(self, chunk: int) -> tuple[Tensor, Tensor]:
        """Words and E4M3 bits `[kv_heads, tokens * s]` of a chunk."""
        entries = self.tokens_in(chunk) * self.sparsity
        first = chunk * self._blocks_a_chunk
        blocks = slice(first, first + -(-entries // self._block))
        words = self.value_words[:, blocks].transpose(2, 3).flatten(1)
        bits = self.value_bits[:, blocks].transpose(2, 3).flatten(1)
        return words[:, :entries], bits[:, :entries]

    @property
    def _block(self) -> int:
        return self.value_words.shape[3] * RUN

    @property
    def _blocks_a_chunk(self) -> int:
        return self.bases.shape[2] - 1

    def _sort(self, chunk: int, atom: Tensor, token: Tensor, bits: Tensor) -> None:
        """Writes a chunk from its entries `[kv_heads, n]`; those of one atom are by token."""
        atoms = self.atoms.sizes[1]
        atom = torch.where((bits & 127) == 0, atoms, atom)
        atom, order = atom.to(torch.int32).sort(dim=1, stable=True)
        token, bits = token.gather(1, order), bits.gather(1, order)
        start = torch.ones_like(atom, dtype=torch.bool)
        start[:, 1:] = atom[:, 1:] != atom[:, :-1]
        start[:, :: self._block] = True
        start &= atom < atoms
        end = atom < atoms
        end[:, :-1] &= start[:, 1:] | (atom[:, 1:] == atoms)
        before = torch.nn.functional.pad(start.cumsum(1), (1, 0))  # [kv_heads, n + 1]
        ids = torch.arange(atoms + 1, dtype=torch.int32, device=atom.device)
        first = torch.searchsorted(atom, ids.expand(self.kv_heads, -1).contiguous())
        self.runs[:, chunk] = before.gather(1, first).to(self.runs.dtype)
        blocks = -(-atom.shape[1] // self._block)
        self.bases[:, chunk] = before[:, -1:].to(torch.int32)
        self.bases[:, chunk, :blocks] = before[:, : -1 : self._block].to(torch.int32)
        begin = chunk * self._blocks_a_chunk
        fill = (0, blocks * self._block - atom.shape[1])
        words = token + start * _START + end * _END
        for kept, flat in ((self.value_words, words), (self.value_bits, bits)):
            whole = torch.nn.functional.pad(flat.to(kept.dtype), fill)
            whole = whole.view(self.kv_heads, blocks, -1, RUN)
            kept[:, begin : begin + blocks] = whole.transpose(2, 3)

    def _storage(self) -> dict[str, Tensor]:
        """The tensors that grow."""
        names = ("key_atoms", "key_bits", "key_exponents", "value_words", "value_bits")
        return {name: getattr(self, name) for name in (*names, "value_exponents", "runs", "bases")}

    def _reserve(self, tokens: int) -> None:
        """Makes room for so many tokens in all."""
        full, rest = divmod(tokens, self.chunk)
        blocks = full * self._blocks_a_chunk + -(-rest * self.sparsity // self._block)
        places = -(-tokens // _GRANULE) * _GRANULE
        need = {"value_words": blocks, "value_bits": blocks}
        need |= {"runs": -(-tokens // self.chunk), "bases": -(-tokens // self.chunk)}
        for name, tensor in self._storage().items():
            axis = 2 if name in ("key_atoms", "key_bits") else 1
            has, size = tensor.shape[axis], need.get(name, places)
            if size <= has:
                continue
            size = max(size, has * 5 // 4)
            shape = list(tensor.shape)
            shape[axis] = -(-size // _GRANULE) * _GRANULE if name not in need else size
            grown = tensor.new_empty(shape)
            grown.narrow(axis, 0, has).copy_(tensor)
            setattr(self, name, grown)

    def _check(self, codes: Codes) -> Tensor:
        """Exponents `[2, kv_heads, tokens]` of codes that have proved to fit."""
        indices, exponents = codes.indices, codes.exponents
        if exponents is None or indices.dtype != torch.int16:
            raise ShapeMismatch("codes: must be quantised")
        if codes.coefficients.dtype != torch.uint8 or exponents.dtype != torch.int8:
            raise ShapeMismatch("codes: quantised are uint8 coefficients and int8 exponents")
        if indices.ndim != 2 or indices.shape != codes.coefficients.shape:
            raise ShapeMismatch("codes: indices and coefficients must be [B, s]")
        rows, width = indices.shape
        if exponents.shape != (rows,) or rows % (2 * self.kv_heads):
            raise ShapeMismatch(f"codes: {rows} vectors are not 2 * tokens * {self.kv_heads}")
        if width > self.sparsity:
            raise ShapeMismatch(f"codes: rows of {width} entries, at most {self.sparsity} fit")
        device = self.atoms.stack.device
        if any(part.device != device for part in (indices, codes.coefficients, exponents)):
            raise ShapeMismatch("codes: must be on the device of the atoms")
        if indices.numel():
            by_table = indices.reshape(2, -1)
            outside = by_table.amax(1) >= torch.tensor(self.atoms.sizes, device=device)
            if bool((outside | (by_table.amin(1) < 0)).any()):
                raise InvalidInput(f"indices: outside dictionaries of {self.atoms.sizes} atoms")
        return exponents.reshape(2, rows // (2 * self.kv_heads), self.kv_heads).transpose(1, 2)


def e4m3(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Coefficients from E4M3 bits, without their exponents."""
    return bits.view(torch.float8_e4m3fn).to(dtype)


def _sum(picked: Tensor, bits: Tensor, exponents: Tensor, atoms: Tensor) -> Tensor:
    """Vectors `[kv_heads, tokens, m]` of codes `[kv_heads, tokens, s]`."""
    shape = picked.shape
    vectors = torch.nn.functional.embedding_bag(
        picked.reshape(-1, shape[2]).long(),
        atoms,
        per_sample_weights=e4m3(bits, atoms.dtype).reshape(-1, shape[2]),
        mode="sum",
    ).view(*shape[:2], -1)
    return torch.ldexp(vectors, -exponents[:, :, None].int())
