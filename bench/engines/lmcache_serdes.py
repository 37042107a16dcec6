"""Bytes and predictions of LMCache's serdes, ours and its TurboQuant, on the cache of SmolLM2.

    LEXICO_TEST_LMCACHE=PYTHON python -m bench.engines.lmcache_serdes [--texts 4]

PYTHON is that of the environment that has LMCache: `make test-lmcache` makes it. Ours has the
built-in set, and finds the position of each object, which LMCache does not tell. Texts are of sets
that nothing was trained on. All but the newest 32 tokens of each prefix are stored, as
float16, in objects of LMCache's default, 256 tokens; they go through the serdes in LMCache's own
processors, and Hugging Face's model predicts on what comes back. TurboQuant runs with all of its
presets, as LMCache has them, which keeps two layers at either end exact, and with every layer
coded. Its kernels are for CUDA devices alone: see lmcache_turboquant.py.

Our bytes are those of the serde's output. `padded` is what it would be with the smallest
`padded_to` that all objects fit in, for adapters that take back no fewer bytes. What was measured
of a text is kept in .cache/lmcache_serdes: a stopped run goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lexico_codec.codecs import ResidualCodec
from lexico_codec.geometry import Geometry
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.sets.choose import at_hand
from lexico_codec.sets.dictionary import TransformSet
from lexico_lab.evaluation.fidelity import compare, predicted
from lexico_lab.evaluation.prefixes import ExactText, cut, exact_text
from lexico_lab.evaluation.settings import Split
from lexico_lab.machine import threads
from lexico_lab.models import SMOLLM2, load_model, model_folder, quiet
from lexico_lab.record import finish, gate, machine, table
from lexico_lab.studies.ours import RESIDUAL_SET, stored_geometry
from lexico_lab.studies.texts import DATA, text_of
from tests.support.lmcache_server import ENVIRONMENT, PYTHON
from tests.support.vllm_engine import ROOT

SPLIT: Final = Split(prefix=544, recent_tokens=32, continuation=128, page_tokens=256, turns=0)
TEXTS: Final = ("gsm8k", "wikitext2")
PRESETS: Final = (
    "turboquant_k8v4",
    "turboquant_4bit_nc",
    "turboquant_k3v4_nc",
    "turboquant_3bit_nc",
)
STEPS: Final = (0.1, 0.125, 0.15, 0.175, 0.2, 0.35, 0.6)
"""Of codec lexico-residual, in steps of preset balanced."""
_CHECKED: Final = {"layers": 3, "tokens": 16}
"""Of an object: Triton's interpreter takes its time."""
_STATE: Final = Path(".cache/lmcache_serdes")
_COMPARED: Final = _STATE / "kernels.json"
"""What was compared of LMCache's kernels and their twins."""

Row = dict[str, Any]


def measure(count: int) -> dict[str, Any]:
    """What the benchmark shows of LMCache's serdes.

    Args:
        count: texts of each text set.

    Raises:
        SystemExit: it cannot be measured, and why.
    """
    found = at_hand(ResidualCodec(), load_builtin(RESIDUAL_SET), TransformSet)
    loaded = load_model("smollm2")
    geometry = stored_geometry(loaded.model)
    serdes = dict(every_serde(found))
    split, texts = replace(SPLIT, texts=count), dict[str, list[Row]]()
    with tempfile.TemporaryDirectory() as folder, _process(Path(folder)) as coder:
        for name in TEXTS:
            read = cut(name, text_of(DATA, name), loaded.tokenizer, split, whole=True)
            texts[name] = [
                _kept(loaded.model, ids, geometry, serdes, found, coder) for ids in read.texts
            ]
    raw = SPLIT.coded * geometry.token_bytes
    every = {name: rows(each, raw) for name, each in texts.items()}
    whole = rows([text for each in texts.values() for text in each], raw)
    return {
        "texts": count,
        "stored tokens": SPLIT.coded,
        "predicted": SPLIT.continuation,
        "object tokens": SPLIT.page_tokens,
        "set": found.digest.hex(),
        "kernels compared": json.loads(_COMPARED.read_text()),
        "rows": whole,
        "text sets": every,
        "against": against(whole),
        "text sets against": {name: against(each) for name, each in every.items()},
    }


def every_serde(found: TransformSet) -> Iterator[tuple[str, Row]]:
    """Name and settings of all that is compared, as LMCache is given them."""
    ours = {
        "type": "lexico",
        "model": str(model_folder(SMOLLM2)),
        "weights": bytes(32).hex(),  # it is no matter here, and hashing takes a while
        "padded_to": 0,
    }
    yield "lossless", {**ours, "codec": "lossless"}
    for times in STEPS:
        step = found.transform.steps["balanced"] * times
        config = {"step": step}
        yield (
            f"lexico-residual step={step:.4g}",
            {**ours, "codec": "lexico-residual", "codec_config": config},
        )
    for preset in PRESETS:
        theirs = {"type": "turboquant", "preset": preset, "head_dim": 64}
        yield preset, theirs
        yield f"{preset}, every layer", {**theirs, "skip_first_layers": 0, "skip_last_layers": 0}


def rows(texts: Sequence[Row], raw: int) -> list[Row]:
    """Of each serde: part of the float16 bytes, KL, and for ours bytes over those of the frames.

    Args:
        texts: what `one_text` gave.
        raw: bytes of a text's objects as float16.
    """
    made = []
    for name in texts[0]:
        sizes = [size for text in texts for size in text[name]["bytes"]]
        kls = [text[name]["kl"] for text in texts]
        row = {
            "serde": name,
            "fraction": sum(sizes) / (raw * len(texts)),
            "kl": statistics.mean(kls),
            "kl_standard_error": statistics.stdev(kls) / len(kls) ** 0.5 if len(kls) > 1 else None,
        }
        if "frames" in texts[0][name]:
            frames = [size for text in texts for size in text[name]["frames"]]
            row["over frames"] = max(a / b for a, b in zip(sizes, frames, strict=True))
            row["padded"] = max(sizes) * len(sizes) / (raw * len(texts))
        made.append(row)
    return made


def against(every: Sequence[Row]) -> list[Row]:
    """For each of TurboQuant's: the smallest of ours at no worse KL, and how many times fewer bytes
    it takes; `padded` where an adapter takes back no fewer bytes than it asks for."""
    ours = [row for row in every if not row["serde"].startswith("turboquant")]
    found = []
    for theirs in every:
        if theirs in ours:
            continue
        best = min((row for row in ours if row["kl"] <= theirs["kl"]), key=_fraction)
        found.append(
            {
                "turboquant": theirs["serde"],
                "fraction": theirs["fraction"],
                "kl": theirs["kl"],
                "ours": best["serde"],
                "our fraction": best["fraction"],
                "our kl": best["kl"],
                "fewer": theirs["fraction"] / best["fraction"],
                "fewer padded": theirs["fraction"] / best["padded"],
            }
        )
    return found


def figures(found: dict[str, Any]) -> dict[str, float]:
    """What documents show; of LMCache's presets, as it has them, the one that is least behind."""
    shipped = {row["turboquant"]: row for row in found["against"] if row["turboquant"] in PRESETS}
    each = {
        f"fewer_{name.removeprefix('turboquant_')}": row["fewer"] for name, row in shipped.items()
    }
    return {
        "over_frames": max(row.get("over frames", 1.0) for row in found["rows"]),
        "fewer": min(each.values()),
        "fewer_padded": min(row["fewer padded"] for row in shipped.values()),
        **each,
    }


class Coder:
    """The process that has LMCache."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def begin(self, objects: Tensor) -> None:
        """Takes objects, `[objects, 2, layers, tokens, heads * head_dim]`."""
        torch.save(objects, self._folder / "in.pt")
        if not _COMPARED.exists():
            _COMPARED.write_text(json.dumps(self._ask(do="check", **_CHECKED)))

    def code(self, serde: Row) -> tuple[Tensor, Row]:
        """What comes back of the objects, and what they took."""
        out = str(self._folder / "out.pt")
        said = self._ask(do="code", serde=serde, model=str(model_folder(SMOLLM2)), out=out)
        return torch.load(out), said

    def _ask(self, **line: Any) -> Row:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"file": str(self._folder / "in.pt"), **line}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("LMCache's process ended: its messages are above")
        said: Row = json.loads(answer)
        if "error" in said:
            raise SystemExit(f"LMCache: {said['error']}")
        return said


def one_text(
    model: Any, ids: Sequence[int], geometry: Geometry, serdes: dict[str, Row], coder: Coder
) -> Iterator[tuple[str, Row]]:
    """Bytes and KL of one text, serde by serde."""
    exact = exact_text(model, ids, SPLIT)
    coder.begin(_objects(exact))
    for name, serde in serdes.items():
        back, said = coder.code(serde)
        made = torch.cat([_states(back, geometry), exact.states[..., SPLIT.coded :, :]], dim=3)
        with torch.inference_mode():
            judged = compare(exact, predicted(model, exact, made), sum(said["bytes"]))
        yield name, {**said, "kl": judged["kl"]}


def _objects(exact: ExactText) -> Tensor:
    """The stored tokens as LMCache has them, `[objects, 2, layers, tokens, heads * head_dim]`."""
    states = exact.states[..., : SPLIT.coded, :].half()
    rows = states.permute(1, 0, 3, 2, 4).flatten(3)
    cut = rows.reshape(*rows.shape[:2], -1, SPLIT.page_tokens, rows.shape[3])
    return cut.permute(2, 0, 1, 3, 4).contiguous()


def _states(objects: Tensor, geometry: Geometry) -> Tensor:
    """The way back, as float32: `[layers, 2, heads, tokens, head_dim]`."""
    rows = torch.cat(list(objects), dim=2)
    rows = rows.view(*rows.shape[:3], geometry.kv_heads, geometry.head_dim)
    return rows.permute(1, 0, 3, 2, 4).float()


def _kept(
    model: Any,
    ids: Sequence[int],
    geometry: Geometry,
    serdes: dict[str, Row],
    dictionary: TransformSet,
    coder: Coder,
) -> Row:
    """What there is of a text, and what was missing."""
    what = repr((ids, dictionary.digest, SPLIT)).encode()
    kept = _STATE / f"{hashlib.blake2b(what, digest_size=16).hexdigest()}.json"
    found: Row = json.loads(kept.read_text()) if kept.exists() else {}
    missing = {name: serde for name, serde in serdes.items() if name not in found}
    if missing:
        _STATE.mkdir(parents=True, exist_ok=True)
        for name, row in one_text(model, ids, geometry, missing, coder):
            found[name] = row
            kept.write_text(json.dumps(found))
    return {name: found[name] for name in serdes}


@contextlib.contextmanager
def _process(folder: Path) -> Iterator[Coder]:
    """LMCache's, with Triton's interpreter from this environment."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        raise SystemExit("triton is not installed: its interpreter runs LMCache's kernels")
    (folder / "triton").symlink_to(Path(triton.origin).parent)
    path = [ROOT, ROOT / "proto", ROOT / "client", folder]
    process = subprocess.Popen(
        [PYTHON, "-m", "bench.engines.lmcache_coded"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": ":".join(map(str, path)),
            "TRITON_INTERPRET": "1",
        },
        text=True,
        cwd=folder,
    )
    try:
        yield Coder(process, folder)
    finally:
        process.communicate()


def _fraction(row: Row) -> float:
    fraction: float = row["fraction"]
    return fraction


def main() -> None:
    """Runs the benchmark; writes bench/results/engines_lmcache_serdes.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=4, help="of each text set")
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not PYTHON:
        raise SystemExit("LEXICO_TEST_LMCACHE is not set: the Python of an environment with it")
    if not options.no_gate:
        gate("tests/unit/test_lmcache_*.py", "tests/unit/test_bench_lmcache.py")
    described = machine()
    torch.set_num_threads(threads())
    quiet()
    found = measure(options.texts)
    print(table(found["against"]))
    shown = figures(found)
    goals = [
        {"figure": name, "measured": shown[name], "goal": f"{sign} {goal:g}", "met": met}
        for name, sign, goal, met in (
            ("over_frames", "<=", 1.01, shown["over_frames"] <= 1.01),
            ("fewer", ">=", 4.0, shown["fewer"] >= 4.0),
        )
    ]
    print(table(goals))
    finish("engines_lmcache_serdes", {**shown, "goals": goals, **found}, described)


if __name__ == "__main__":
    main()
