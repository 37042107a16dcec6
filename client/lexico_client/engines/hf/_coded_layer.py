"""One layer of a cache of codes: sinks, codes, and an exact buffer of the newest tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import CacheLayerMixin

from lexico_client.engines.hf._recoding import Recoding
from lexico_codec.codecs.codec import SINK_TOKENS
from lexico_codec.kernels.attend.coded import attend
from lexico_codec.kernels.attend.layer import CodedLayer
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import encode
from lexico_proto.errors import NonFiniteCache, ShapeMismatch, Unsupported

ATTENTION: Final = "lexico_codes"
"""Attention implementation that a model needs for a `CodedCache`."""


class CodedStates(Tensor):
    """What a layer of a `CodedCache` gives a model in place of keys and values.

    It holds no numbers, and every function on it raises: only the attention implementation
    `lexico_codes` knows what to do with it. A model that runs another one fails in its first layer,
    before it has computed anything from a part of the cache.
    """

    step: Step

    @classmethod
    def of(cls, step: Step) -> Self:
        """Stands for the keys, or the values, that this step sees."""
        made = torch.empty(0).as_subclass(cls)
        made.step = step
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        raise Unsupported(
            f'a CodedCache needs the attention implementation "{ATTENTION}": call '
            f'model.set_attn_implementation("{ATTENTION}") first, and run it without torch.compile'
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}()"


@dataclass(frozen=True, eq=False)
class Step:
    """Tokens that a layer was given and that it has not attended to yet."""

    layer: CodedCacheLayer
    keys: Tensor
    """`[kv_heads, tokens, head_dim]`, as of `values`."""
    values: Tensor

    @property
    def tokens(self) -> int:
        """How many they are."""
        return self.keys.shape[1]


class CodedCacheLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer: exact sinks, then codes, then an exact buffer of the newest tokens.

    A step has two halves. `update` takes the new tokens, `attend` computes their attention, with
    all of them exact, and only then makes them part of the cache and codes what the buffer has too
    much of. So every coded token precedes every query that meets it as codes, however long a step
    is, and a step that breaks off in between has changed nothing.
    """

    is_compileable = False
    is_sliding = False

    def __init__(
        self,
        recoding: Recoding,
        atoms: Atoms | None,
        sinks: tuple[Tensor, Tensor],
        codes: Codes | None = None,
    ) -> None:
        """
        Args:
            recoding: how and when tokens are coded.
            atoms: the layer's key and value dictionaries; None where they are not at hand: then
                every token stays exact.
            sinks: exact keys and values of the leading tokens, `[kv_heads, n, head_dim]`, n at most
                4; without tokens for an empty cache.
            codes: quantised codes of the tokens after them, as `CodedLayer.append` takes them.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True
        self._recoding = recoding
        self._atoms = atoms
        self._coded = self._no_codes(sinks[0].shape[0])
        if self._coded is not None and codes is not None:
            with plain_tensors():
                self._coded.append(codes)
        self._keys, self._values = sinks
        self._step: Step | None = None
        self.torn = False
        """Whether coding broke off: the codes may hold anything, so the layer must not be used."""

    def _no_codes(self, kv_heads: int) -> CodedLayer | None:
        if self._atoms is None:
            return None
        with plain_tensors():
            return CodedLayer.empty(self._atoms, kv_heads, self._recoding.codec.sparsity)

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether any number of tokens can be removed: codes cannot, see `crop`."""
        return not self.coded_tokens

    @property
    def coded_tokens(self) -> int:
        """Tokens that are held as codes."""
        return 0 if self._coded is None else self._coded.tokens

    @property
    def buffered_tokens(self) -> int:
        """Newest tokens that are held exact, sinks not counted."""
        return max(0, self._keys.shape[1] - SINK_TOKENS)

    @property
    def held_bytes(self) -> int:
        """Bytes of codes, sinks and buffer; dictionaries are shared by all caches."""
        coded = 0 if self._coded is None else self._coded.held_bytes
        return coded + 2 * self._keys.numel() * self._keys.element_size()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes a step's keys and values, `[1, kv_heads, tokens, head_dim]`.

        Returns:
            Two `CodedStates`, for the attention implementation `lexico_codes` alone.

        Raises:
            Unsupported: more than one sequence.
            ShapeMismatch: another head count, head_dim, dtype or device.
        """
        kv_heads, _, dim = self._keys.shape
        if key_states.shape[0] != 1:
            raise Unsupported(
                f"a CodedCache of {key_states.shape[0]} sequences: it holds one; beams and several "
                "answers take the cache of load()"
            )
        expected = (1, kv_heads, key_states.shape[2], dim)
        for states in (key_states, value_states):
            kind = (states.dtype, states.device)
            if tuple(states.shape) != expected or kind != (self._keys.dtype, self._keys.device):
                raise ShapeMismatch(
                    f"keys or values {tuple(states.shape)} of {states.dtype} on {states.device}, "
                    f"needs {expected} of {self._keys.dtype} on {self._keys.device}"
                )
        self._step = Step(self, key_states[0].detach(), value_states[0].detach())
        return CodedStates.of(self._step), CodedStates.of(self._step)

    def attend(self, step: Step, query: Tensor, scale: float) -> Tensor:
        """The second half of a step: its attention, then its tokens join the cache.

        Args:
            step: the one that `update` made last.
            query: `[q_heads, tokens, head_dim]`, of the step's tokens.
            scale: of the scores.

        Returns:
            `[q_heads, tokens, head_dim]`.

        Raises:
            Unsupported: a step that was attended to before, or other queries than its own.
            NonFiniteCache: tokens to be coded hold NaN or infinity.
        """
        if step is not self._step or query.shape[1] != step.tokens:
            raise Unsupported("attention over codes: each layer attends once, with its own tokens")
        with plain_tensors():
            keys = torch.cat([self._keys, step.keys], 1)
            values = torch.cat([self._values, step.values], 1)
        if self._coded is not None and self._coded.tokens:
            attended = attend(query, self._coded, keys, values, scale)
        else:
            attended = _attend_exact(query, keys, values, scale)
        self._keys, self._values, self._step = keys, values, None
        self._recode()
        return attended

    def _recode(self) -> None:
        """Codes the oldest of a buffer that holds too many."""
        due = self._recoding.due(self.buffered_tokens)
        if due == 0 or self._coded is None or self._atoms is None:
            return
        codec, end = self._recoding.codec, SINK_TOKENS + due
        with plain_tensors():
            oldest = [part[:, SINK_TOKENS:end] for part in (self._keys, self._values)]
            vectors = torch.stack(oldest).transpose(1, 2)  # [2, tokens, kv_heads, head_dim]
            try:
                codes = encode(
                    vectors, self._atoms, codec.sparsity, codec.tolerance, quantised=True
                )
            except NonFiniteCache as error:
                raise NonFiniteCache(
                    "the model's keys or values hold NaN or infinity, which no code stands for: "
                    "run the model in bfloat16 or float32, or go on from load()"
                ) from error
            self.torn = True  # until both parts are written: memory may run out in between
            self._coded.append(codes)
            self._keys, self._values = (
                torch.cat([part[:, :SINK_TOKENS], part[:, end:]], 1)
                for part in (self._keys, self._values)
            )
            self.torn = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: all is there from the beginning."""

    def get_seq_length(self) -> int:
        """Tokens in the cache; those of a step count once it is attended to."""
        return self.coded_tokens + self._keys.shape[1]

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Tokens that the next step sees, and 0: the first of them is the first of all.

        Earlier transformers give the positions of the queries in place of their number.
        """
        queries = len(query_length) if isinstance(query_length, Tensor) else query_length
        return self.get_seq_length() + queries, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length  # its name in earlier transformers

    def reset(self) -> None:
        """Empties the layer."""
        self._coded, self._step = self._no_codes(self._keys.shape[0]), None
        with plain_tensors():
            self._keys, self._values = self._keys[:, :0].clone(), self._values[:, :0].clone()
        self.torn = False

    def removable_tokens(self) -> int:
        """Newest tokens that `crop` can remove."""
        return self.buffered_tokens if self.coded_tokens else self._keys.shape[1]

    def crop(self, tokens_to_remove: int) -> None:
        """Removes that many newest tokens, a number of 0 or less; only from the buffer.

        A positive number is the length to keep, as earlier transformers count.

        Raises:
            Unsupported: tokens that are codes are among them.
        """
        length = self.get_seq_length()
        remove = max(0, length - tokens_to_remove) if tokens_to_remove > 0 else -tokens_to_remove
        if remove > self.removable_tokens():
            raise Unsupported(
                f"crop by {remove} tokens: only the newest {self.removable_tokens()} are exact, "
                "those before are codes; load the prefix again, or give a larger buffer_tokens"
            )
        if remove:
            kept = self._keys.shape[1] - remove
            self._keys, self._values = self._keys[:, :kept], self._values[:, :kept]
        self._step = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Nothing for the one sequence; refused for more."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Nothing for one repeat; refused for more."""
        if repeats != 1:
            raise Unsupported(f"a CodedCache repeated {repeats} times: it holds one sequence")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Nothing for the one sequence; refused for more."""
        if indices.tolist() != [0]:
            raise Unsupported("a CodedCache holds one sequence: no beams, no batches")

    def offload(self) -> None:
        """Refused."""
        raise Unsupported("a CodedCache stays on the model's device")

    prefetch = offload

    def __deepcopy__(self, memo: dict[int, Any]) -> CodedCacheLayer:
        memo[id(self._atoms)] = self._atoms  # shared by all, and never written to
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        with plain_tensors():
            vars(made).update(copy.deepcopy(vars(self) | {"_step": None}, memo))
        return made


def _attend_exact(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attention without codes; the queries are those of the last tokens. Shapes as in `attend`."""
    queries, seen = query.shape[1], keys.shape[1]
    mask = None
    if 1 < queries < seen:
        mask = torch.ones(queries, seen, dtype=torch.bool, device=query.device).tril(seen - queries)
    groups = query.shape[0] // keys.shape[0]
    attended: Tensor = scaled_dot_product_attention(
        query[None],
        keys.repeat_interleave(groups, 0)[None],
        values.repeat_interleave(groups, 0)[None],
        attn_mask=mask,
        is_causal=queries == seen,
        scale=scale,
    )
    return attended[0]


@contextmanager
def plain_tensors() -> Iterator[None]:
    """What is kept is no inference tensor: a later step may run outside of `inference_mode`."""
    with torch.inference_mode(False), torch.no_grad():
        yield
