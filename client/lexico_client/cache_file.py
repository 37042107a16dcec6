"""The KV cache of one sequence as a safetensors file: what `lexico put` sends, and `lexico get`
writes. docs/format.md has the bytes.

saved = CacheFile(spec, token_ids, keys, values)
saved.write("prompt.safetensors")
CacheFile.read("prompt.safetensors").spec
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lexico_codec.canonical import canonical_json
from lexico_codec.inputs import checked_inputs
from lexico_codec.keys import token_array
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec
from lexico_codec.spec_text import spec_from_json, spec_to_json
from lexico_proto.errors import ConfigurationError, InvalidInput, LexicoError, ShapeMismatch

StrPath = str | os.PathLike[str]

METADATA_KEY: Final = "lexico_cache"
FORMAT: Final = 1
MAX_METADATA_BYTES: Final = 1 << 20
TOKEN_IDS: Final = "token_ids"

_DTYPES: Final = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


@dataclass(frozen=True, eq=False)
class CacheFile:
    """A cache and all that names its pages: whoever has the file needs no model.

    Raises:
        ShapeMismatch: tensors that are not those of the spec's geometry.
        TokenCountMismatch: `token_ids` is no flat sequence of token ids.
        InvalidInput: `inputs` holds what is no digest.
        Unsupported: a spec of a slice of a model.
    """

    spec: CacheSpec
    token_ids: npt.NDArray[np.uint32]
    """`[tokens]`: from position 0, one for each token of the cache."""
    keys: list[Tensor]
    """A tensor `[tokens, kv_heads, head_dim]` a layer, of the geometry's dtype."""
    values: list[Tensor]
    """As many."""
    inputs: tuple[bytes, ...] = ()
    """What reached the model beside token ids: a digest for each page, or none."""

    def __post_init__(self) -> None:
        spec, g = self.spec, self.spec.geometry
        spec.check_whole()
        object.__setattr__(self, "token_ids", token_array(self.token_ids))
        full = len(self.token_ids) // spec.page_tokens
        object.__setattr__(self, "inputs", checked_inputs(self.inputs, full, spec.page_tokens))
        if not len(self.keys) == len(self.values) == g.layers:
            raise ShapeMismatch(
                f"cache file: keys of {len(self.keys)} and values of {len(self.values)} layers, "
                f"the model has {g.layers}"
            )
        wanted = (self.tokens, g.kv_heads, g.head_dim)
        for each in (*self.keys, *self.values):
            if tuple(each.shape) != wanted or each.dtype != g.torch_dtype:
                raise ShapeMismatch(
                    f"cache file: a tensor {tuple(each.shape)} of {each.dtype}, needs {wanted} of "
                    f"{g.torch_dtype}"
                )

    @classmethod
    def empty(
        cls, spec: CacheSpec, token_ids: npt.NDArray[np.uint32], inputs: tuple[bytes, ...] = ()
    ) -> CacheFile:
        """A cache to be filled through `view`, its content undefined."""
        g = spec.geometry
        shape = (2 * g.layers, len(token_ids), g.kv_heads, g.head_dim)
        rows = list(torch.empty(shape, dtype=g.torch_dtype).unbind(0))
        return cls(spec, token_ids, rows[: g.layers], rows[g.layers :], inputs)

    @classmethod
    def read(cls, path: StrPath) -> CacheFile:
        """The cache in a file, which need not be trusted. Tensors lie in a map of the file.

        Raises:
            InvalidInput and its subclasses, Unsupported: no file of this kind, or one that does not
                fit its own spec; the file and what is wrong are named.
            ConfigurationError: it cannot be read.
        """
        try:
            with Path(path).open("rb"):  # a message that names the file and why
                pass
            with safe_open(os.fspath(path), "pt") as file:
                return _parsed(file)
        except OSError as error:
            why = error.strerror or error
            raise ConfigurationError(f"{path}: cannot read ({why})") from error
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidInput(f"{path}: no cache file of ours ({error})") from error
        except LexicoError as error:
            raise type(error)(f"{path}: {error.message}") from error

    def write(self, path: StrPath) -> None:
        """Writes it, whole or not at all, for this user alone to read: a cache tells its prompt.
        Equal caches give equal bytes.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        there = Path(path)
        tensors: dict[str, Tensor] = {TOKEN_IDS: torch.from_numpy(self.token_ids.astype("<i8"))}
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            tensors[f"layers.{layer}.keys"] = keys.contiguous().cpu()
            tensors[f"layers.{layer}.values"] = values.contiguous().cpu()
        about = {
            "format": FORMAT,
            "spec": json.loads(spec_to_json(self.spec)),
            "inputs": [digest.hex() for digest in self.inputs],
        }
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(dir=there.parent, prefix=f".{there.name}.")
            os.close(handle)
            save_file(tensors, temporary, {METADATA_KEY: canonical_json(about)})
            os.chmod(temporary, 0o600)
            os.replace(temporary, there)
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"{there}: cannot write ({why})") from error
        finally:
            if temporary:
                Path(temporary).unlink(missing_ok=True)

    @property
    def tokens(self) -> int:
        """Tokens of the cache."""
        return len(self.token_ids)

    @property
    def pages(self) -> int:
        """Full pages of it: what can be shared."""
        return self.tokens // self.spec.page_tokens

    def leading(self, tokens: int) -> CacheFile:
        """The cache of the first tokens; views of this one."""
        keys, values = ([each[:tokens] for each in part] for part in (self.keys, self.values))
        return CacheFile(self.spec, self.token_ids[:tokens], keys, values, self.inputs)

    def view(self) -> Callable[[int, int], CacheMemory]:
        """Where each layer group of each full page lies: a `PageSource` to offload from, and what
        a `Target` gives to load into."""
        spec, memory = self.spec, CacheMemory.of(self.keys, self.values)

        def part(page: int, group: int) -> CacheMemory:
            first = page * spec.page_tokens
            return memory.at(spec.page_tokens, first_slot=first).within(spec.group_range(group))

        return part


def _parsed(file: Any) -> CacheFile:
    text = (file.metadata() or {})[METADATA_KEY]
    if len(text) > MAX_METADATA_BYTES:
        raise InvalidInput(f"{len(text)} bytes of metadata, at most {MAX_METADATA_BYTES} are read")
    about = json.loads(text)
    if about["format"] != FORMAT:
        raise InvalidInput(f"format {about['format']!r:.20}: this build reads format {FORMAT}")
    spec = spec_from_json(json.dumps(about["spec"]))
    inputs = tuple(bytes.fromhex(digest) for digest in about["inputs"])
    ids = file.get_slice(TOKEN_IDS)
    if ids.get_dtype() != "I64" or len(ids.get_shape()) != 1:
        raise InvalidInput(f"{TOKEN_IDS} must be I64 [tokens]")
    g, tokens = spec.geometry, ids.get_shape()[0]
    wanted = [tokens, g.kv_heads, g.head_dim]
    names = [[f"layers.{layer}.{part}" for layer in range(g.layers)] for part in ("keys", "values")]
    if set(file.keys()) != {TOKEN_IDS, *names[0], *names[1]}:
        raise ShapeMismatch(
            f"the tensors are not {TOKEN_IDS}, and keys and values of {g.layers} layers"
        )
    for name in (*names[0], *names[1]):
        about_it = file.get_slice(name)
        if about_it.get_dtype() != _DTYPES[g.dtype] or about_it.get_shape() != wanted:
            raise ShapeMismatch(f"{name} must be {_DTYPES[g.dtype]} {wanted}")
    keys, values = ([file.get_tensor(name) for name in part] for part in names)
    return CacheFile(spec, file.get_tensor(TOKEN_IDS).numpy(), keys, values, inputs)
