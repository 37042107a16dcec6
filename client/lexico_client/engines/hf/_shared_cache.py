"""`HuggingFaceCache`: loads and offloads the prompt caches of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from transformers import DynamicCache, PreTrainedModel

from lexico_client._async_client import Wait
from lexico_client._coding import WithoutSet
from lexico_client._deadline import left_of
from lexico_client._load import Target
from lexico_client._results import Loaded, PutReport
from lexico_client._sync_client import Client
from lexico_client.cache_file import CacheFile
from lexico_client.engines.hf._coded_attention import register
from lexico_client.engines.hf._coded_cache import CodedCache
from lexico_client.engines.hf._coded_layer import ATTENTION
from lexico_client.engines.hf._coded_load import PrefixCodes
from lexico_client.engines.hf._geometry import own_geometry
from lexico_client.engines.hf._held_tokens import check_offloaded
from lexico_client.engines.hf._hits import CodedHit, Hit, coded_hit_of, hit_of
from lexico_client.engines.hf._identity import ModelIdentity
from lexico_client.engines.hf._plain_models import plain_model
from lexico_client.engines.hf._prefix import CachedPrefix, PrefixMemory, roomy_cache
from lexico_client.engines.hf._recoding import (
    DEFAULT_BUFFER_TOKENS,
    DEFAULT_WINDOW_TOKENS,
    Recoding,
)
from lexico_client.engines.hf._sending import send_prefix
from lexico_client.engines.hf._sharded import refuse_slice
from lexico_client.engines.hf._token_ids import (
    DEFAULT_ROOM_TOKENS,
    TokenIds,
    checked_count,
    flat_ids,
)
from lexico_client.engines.hf._watched_model import watch
from lexico_codec.codecs import LexicoCodec, LosslessCodec
from lexico_codec.inputs import PageDigests, PageInputs
from lexico_codec.keys import token_array
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import DEFAULT_PAGE_TOKENS, DEFAULT_RECENT_TOKENS, CacheSpec
from lexico_proto.errors import (
    ConfigurationError,
    InvalidInput,
    Unsupported,
)

register()

_WHOLE: Final = (
    "a rank's cache is a slice of its pages. `spec` is that of the whole model: gather the slices "
    "and send them with Client.offload, or load into a CacheMemory of the rank's layers and heads"
)


class HuggingFaceCache:
    """Loads and offloads the prompt caches of one model. Sequences are single and unpadded.

    The model may change: every call looks at it anew, in milliseconds, and pages belong to the
    weights and adapters that it has then. What reaches it beside token ids is told by `inputs`,
    digests for each page. Adapters chosen for one call and hooks are not seen: what they change
    must not be offloaded.

    A model whose caches are loaded has its `generate` and its forward passes looked at from the
    first load on, after a miss too: what would give other answers is put right or refused, see
    `Hit`, and what padding, masks, positions and inputs of one's own made is not offloaded. Of a
    cache that no load made, nothing is seen.
    """

    def __init__(
        self,
        client: Client,
        model: PreTrainedModel,
        *,
        codec: str = "balanced",
        codec_config: Mapping[str, Any] | None = None,
        dictionary: DictionarySet | bytes | None = None,
        page_tokens: int = DEFAULT_PAGE_TOKENS,
        recent_tokens: int = DEFAULT_RECENT_TOKENS,
        weights: bytes | None = None,
        lora: str = "",
        salt: bytes | str = b"",
        digests: bool = False,
        without_set: WithoutSet = "lossless",
    ) -> None:
        """Reads the model's geometry and hashes its weights, unless told their fingerprint.

        Args:
            client: the way to the service.
            model: a decoder of text, all of it on one device.
            codec: name of a preset (`lexico_codec.presets`) or of a codec. One that needs a
                dictionary set finds the built-in one by the model's shape, else the one that is
                published for the model. Until there is one, pages are lossless: `Client.coding`.
            codec_config: a codec's parameters; those left out take their defaults. A preset takes
                none.
            dictionary: the set, or the digest of one that is registered. By default the one
                built-in set that fits the model and was made for the codec, where it needs one.
            page_tokens: tokens a page: the unit of sharing.
            recent_tokens: newest tokens of a prompt, 1 or more, that are never reloaded but left
                for the model to compute: predictions depend on them most. Where the codec is
                lossless it is only the last one.
            weights: fingerprint, 32 bytes, in place of hashing the weights; then the model must
                stay as it is.
            lora: identity of the adapter that is merged or active, in addition to `weights`. Not
                needed where weights are hashed, as adapters are then too.
            salt: whatever else the pages shall be kept apart by, at most 256 bytes.
            digests: for a model that takes images or sound beside token ids: each call brings
                `inputs`, the digests of what the model is given.
            without_set: "refuse" for an error where there is no set for the codec.

        Raises:
            Unsupported: a model whose cache this version does not cover, one that is split over
                ranks without `weights`, one that takes images or
                sound beside token ids without `digests`, one with soft prompts, or one on several
                devices.
            UnknownCodec: no preset and no codec of that name.
            ConfigurationError: a parameter that cannot be used, such as recent_tokens below 1, or
                adapters with `weights` and no `lora`; several built-in sets that serve equally, or
                no set at all with `without_set="refuse"`.
            DictionaryMismatch: the set given was made from a model of another shape or another
                rotary embedding, or for another codec.
        """
        model = plain_model(model)  # type: ignore[assignment]
        devices = {parameter.device for parameter in model.parameters()}
        if len(devices) > 1:
            raise Unsupported(f"{type(model).__name__} lies on {len(devices)} devices: only one")
        self._identity = ModelIdentity(model, weights, lora, digests=digests)
        self._client = client
        self._model = model
        self._digests = digests
        self._recent_tokens = checked_count("recent_tokens", recent_tokens, 1)
        self._base = CacheSpec(
            weights=self._identity.weights(),
            geometry=own_geometry(model),
            codec=LosslessCodec(),
            page_tokens=page_tokens,
            lora=lora,
            salt=salt,
        )
        self.coding: Final = client.coding(
            self._base,
            codec,
            codec_config=codec_config,
            dictionary=dictionary,
            without_set=without_set,
            model=str(getattr(model.config, "_name_or_path", "")),
        )
        """What its pages are coded with, and whether it waits for a set."""

    @property
    def spec(self) -> CacheSpec:
        """What this model's pages belong to, with the weights and adapters that it has now.

        Raises:
            ConfigurationError: they changed, and their fingerprint was given as `weights`.
            Unsupported: weights that have left the memory, or a cache that is not covered.
        """
        return self.coding.spec(self._of_now())

    def _of_now(self) -> CacheSpec:
        weights = self._identity.weights()
        if weights != self._base.weights:
            geometry = own_geometry(self._model)
            self._base = replace(self._base, weights=weights, geometry=geometry, group_layers=0)
        return self._base

    def load(
        self,
        input_ids: TokenIds,
        *,
        inputs: PageDigests | None = None,
        room_tokens: int = DEFAULT_ROOM_TOKENS,
        timeout: float | None = None,
    ) -> Hit:
        """A cache of as much of the prompt's prefix as the service can give.

        The newest tokens of the prompt are left for the model, see `recent_tokens`.

        Args:
            input_ids: `[1, tokens]` or `[tokens]`: the whole prompt, as it goes to `generate`.
            inputs: what else goes to the model, as `lexico_client.input_digests` makes it; such a
                hit never ends within a span. Empty for token ids alone, which must be said where
                the model takes more.
            room_tokens: memory that is taken for tokens behind the prompt: up to there the cache
                grows without being copied.
            timeout: seconds, in place of `Timeouts.load`.

        Raises:
            ShapeMismatch: a batch of prompts.
            InvalidInput: `inputs` is missing, or holds what is no digest.
            ConfigurationError, Unsupported: as of `spec`; `room_tokens` below 0.
        """
        left = left_of(timeout, self._client._timeouts.load)
        refuse_slice(self._model, _WHOLE)
        ids, digests = flat_ids(input_ids), self._given(inputs)
        room = checked_count("room_tokens", room_tokens)
        spec = self._to_load(self._of_now(), ids, digests, left())
        memory = PrefixMemory(spec, self._model.device, len(ids) + room)
        loaded, tokens = self._load(spec, ids, digests, memory.allocate, left())
        cache = roomy_cache(self._model.config)
        # What a thread that is stuck may still write to is no room.
        memory.fill(cache, tokens, room=loaded.unfinished is None)
        self._identity.mark(cache, spec.weights, ids, digests, spec.page_tokens)
        watch(self._model)
        prompt = torch.tensor(ids, dtype=torch.int64)
        return hit_of(self._model, prompt, tokens, loaded, cache, told=any(digests))

    def load_codes(
        self,
        input_ids: TokenIds,
        *,
        buffer_tokens: int = DEFAULT_BUFFER_TOKENS,
        window_tokens: int = DEFAULT_WINDOW_TOKENS,
        inputs: PageDigests | None = None,
        timeout: float | None = None,
    ) -> CodedHit:
        """As `load`, but the prefix stays compressed in memory, and attention is over its codes.

        For codec lexico (preset paper) alone, and for a model that was told
        `model.set_attn_implementation("lexico_codes")`. The cache is for inference with one
        sequence; it cannot be offloaded: a conversation that is to be shared further goes on from
        the cache of `load`. After a miss the model codes the prompt itself, once it has computed
        it; where the dictionary set is not at hand then, everything stays exact.

        Args:
            input_ids: as for `load`.
            buffer_tokens: newest tokens that stay exact, beside the sinks (n_b of Lexico).
            window_tokens: oldest tokens of the buffer that are coded together whenever it holds
                more than that (n_a); at most `buffer_tokens + 1`.
            timeout: as for `load`.

        Raises:
            ShapeMismatch: a batch of prompts.
            Unsupported: another codec, or as of `spec`.
            ConfigurationError: the model runs another attention implementation, a number of tokens
                that cannot be used, or as of `spec`.
        """
        left = left_of(timeout, self._client._timeouts.load)
        refuse_slice(self._model, _WHOLE)
        codec = (spec := self.spec).codec
        if not isinstance(codec, LexicoCodec):
            why = ", and there is no set for another yet" if self.coding.waiting else ""
            raise Unsupported(
                f"codec {codec.name} keeps no codes to attend over{why}: call load(), or share "
                "caches with preset paper"
            )
        running = self._model.config.get_text_config(decoder=True)._attn_implementation
        if running != ATTENTION:
            raise ConfigurationError(
                f"the model runs attention {running!r}, and only {ATTENTION!r} can read codes: "
                f'call model.set_attn_implementation("{ATTENTION}") first'
            )
        recoding = Recoding(codec, buffer_tokens, window_tokens)
        codes = PrefixCodes(spec, self._model.device)
        ids, digests = flat_ids(input_ids), self._given(inputs)
        loaded, tokens = self._load(spec, ids, digests, codes.allocate, left())
        cache = CodedCache(codes.layers(tokens, recoding, self.coding.dictionary))
        self._identity.mark(cache, spec.weights, ids, digests, spec.page_tokens)
        watch(self._model)
        prompt = torch.tensor(ids, dtype=torch.int64)
        return coded_hit_of(self._model, prompt, tokens, loaded, cache, told=any(digests))

    def _given(self, inputs: PageDigests | None) -> PageDigests:
        if inputs is None and self._digests:
            raise InvalidInput(
                f"{type(self._model).__name__} takes more than token ids: give inputs=, the "
                "digests of what it is given, or inputs=() for a prompt of token ids alone"
            )
        return inputs or ()

    def _to_load(
        self, base: CacheSpec, ids: list[int], inputs: PageDigests, timeout: float
    ) -> CacheSpec:
        """What a prompt is to be loaded by: where a set came, most may be there from before.

        Args:
            base: of `_of_now`.
            ids, inputs, timeout: as for `load`.

        Raises:
            TokenCountMismatch, InvalidInput: ids or inputs that cannot be used.
        """
        recent = self._recent_tokens
        return self._client.spec_to_load(
            self.coding, base, ids, recent_tokens=recent, inputs=inputs, timeout=timeout
        ).spec

    def _load(
        self,
        spec: CacheSpec,
        ids: list[int],
        inputs: PageDigests,
        target: Target,
        timeout: float,
    ) -> tuple[Loaded, int]:
        """Brings whole pages; how many of their tokens are to be used."""
        tokens = spec.reloadable_tokens(len(ids), self._recent_tokens)
        stored = ids[: spec.pages_of(tokens) * spec.page_tokens]
        loaded = self._client.load(spec, stored, target, inputs=inputs, timeout=timeout)
        tokens = min(tokens, loaded.tokens)
        return loaded, inputs.uncut(tokens) if isinstance(inputs, PageInputs) else tokens

    def offload(
        self,
        input_ids: TokenIds,
        past_key_values: DynamicCache,
        *,
        inputs: PageDigests | None = None,
        wait: Wait = "committed",
        timeout: float | None = None,
    ) -> PutReport:
        """Sends the full pages that the service lacks.

        Args:
            input_ids: `[1, tokens]` or `[tokens]`: what the cache was made from, or more:
                `generate` returns one token that its cache does not hold.
            past_key_values: the cache, made from these ids with the weights and adapters that the
                model has now. Of a cache that comes from a load, hit or miss, it is checked: the
                model, `inputs`, and that the model's forward passes made it of these ids alone. Of
                passes that are not seen, as those of a part of the model are, and of any other
                cache it cannot be known: then it is the caller's duty. It may grow while this runs,
                in another thread.
            inputs: what else the cache was made from, as for `load`.
            wait: "committed" for an answer when the pages are stored, "received" when they are
                received.
            timeout: seconds, in place of `Timeouts.offload`.

        Raises:
            ShapeMismatch: a batch, or a cache of another model.
            Unsupported: a cache of another kind, as is the one of `load_codes`; or as of `spec`.
            InvalidInput: a load brought the cache, and the model has changed since, or the cache
                holds other tokens or inputs than these, or was made with padding, a mask or
                positions of one's own; or `inputs` is missing, or holds what is no digest.
            ConfigurationError: as of `spec`.
            NonFiniteCache: NaN or infinity in it.
            LexicoError: the service refused, or could not take the pages.
        """
        left = left_of(timeout, self._client._timeouts.offload)
        checked = self._checked(input_ids, past_key_values, inputs)
        return send_prefix(self._client, self.coding, *checked, wait, left())

    def saved(
        self,
        input_ids: TokenIds,
        past_key_values: DynamicCache,
        *,
        inputs: PageDigests | None = None,
    ) -> CacheFile:
        """A cache as `lexico put` sends it: `saved(ids, cache).write("prompt.safetensors")`.

        It may share memory with the cache, which must not change until it is written. Arguments and
        errors as of `offload`.
        """
        spec, ids, digests, prefix = self._checked(input_ids, past_key_values, inputs)
        tokens = min(len(ids), prefix.tokens)
        full = tuple(digests)[: tokens // spec.page_tokens]
        if prefix.memory is None:
            return CacheFile.empty(spec, token_array([]), full)
        whole = prefix.memory.at(tokens).read()  # [layers, 2, tokens, kv_heads, head_dim]
        keys, values = list(whole[:, 0]), list(whole[:, 1])
        return CacheFile(spec, token_array(ids[:tokens]), keys, values, full)

    def _checked(
        self,
        input_ids: TokenIds,
        cache: DynamicCache,
        inputs: PageDigests | None,
    ) -> tuple[CacheSpec, list[int], PageDigests, CachedPrefix]:
        """A caller's cache, once it has proved to be that of its ids and of the model of now."""
        if isinstance(cache, CodedCache):
            raise Unsupported(
                "a CodedCache has codes in place of most keys and values, and codes of codes would "
                "be worse: offload a cache that was prefilled, or that load() brought"
            )
        refuse_slice(self._model, _WHOLE)
        ids, spec, digests = flat_ids(input_ids), self.spec, self._given(inputs)
        check_offloaded(cache, ids)
        self._identity.check(cache, spec.weights, ids, digests)
        prefix = CachedPrefix.of(cache, spec.geometry)
        prefix.settle()
        return spec, ids, digests, prefix
