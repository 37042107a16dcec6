"""The models of `studies.cliffs`, what they keep of the model that they are made from, and its
arithmetic."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lexico_codec.hf_geometry import geometry_of
from lexico_codec.hf_inputs import cache_inputs
from lexico_codec.rope import unrotate
from lexico_codec.sets.transform import QUALITIES
from lexico_lab.studies import cliff_models, cliff_points
from lexico_lab.studies.cliff_models import (
    OUTLIER,
    OUTLIER_PAIRS,
    channel_norms,
    keys_before_rope,
    with_constant_keys,
    with_outliers,
    with_wide_heads,
)
from lexico_lab.studies.cliff_points import BUILT_IN, Point
from lexico_lab.studies.cliffs import CASES, Case, compare, rows_of, summary
from lexico_proto.errors import DictionaryMismatch
from tests.support.tiny_configs import SMALL

TEXT = [(7 * i + i // 5) % 64 for i in range(63)]


@cache
def tiny(heads: int = 6, kv_heads: int = 3) -> Any:
    torch.manual_seed(0)
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    config = LlamaConfig(**{**SMALL, **heads_of, "hidden_size": 120}, head_dim=12)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # so that attention is far from uniform
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


@torch.inference_mode()
def predictions(model: Any) -> Tensor:
    found: Tensor = model(torch.tensor([TEXT])).logits[0].log_softmax(-1)
    return found


def test_outliers_leave_the_function_and_stand_out() -> None:
    made, chosen = with_outliers(tiny(), TEXT)
    torch.testing.assert_close(predictions(made), predictions(tiny()), atol=2e-4, rtol=1e-4)
    norms = channel_norms(keys_before_rope(made, TEXT))
    medians = norms.flatten(1).median(1).values[:, None, None]
    of_median = norms / medians
    assert int(chosen.sum()) == 2 * OUTLIER_PAIRS * 3 * 2  # halves, pairs, heads, layers
    assert float(of_median[chosen].min()) == pytest.approx(OUTLIER, rel=1e-3)
    assert float(of_median[~chosen].max()) < OUTLIER / 2


def test_outliers_leave_the_given_model_alone() -> None:
    before = tiny().model.layers[0].self_attn.k_proj.weight.clone()
    with_outliers(tiny(), TEXT)
    assert torch.equal(before, tiny().model.layers[0].self_attn.k_proj.weight)


def test_constant_keys_are_constant_before_rope_in_one_layer_alone() -> None:
    made = with_constant_keys(tiny(), TEXT, layer=1)
    keys = keys_before_rope(made, TEXT)
    assert torch.equal(keys[1], keys[1, :1].expand_as(keys[1]))
    assert torch.equal(keys[0], keys_before_rope(tiny(), TEXT)[0])
    assert float(keys[0].std(0).min()) > 0
    assert not torch.allclose(predictions(made), predictions(tiny()), atol=1e-2)


def test_constant_keys_in_the_cache_are_one_vector_turned() -> None:
    made = with_constant_keys(tiny(), TEXT, layer=1)
    cache = DynamicCache()
    with torch.inference_mode():
        made(torch.tensor([TEXT]), **cache_inputs(made, cache))
    rope = geometry_of(made.config, "float32").rope
    assert rope is not None
    layers: Any = cache.layers
    keys = unrotate(layers[1].keys[0].transpose(0, 1), torch.arange(len(TEXT)), rope)
    torch.testing.assert_close(keys, keys[:1].expand_as(keys), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 3), (4, 2), (5, 5), (3, 1)])
def test_wide_heads_leave_the_function(heads: int, kv_heads: int) -> None:
    model = tiny(heads, kv_heads)
    made = with_wide_heads(model)
    torch.testing.assert_close(predictions(made), predictions(model), atol=2e-4, rtol=1e-4)


def test_wide_heads_have_a_geometry_of_their_own() -> None:
    narrow = geometry_of(tiny().config, "float16")
    wide = geometry_of(with_wide_heads(tiny()).config, "float16")
    assert (wide.kv_heads, wide.head_dim) == (2, 2 * narrow.head_dim)
    assert narrow.rope is not None
    assert wide.rope is not None
    assert wide.rope.inv_freq == narrow.rope.inv_freq * 2


def test_wide_heads_mix_the_narrow_ones_without_loss() -> None:
    narrow, wide = (keys_before_rope(m, TEXT).flatten(2) for m in (tiny(), with_wide_heads(tiny())))
    torch.testing.assert_close(wide.square().sum(2), narrow.square().sum(2))
    spread = channel_norms(wide.unflatten(2, (2, -1)))
    assert float(spread.min()) > 0.05 * float(spread.max())
    assert torch.linalg.matrix_rank(wide[0, :, :24].double()) == 24  # both heads, in one


def test_a_ratio_is_of_means_and_its_error_is_paired() -> None:
    plain = [{"kl": kl} for kl in (0.1, 0.2, 0.6)]
    found = compare([{"kl": 2 * one["kl"]} for one in plain], plain)
    assert found["ratio"] == pytest.approx(2)
    assert found["ratio_standard_error"] == pytest.approx(0)  # whatever the texts do, it is 2
    assert found["kl_standard_error"] > 0.1
    assert compare(plain[:1], plain[:1])["ratio_standard_error"] == 0


def test_the_worst_ratio_is_of_rows_that_decide() -> None:
    rows = [
        {"case": "a", "preset": "near", "ratio": 1.1, "decides": True},
        {"case": "a", "preset": "small", "ratio": 1.2, "decides": True},
        {"case": "b", "preset": "near", "ratio": 300.0, "decides": False},
    ]
    assert summary(rows)["worst_ratio"] == 1.2
    assert summary(rows)["ratios"] == {"a near": 1.1, "a small": 1.2}
    assert len({case.name for case in CASES}) == len(CASES)


class Refusing:
    """Points of two texts, the second of which the codec refuses at preset small."""

    def of(self, model: str, set_name: str, kind: str) -> dict[str, list[Point]]:
        point = {"kl": 0.1, "token_bytes": 100.0, "fraction": 0.1}
        return {name: [point, {"refused": 1.0} if name == "small" else point] for name in QUALITIES}


FOREIGN = Case("foreign set", BUILT_IN, "outliers", decides=False)


def test_one_refusal_leaves_every_preset_of_the_case_without_figures() -> None:
    points: Any = Refusing()
    rows = rows_of(FOREIGN, points)
    assert [(row.pop("preset"), row.pop("refused")) for row in rows] == [
        (name, int(name == "small")) for name in QUALITIES
    ]
    assert all(row == {"case": "foreign set", "texts": 2, "decides": False} for row in rows)
    decides = {"case": "a", "preset": "near", "ratio": 1.1, "decides": True}
    assert summary([decides, *rows])["ratios"] == {"a near": 1.1}


def test_a_refusal_where_a_case_decides_ends_the_run() -> None:
    points: Any = Refusing()
    with pytest.raises(SystemExit, match="of 2: near 0, balanced 0, small 1"):
        rows_of(replace(FOREIGN, decides=True), points)


def test_a_refused_set_is_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise DictionaryMismatch("of other weights")

    monkeypatch.setattr(cliff_points, "through_frames", refuse)
    anything: Any = None
    assert cliff_points._point(anything, anything, anything, 704) == {"refused": 1.0}


def test_twice_is_no_type_that_changes_with_the_length() -> None:
    model = with_wide_heads(tiny())
    assert model.config.rope_parameters["rope_type"] == cliff_models.TWICE
    torch.testing.assert_close(
        model.model.rotary_emb.inv_freq, tiny().model.rotary_emb.inv_freq.repeat(2)
    )
