"""What bench.engines.lmcache_serdes makes of caches and of figures; LMCache itself is not there."""

from __future__ import annotations

import pytest
import torch

from bench.engines import lmcache_serdes as serdes
from bench.engines.lmcache_turboquant import Dequantize, store
from lexico_codec.geometry import Geometry
from lexico_lab.evaluation.prefixes import ExactText

GEOMETRY = Geometry(layers=3, kv_heads=2, head_dim=8, dtype="float16")
TOKENS, HEADS, DIM = 32, 3, 64


def test_objects_are_keys_first_and_come_back() -> None:
    states = torch.randn(3, 2, 2, serdes.SPLIT.prefix, 8).half().float()
    exact = ExactText(ids=(), states=states, predictions=torch.empty(0))
    objects = serdes._objects(exact)
    assert objects.shape == (2, 2, 3, 256, 16)
    assert torch.equal(objects[1, 1, 2, 5, 8:], states[2, 1, 1, 256 + 5].half())
    assert torch.equal(serdes._states(objects, GEOMETRY), states[..., : serdes.SPLIT.coded, :])


@pytest.mark.parametrize(("key_bits", "value_bits"), [(8, 4), (4, 4), (3, 4), (3, 3)])
def test_turboquant_comes_back_about_as_it_was(key_bits: int, value_bits: int) -> None:
    """That the bytes are LMCache's own, the benchmark finds out with its kernels."""
    generator = torch.Generator().manual_seed(key_bits)
    keys, values = torch.randn(2, TOKENS, HEADS, DIM, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))
    top = 2**key_bits - 1
    levels = torch.linspace(-0.3, 0.3, top + 1)
    key_bytes = DIM if key_bits == 8 else DIM * key_bits // 8 + 2
    cache = torch.zeros(2, 16, HEADS, key_bytes + DIM * value_bits // 8 + 4, dtype=torch.uint8)
    store(
        keys,
        values,
        cache,
        torch.arange(TOKENS),
        rotation,
        (levels[1:] + levels[:-1]) / 2,
        mse_bits=key_bits,
        key_packed_size=key_bytes,
        value_quant_bits=value_bits,
        key_fp8=key_bits == 8,
    )
    k_out, v_out = torch.full((2, 1, HEADS, TOKENS, DIM), float("nan")).half()
    Dequantize()[TOKENS, HEADS](
        cache,
        torch.arange(2)[None],
        levels,
        k_out,
        v_out,
        HEAD_DIM=DIM,
        KPS=key_bytes,
        VQB=value_bits,
        MSE_BITS=key_bits,
        KEY_FP8=key_bits == 8,
        NORM_CORRECTION=1,
    )
    back = k_out[0].transpose(0, 1).float()
    back = back if key_bits == 8 else back @ rotation.T
    for made, exact, bits in (
        (back, keys, key_bits),
        (v_out[0].transpose(0, 1), values, value_bits),
    ):
        error = (made.float() - exact).square().sum() / exact.square().sum()
        assert error < {8: 1e-3, 4: 0.02, 3: 0.08}[bits]


def test_ours_is_the_smallest_at_no_worse_kl() -> None:
    texts = [
        {
            "lossless": {"bytes": [80, 80], "frames": [79, 79], "kl": 0.0},
            "step=1": {"bytes": [20, 22], "frames": [20, 22], "kl": 0.01},
            "step=2": {"bytes": [10, 10], "frames": [10, 10], "kl": 0.05},
            "turboquant_3bit_nc": {"bytes": [60, 60], "kl": 0.02},
            "turboquant_k8v4": {"bytes": [90, 90], "kl": 0.001},
        }
    ]
    rows = serdes.rows(texts, raw=200)
    assert [row["fraction"] for row in rows] == [0.8, 0.21, 0.1, 0.6, 0.9]
    found = {row["turboquant"]: row for row in serdes.against(rows)}
    assert found["turboquant_3bit_nc"]["ours"] == "step=1"
    assert found["turboquant_3bit_nc"]["fewer"] == pytest.approx(120 / 42)
    assert found["turboquant_3bit_nc"]["fewer padded"] == pytest.approx(120 / 44)
    assert found["turboquant_k8v4"]["ours"] == "lossless"
    shown = serdes.figures({"rows": rows, "against": list(found.values())})
    assert shown["fewer"] == pytest.approx(180 / 160)
    assert shown["over_frames"] == pytest.approx(80 / 79)
