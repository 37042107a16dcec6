"""The files that a model was loaded from, where its tensors prove to be theirs.

Then its fingerprint is that of the files, which engines that have only the folder know as well.
Wherever anything is in doubt it is not: tensors in memory are hashed instead.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from lexico_client._weights_files import WeightsFiles, read_weights
from lexico_client.engines.hf._model_config import config_meaning
from lexico_client.engines.hf._network import Network
from lexico_client.engines.hf._renames import load_names
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
    of the files with the same bytes, or with those that a cast of all makes of it: of its name, or
    of the one that transformers declares to load under its name. One that is tied to another needs
    no place of its own. What transformers fuses or splits while loading proves nothing.

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
    # First by their own names: what a folder of before is called is not to depend on renamings.
    for names in ({name: name for name in found.tensors}, load_names(network.model, found.tensors)):
        for prefix in _prefixes(names, tensors):
            places = _places(names, {prefix + name: name for name in tensors})
            if places is not None and _are_theirs(found, places, tensors, contents):
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


def _prefixes(names: Mapping[str, str], tensors: Iterable[str]) -> list[str]:
    """What may stand before the names of a network's tensors, in the files or once they are
    loaded: by the first of them that is there, as a tied one may not be."""
    known = {*names, *names.values()}
    for name in tensors:
        found = {each.removesuffix(name) for each in known if each.endswith(name)}
        if found:
            return sorted(found, key=len)
    return []


def _places(names: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str] | None:
    """Where the tensors of a network lie.

    Args:
        names: file's name → the one that it is loaded under.
        wanted: names with a prefix → the network's own.

    Returns:
        The network's name → the file's; None where two are loaded under one name.
    """
    places: dict[str, str] = {}
    for file, loaded in names.items():
        # As transformers does it: what is there under its name in the file was not to be renamed.
        name = wanted.get(loaded, wanted.get(file))
        if name is None:
            continue
        if name in places:
            return None
        places[name] = file
    return places


def _are_theirs(
    found: WeightsFiles,
    places: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    contents: Mapping[str, str],
) -> bool:
    cast: dict[str, Tensor] = {}
    proven = {_memory(tensors[name]) for name in places}
    for name, tensor in tensors.items():
        file = found.tensors[places[name]] if name in places else None
        if file is None:
            if _memory(tensor) in proven:  # tied: it is another one that has its place
                continue
            return False
        if file.shape != tuple(tensor.shape):
            return False
        if _DTYPES.get(file.dtype) is tensor.dtype:
            if file.content != contents[name]:
                return False
        elif file.dtype in _DTYPES and tensor.is_floating_point():
            cast[places[name]] = tensor
        else:
            return False
    if not cast:
        return True
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return len(kinds) == 1 and _are_cast(found, cast)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two that are one in memory."""
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _are_cast(found: WeightsFiles, tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of these names in the files, in another dtype."""
    left = dict(tensors)
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
