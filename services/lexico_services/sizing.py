"""What a load of prompts needs: memory of the store, network, encoders, and the prefill it saves.

Every rate is a mean. Rates of ours are those of bench/results/, which names processor and versions;
`tests/unit/test_sizing.py` holds them to these files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lexico_proto.errors import ConfigurationError

STORED_FRACTION: Final = {
    "lossless": 0.857,
    "near": 0.049,
    "balanced": 0.023,
    "small": 0.0099,
    "paper": 0.207,
}
"""Bytes stored / bytes of the cache in 16 bits, by preset: the dearer of two kinds of text that no
set was trained on (quality.json; unknown_positions.json for lossless, of bfloat16 values). Text of
other kinds costs more, but for lossless."""
LOSSLESS_OF_FLOAT8: Final = 0.417
"""The same of a cache in FP8 (e4m3): its elements have half of the bits (ADR 0082)."""
ENCODED_VALUES_PER_CORE: Final = 8.9e6
"""Numbers of a cache that a core encodes a second, preset balanced, on a CPU with AVX2 and no AMX
(codec_speed.json, reload.json)."""
DECODED_VALUES_PER_CORE: Final = 34e6
"""The same for decoding at the node."""
RELOADED_BYTES: Final = 380e6
"""Bytes of frames a second from one reload server, with the store and the node on the same two
cores, of the slowest machine that measured it: that of wire.json may serve more."""
STORE_OVERHEAD: Final = 1.25
"""Memory of the store / bytes of pages: names, lists, fragments, and room to evict in."""


_BY_HAND: Final = "give --layers, --kv-heads and --head-dim"

MOST: Final = 1e15
"""Of prompts a second, tokens and seconds: far above any, and what follows of them is finite."""
MOST_OF_A_SHAPE: Final = 1 << 20


@dataclass(frozen=True)
class CacheShape:
    """What a model keeps of a token.

    Not `lexico_codec.geometry.Geometry`, which brings torch: `lexico size` runs where none is.
    """

    layers: int
    kv_heads: int
    head_dim: int
    bytes_per_value: int = 2

    def __post_init__(self) -> None:
        for name in ("layers", "kv_heads", "head_dim"):
            number = getattr(self, name)
            if type(number) is not int or not 0 < number <= MOST_OF_A_SHAPE:
                raise ConfigurationError(
                    f"{name} is {number!r:.20}: give a whole number, 1 to {MOST_OF_A_SHAPE}"
                )

    @property
    def values_per_token(self) -> int:
        """Keys and values together."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def bytes_per_token(self) -> int:
        """Of the cache as the model has it, and as it is sent."""
        return self.values_per_token * self.bytes_per_value


@dataclass(frozen=True)
class Load:
    """What comes in."""

    prompts_per_s: float
    prompt_tokens: float
    """Mean length."""
    hit_rate: float
    """Share of the prompts' tokens that is found, 0 to 1."""
    ttl_s: float
    """Seconds that a page lives after it is stored or last used."""
    used_s: float = 0.0
    """Seconds from the first use of a page to its last, on average."""

    def __post_init__(self) -> None:
        positive = {
            "prompts per second": self.prompts_per_s,
            "prompt tokens": self.prompt_tokens,
            "TTL": self.ttl_s,
        }
        for name, number in positive.items():
            if not 0 < number <= MOST:
                raise ConfigurationError(f"{name} is {number:g}: give above 0, to {MOST:g}")
        if not 0 <= self.hit_rate <= 1:
            raise ConfigurationError(f"the hit rate is {self.hit_rate:g}: it is a share, 0 to 1")
        if not 0 <= self.used_s <= MOST:
            raise ConfigurationError(f"pages are used for {self.used_s:g} s: give 0 to {MOST:g}")


@dataclass(frozen=True)
class Needs:
    """What it takes, and what it saves."""

    store_bytes: float
    """`maxmemory` in which nothing is evicted before its time."""
    offload_bytes_per_s: float
    """From nodes to ingresses: caches as the model has them."""
    reload_bytes_per_s: float
    """From the store to reload servers, and from there to nodes: frames."""
    encoder_cores: float
    decoder_cores: float
    """Over all nodes together."""
    reload_servers: float
    saved_tokens_per_s: float
    """That nobody prefills."""


def needs(shape: CacheShape, load: Load, fraction: float) -> Needs:
    """What a load needs, as means: leave room for peaks.

    Args:
        shape: of the model's cache.
        load: the prompts.
        fraction: bytes stored / bytes of the cache in 16 bits.
    """
    tokens_per_s = load.prompts_per_s * load.prompt_tokens
    found = tokens_per_s * load.hit_rate
    stored = tokens_per_s - found
    frame_bytes = shape.values_per_token * 2 * fraction
    return Needs(
        store_bytes=stored * (load.ttl_s + load.used_s) * frame_bytes * STORE_OVERHEAD,
        offload_bytes_per_s=stored * shape.bytes_per_token,
        reload_bytes_per_s=found * frame_bytes,
        encoder_cores=stored * shape.values_per_token / ENCODED_VALUES_PER_CORE,
        decoder_cores=found * shape.values_per_token / DECODED_VALUES_PER_CORE,
        reload_servers=found * frame_bytes / RELOADED_BYTES,
        saved_tokens_per_s=found,
    )


def stored_fraction(preset: str, shape: CacheShape) -> float:
    """Bytes stored / bytes of the cache in 16 bits. Lossy presets store as much of any type."""
    eight = shape.bytes_per_value == 1 and preset == "lossless"
    return LOSSLESS_OF_FLOAT8 if eight else STORED_FRACTION[preset]


def shape_of_config(folder: Path) -> CacheShape:
    """The shape that the config.json of a model says, for models with full attention in all layers.

    Raises:
        ConfigurationError: there is no such file, or it does not say the shape.
    """
    file = folder / "config.json"
    try:
        config: Any = json.loads(file.read_text())
        config = config.get("text_config", config)
        heads = config["num_attention_heads"]
        shape = CacheShape(
            config["num_hidden_layers"],
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads,
            _width(config.get("dtype") or config.get("torch_dtype")),
        )
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error.message}; {_BY_HAND}") from error
    except OSError as error:
        raise ConfigurationError(
            f"{file}: cannot read ({error.strerror or error}): {_BY_HAND}"
        ) from error
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{file} does not say layers and heads ({error!r}): {_BY_HAND}"
        ) from error
    return shape


def _width(dtype: Any) -> int:
    return 4 if dtype == "float32" else 2
