"""All checks of a rendering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from k8s.checks import (
    engines,
    kuberay,
    names,
    network,
    pods,
    ray,
    references,
    schemas,
    selectors,
    settings,
)
from k8s.checks.rendering import Problem, Rendering

CHECKS: Final[tuple[Callable[[Rendering], list[Problem]], ...]] = (
    schemas.check,
    names.check,
    pods.check,
    references.check,
    selectors.check,
    network.check,
    settings.check,
    engines.check,
    ray.check,
    kuberay.check,
)


def problems(rendering: Rendering) -> list[Problem]:
    """What all of them find. Objects without the shape of their kind are not looked at further."""
    found = schemas.check(rendering)
    if found:
        return found
    return [problem for check in CHECKS[1:] for problem in check(rendering)]
