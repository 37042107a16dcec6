"""`lexico size`: what a load of prompts needs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from lexico_proto.errors import ConfigurationError
from lexico_services.sizing import (
    MOST,
    STORED_FRACTION,
    CacheShape,
    Load,
    Needs,
    needs,
    shape_of_config,
    stored_fraction,
)

_SHAPE: Final = {
    "layers": "of the model, in place of --model",
    "kv_heads": "of a layer",
    "head_dim": "numbers of a key or value of one head",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", type=Path, metavar="FOLDER", help="its config.json is read")
    for name, what in _SHAPE.items():
        model.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=what)
    model.add_argument(
        "--value-bytes", type=int, choices=(1, 2, 4), default=2, help="of a number of the cache (2)"
    )
    load = parser.add_argument_group("load")
    for name, metavar, what in (
        ("prompts-per-second", "N", "of all nodes together, mean"),
        ("prompt-tokens", "N", "of a prompt, mean"),
        ("hit-rate", "SHARE", "of all prompts' tokens that is found, 0 to 1"),
    ):
        load.add_argument(f"--{name}", type=float, required=True, metavar=metavar, help=what)
    load.add_argument(
        "--ttl-seconds",
        type=float,
        default=86400.0,
        metavar="S",
        help="that a page lives after it is stored or last used (86400)",
    )
    load.add_argument(
        "--used-seconds",
        type=float,
        default=0.0,
        metavar="S",
        help="from a page's first use to its last, mean (0)",
    )
    codec = parser.add_mutually_exclusive_group()
    codec.add_argument(
        "--preset", choices=tuple(STORED_FRACTION), default="balanced", help="of nodes (balanced)"
    )
    codec.add_argument(
        "--fraction",
        type=float,
        metavar="SHARE",
        help="stored / 16-bit bytes, as measured, in place of --preset",
    )
    parser.add_argument(
        "--prefill-rate", type=float, metavar="N", help="tokens a second that a GPU prefills"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> str:
    """What the command prints.

    Raises:
        ConfigurationError: an option that cannot be used.
    """
    shape = _shape(options)
    fraction = options.fraction
    if fraction is None:
        fraction = stored_fraction(options.preset, shape)
    if not 0 < fraction <= 2:
        raise ConfigurationError(f"--fraction is {fraction:g}: bytes stored / bytes in 16 bits")
    if options.prefill_rate is not None and not 1e-6 <= options.prefill_rate <= MOST:
        raise ConfigurationError(
            f"--prefill-rate is {options.prefill_rate:g}: give above 0, to {MOST:g}"
        )
    load = Load(
        options.prompts_per_second,
        options.prompt_tokens,
        options.hit_rate,
        options.ttl_seconds,
        options.used_seconds,
    )
    needed = needs(shape, load, fraction)
    gpus = (
        None if options.prefill_rate is None else needed.saved_tokens_per_s / options.prefill_rate
    )
    if options.json:
        numbers: dict[str, Any] = {"bytes_per_token": shape.bytes_per_token, **asdict(needed)}
        return json.dumps({**numbers, "saved_gpus": gpus}, indent=1)
    return "\n".join(_lines(shape, needed, gpus))


def _shape(options: argparse.Namespace) -> CacheShape:
    given = [getattr(options, name) for name in _SHAPE]
    if options.model is not None and given == [None] * 3:
        return shape_of_config(options.model)
    if options.model is not None or None in given:
        raise ConfigurationError("give --model, or --layers, --kv-heads and --head-dim")
    layers, kv_heads, head_dim = given
    return CacheShape(layers, kv_heads, head_dim, options.value_bytes)


def _lines(shape: CacheShape, needed: Needs, gpus: float | None) -> list[str]:
    rows = [
        ("cache", f"{shape.bytes_per_token / 1e3:,.1f} kB a token, as the model has it"),
        ("store", f"{needed.store_bytes / 2**30:,.1f} GiB of maxmemory"),
        ("offload", f"{needed.offload_bytes_per_s * 8e-9:,.2f} Gbit/s from nodes to ingresses"),
        ("reload", f"{needed.reload_bytes_per_s * 8e-9:,.3f} Gbit/s from reload servers to nodes"),
        ("encoders", f"{needed.encoder_cores:,.1f} CPU cores; on a GPU it was not measured"),
        ("decoding", f"{needed.decoder_cores:,.1f} CPU cores over all nodes"),
        ("reload servers", f"{needed.reload_servers:,.2f}; have two at least"),
        ("prefill saved", f"{needed.saved_tokens_per_s:,.0f} tokens a second"),
    ]
    if gpus is not None:
        rows.append(("GPUs saved", f"{gpus:,.1f}"))
    width = max(len(name) for name, _ in rows)
    return [
        *(f"{name:<{width}}  {text}" for name, text in rows),
        "These are means: have twice of it for peaks, and measure with your model and texts.",
    ]
