"""Arguments of `Session.generate`: which of them reach `generate`, and which cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor
from transformers import GenerationConfig

from lexico_client.engines.hf._token_ids import DEFAULT_ROOM_TOKENS
from lexico_client.engines.hf._watched_model import settings_of
from lexico_codec.hf_inputs import cache_keyword
from lexico_proto.errors import InvalidInput, Unsupported

_OF_PROMPTS: Final = ("negative_prompt_ids", "negative_prompt_attention_mask")
"""Tensors that go to `generate`, and not to the model together with the cache."""
_BRINGS: Final = "Session.generate brings the cache: leave it out"
_IDS_ALONE: Final = "keys and values are shared by token ids alone: leave it out, or use load()"
_ELSEWHERE: Final = "does what it likes with a cache: leave it out, or use the model's own generate"
_REFUSED: Final = {
    "cache": _BRINGS,
    "past_key_values": _BRINGS,
    "cache_position": _BRINGS,
    "inputs": "give the prompt as input_ids or messages",
    "inputs_embeds": _IDS_ALONE,
    "position_ids": _IDS_ALONE,
    "token_type_ids": _IDS_ALONE,
    "adapter_names": _IDS_ALONE,
    "custom_generate": _ELSEWHERE,
    "penalty_alpha": _ELSEWHERE,
    "dola_layers": _ELSEWHERE,
    "constraints": _ELSEWHERE,
    "force_words_ids": _ELSEWHERE,
    "token_healing": "changes the prompt behind our back: leave it out, or use load()",
}
"""Why an argument cannot be given here."""
_UNSAID: Final[Any] = GenerationConfig()  # type: ignore[no-untyped-call]
_ASSISTANTS: Final = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


@dataclass(frozen=True)
class GenerateSettings:
    """What of `generate`'s arguments decides how its cache is made."""

    static: bool
    """Whether the cache is a `StaticCache`."""
    beams: int
    sequences: int
    """Returned for each prompt."""
    new_tokens: int | None
    """Tokens that it may add to the prompt; None where nobody said."""
    cache_tokens: int
    """Least size of a static cache; 0 where nobody said."""
    whole: str
    """Why prompts must be computed from their first token on, in one pass; empty where not."""
    tokenizer: bool
    """Whether `generate` needs the tokenizer: strings end an answer, or an assistant has another
    one."""
    eos: frozenset[int]
    """Tokens that end an answer."""
    pad: int | None
    """What stands behind the answers that have ended."""

    @property
    def expansion(self) -> int:
        """Rows of the cache for each prompt."""
        return max(self.beams, self.sequences)

    def room(self, columns: int) -> int:
        """Tokens to have memory for behind the prompts.

        Args:
            columns: of the prompts.
        """
        if self.static and self.new_tokens is not None:
            return max(self.new_tokens, self.cache_tokens - columns)
        new = DEFAULT_ROOM_TOKENS if self.new_tokens is None else self.new_tokens
        return min(new, 4 * DEFAULT_ROOM_TOKENS)


def generate_settings(model: Any, kwargs: dict[str, Any], columns: int) -> GenerateSettings:
    """Looks at arguments of `generate`.

    Args:
        model: whose `generate` it is.
        kwargs: its arguments; `cache_implementation` is taken from them.
        columns: of the prompts.

    Raises:
        InvalidInput: a cache, or what would reach the model beside token ids.
        Unsupported: what goes about its cache in another way, or a kind of cache that pages cannot
            be loaded into.
    """
    known = (*_OF_PROMPTS, *vars(_UNSAID))
    for name, value in kwargs.items():
        tensor = isinstance(value, Tensor) and name not in known
        if value is not None and (tensor or name in _REFUSED):
            kind = Unsupported if _REFUSED.get(name) is _ELSEWHERE else InvalidInput
            raise kind(f"generate({name}=...): {_REFUSED.get(name, _IDS_ALONE)}")
    asked = kwargs.pop("cache_implementation", None)
    setting = settings_of(model, (), kwargs)
    _check(setting, asked)
    beams = int(setting("num_beams") or 1)
    sequences = int(setting("num_return_sequences") or 1)
    assisted = any(setting(name) is not None for name in _ASSISTANTS)
    new_tokens = _new_tokens(setting, columns)
    if asked == "static":
        if max(beams, sequences) > 1 or assisted:
            raise Unsupported(
                "a static cache goes with one answer a prompt, without beams and assistants: leave "
                "cache_implementation out"
            )
        if new_tokens is None:
            raise InvalidInput("a static cache has a size: give max_new_tokens or max_length")
    return GenerateSettings(
        static=asked == "static",
        beams=beams,
        sequences=sequences,
        new_tokens=new_tokens,
        cache_tokens=int(setting("max_cache_len") or 0),
        whole=_whole(setting, model),
        tokenizer=any(
            setting(name) is not None for name in ("stop_strings", "assistant_tokenizer")
        ),
        eos=ending_tokens(setting),
        pad=setting("pad_token_id"),
    )


def ending_tokens(setting: Callable[[str], Any]) -> frozenset[int]:
    """Tokens that end an answer, by `generate`'s settings."""
    eos = setting("eos_token_id")
    return frozenset(() if eos is None else (eos,) if isinstance(eos, int) else map(int, eos))


def _check(setting: Callable[[str], Any], asked: object) -> None:
    if asked not in (None, "dynamic", "static"):
        raise Unsupported(
            f"cache_implementation={asked!r}: pages are loaded into dynamic and static caches alone"
        )
    # "hybrid" is of configs that earlier transformers wrote, and is a dynamic cache now.
    configured = setting("cache_implementation")
    if configured not in (None, "dynamic", "hybrid"):
        raise Unsupported(
            f"the generation config says cache_implementation={configured!r}: set it to None, and "
            'give cache_implementation="static" here where that is wanted'
        )
    if setting("use_cache") is False:
        raise Unsupported("generate(use_cache=False) has no cache to load into: leave it out")
    for name, why in _REFUSED.items():
        if why is _ELSEWHERE and setting(name) is not None:
            raise Unsupported(f"the generation config says {name}, which {why}")


def _whole(setting: Callable[[str], Any], model: Any) -> str:
    for name in ("use_mtp", "speculation_type"):
        if setting(name):
            return f"{name} drafts from hidden states of the whole prompt"
    if setting("return_dict_in_generate"):
        for name in ("output_hidden_states", "output_attentions"):
            if setting(name):
                return f"{name} is of the whole prompt"
    if setting("prefill_chunk_size") is not None and cache_keyword(model) != "cache":
        # It computed the prompt in chunks from its start, whatever the cache held.
        return "prefill_chunk_size over a reloaded cache: from 5.24 on"
    return ""


def _new_tokens(setting: Callable[[str], Any], columns: int) -> int | None:
    new, most = setting("max_new_tokens"), setting("max_length")
    if isinstance(new, int):
        return max(1, new)
    if most == _UNSAID.max_length:  # said by nobody: `generate` goes by another
        return None
    return max(1, most - columns) if isinstance(most, int) else None
