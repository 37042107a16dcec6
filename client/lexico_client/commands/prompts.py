"""Which prompt a command is about: a file that names it, or a model and token ids."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lexico_client._weights_files import fingerprint_files
from lexico_client.cache_file import CacheFile
from lexico_client.commands.connection import Connection
from lexico_codec.inputs import PageDigests
from lexico_codec.keys import TokenIds, page_keys, token_array
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import DEFAULT_PAGE_TOKENS, CacheSpec
from lexico_codec.spec_text import spec_from_json
from lexico_proto.errors import ConfigurationError
from lexico_proto.limits import DIGEST_BYTES
from lexico_proto.text import one_line

MAX_FILE_BYTES: Final = 64 << 20
SUFFIX: Final = ".safetensors"
"""Of cache files."""
USUAL_CODEC: Final = "balanced"
"""Where `--codec` does not say it."""
_OF_A_FOLDER: Final = ("codec", "dtype", "page_tokens", "lora", "salt")
"""Options that say what a model folder does not, and a spec does."""


@dataclass(frozen=True)
class Prompt:
    """What names the pages of a prompt."""

    namespace: bytes
    keys: Sequence[bytes]
    """Of every full page, 32 bytes each."""


@dataclass(frozen=True)
class TokenPrompt(Prompt):
    """A prompt whose tokens are known."""

    spec: CacheSpec
    token_ids: TokenIds
    inputs: PageDigests = ()
    waits: bool = False
    """The codec that was asked for has no set yet, and the spec is of the lossless one."""

    @classmethod
    def of(
        cls, spec: CacheSpec, token_ids: TokenIds, inputs: PageDigests = (), waits: bool = False
    ) -> TokenPrompt:
        """With the keys of its pages.

        Raises:
            TokenCountMismatch, InvalidInput: what can be no prompt.
        """
        ids = token_array(token_ids)
        keys = page_keys(spec, ids, inputs)
        return cls(spec.namespace, keys, spec, ids, inputs, waits)


def named(options: argparse.Namespace) -> Prompt:
    """The prompt of `--prompt`, or of `--model` with `--tokens` or `--text`.

    Raises:
        ConfigurationError: a file or option that cannot be used.
        InvalidInput: what cannot name a prompt.
    """
    if options.prompt is not None:
        if options.tokens is not None or options.text is not None:
            raise ConfigurationError("--prompt names the tokens: leave --tokens and --text out")
        if options.inputs is not None:
            raise ConfigurationError("--prompt says what came beside tokens: leave --inputs out")
        _check_options_of_a_folder(options.prompt, options)
        return _of_file(options.prompt)
    return sequence(options)


def sequence(options: argparse.Namespace) -> TokenPrompt:
    """As `named`, of a prompt whose tokens are known.

    Raises:
        ConfigurationError, InvalidInput: as `named`, or a file that has page keys alone.
    """
    if options.prompt is not None:
        found = named(options)
        if not isinstance(found, TokenPrompt):
            raise ConfigurationError(
                f"{options.prompt}: has page keys alone, and token_ids with a spec are needed"
            )
        return found
    if options.model is None:
        raise ConfigurationError("which prompt? give --prompt FILE, or --model with --tokens")
    if (options.tokens is None) is (options.text is None):
        raise ConfigurationError("--model goes with --tokens FILE or --text FILE: give one of them")
    _check_options_of_a_folder(options.model, options)
    spec, waits = coded_spec(options.model, options)
    return TokenPrompt.of(spec, _token_ids(options), _digests(options.inputs), waits)


def codec_of(options: argparse.Namespace) -> str:
    """The codec or preset of a model folder."""
    return options.codec or USUAL_CODEC


def _check_options_of_a_folder(path: Path, options: argparse.Namespace) -> None:
    """A file says itself what these do, and they would change nothing of it."""
    against = getattr(options, "against", None)
    if not path.is_file() or (against is not None and against.is_dir()):
        return
    if given := [name for name in _OF_A_FOLDER if getattr(options, name) not in (None, "")]:
        words = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigurationError(f"{words}: for a model folder; {path} says that itself")


def spec_of(path: Path, options: argparse.Namespace) -> CacheSpec:
    """The spec of a model folder, or the one in a file of JSON.

    Raises:
        ConfigurationError: it is neither.
        InvalidInput: no text of a spec.
    """
    return coded_spec(path, options)[0]


def coded_spec(path: Path, options: argparse.Namespace) -> tuple[CacheSpec, bool]:
    """As `spec_of`, with what nodes code a model with now: where no set is built in, the service is
    asked for a published one.

    Returns:
        The spec, and whether nodes run lossless for want of a set.

    Raises:
        ConfigurationError, InvalidInput: as `spec_of`.
    """
    if path.is_file() and path.suffix == ".json":
        return spec_from_json(text_of(path)), False
    from lexico_codec.presets import codec_named, spoken
    from lexico_codec.sets.choose import choose, is_built_in

    base, codec = lossless_spec(path, options), codec_named(codec_of(options))
    geometry = base.geometry
    if codec.needs_dictionary and not is_built_in(codec, geometry):
        with Connection.of(options).client() as client:
            coding = client.coding(base, codec_of(options), model=str(path))
        return coding.spec(base), coding.waiting
    codec, found = choose(codec, None, geometry, spoken(codec_of(options)))
    digest = found.digest if isinstance(found, DictionarySet) else b""
    return replace(base, codec=codec, dictionary=digest, group_layers=0), False


def lossless_spec(path: Path, options: argparse.Namespace) -> CacheSpec:
    """The spec of a model folder with codec lossless, or the one in a file of JSON.

    Args:
        path: of either.
        options: may have `dtype`, `page_tokens`, `lora` and `salt`.

    Raises:
        ConfigurationError, InvalidInput: as `spec_of`.
    """
    if path.is_file() and path.suffix == ".json":
        return spec_from_json(text_of(path))
    if not path.is_dir():
        raise ConfigurationError(f"{path}: neither a model folder nor a spec (.json)")
    with _transformers():
        from transformers import AutoConfig

    from lexico_codec.codecs import LosslessCodec
    from lexico_codec.hf_geometry import geometry_of

    with _reading(path, "config.json"):
        config: Any = AutoConfig.from_pretrained(path, local_files_only=True)
    text = config.get_text_config(decoder=True)
    given = vars(options)
    page_tokens = given.get("page_tokens")
    dtype = given.get("dtype") or str(getattr(text, "dtype", None) or "float32")
    return CacheSpec(
        weights=fingerprint_files(path),
        geometry=geometry_of(config, dtype.removeprefix("torch.")),
        codec=LosslessCodec(),
        page_tokens=DEFAULT_PAGE_TOKENS if page_tokens is None else page_tokens,
        lora=given.get("lora", ""),
        salt=given.get("salt", ""),
    )


def digest_of(text: str, option: str, length: int = DIGEST_BYTES) -> bytes:
    """Bytes that are typed in hexadecimal digits.

    Raises:
        ConfigurationError: they are not, or not as many; the option is named.
    """
    try:
        digest = bytes.fromhex(text)
    except ValueError as error:
        raise ConfigurationError(f"{option}: not hexadecimal digits") from error
    if len(digest) != length:
        raise ConfigurationError(f"{option}: {2 * length} hexadecimal digits, not {len(text)}")
    return digest


def text_of(path: Path) -> str:
    """What a file says.

    Raises:
        ConfigurationError: it cannot be read, or is too long for what it should be.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigurationError(f"{path}: over {MAX_FILE_BYTES} bytes: is it the right file?")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{path}: cannot read ({why})") from error


@contextmanager
def _transformers() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "a model folder needs transformers: pip install 'lexico-offload[hf]', or give a spec "
            "as JSON"
        ) from error


@contextmanager
def _reading(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers raises whatever it meets
        raise ConfigurationError(
            f"{folder}: transformers cannot read its {what}: {one_line(error)[:300]}"
        ) from error


def _of_file(path: Path) -> Prompt:
    if path.suffix == SUFFIX:
        saved = CacheFile.read(path)
        return TokenPrompt.of(saved.spec, saved.token_ids, saved.inputs)
    try:
        about = json.loads(text_of(path))
        if "spec" in about:
            spec = spec_from_json(json.dumps(about["spec"]))
            inputs = [bytes.fromhex(digest) for digest in about.get("inputs", ())]
            return TokenPrompt.of(spec, about["token_ids"], inputs)
        keys = [bytes.fromhex(key) for key in about["page_keys"]]
        return Prompt(bytes.fromhex(about["namespace"]), keys)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigurationError(
            f'{path}: needs JSON with "spec" and "token_ids", or with "namespace" and "page_keys" '
            "in hexadecimal digits; or a cache file (.safetensors)"
        ) from error


def _token_ids(options: argparse.Namespace) -> list[int]:
    if options.tokens is not None:
        text = text_of(options.tokens).replace(",", " ").strip("[] \n")
        try:
            return [int(word) for word in text.split()]
        except ValueError as error:
            raise ConfigurationError(f"{options.tokens}: token ids are integers") from error
    if not options.model.is_dir():
        raise ConfigurationError("--text needs a model folder, whose tokenizer makes token ids")
    with _transformers():
        from transformers import AutoTokenizer

    text = text_of(options.text)
    with _reading(options.model, "tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
        ids: list[int] = tokenizer(text).input_ids
    return ids


def _digests(path: Path | None) -> PageDigests:
    if path is None:
        return ()
    try:
        return [bytes.fromhex(digest) for digest in json.loads(text_of(path))]
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: a JSON list of digests as hex is needed") from error
