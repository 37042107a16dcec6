"""Models that take more than token ids are refused; those that take text alone are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import DynamicCache

from lexico_client import Client, InMemoryTransport
from lexico_client.engines.hf._plain_models import refuse_other_inputs
from lexico_client.hf import HuggingFaceCache
from lexico_codec.hf_inputs import cache_inputs, cache_keyword
from lexico_proto.errors import Unsupported
from tests.support.coded_models import llama, prompt
from tests.support.tiny_configs import GROUPED, OLD, SMALL

T = transformers
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
AUDIO: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 16,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}


def llava() -> Any:
    torch.manual_seed(0)
    config = T.LlavaConfig(  # type: ignore[call-arg]
        text_config=T.LlamaConfig(**GROUPED, initializer_range=0.15),
        vision_config=T.CLIPVisionConfig(**VISION),
        image_token_id=60,
    )
    return T.LlavaForConditionalGeneration(config).eval()


def qwen2_vl() -> Any:
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4}
    text = {**GROUPED, "rope_parameters": ROPE}
    config = T.Qwen2VLConfig(text_config=text, vision_config=vision)
    return T.Qwen2VLForConditionalGeneration(config)


def qwen2_audio() -> Any:
    text = {"model_type": "qwen2", **GROUPED}
    config = T.Qwen2AudioConfig(audio_config=AUDIO, text_config=text)
    return T.Qwen2AudioForConditionalGeneration(config)


def sound_within() -> Any:
    """A decoder whose `forward` does not say so, but which holds a model of sound."""
    model: Any = llama()
    model.ear = T.WhisperModel(
        T.WhisperConfig(
            **AUDIO, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    )  # fmt: skip
    return model


def t5() -> Any:
    config = T.T5Config(  # type: ignore[call-arg]
        d_model=32, d_ff=32, d_kv=16, num_layers=1, num_heads=2, vocab_size=64,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T.T5ForConditionalGeneration(config)


def crossing() -> Any:
    return T.GPT2LMHeadModel(T.GPT2Config(**OLD, add_cross_attention=True))


def trocr() -> Any:
    config = T.TrOCRConfig(
        d_model=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64,
        cross_attention_hidden_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return T.TrOCRForCausalLM(config)


class TypedLlama(T.LlamaForCausalLM):
    """Code of someone's own: an input that nobody has heard of."""

    def forward(
        self, input_ids: Any = None, mood: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        return super().forward(input_ids, **kwargs)


class SetLlama(T.LlamaForCausalLM):
    """The same with settings."""

    def forward(
        self, input_ids: torch.Tensor | None = None, fast: bool | None = None, level: int = 3,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        return super().forward(input_ids, **kwargs)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "llava": (llava, r"pixel_values.*for prompts of text alone.*get_decoder"),
    "qwen2-vl": (qwen2_vl, r"pixel_values_videos.*get_decoder"),
    "qwen2-audio": (qwen2_audio, r"input_features.*get_decoder"),
    "sound-within": (sound_within, "input_features"),
    "encoder": (t5, "decoder_input_ids"),
    "cross-attention": (crossing, "encoder_hidden_states"),
    "cross-attention-of-a-picture": (trocr, "encoder_hidden_states"),
    "own-code": (lambda: TypedLlama(T.LlamaConfig(**GROUPED)), "TypedLlama takes mood beside"),
}
TAKEN: dict[str, Callable[[], Any]] = {
    "llama": lambda: T.LlamaForCausalLM(T.LlamaConfig(**GROUPED)),
    "bare-decoder": lambda: T.LlamaModel(T.LlamaConfig(**GROUPED)),
    "qwen3": lambda: T.Qwen3ForCausalLM(T.Qwen3Config(**GROUPED, head_dim=16)),
    "phi": lambda: T.PhiForCausalLM(T.PhiConfig(**SMALL)),
    "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(**OLD)),
    "gptj": lambda: T.GPTJForCausalLM(T.GPTJConfig(**OLD, rotary_dim=8)),
    "mixture": lambda: T.MixtralForCausalLM(T.MixtralConfig(**GROUPED, num_local_experts=2)),
    "neox": lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**SMALL)),
    "llava-text": lambda: llava().get_decoder(),
    "qwen2-vl-text": lambda: qwen2_vl().get_decoder(),
    "own-code": lambda: SetLlama(T.LlamaConfig(**GROUPED)),
    "compiled": lambda: torch.compile(T.LlamaForCausalLM(T.LlamaConfig(**GROUPED))),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path) as client:
        yield client


def raw(client: Client, model: Any, **changes: Any) -> HuggingFaceCache:
    return HuggingFaceCache(client, model, codec="raw", page_tokens=8, **changes)


@pytest.mark.parametrize("name", REFUSED)
def test_more_than_token_ids_is_refused(client: Client, name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=reason):
        raw(client, make())
    with pytest.raises(Unsupported, match=reason):
        raw(client, make(), weights=bytes(32), lora="a name changes nothing")


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch.compile
def test_text_alone_is_taken(name: str) -> None:
    refuse_other_inputs(TAKEN[name]())


@torch.inference_mode()
def test_text_prompts_of_a_vision_model_through_its_decoder(client: Client) -> None:
    """The way out that the refusal names."""
    model = llava()
    shared, ids = raw(client, model.get_decoder()), prompt(30) % 60
    cache = DynamicCache(config=model.config)
    whole = model(ids, **cache_inputs(model, cache)).logits[:, 24:]
    shared.offload(ids, cache)
    hit = shared.load(ids)
    assert hit.tokens == 24
    torch.testing.assert_close(model(ids[:, 24:], **hit.inputs).logits, whole)


def test_the_keyword_of_a_cache_is_that_of_forward() -> None:
    class Old(nn.Module):
        def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...

    class New(nn.Module):
        def forward(self, input_ids: Any, cache: Any = None) -> None: ...

    class Wrapper(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> None: ...

    assert cache_inputs(Old(), 5) == {"past_key_values": 5}
    assert cache_inputs(New(), 5) == {"cache": 5}
    assert cache_keyword(Wrapper()) == cache_keyword(llama()), "as `generate` has it"


PROMPTS = {
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 3}),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "p-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 3, "encoder_hidden_size": 16}),
}


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_soft_prompts_are_refused(client: Client, kind: str) -> None:
    peft = pytest.importorskip("peft")
    name, arguments = PROMPTS[kind]
    config = getattr(peft, name)(task_type="CAUSAL_LM", **arguments)
    with pytest.raises(Unsupported, match="'default' puts a soft prompt"):
        raw(client, peft.get_peft_model(llama(attn_implementation="sdpa"), config))
