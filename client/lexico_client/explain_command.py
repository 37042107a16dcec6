"""`lexico explain`: why a prompt is found, or not. Needs no Ray, and no model in memory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lexico_client._sync_client import Client
from lexico_client._weights_files import fingerprint_files
from lexico_codec.inputs import PageDigests
from lexico_codec.spec import DEFAULT_PAGE_TOKENS, CacheSpec
from lexico_codec.spec_text import spec_from_json
from lexico_proto.errors import ConfigurationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lexico explain`."""
    parser.add_argument("model", type=Path, help="model folder, or a spec as JSON")
    parser.add_argument("--reload", required=True, metavar="HOST:PORT", help="the reload server")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--tokens", type=Path, metavar="FILE", help="token ids of the prompt")
    prompt.add_argument("--text", type=Path, metavar="FILE", help="the prompt, for a model folder")
    parser.add_argument("--inputs", type=Path, metavar="FILE", help="JSON: digests as hex, a page")
    parser.add_argument("--against", type=Path, metavar="MODEL", help="another folder or spec")
    parser.add_argument("--bearer-file", type=Path, metavar="FILE", help="the tenant's token alone")
    parser.add_argument("--codec", default="balanced", help="of a model folder (balanced)")
    parser.add_argument("--dtype", default="", help="of a model folder's cache (its config's)")
    parser.add_argument("--page-tokens", type=int, default=DEFAULT_PAGE_TOKENS)
    parser.add_argument("--lora", default="", help="identity of the adapter")
    parser.add_argument("--salt", default="", help="what the pages are kept apart by")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds")


def run(options: argparse.Namespace) -> str:
    """What the service has of the prompt, as lines of text.

    Raises:
        ConfigurationError: a file that cannot be used.
        LexicoError: the service could not answer.
    """
    spec = _spec_of(options.model, options)
    against = None if options.against is None else _spec_of(options.against, options)
    ids, inputs = _token_ids(options), _digests(options.inputs)
    token = None if options.bearer_file is None else _text(options.bearer_file).strip()
    with Client(reload=options.reload, token=token) as client:
        explained = client.explain(
            spec, ids, inputs=inputs, against=against, timeout=options.timeout
        )
    return explained.text()


def _spec_of(path: Path, options: argparse.Namespace) -> CacheSpec:
    if path.is_file() and path.suffix == ".json":
        return spec_from_json(_text(path))
    if not path.is_dir():
        raise ConfigurationError(f"{path}: neither a model folder nor a spec (.json)")
    from transformers import AutoConfig

    from lexico_codec.hf_geometry import geometry_of
    from lexico_codec.presets import codec_named, spoken
    from lexico_codec.sets.choose import choose
    from lexico_codec.sets.dictionary import DictionarySet

    config: Any = AutoConfig.from_pretrained(path, local_files_only=True)
    text = config.get_text_config(decoder=True)
    dtype = options.dtype or str(getattr(text, "dtype", None) or "float32")
    geometry = geometry_of(config, dtype.removeprefix("torch."))
    codec, found = choose(codec_named(options.codec, None), None, geometry, spoken(options.codec))
    return CacheSpec(
        weights=fingerprint_files(path),
        geometry=geometry,
        codec=codec,
        dictionary=found.digest if isinstance(found, DictionarySet) else found or b"",
        page_tokens=options.page_tokens,
        lora=options.lora,
        salt=options.salt,
    )


def _token_ids(options: argparse.Namespace) -> list[int]:
    if options.tokens is not None:
        try:
            return [
                int(word) for word in _text(options.tokens).replace(",", " ").strip("[] \n").split()
            ]
        except ValueError as error:
            raise ConfigurationError(f"{options.tokens}: token ids are integers") from error
    if not options.model.is_dir():
        raise ConfigurationError("--text needs a model folder, whose tokenizer makes token ids")
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    ids: list[int] = tokenizer(_text(options.text)).input_ids
    return ids


def _digests(path: Path | None) -> PageDigests:
    if path is None:
        return ()
    try:
        return [bytes.fromhex(digest) for digest in json.loads(_text(path))]
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path}: a JSON list of digests as hex is needed") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot read ({error})") from error
