"""Settings of the tier: the keys of its entry in `secondary_tiers` that are not vLLM's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from lexico_client.engines._settings import EngineSettings
from lexico_client.engines.vllm.tier._layout import LAYOUTS
from lexico_proto.errors import ConfigurationError

TIER: Final = "LexicoTier"
VLLMS: Final = ("type", "module_path", "backpressure")
"""Keys of the entry that vLLM takes out."""
_LOCALITIES: Final = ("LOCAL", "REMOTE")


@dataclass(frozen=True)
class TierConfig(EngineSettings):
    """Checked settings of the tier.

    Raises:
        ConfigurationError: one line that names the key.
    """

    where: ClassVar[str] = f"secondary_tiers: {TIER}"

    layout: str = ""
    """How keys and values lie in a block, a name of `LAYOUTS`; empty for that of the engine's own
    layout, which the workers then have to find."""
    model: str | None = None
    """Folder of the model, where the engine's name of it is none."""
    adapters_by_path: bool = False
    """Whether LoRA adapters of one name and path are the same on all nodes that share: vLLM's
    hashes know no more of them."""
    locality: str = "REMOTE"
    """Where the store is, for vLLM: `LOCAL` or `REMOTE`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout and self.layout not in LAYOUTS:
            raise self._bad("layout", f"{self.layout!r} is none of {', '.join(LAYOUTS)}")
        if self.locality not in _LOCALITIES:
            raise self._bad("locality", f"{self.locality!r} is none of {', '.join(_LOCALITIES)}")


def tier_settings(extra: Any) -> list[TierConfig]:
    """Of the tiers of ours in `kv_connector_extra_config`.

    Raises:
        ConfigurationError: as `TierConfig`.
    """
    tiers = extra.get("secondary_tiers") or []
    if not isinstance(tiers, list):
        raise ConfigurationError("secondary_tiers: a list of tiers is needed")
    return [
        TierConfig.of({key: value for key, value in tier.items() if key not in VLLMS})
        for tier in tiers
        if isinstance(tier, dict) and tier.get("type") == TIER
    ]
