"""Eviction: every KV head keeps some tokens of a prefix and drops the rest. Scores are kvpress's.

A prompt cache that many prompts share is evicted before any question is known, so scores see the
prefix alone. The first tokens (sinks) and the tail are never evicted and nothing is merged. A
dropped token leaves a hole: kept keys stay rotated where they stood, what follows the prefix stands
at its true position. This is no `Coder`, as the model goes on with a shorter cache.

Scores come from NVIDIA's kvpress 0.5.5 (Apache-2.0), called directly: its hooks ask for
`cache_position`, which transformers 5.23 does not pass. How many tokens each head keeps:
- one count for all heads: StreamingLLM, Knorm, KeyDiff, TOVA, SnapKV, Expected Attention and
  Compactor (arXiv 2309.17453, 2406.11430, 2504.15364, 2401.06104, 2404.14469, 2510.00636,
  2507.08143). KeyDiff's blockwise passes are left out, as in kvpress.
- PyramidKV (arXiv 2406.02069): SnapKV's scores, linearly fewer tokens from the first layer to the
  last, by the rule of the authors' code as kvpress cites it. kvpress itself falls back to one count
  where the last layer would keep less than the window: at this length, for all shares below half.
- Ada-SnapKV (AdaKV, arXiv 2407.11550): SnapKV's scores compared over the heads of a layer, a fifth
  of the even share safe in each head.
- KVzip (arXiv 2505.23416): the most attention a token gets while the model repeats the prefix,
  compared over all heads of all layers.

Observation windows are the harness's tail, which is kept anyway. Bytes: two float16 vectors for
each sink, and for every kept token of a head two vectors, float16 or `lexico`'s, and an index of 2;
2 more a head for their number.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache

from lexico_codec.hf_inputs import cache_inputs, cache_keyword
from lexico_lab.published.titles import EVICTIONS

USUAL: Final = ("snapkv", "pyramidkv", "compactor", "kvzip")
"""Methods that run where none is named."""
FRACTIONS: Final = (0.35, 0.9)
CODED_FRACTIONS: Final = (0.75,)
KVZIP_FRACTIONS: Final = (0.1, 0.2, 0.35, 0.5)
"""KVzip does with a fifth what the others do not with nine tenths."""
KVZIP_CODED_FRACTIONS: Final = (0.1, 0.35)
INDEX_BYTES: Final = 2
ABSENT: Final = "kvpress is not installed; in the project's repository: make .venv/evict"
CODER: Final = "lexico s=8"
"""What codes the tokens that are kept, as `bench.quality` names it."""
CODED_BYTES: Final = 3 * 8 + 2  # a vector
INSTRUCTION: Final = (
    "\n\nRepeat the previous context exactly.\n"  # KVzip's, without a chat template
)
SAFE_SHARE: Final = 0.2  # alpha of AdaKV
PYRAMID_STEEPNESS: Final = 20  # beta of PyramidKV
_ATTENTION: Final = "lexico_bench_evicted"


@dataclass(frozen=True)
class Eviction:
    """One method at one setting."""

    method: str
    """Of `lexico_lab.published.titles.EVICTIONS`."""
    fraction: float
    """Share of the stored tokens that are kept, sinks among them; the mean over heads."""
    coded: bool = False
    """Whether what is kept but the sinks is coded with lexico afterwards."""

    @property
    def curve(self) -> str:
        """Settings of one method make one curve."""
        return f"{self.method} + lexico" if self.coded else self.method

    @property
    def name(self) -> str:
        """Method and setting, as reports show it."""
        coded = f" + {CODER}" if self.coded else ""
        return f"{EVICTIONS[self.method]}, {100 * self.fraction:.0f} % kept{coded}"

    def count(self, stored: slice) -> int:
        """Tokens a head keeps on average, beside the sinks before `stored`."""
        return max(0, round(self.fraction * stored.stop) - stored.start)


@dataclass(frozen=True, eq=False)
class Kept:
    """What an eviction leaves of a cache."""

    cache: DynamicCache
    """Layers differ in length."""
    visible: list[Tensor]
    """A layer's `[kv_heads, tokens]` bool: False where a head keeps fewer than the longest."""
    size: int
    """Bytes that would lie in the store, sinks included, the tail not."""


def available() -> bool:
    """Whether kvpress is installed."""
    return find_spec("kvpress") is not None


def refusal(model: Any) -> str:
    """Why evictions cannot run on a model; empty where they can."""
    if not available():
        return ABSENT
    try:
        supported = _kvpress().presses.base_press.SUPPORTED_MODELS
    except (ImportError, AttributeError, RuntimeError) as error:  # the last is transformers'
        return f"kvpress cannot be imported ({error})"
    if isinstance(model, supported):
        return ""
    names = ", ".join(one.__name__ for one in supported)
    return f"kvpress does not know {type(model).__name__}, but {names}"


def evictions() -> list[Eviction]:
    """Every setting worth plotting."""
    made = []
    for method in EVICTIONS:
        kvzip = method == "kvzip"
        plain = KVZIP_FRACTIONS if kvzip else FRACTIONS
        coded = KVZIP_CODED_FRACTIONS if kvzip else CODED_FRACTIONS
        made += [Eviction(method, share) for share in plain]
        made += [Eviction(method, share, True) for share in coded]
    return made


def select(scores: Tensor, method: str, count: int) -> Tensor:
    """What each head keeps.

    Args:
        scores: `[layers, kv_heads, tokens]`, of the tokens that may go; higher is kept.
        method: decides over what tokens' scores compete, see the module.
        count: tokens a head keeps on average.

    Returns:
        Bool, shaped as `scores`.
    """
    layers, heads, tokens = scores.shape
    count = min(count, tokens)
    if method == "kvzip":
        pools, counts = scores.reshape(1, -1), [layers * heads * count]
    elif method == "adakv":
        safe = scores.topk(int(SAFE_SHARE * count), dim=-1).indices
        pools = scores.scatter(-1, safe, torch.inf).flatten(1)
        counts = [heads * count] * layers
    else:
        pools = scores.flatten(0, 1)
        of_layers = pyramid(layers, count, tokens) if method == "pyramidkv" else [count] * layers
        counts = [layer for layer in of_layers for _ in range(heads)]
    kept = torch.zeros_like(pools, dtype=torch.bool)
    for pool, into, most in zip(pools, kept, counts, strict=True):
        into[pool.topk(most).indices] = True
    return kept.view(scores.shape)


def pyramid(layers: int, count: int, tokens: int) -> list[int]:
    """Tokens each layer keeps: a line from the most to the fewest with the mean `count`."""
    fewest = count / PYRAMID_STEEPNESS
    most = 2 * count - fewest
    if most > tokens:
        most, fewest = tokens, 2 * count - tokens
    step = (most - fewest) / (layers - 1) if layers > 1 else 0.0
    return [round(most - layer * step) for layer in range(layers)]


def shorten(cache: DynamicCache, kept: Tensor, stored: slice, coded: bool = False) -> Kept:
    """The cache of the kept tokens, stored ones in float16.

    Args:
        cache: of the prefix, exact or as it comes back from `CODER`.
        kept: `[layers, kv_heads, tokens of stored]`, from `select`.
        stored: the tokens that may go; those before are sinks, those after the tail.
        coded: whether the cache comes back from `CODER`.
    """
    short, visible = DynamicCache(), []
    for index, layer in enumerate(cache.layers):
        whole = torch.ones(layer.keys.shape[1:3], dtype=torch.bool)  # [kv_heads, tokens]
        whole[:, stored] = kept[index]
        longest = int(whole.sum(1).max())
        order = whole.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        visible.append(whole.gather(1, order))
        parts = []
        for source in (layer.keys, layer.values):
            part = source[0].clone()
            part[:, : stored.stop] = part[:, : stored.stop].half().float()
            parts.append(part.gather(1, order[:, :, None].expand(-1, -1, part.shape[2]))[None])
        short.update(*parts, index)
    _, heads, _, dim = cache.layers[0].keys.shape
    sinks = len(cache.layers) * heads * stored.start * 2 * 2 * dim
    numbers = len(cache.layers) * heads * INDEX_BYTES
    token = 2 * (CODED_BYTES if coded else 2 * dim) + INDEX_BYTES
    return Kept(short, visible, sinks + numbers + int(kept.sum()) * token)


@torch.inference_mode()
def continued(model: Any, kept: Kept, ids: Sequence[int], first: int) -> Tensor:
    """Logits `[tokens, vocabulary]` of `ids`, the first at position `first`, after a short cache.

    The cache grows.
    """
    AttentionInterface.register(_ATTENTION, _attend)
    with _implementation(model, _ATTENTION):  # one that needs no mask of equal layers and heads
        logits: Tensor = model(
            torch.tensor([list(ids)]),
            **cache_inputs(model, kept.cache),
            position_ids=torch.arange(first, first + len(ids))[None],
            visible=kept.visible,
        ).logits[0]
    return logits


def selections(
    model: Any,
    ids: Sequence[int],
    cache: DynamicCache,
    chosen: Sequence[Eviction],
    stored: slice,
    instruction: Sequence[int],
) -> Iterator[tuple[Eviction, Tensor]]:
    """What each eviction keeps, `[layers, kv_heads, tokens of stored]`.

    Args:
        model: decoder with RoPE of a kind that kvpress knows.
        ids: of the prefix.
        cache: of the prefix, exact; left as it is.
        chosen: settings; those of one method share its pass.
        stored: the tokens that may go.
        instruction: tokens that ask to repeat the prefix, for KVzip.
    """
    found = scores_of(model, ids, cache, chosen, stored, instruction)
    for one in chosen:
        yield one, select(found[score_key(one)], one.method, one.count(stored))


def scores_of(
    model: Any,
    ids: Sequence[int],
    cache: DynamicCache,
    chosen: Sequence[Eviction],
    stored: slice,
    instruction: Sequence[int],
) -> dict[str, Tensor]:
    """What `select` takes, `[layers, kv_heads, tokens of stored]`, by `score_key`; takes what
    `selections` takes."""
    presses: dict[str, Any] = {}
    for one in chosen:
        if one.method != "kvzip" and score_key(one) not in presses:
            presses[score_key(one)] = _press(one, stored, len(ids))
    found = _scores(model, ids, presses) if presses else {}
    if any(one.method == "kvzip" for one in chosen):
        found["kvzip"] = repetition_scores(model, ids, cache, instruction)
    return {key: of_all[:, :, stored] for key, of_all in found.items()}


def score_key(eviction: Eviction) -> str:
    """Evictions with the same key have the same scores."""
    if eviction.method in ("streamingllm", "compactor"):  # their scores depend on the share
        return f"{eviction.method} {eviction.fraction}"
    return "snapkv" if eviction.method in ("pyramidkv", "adakv") else eviction.method


def _kvpress() -> Any:
    logging.getLogger("kvpress").setLevel(logging.ERROR)  # KVzip warns of its second pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports warns of its own imports
        return import_module("kvpress")


def _press(eviction: Eviction, stored: slice, tokens: int) -> Any:
    kvpress = _kvpress()
    gone = stored.stop - stored.start - eviction.count(stored)
    ratio = max(0.0, (gone - 0.5) / tokens)  # the half keeps kvpress's rounding off whole numbers
    match score_key(eviction).split()[0]:
        case "streamingllm":
            return kvpress.StreamingLLMPress(ratio)
        case "knorm":
            return kvpress.KnormPress()
        case "keydiff":
            return kvpress.KeyDiffPress()
        case "tova":
            return kvpress.TOVAPress()
        case "snapkv":
            return kvpress.SnapKVPress(window_size=tokens - stored.stop)
        case "expected_attention":
            return kvpress.ExpectedAttentionPress()
        case "compactor":
            return kvpress.CompactorPress(ratio)
    raise ValueError(f"no press for {eviction.method!r}")


@torch.inference_mode()
def _scores(model: Any, ids: Sequence[int], presses: dict[str, Any]) -> dict[str, Tensor]:
    """`[layers, kv_heads, tokens]` by each press, from one pass over the prefix."""
    scored: dict[str, list[Tensor]] = {name: [] for name in presses}

    def score(module: Any, _: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs[cache_keyword(module)].layers[module.layer_idx]
        hidden = kwargs["hidden_states"]
        for name, press in presses.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)  # Compactor sketches at random
                found = press.score(module, hidden, layer.keys, layer.values, output[1], kwargs)
            scored[name].append(found[0])

    with _implementation(model, "sdpa"), _hooked(model, score):
        model(torch.tensor([list(ids)]), **cache_inputs(model, DynamicCache()), logits_to_keep=1)
    return {name: torch.stack(layers).float() for name, layers in scored.items()}


@torch.inference_mode()
def repetition_scores(
    model: Any, ids: Sequence[int], cache: DynamicCache, instruction: Sequence[int]
) -> Tensor:
    """`[layers, kv_heads, tokens]` by KVzip, the prefix repeated in one chunk after its cache."""
    config = model.config
    press = _kvpress().KVzipPress()
    press.context_length = press.end_idx = len(ids)
    press.score_val = torch.zeros(config.num_hidden_layers, 1, config.num_key_value_heads, len(ids))

    def score(module: Any, _: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs[cache_keyword(module)].layers[module.layer_idx]
        press.score_kvzip(
            module, kwargs["hidden_states"], layer.keys, layer.values, output[1], kwargs
        )

    repeated = [*instruction, *ids]
    length = cache.get_seq_length()
    try:
        with _implementation(model, "sdpa"), _hooked(model, score):
            model(torch.tensor([repeated]), **cache_inputs(model, cache), logits_to_keep=1)
    finally:
        if more := cache.get_seq_length() - length:
            cache.crop(-more)  # as it was
    return press.score_val[:, 0]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,  # in its place where kvpress has wrapped this
    *,
    scaling: float,
    visible: list[Tensor],
    **_: Any,
) -> tuple[Tensor, None]:
    """New tokens see what their head keeps, and one another causally."""
    heads, new = query.shape[1:3]
    past = visible[module.layer_idx]  # [kv_heads, past]
    causal = torch.ones(new, new, dtype=torch.bool).tril().expand(len(past), -1, -1)
    mask = torch.cat((past[:, None].expand(-1, new, -1), causal), dim=2)  # [kv_heads, new, all]
    mask = mask.repeat_interleave(heads // len(past), dim=0)
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


@contextmanager
def _implementation(model: Any, name: str) -> Iterator[None]:
    former = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(former)


@contextmanager
def _hooked(model: Any, hook: Callable[..., None]) -> Iterator[None]:
    """Calls `hook` after every attention, its module with the `rotary_emb` that presses ask for."""
    modules = [layer.self_attn for layer in model.model.layers]
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    for module in modules:
        module.rotary_emb = model.model.rotary_emb
    try:
        yield
    finally:
        for handle, module in zip(handles, modules, strict=True):
            handle.remove()
            del module.rotary_emb
