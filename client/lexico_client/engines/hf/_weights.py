"""The identity of a Hugging Face model: equal fingerprints mean equal keys and values for equal
tokens."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Final
from weakref import WeakKeyDictionary

import torch
import xxhash
from torch import Tensor, nn

from lexico_client.engines.hf._adapters import Modules, added_state
from lexico_client.engines.hf._attention_functions import own_attention
from lexico_client.engines.hf._buffers import made_buffers
from lexico_client.engines.hf._built import altered_modules, state_of
from lexico_client.engines.hf._model_config import config_meaning, drops
from lexico_client.engines.hf._model_files import files_fingerprint
from lexico_client.engines.hf._network import Network, network_of
from lexico_client.engines.hf._plain_models import plain_model
from lexico_client.engines.hf._sharded import local, refuse_slice
from lexico_codec.tensors import bytes_of
from lexico_proto.limits import DIGEST_BYTES

_SAMPLES: Final = 64
"""Elements of each tensor that a stamp reads."""

_known: WeakKeyDictionary[nn.Module, tuple[int, bytes]] = WeakKeyDictionary()


def weights_fingerprint(model: nn.Module) -> bytes:
    """BLAKE2b-256 over a model's weights and the config they run under, 32 bytes.

    For a model that was loaded from a folder of safetensors, or from such a snapshot of a hub, and
    whose tensors and config prove to be those of the files, it is `fingerprint_files` of it: every
    engine that loads the folder has the same.

    Else hashed are the class of the decoder, its config as far as keys and values depend on it and
    it differs from the class's defaults, and for every parameter and persistent buffer its name,
    dtype, shape and the XXH3-128 of its bytes. Of modules that were put into the model, as adapters
    are, every plain attribute is hashed too: which are active, merged, and how they are scaled.
    Other buffers, such as rotary frequencies, count as far as they are not what the config makes,
    and so do the classes of modules, the numbers, flags and words that they keep, their configs,
    functions put over their methods, and attention functions that are not transformers' own, with
    what they hold and the globals that they read. A function of which that cannot be said, since a
    tensor is among it, is a model's own: pages of it are shared within its process. Tensors that
    are neither parameters nor buffers, hooks, and code that is patched in classes are not seen.
    A head that makes logits, `torch.compile`, parallel wrappers and adapters that are disabled
    change nothing. Nor does dropout, unless the model is in training.

    It is kept for each model until its `stamp` changes.

    Raises:
        Unsupported: weights that are not in memory, of which this process holds a slice alone, or
            state that is no tensor: give `weights` yourself.
    """
    model = plain_model(model)
    now = stamp(model)
    known = _known.get(model)
    if known is not None and known[0] == now:
        return known[1]
    refuse_slice(
        model,
        "its tensors here are not all of it. Give weights=lexico_client.fingerprint_files(FOLDER), "
        "of the folder that it was loaded from, which is the same on each rank",
    )
    fingerprint = _fingerprint(network_of(model))
    _known[model] = (now, fingerprint)
    return fingerprint


def _fingerprint(network: Network) -> bytes:
    tensors = dict(sorted(network.tensors()))
    contents = {
        name: xxhash.xxh3_128_hexdigest(bytes_of(tensor.reshape(-1)))
        for name, tensor in tensors.items()
    }
    others = made_buffers(network.modules) + altered_modules(network.model, network.modules)
    if drops(network.model, network.config):
        others.append(["dropout"])
    if attention := own_attention(network.modules):
        others.append(["attention", *attention])
    if network.is_plain and not others:
        fingerprint = files_fingerprint(network, tensors, contents)
        if fingerprint is not None:
            return fingerprint
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"lexico-weights")
    config = config_meaning(network.modules, network.config)
    digest.update(json.dumps([type(network.model).__name__, config], sort_keys=True).encode())
    for name, tensor in tensors.items():
        entry = [name, str(tensor.dtype), list(tensor.shape), contents[name]]
        digest.update(json.dumps(entry).encode())
    for entry in [*others, *network.added]:
        digest.update(json.dumps(entry).encode())
    return digest.digest()


def stamp(model: nn.Module) -> int:
    """Another number once a model's keys and values may be others; cheap enough for every call.

    It covers where each parameter and buffer lies, how often it was written to, what the config
    says, and `sample`.
    """
    modules = list(plain_model(model).named_modules())
    places = tuple((tensor.data_ptr(), _version(tensor)) for tensor in _memory_of(modules))
    configs = [getattr(plain_model(model), "config", None)]
    configs += [vars(module).get("config") for _, module in modules]
    distinct = {id(config): config for config in configs if config is not None}
    said = [repr(sorted(vars(config).items())) for config in distinct.values()]
    return hash((places, *map(id, configs), *said, _sample(model, modules)))


def sample(model: nn.Module) -> int:
    """A number of what a model's state says, wherever it lies: `added_state`, classes of modules
    and what they keep beside tensors, whether dropout is at work, and 64 elements of each parameter
    and buffer. It holds within this process.

    It notices writes that PyTorch does not count: those through `Tensor.data`, and those to weights
    made under `inference_mode`. A write to a few elements alone may escape it.
    """
    return _sample(model, list(plain_model(model).named_modules()))


def _sample(model: nn.Module, modules: Modules) -> int:
    plain = plain_model(model)
    dropping = drops(plain, getattr(plain, "config", None))
    states = [(id(type(module)), state_of(module)) for _, module in modules]
    said = [added_state(model, modules), states, dropping, own_attention(modules)]
    found = xxhash.xxh3_128(json.dumps(said).encode())
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
                yield local(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
