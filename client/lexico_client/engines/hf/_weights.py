"""The identity of a Hugging Face model: equal fingerprints mean equal keys and values for equal
tokens."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
import xxhash
from torch import Tensor, nn

from lexico_client.engines.hf._adapters import Modules, added_state
from lexico_client.engines.hf._plain_models import plain_model, plain_name
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

_SAMPLES: Final = 64
"""Elements of each tensor that a stamp reads."""

_known: WeakKeyDictionary[nn.Module, tuple[int, bytes]] = WeakKeyDictionary()


def weights_fingerprint(model: nn.Module) -> bytes:
    """BLAKE2b-256 over a model's weights and the config they run under, 32 bytes.

    Hashed are the model's class, its config as far as it differs from the class's defaults, and for
    every parameter and persistent buffer its name, dtype, shape and the XXH3-128 of its bytes. Of
    modules that were put into the model, as adapters are, every plain attribute is hashed too:
    which are active, merged, disabled, and how they are scaled. `torch.compile` changes nothing.
    Of other buffers, such as rotary frequencies, only a dtype below float32 is hashed.

    It is kept for each model until its `stamp` changes.

    Raises:
        Unsupported: weights that are not in memory, or state that is no tensor: give `weights`
            yourself.
    """
    model = plain_model(model)
    now = stamp(model)
    known = _known.get(model)
    if known is not None and known[0] == now:
        return known[1]
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"lexico-weights")
    digest.update(json.dumps([type(model).__name__, _config_of(model)], sort_keys=True).encode())
    tensors = dict(_tensors_of(model))
    for name, tensor in sorted(tensors.items()):
        content = xxhash.xxh3_128_hexdigest(bytes_of(tensor.reshape(-1)))
        entry = [name, str(tensor.dtype), list(tensor.shape), content]
        digest.update(json.dumps(entry).encode())
    for name, buffer in model.named_buffers():
        # Made from the config, to the last bit of the machine's powers: only a rounding is hashed,
        # as `model.to(torch.bfloat16)` does to rotary frequencies and `from_pretrained` does not.
        rounded = buffer.is_floating_point() and buffer.dtype != torch.float32
        if rounded and plain_name(name) not in tensors:
            digest.update(json.dumps([plain_name(name), str(buffer.dtype)]).encode())
    for entry in added_state(model, list(model.named_modules())):
        digest.update(json.dumps(entry).encode())
    fingerprint = digest.digest()
    _known[model] = (now, fingerprint)
    return fingerprint


def stamp(model: nn.Module) -> int:
    """Another number once a model's keys and values may be others; cheap enough for every call.

    It covers where each parameter and buffer lies, how often it was written to, and `sample`.
    """
    modules = list(plain_model(model).named_modules())
    places = tuple((tensor.data_ptr(), _version(tensor)) for tensor in _memory_of(modules))
    return hash((places, _sample(model, modules)))


def sample(model: nn.Module) -> int:
    """A number of what a model's state says, wherever it lies: `added_state`, and 64 elements of
    each parameter and buffer.

    It notices writes that PyTorch does not count: those through `Tensor.data`, and those to weights
    made under `inference_mode`. A write to a few elements alone may escape it.
    """
    return _sample(model, list(plain_model(model).named_modules()))


def _sample(model: nn.Module, modules: Modules) -> int:
    found = xxhash.xxh3_128(json.dumps(added_state(model, modules)).encode())
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    with torch.inference_mode():
        for tensor in _memory_of(modules):
            if (part := _sampled(tensor)) is not None:
                kinds.setdefault((part.dtype, part.device), []).append(part)
        for parts in kinds.values():
            found.update(bytes_of(torch.cat(parts)))
    return found.intdigest()


def _sampled(tensor: Tensor) -> Tensor | None:
    """Elements from all over a tensor; None where it does not show them."""
    count = tensor.numel()
    step = (count // _SAMPLES) | 1  # odd: no power of two in the shape has them in a few columns
    try:
        if tensor.is_contiguous():
            return tensor.as_strided((-(-count // step),), (step,))
        return tensor.reshape(-1)[::step]
    except (RuntimeError, NotImplementedError, TypeError):
        return None  # quantised tensors of other libraries; their versions are seen all the same


def _memory_of(modules: Modules) -> Iterator[Tensor]:
    """Every parameter and buffer that is in memory; more than once where modules share it."""
    for _, module in modules:
        for tensor in itertools.chain(module._parameters.values(), module._buffers.values()):
            if tensor is not None and not tensor.is_meta:
                yield tensor


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or value.is_meta:
            what = "is not in memory" if isinstance(value, Tensor) else "is no tensor"
            raise Unsupported(f"{name} {what}: give the fingerprint as `weights`, 32 bytes")
        yield plain_name(name), value.detach()


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
