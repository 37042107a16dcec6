"""Where a training run computes."""

from __future__ import annotations

import torch

from lexico_proto.errors import ConfigurationError


def device_for(name: str | None = None) -> str:
    """The device of that name, if this machine has it; without a name CUDA if it is there.

    Raises:
        ConfigurationError: a device that is absent or not known here.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ConfigurationError(f"device {name!r}: must be cpu, cuda or cuda:N") from e
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ConfigurationError(f"device {name!r}: must be cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigurationError(f"device {name!r}: this machine has {count} CUDA devices")
    return name
