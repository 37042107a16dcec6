"""Functions that lie on modules in place of their class's own, said so that equal words mean equal
work.

A function is said by its name, its code and what it holds. What cannot be said so, because it holds
a tensor or another module, has a random name that lasts as long as the function does: pages of such
a model are shared with nobody, rather than with whoever has another function.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import secrets
import sys
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any, Final
from weakref import WeakKeyDictionary

from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

_OF_MODELS: Final = frozenset((*dir(PreTrainedModel), *dir(GenerationMixin))) - {
    "forward",
    "get_input_embeddings",
}
"""Methods that no forward pass calls: `generate`, `to`, and others that libraries put wrappers
over."""
_LIBRARIES: Final = ("torch.", "transformers.")
"""Whose code counts by its name, as that of classes does."""
_SIMPLE: Final = (type(None), bool, int, float, str, bytes)

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


def said_of(function: Any, module: Any = None) -> str:
    """A function or class in words.

    Args:
        function: it.
        module: that it may be bound to, or hold.
    """
    if isinstance(function, functools.partial):
        held = [*function.args, *sorted(function.keywords.items())]
        within = [_held(each, module) for each in held]
        return unsaid(function) if None in within else said_of(function.func, module) + str(within)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    imported = _imported(name, function)
    if imported and name.startswith(_LIBRARIES):
        return name
    if not isinstance(function, FunctionType):
        return name if imported else unsaid(function)
    held = [each.cell_contents for each in function.__closure__ or () if _filled(each)]
    held += function.__defaults__ or ()
    held += sorted((function.__kwdefaults__ or {}).items())
    within = [_held(each, module) for each in held]
    if None in within and not imported:
        return unsaid(function)
    return f"{name} {_code(function.__code__)} {within}"


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


def _held(value: Any, module: Any) -> str | None:
    """What a function holds; None where it cannot be said."""
    if value is module or isinstance(value, PreTrainedConfig):
        return "its own"  # the config is said elsewhere
    if isinstance(value, _SIMPLE):
        return repr(value)
    if isinstance(value, tuple):
        within = [_held(each, module) for each in value]
        return None if None in within else str(within)
    if isinstance(value, FunctionType | BuiltinFunctionType | type):
        return said_of(value, module)
    return None


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
