"""Functions that lie on modules in place of their class's own, said so that equal words mean equal
work.

A function is said by its name, its code, what it holds, and what its code reads of its module's
globals, which may be another number in the next call. What cannot be said so, because there is a
tensor or another module among it, has a random name that lasts as long as the function does: pages
of such a model are shared with nobody, rather than with whoever has another function.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import json
import logging
import secrets
import sys
from collections import deque
from collections.abc import Callable
from enum import Enum
from numbers import Number
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

from lexico_client._config_meaning import meaning

_OF_MODELS: Final = frozenset((*dir(PreTrainedModel), *dir(GenerationMixin))) - {
    "forward",
    "get_input_embeddings",
}
"""Methods that no forward pass calls: `generate`, `to`, and others that libraries put wrappers
over."""
_LIBRARIES: Final = ("torch.", "transformers.")
"""Whose code counts by its name, as that of classes does."""
_SIMPLE: Final = (type(None), Number, str, bytes, torch.dtype, torch.device)
_COLLECTIONS: Final = (tuple, list, dict, set, frozenset, deque)
_CHANGING: Final = (Tensor, nn.Module, np.ndarray)
_MOST_BYTES: Final = 65536
"""Of an array that is hashed in every call: tens of microseconds."""
_READS: Final = ("LOAD_GLOBAL", "LOAD_NAME")
_UNREAD: Final = (ModuleType, logging.Logger)
"""Globals that count by their names, which are in the code."""

_unsaid: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def function_on(module: nn.Module, key: str, value: Callable[..., Any]) -> str | None:
    """What is to be said of a callable attribute of a module; None where it changes nothing.

    What `torch.compile` and accelerate put over a method is looked through.

    Args:
        module: it lies on.
        key: its name.
        value: itself.
    """
    own = inspect.getattr_static(type(module), key, None)
    if key in _OF_MODELS or (own is None and key.startswith("_")):
        return None
    function = _below(module, value)
    return None if function is own else said_of(function, module)


def said_of(function: Any, module: Any = None, way: tuple[int, ...] = ()) -> str:
    """A function or class in words.

    Args:
        function: it.
        module: that it may be bound to, or hold.
        way: ids of what is being said, and leads to it.
    """
    if id(function) in way:
        return "again"
    way = (*way, id(function))
    if isinstance(function, functools.partial):
        held = [*function.args, *sorted(function.keywords.items())]
        within = [_held(each, module, way) for each in held]
        inner = said_of(function.func, module, way)
        return unsaid(function) if None in within else inner + str(within)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    imported = _imported(name, function)
    if imported and name.startswith(_LIBRARIES):
        return name
    if not isinstance(function, FunctionType):
        return name if imported else unsaid(function)
    held = [each.cell_contents for each in function.__closure__ or () if _filled(each)]
    held += function.__defaults__ or ()
    held += sorted((function.__kwdefaults__ or {}).items())
    within = [_held(each, module, way) for each in held]
    if None in within and not imported:
        return unsaid(function)
    read = _read(function, module, way, imported=imported)
    if None in read.values():
        return unsaid(function)
    return f"{name} {_code(function.__code__)} {within}" + (f" {read}" if read else "")


def unsaid(thing: Any) -> str:
    """A random name of something, which lasts as long as it does."""
    try:
        return _unsaid.setdefault(thing, secrets.token_hex(16))
    except TypeError:  # it takes no weak reference, or has no hash
        return secrets.token_hex(16)


def _below(module: nn.Module, value: Any) -> Any:
    """The function within what libraries put over it."""
    while True:
        if isinstance(value, MethodType) and value.__self__ is module:
            return value.__func__
        function = value.func if isinstance(value, functools.partial) else value
        made_in = getattr(function, "__globals__", {}).get("__name__")
        if made_in == "accelerate.hooks" and "_old_forward" in vars(module):
            value = vars(module)["_old_forward"]
        elif made_in == "torch._dynamo.eval_frame" and hasattr(value, "_torchdynamo_orig_callable"):
            value = value._torchdynamo_orig_callable
        else:
            return value


def _imported(name: str, function: Any) -> bool:
    """Whether a name leads to the function on every machine that has its package."""
    home = getattr(function, "__module__", None)
    if home == "__main__" or not isinstance(home, str) or home not in sys.modules:
        return False
    found: Any = sys.modules[home]
    for step in name.removeprefix(f"{home}.").split("."):
        found = inspect.getattr_static(found, step, None)
    return found is function or getattr(found, "__func__", None) is function


def _held(value: Any, module: Any, way: tuple[int, ...]) -> str | None:
    """What a function holds or reads; None where it cannot be said."""
    if value is module:
        return "its own"
    if isinstance(value, PreTrainedConfig):  # may be another than the model's
        return json.dumps(meaning(json.loads(value.to_json_string(use_diff=True))), sort_keys=True)
    if isinstance(value, np.generic):
        return f"{value.dtype} {value.item()!r}"
    if isinstance(value, _SIMPLE):
        return repr(value)
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, np.ndarray):
        return array_in_words(value)
    if isinstance(value, _COLLECTIONS):
        if id(value) in way:
            return "again"
        each = list(value.items() if isinstance(value, dict) else value)  # others may change it
        within = [_held(one, module, (*way, id(value))) for one in each]
        if None in within:
            return None
        ordered = sorted(map(str, within)) if isinstance(value, set | frozenset) else within
        return str(ordered) if type(value) is tuple else f"{type(value).__name__}{ordered}"
    if isinstance(value, functools._lru_cache_wrapper):
        value = value.__wrapped__
    if isinstance(value, FunctionType | BuiltinFunctionType | type | functools.partial):
        return said_of(value, module, way)
    return None


def array_in_words(array: npt.NDArray[Any]) -> str | None:
    """An array in words; None for one of objects, and for one that is too large to be looked at in
    every call."""
    if array.dtype.hasobject or array.nbytes > _MOST_BYTES:
        return None
    digest = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
    return f"{array.dtype}{array.shape}{digest}"


def _read(
    function: FunctionType, module: Any, way: tuple[int, ...], *, imported: bool
) -> dict[str, str | None]:
    """What a function's code reads of its globals, as they are now.

    Args:
        function: of anybody but torch and transformers.
        module, way: as for `said_of`.
        imported: its name leads to it: then an object among them counts by its type and name, as a
            kernel or a registry of a package does.
    """
    said: dict[str, str | None] = {}
    for name in _globals_in(function.__code__):
        value = function.__globals__.get(name, _UNREAD)
        if value is _UNREAD or isinstance(value, _UNREAD):
            continue
        said[name] = _held(value, module, way)
        kind = type(value)
        changes = isinstance(value, _CHANGING) or kind.__module__ == "builtins"
        if said[name] is None and imported and not changes:
            said[name] = f"{kind.__module__}.{kind.__qualname__} {getattr(value, '__name__', '')}"
    return said


@functools.lru_cache(maxsize=1024)
def _globals_in(code: CodeType) -> tuple[str, ...]:
    """Names of globals that code reads, and what is defined within it."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname in _READS}
    for within in code.co_consts:
        if isinstance(within, CodeType):
            names.update(_globals_in(within))
    return tuple(sorted(names))


def _code(code: CodeType) -> str:
    constants = [_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    said = repr((code.co_code, constants, code.co_names))
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - it raises where nothing is in it
    except ValueError:
        return False
    return True
