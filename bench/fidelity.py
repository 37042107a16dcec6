"""What codec lexico does to a model's predictions: KL on WikiText-2 test, with every stored byte
counted.

    python -m bench.fidelity [--data FOLDER] [--texts 16] [--sparsity 8]

SmolLM2-135M. Of a 768-token prefix the first 4 tokens (sinks) and the last 32 (the tail that fills
no page) stay exact and the rest goes through real frames in float16. The next 256 tokens are then
predicted from that cache and from the uncompressed one: KL(uncompressed || compressed) in nats,
mean over tokens and texts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from bench.report import finish, gate, machine, table
from lexico_codec.hf_geometry import geometry_of
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.sets.builtin import builtin_sets, load_builtin
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec, make_spec
from lexico_lab.evaluation.caches import divergence
from lexico_lab.models import load_model

PREFIX, TAIL, CONTINUATION, PAGE_TOKENS = 768, 32, 256, 184
PAPER_SET = "smollm2-135m"
DATA = Path(os.environ.get("LEXICO_DATA", "../shared/data"))


def texts_of(tokenizer: Any, path: Path, count: int) -> list[list[int]]:
    """Windows of prefix and continuation, evenly spread over the text.

    Raises:
        SystemExit: the text is not there, or too short.
    """
    if not path.is_file():
        raise SystemExit(f"skipped: {path} is absent; give --data, a folder with wikitext2/")
    return windows_of(tokenizer, path.read_text(), count)


def windows_of(tokenizer: Any, text: str, count: int) -> list[list[int]]:
    """As `texts_of`, of a text at hand."""
    ids = tokenizer(text, verbose=False).input_ids
    window = PREFIX + CONTINUATION
    if len(ids) < count * window:
        raise SystemExit(f"a text of {len(ids)} tokens is too short for {count} of {window}")
    step = (len(ids) - window) // max(1, count - 1)
    return [ids[i * step : i * step + window] for i in range(count)]


def through_frames(
    cache: DynamicCache, ids: list[int], spec: CacheSpec, dictionary: DictionarySet | None
) -> tuple[DynamicCache, int]:
    """The cache as a node would reload it, and the bytes of its frames."""
    exact = torch.stack([torch.stack((la.keys[0], la.values[0])) for la in cache.layers])
    made = exact.clone()  # [layers, 2, heads, tokens, dim]
    keys, stored = page_keys(spec, ids[: PREFIX - TAIL]), 0
    for page, key in enumerate(keys):
        tokens = slice(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)
        for group in range(spec.groups):
            layers = spec.group_range(group)
            part = exact[layers.start : layers.stop, :, :, tokens].transpose(2, 3)
            source = part.to(spec.geometry.torch_dtype).contiguous()
            frame = encode_group(spec, key, page, group, source, dictionary)
            stored += len(frame)
            out = torch.empty_like(source)
            decode_group(spec, key, page, group, frame, out, dictionary)
            made[layers.start : layers.stop, :, :, tokens] = out.transpose(2, 3).float()
    rebuilt = DynamicCache()
    for index, layer in enumerate(made):
        rebuilt.update(layer[0][None], layer[1][None], index)
    return rebuilt, stored


@torch.inference_mode()
def measure(
    model: Any, ids: list[int], specs: dict[str, tuple[CacheSpec, DictionarySet | None]]
) -> dict[str, dict[str, float]]:
    """KL, NLL and bytes of one text for each way of storing it."""

    def predictions(cache: DynamicCache) -> Tensor:
        following = torch.tensor([ids[PREFIX:]])
        return model(following, past_key_values=cache).logits[0].float().log_softmax(-1)

    cache = DynamicCache()
    model(torch.tensor([ids[:PREFIX]]), past_key_values=cache, logits_to_keep=1)
    results = {}
    rebuilt = {name: through_frames(cache, ids, *how) for name, how in specs.items()}
    reference = predictions(cache)  # last: it grows the cache
    targets = torch.tensor(ids[PREFIX + 1 :])[:, None]
    for name, (other, stored) in rebuilt.items():
        made = predictions(other)
        results[name] = {
            "kl": divergence(reference, made),
            "nll": float(-made[:-1].gather(1, targets).mean()),
            "nll exact": float(-reference[:-1].gather(1, targets).mean()),
            "bytes": stored,
        }
    return results


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with wikitext2/")
    parser.add_argument("--set", default=None, help="artefact, or the name of a built-in set")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--sparsity", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/contract/test_codec_lexico.py", "tests/unit/test_omp.py")
    described = machine()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.utils.logging.disable_progress_bar()
    loaded = load_model("smollm2")
    name = options.set or PAPER_SET
    built_in = name in builtin_sets()
    dictionary = load_builtin(name) if built_in else DictionarySet.load(name)
    path = options.data / "wikitext2" / "test.raw.txt"
    texts = texts_of(loaded.tokenizer, path, options.texts)
    geometry = geometry_of(loaded.model.config, torch.float16)

    def spec(codec: str, config: str, digest: bytes) -> CacheSpec:
        return make_spec(
            weights=bytes(32),
            geometry=geometry,
            codec=codec,
            codec_config=config,
            dictionary=digest,
            page_tokens=PAGE_TOKENS,
        )

    specs: dict[str, tuple[CacheSpec, DictionarySet | None]] = {
        "raw": (spec("raw", "{}", b""), None)
    }
    for sparsity in options.sparsity:
        config = f'{{"sparsity":{sparsity}}}'
        specs[f"lexico s={sparsity}"] = (spec("lexico", config, dictionary.digest), dictionary)
    measured = [measure(loaded.model, ids, specs) for ids in texts]
    whole = (PREFIX - TAIL) * geometry.token_bytes
    rows = []
    for way in specs:
        mine = [text[way] for text in measured]
        kls = [text["kl"] for text in mine]
        rows.append(
            {
                "codec": way,
                "bytes fraction": statistics.mean(text["bytes"] for text in mine) / whole,
                "KL": statistics.mean(kls),
                "KL standard error": statistics.stdev(kls) / len(kls) ** 0.5,
                "NLL": statistics.mean(text["nll"] for text in mine),
                "NLL exact": statistics.mean(text["nll exact"] for text in mine),
            }
        )
    print(table(rows))
    headline = rows[1]
    finish(
        "fidelity",
        {
            "kl": headline["KL"],
            "bytes_fraction": headline["bytes fraction"],
            "texts": len(texts),
            "sparsity": options.sparsity[0],
            "dictionary": dictionary.digest.hex(),
            "text_digest": hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(),
            "rows": rows,
        },
        described,
    )


if __name__ == "__main__":
    main()
