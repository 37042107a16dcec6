"""The identity of a Hugging Face model: equal fingerprints mean equal keys and values for equal
tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary

import xxhash
from torch import Tensor, nn

from lexico_codec.tensors import bytes_of
from lexico_proto.errors import Unsupported
from lexico_proto.limits import DIGEST_BYTES

_KEEPS_MEANING: Final = frozenset(
    (
        "architectures",
        "dtype",  # each tensor brings its own
        "id2label",
        "initializer_range",
        "label2id",
        "model_type",  # the model's class says it
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "quantization_config",  # what it made of the weights is hashed
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)
"""Config entries that keys and values do not depend on. Those that begin with _ or end with
_token_id too."""

_known: WeakKeyDictionary[nn.Module, tuple[int, bytes]] = WeakKeyDictionary()


def weights_fingerprint(model: nn.Module) -> bytes:
    """BLAKE2b-256 over a model's weights and the config they run under, 32 bytes.

    Hashed are the model's class, its config as far as it differs from the class's defaults, and for
    every parameter and persistent buffer its name, dtype, shape and the XXH3-128 of its bytes. Kept
    for each model until a weight is replaced or written to; weights made under `inference_mode` do
    not tell when they are written to.

    Raises:
        Unsupported: weights that are not in memory, or state that is no tensor: give `weights`
            yourself.
    """
    tensors = dict(_tensors_of(model))
    stamp = hash(tuple((name, t.data_ptr(), _version(t)) for name, t in tensors.items()))
    known = _known.get(model)
    if known is not None and known[0] == stamp:
        return known[1]
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"lexico-weights")
    digest.update(json.dumps([type(model).__name__, _config_of(model)], sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        content = xxhash.xxh3_128_hexdigest(bytes_of(tensor.reshape(-1)))
        entry = [name, str(tensor.dtype), list(tensor.shape), content]
        digest.update(json.dumps(entry).encode())
    fingerprint = digest.digest()
    _known[model] = (stamp, fingerprint)
    return fingerprint


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or value.is_meta:
            what = "is not in memory" if isinstance(value, Tensor) else "is no tensor"
            raise Unsupported(f"{name} {what}: give the fingerprint as `weights`, 32 bytes")
        yield name, value.detach()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _config_of(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    if config is None:
        return {}
    entries: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return {
        name: value
        for name, value in entries.items()
        if name not in _KEEPS_MEANING and not name.startswith("_") and "_token_id" not in name
    }
