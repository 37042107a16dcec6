"""Checks of codecs' parameters; each error names the codec and the parameter."""

from __future__ import annotations

from lexico_proto.errors import ConfigurationError


def check_whole(codec: str, name: str, value: object, least: int, most: int) -> None:
    """Refuses what is no integer in `least..most`.

    Raises:
        ConfigurationError: naming the parameter.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= most:  # type: ignore[operator]
        raise ConfigurationError(f"{codec}: {name}={value!r} is no integer in {least}..{most}")


def check_tolerance(codec: str, value: object) -> None:
    """Refuses what is neither None nor a relative error in (0, 1).

    Raises:
        ConfigurationError: naming the parameter.
    """
    if value is not None and not (isinstance(value, int | float) and 0 < value < 1):
        raise ConfigurationError(f"{codec}: tolerance={value!r} is not in (0, 1)")


def check_sparsity(codec: str, sparsity: int, head_dim: int) -> None:
    """Refuses more atoms a vector than it has components: they are never needed.

    Raises:
        ConfigurationError: naming the parameter.
    """
    if sparsity > head_dim:
        raise ConfigurationError(
            f"{codec}: sparsity={sparsity} is over the model's head_dim {head_dim}"
        )
