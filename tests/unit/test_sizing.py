"""`lexico size` against what was measured."""

from __future__ import annotations

import json
import shlex
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexico_proto.errors import ConfigurationError
from lexico_services import size_command, sizing
from lexico_services.sizing import CacheShape, Load, needs, shape_of_config
from tests.support.cli_shapes import SHAPES, misfits
from tests.support.tutorial import blocks_of, is_as_said

RESULTS = Path(__file__).parents[2] / "bench" / "results"
SMOLLM2 = CacheShape(layers=30, kv_heads=3, head_dim=64)
LOAD = ["--prompts-per-second", "1", "--prompt-tokens", "1000", "--hit-rate", "0.5"]
SHAPE = ["--layers", "30", "--kv-heads", "3", "--head-dim", "64"]


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def command(*arguments: str) -> str:
    parser = ArgumentParser()
    size_command.add_options(parser)
    return size_command.run(parser.parse_args(arguments))


@pytest.mark.parametrize("preset", sizing.STORED_FRACTION)
def test_stored_fractions_are_the_dearer_ones_measured(preset: str) -> None:
    if preset == "lossless":
        texts = result("unknown_positions")["text_sets"].values()
        fractions = [text["lossless"]["lossless"] for text in texts]
        assert sizing.STORED_FRACTION[preset] == pytest.approx(max(fractions), rel=0.02)
        return
    measured = result("quality")
    coder = "lexico s=8" if preset == "paper" else f"lexico-residual {preset}"
    fractions = [
        point["fraction"]
        for text in ("wikitext2", "gsm8k")
        for point in measured[text]["points"]
        if point["coder"] == coder and "+" not in point["method"]
    ]
    assert sizing.STORED_FRACTION[preset] == pytest.approx(max(fractions), rel=0.02)


def test_rates_are_those_measured() -> None:
    """Of two threads: what a core does beside another."""
    prompt = next(row for row in result("reload")["rows"] if row["codec"] == "balanced")
    prefill = prompt["prompt"] * SMOLLM2.values_per_token / prompt["prefill s"]
    codec = next(
        row
        for row in result("codec_speed")["rows"]
        if (row["codec"], row["threads"]) == ("balanced", 2)
    )
    encoded = prefill / codec["encode_vs_prefill"] / 2
    decoded = prefill * codec["decode_vs_prefill"] / 2
    assert pytest.approx(encoded, rel=0.1) == sizing.ENCODED_VALUES_PER_CORE
    assert pytest.approx(decoded, rel=0.1) == sizing.DECODED_VALUES_PER_CORE
    reloaded = result("wire")["reloads"]["reload MB/s"] * 1e6
    assert 1.3 * reloaded >= sizing.RELOADED_BYTES, "more than the machine of wire.json serves"


def test_bytes_of_a_reload_are_about_those_that_came() -> None:
    """One prompt a second, of which all is found, against one that was reloaded."""
    for row in result("reload")["rows"]:
        load = Load(1, row["hit"], hit_rate=1, ttl_s=1)
        said = needs(SMOLLM2, load, sizing.STORED_FRACTION[row["codec"]]).reload_bytes_per_s
        assert 0.5 < said / row["received"] < 1.1, row


@given(
    rate=st.floats(0.001, 1e3),
    tokens=st.floats(1, 1e6),
    hit=st.floats(0, 1),
    ttl=st.floats(1, 1e7),
)
def test_what_grows_with_what(rate: float, tokens: float, hit: float, ttl: float) -> None:
    load = Load(rate, tokens, hit, ttl)
    one = needs(SMOLLM2, load, 0.02)
    twice = needs(SMOLLM2, Load(2 * rate, tokens, hit, ttl), 0.02)
    longer = needs(SMOLLM2, Load(rate, tokens, hit, ttl, used_s=ttl), 0.02)
    assert twice.store_bytes == pytest.approx(2 * one.store_bytes)
    assert longer.store_bytes == pytest.approx(2 * one.store_bytes)
    assert twice.encoder_cores == pytest.approx(2 * one.encoder_cores)
    everything = one.offload_bytes_per_s / SMOLLM2.bytes_per_token + one.saved_tokens_per_s
    assert everything == pytest.approx(rate * tokens)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (
            {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
             "hidden_size": 4096, "torch_dtype": "bfloat16"},
            CacheShape(32, 8, 128),
        ),
        (
            {"text_config": {"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 256,
                             "hidden_size": 64, "dtype": "float32"}},
            CacheShape(2, 4, 256, 4),
        ),
    ],
)  # fmt: skip
def test_shapes_of_configs(tmp_path: Path, config: dict[str, Any], shape: CacheShape) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape_of_config(tmp_path) == shape


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"num_attention_heads": 0}',
        '{"num_attention_heads": 0, "num_hidden_layers": 2, "hidden_size": 8}',
        '{"num_attention_heads": 2, "num_hidden_layers": "2", "hidden_size": 8}',
        "null",
    ],
)
def test_configs_without_a_shape(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigurationError, match="--layers"):
        shape_of_config(tmp_path)


def test_the_command() -> None:
    said = command(*SHAPE, *LOAD, "--prefill-rate", "100")
    assert "GPUs saved      5.0" in said
    numbers = json.loads(command(*SHAPE, *LOAD, "--json"))
    assert numbers["bytes_per_token"] == 23_040
    assert numbers["saved_tokens_per_s"] == 500
    assert numbers["saved_gpus"] is None
    assert misfits(numbers, SHAPES["size"]) == []


def test_a_cache_in_eight_bits() -> None:
    """Half of what nodes send, and of what lossless stores; lossy pages are as large."""
    half, whole = CacheShape(32, 8, 128, 1), CacheShape(32, 8, 128)
    assert half.bytes_per_token == whole.bytes_per_token / 2
    assert sizing.stored_fraction("lossless", half) == sizing.LOSSLESS_OF_FLOAT8
    assert sizing.stored_fraction("lossless", whole) == sizing.STORED_FRACTION["lossless"]
    assert sizing.stored_fraction("near", half) == sizing.stored_fraction("near", whole)


def test_the_example_of_the_documentation() -> None:
    block = blocks_of((RESULTS.parents[1] / "docs" / "sizing.md").read_text())[0]
    words = shlex.split(block.commands.replace("\\\n", " "))
    assert words[:2] == ["lexico", "size"]
    assert is_as_said(command(*words[2:]), block.printed)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*LOAD], "--model"),
        ([*SHAPE[:4], *LOAD], "--model"),
        ([*SHAPE, *LOAD[:5], "1.5"], "hit rate"),
        ([*SHAPE, *LOAD, "--ttl-seconds", "0"], "TTL"),
        ([*SHAPE, *LOAD, "--ttl-seconds", "nan"], "TTL"),
        ([*SHAPE, *LOAD, "--used-seconds=-1"], "used"),
        ([*SHAPE, *LOAD, "--fraction", "0"], "--fraction"),
        ([*SHAPE, *LOAD, "--prefill-rate", "0"], "--prefill-rate"),
        ([*SHAPE, *LOAD, "--prefill-rate", "inf"], "--prefill-rate"),
        ([*SHAPE, "--prompts-per-second", "1e300", *LOAD[2:]], "prompts per second"),
        (["--layers", "0", *SHAPE[2:], *LOAD], "layers is 0"),
        (["--layers", "9" * 400, *SHAPE[2:], *LOAD], "layers is 999"),
        (["--model", "/nowhere", *LOAD], "config.json"),
    ],
)
def test_options_that_cannot_be_used(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        command(*arguments)
