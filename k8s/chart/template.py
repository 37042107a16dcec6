"""Renderings of one object with and without components, as one template of Helm.

What all have alike is written once; what a component adds, removes or changes stands between
conditions. Components are told apart by the value that turns them on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

KEYS: Final = ("name", "mountPath", "groupName", "key")
"""Fields by which items of a list are known, the first that all items have."""


Write = Callable[[Any, Mapping[str, Any]], Iterator[str]]
"""Lines of a value, and of what components have in its place."""


class Missing:
    """What a rendering does not have."""


MISSING: Final = Missing()


@dataclass(frozen=True)
class Expression:
    """A value that a template works out: of a text, in the place of a scalar or within one."""

    text: str
    """YAML on one line, with Helm's braces in it; or a text of several lines, as it is."""


@dataclass(frozen=True)
class Conflict(Exception):
    """Two components change the same place, and both can be on."""

    where: str
    components: tuple[str, ...]


@dataclass(frozen=True)
class Templates:
    """Makes templates."""

    conditions: Mapping[str, str]
    """Component → the condition that it is on, as Helm writes it."""
    exclusive: frozenset[str]
    """Components of which one is on at a time."""

    def document(self, base: Any, variants: Mapping[str, Any]) -> str:
        """One object.

        Args:
            base: without components; MISSING where it has no such object.
            variants: with each component alone, or MISSING.

        Raises:
            Conflict: see there.
        """
        changed = {name: each for name, each in variants.items() if each != base}

        def write(value: Any, below: Mapping[str, Any]) -> Iterator[str]:
            return self._map("", value, below, 0)

        return "\n".join(self._member("document", base, changed, write)) + "\n"

    def _member(
        self, where: str, base: Any, changed: Mapping[str, Any], write: Write
    ) -> Iterator[str]:
        """A part that may be absent, and is written as `write(value, changed)` says."""
        removers = [name for name, each in changed.items() if each is MISSING]
        others = {name: each for name, each in changed.items() if each is not MISSING}
        if base is MISSING:
            yield from self._added(where, others, write)
            return
        if removers:
            yield f"{{{{- if not ({self._any(removers)}) }}}}"
        yield from write(base, others)
        if removers:
            yield "{{- end }}"

    def _added(self, where: str, others: Mapping[str, Any], write: Write) -> Iterator[str]:
        for value, names in self._alike(where, others):
            yield f"{{{{- if {self._any(names)} }}}}"
            yield from write(value, {})
            yield "{{- end }}"

    def _alike(self, where: str, others: Mapping[str, Any]) -> list[tuple[Any, list[str]]]:
        """Each value once, and the components that have it.

        Raises:
            Conflict: there are several, of components that may be on together.
        """
        alike: list[tuple[Any, list[str]]] = []
        for name, each in others.items():
            for value, names in alike:
                if value == each:
                    names.append(name)
                    break
            else:
                alike.append((each, [name]))
        if len(alike) > 1 and not set(others) <= self.exclusive:
            raise Conflict(where, tuple(others))
        return alike

    def _any(self, names: Sequence[str]) -> str:
        conditions = [self.conditions[name] for name in names]
        if len(conditions) == 1:
            return conditions[0]
        return "or " + " ".join(f"({each})" for each in conditions)

    def _map(
        self, where: str, base: Mapping[str, Any], changed: Mapping[str, Any], indent: int
    ) -> Iterator[str]:
        keys = list(dict.fromkeys([*base, *(k for each in changed.values() for k in each)]))
        for key in keys:
            value = base.get(key, MISSING)
            here = {n: e.get(key, MISSING) for n, e in changed.items()}
            here = {n: e for n, e in here.items() if e is not value and e != value}

            def write(value: Any, below: Mapping[str, Any], key: str = key) -> Iterator[str]:
                return self._entry(f"{where}.{key}", key, value, below, indent)

            yield from self._member(f"{where}.{key}", value, here, write)

    def _entry(
        self, where: str, key: str, value: Any, changed: Mapping[str, Any], indent: int
    ) -> Iterator[str]:
        """`key: value`, where `changed` has other values for it."""
        space, shown = " " * indent, json.dumps(key) if not _is_plain(key) else key
        everything = [value, *changed.values()]
        if all(isinstance(each, dict) and each for each in everything):
            yield f"{space}{shown}:"
            yield from self._map(where, value, changed, indent + 2)
        elif all(isinstance(each, list) and each for each in everything) and (
            not changed or _key(everything) or self._only_appends(value, changed)
        ):
            yield f"{space}{shown}:"
            yield from self._list(where, value, changed, indent)
        elif changed:
            word = "if"
            for each, names in self._alike(where, changed):
                yield f"{{{{- {word} {self._any(names)} }}}}"
                yield from self._entry(where, key, each, {}, indent)
                word = "else if"
            yield "{{- else }}"
            yield from self._entry(where, key, value, {}, indent)
            yield "{{- end }}"
        elif lines := _lines(value):
            yield f"{space}{shown}: |"
            yield from (f"{space}  {line}".rstrip() for line in lines)
        else:
            yield f"{space}{shown}: {_scalar(value)}"

    def _list(
        self, where: str, base: Sequence[Any], changed: Mapping[str, Sequence[Any]], indent: int
    ) -> Iterator[str]:
        key = _key([base, *changed.values()])
        if key is None:
            names: list[Any] = list(range(max(len(base), *map(len, changed.values()), 0)))
            of = {name: dict(enumerate(each)) for name, each in changed.items()}
            own = dict(enumerate(base))
        else:
            own = {each[key]: each for each in base}
            of = {name: {e[key]: e for e in each} for name, each in changed.items()}
            names = list(dict.fromkeys([*own, *(n for each in of.values() for n in each)]))
        for name in names:
            value = own.get(name, MISSING)
            here = {n: e.get(name, MISSING) for n, e in of.items()}
            here = {n: e for n, e in here.items() if e is not value and e != value}

            def write(value: Any, below: Mapping[str, Any], name: Any = name) -> Iterator[str]:
                return self._item(f"{where}[{name}]", value, below, indent)

            yield from self._member(f"{where}[{name}]", value, here, write)

    def _item(
        self, where: str, value: Any, changed: Mapping[str, Any], indent: int
    ) -> Iterator[str]:
        """`- value`. A map is written below a dash of its own, as conditions may stand first."""
        space = " " * indent
        if isinstance(value, dict) and value:
            yield f"{space}-"
            yield from self._map(where, value, changed, indent + 2)
        elif changed:
            raise Conflict(where, tuple(changed))
        elif isinstance(value, list) and value:
            yield f"{space}-"
            yield from self._list(where, value, {}, indent + 2)
        else:
            yield f"{space}- {_scalar(value)}"

    @staticmethod
    def _only_appends(base: Sequence[Any], changed: Mapping[str, Sequence[Any]]) -> bool:
        return all(list(each[: len(base)]) == list(base) for each in changed.values())


def _key(lists: Sequence[Sequence[Any]]) -> str | None:
    items = [item for each in lists for item in each]
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    for key in KEYS:
        if all(isinstance(item.get(key), str) for item in items) and all(
            len({item[key] for item in each}) == len(each) for each in lists
        ):
            return key
    return None


def _lines(value: Any) -> list[str]:
    """Lines of a text that a block of YAML says as it is; else none."""
    text = value.text if isinstance(value, Expression) else _quoted(value)
    if not isinstance(text, str) or not text.endswith("\n") or text[:1].isspace():
        return []
    return [] if text.endswith("\n\n") or "\t" in text else text.splitlines()


def _quoted(value: Any) -> Any:
    """A text with its braces as Helm has to be told of them."""
    return value.replace("{{", '{{ "{{" }}') if isinstance(value, str) else value


def _is_plain(key: str) -> bool:
    return all(c.isalnum() or c in "-_./" for c in key)


def _scalar(value: Any) -> str:
    """Flow style of JSON, which is YAML; braces of Helm in a text are none here."""
    if isinstance(value, Expression):
        return value.text
    if isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, str):
        return str(_quoted(json.dumps(value, ensure_ascii=False)))
    return json.dumps(value)
