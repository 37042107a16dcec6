"""The files that a model was loaded from, where its tensors prove to be theirs.

Then its fingerprint is that of the files, which engines that have only the folder know as well.
Wherever anything is in doubt it is not: tensors in memory are hashed instead.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from lexico_client._weights_files import FileTensor, WeightsFiles, read_weights
from lexico_client.engines.hf._model_config import config_meaning
from lexico_client.engines.hf._network import Network
from lexico_proto.errors import LexicoError

_log = logging.getLogger(__name__)

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def files_fingerprint(
    network: Network, tensors: Mapping[str, Tensor], contents: Mapping[str, str]
) -> bytes | None:
    """Fingerprint of the files that a network was loaded from; None where that is not proven.

    Proven is: the folder's config says the same of keys and values, and every tensor has a tensor
    of the files of its name with the same bytes, or with those that a cast of all makes of it.

    Args:
        network: a network with nothing put into it.
        tensors: its parameters and persistent buffers.
        contents: XXH3-128 of the bytes of each.
    """
    kind = getattr(type(network.model), "config_class", None)
    if not isinstance(kind, type) or not isinstance(network.config, kind):
        return None
    folder = _folder_of(network.config)
    if folder is None or not tensors or not _says_the_same(folder, network):
        return None
    try:
        found = read_weights(folder)
    except LexicoError as error:
        _log.debug("no fingerprint of files: %s", error)
        return None
    for prefix in _prefixes(found.tensors, next(iter(tensors))):
        if _are_theirs(found, prefix, tensors, contents):
            return found.fingerprint
    return None


def _folder_of(config: Any) -> Path | None:
    """Where the model was loaded from: a folder, or the snapshot of a hub in the cache."""
    name = getattr(config, "name_or_path", "")
    if not isinstance(name, str) or not name:
        return None
    if os.path.isdir(name):
        return Path(name)
    commit = getattr(config, "_commit_hash", None)
    if not commit:
        return None
    try:
        found = cached_file(name, "config.json", revision=commit, local_files_only=True)
    except (OSError, ValueError) as error:
        _log.debug("no snapshot of %s: %s", name, error)
        return None
    return None if found is None else Path(found).parent


def _says_the_same(folder: Path, network: Network) -> bool:
    """Whether the folder's config is that of the model, as far as keys and values depend on it."""
    config, modules = network.config, network.modules
    try:
        raw = json.loads((folder / "config.json").read_bytes())
        if raw.get("model_type") != type(config).model_type:
            return False
        theirs = type(config).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001 - whatever a config's own code raises: not proven
        _log.debug("config of %s not usable: %s", folder, error)
        return False
    return config_meaning(modules, theirs) == config_meaning(modules, config)


def _prefixes(files: Mapping[str, FileTensor], name: str) -> list[str]:
    """What may stand before the names of a network's tensors in the files."""
    return sorted({each.removesuffix(name) for each in files if each.endswith(name)}, key=len)


def _are_theirs(
    found: WeightsFiles, prefix: str, tensors: Mapping[str, Tensor], contents: Mapping[str, str]
) -> bool:
    cast: list[str] = []
    for name, tensor in tensors.items():
        file = found.tensors.get(prefix + name)
        if file is None or file.shape != tuple(tensor.shape):
            return False
        if _DTYPES.get(file.dtype) is tensor.dtype:
            if file.content != contents[name]:
                return False
        elif file.dtype in _DTYPES and tensor.is_floating_point():
            cast.append(name)
        else:
            return False
    if not cast:
        return True
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return len(kinds) == 1 and _are_cast(found, prefix, {name: tensors[name] for name in cast})


def _are_cast(found: WeightsFiles, prefix: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of the files, in another dtype."""
    left = {prefix + name: tensor for name, tensor in tensors.items()}
    try:
        for path in found.files:
            with safe_open(path, framework="pt") as file:
                for name in set(file.keys()) & set(left):
                    tensor = left.pop(name)
                    made = file.get_tensor(name).to(tensor.dtype)
                    if not torch.equal(_bytes(made), _bytes(tensor)):
                        return False
    except (OSError, SafetensorError) as error:
        _log.debug("weights not readable: %s", error)
        return False
    return not left


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
