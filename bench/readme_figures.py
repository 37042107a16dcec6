"""Writes the figures of bench/results/ into README.md, documents of docs/ and k8s/README.md.

    python -m bench.readme_figures            rewrite what lies between the markers
    python -m bench.readme_figures --check    change nothing; exit 1 if one of them says otherwise

A marker is `<!-- figure:BENCHMARK.KEY -->text<!-- /figure -->`: the text becomes KEY of
results/BENCHMARK.json, rounded, or "not measured yet".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lexico_lab.record import RESULTS

_ROOT: Final = Path(__file__).parent.parent
DOCUMENTS: Final = (
    _ROOT / "README.md",
    _ROOT / "docs" / "figures.md",
    _ROOT / "docs" / "engines" / "lmcache.md",
    _ROOT / "docs" / "engines" / "sglang.md",
    _ROOT / "docs" / "engines" / "vllm.md",
    _ROOT / "k8s" / "README.md",
)
MISSING: Final = "not measured yet"

FORMATS: Final[dict[str, Callable[[float], str]]] = {
    "wire.offload_share_of_grpc": "{:.2f}".format,
    "wire.reload_share_of_grpc": "{:.2f}".format,
    "wire.ingress_peak_over_inflight": "{:.2f}".format,
    "reload.speedup": "{:.1f}".format,
    "reload.speedup_balanced": "{:.1f}".format,
    "generate_forward.processor_time": "{:.2f}".format,
    "generate_forward.memory": "{:.2f}".format,
    "generate_agreement.lossless": "{:.0%}".format,
    "generate_agreement.near": "{:.0%}".format,
    "engines.reload_balanced": "{:.2f}".format,
    "engines.reload_lossless": "{:.2f}".format,
    **{f"engines.{name}": "{:.1%}".format for name in ("miss", "store", "adapter")},
    "engines.store_ratio": "{:.2f}".format,
    "engines.conversations_equal": "{:.1%}".format,
    **{
        f"engines.{cache}_{way}": "{:.1%}".format
        for cache in ("own", "near")
        for way in ("forced", "free")
    },
    **{
        f"engines_sglang.{name}": "{:.2f}".format
        for name in ("reload_balanced", "reload_lossless", "own", "beside_own", "store_ratio")
    },
    **{f"engines_sglang.{name}": "{:.1%}".format for name in ("miss", "adapter")},
    **{
        f"engines_sglang.{cache}_{way}": "{:.1%}".format
        for cache in ("own", "lossless", "near")
        for way in ("forced", "free")
    },
    **{
        f"engines_lmcache.{name}": "{:.1%}".format
        for name in ("adapter", "store", "near_forced", "near_free")
    },
    "engines_lmcache_serdes.over_frames": "{:.3%}".format,
    **{
        f"engines_lmcache_serdes.{name}": "{:.1f}".format
        for name in (
            "fewer",
            "fewer_padded",
            *(f"fewer_{bits}" for bits in ("k8v4", "4bit_nc", "k3v4_nc", "3bit_nc")),
        )
    },
    **{f"engine_suites.{name}_passed": "{:.0f}".format for name in ("vllm", "sglang", "lmcache")},
    "encode.vs_twin": "{:.1f}".format,
    "encode.vs_twin_vnni": "{:.1f}".format,
    "encode.vs_twin_avx2": "{:.1f}".format,
    "encode.vs_best_peer": "{:.1f}".format,
    "encode.decode_vs_encode": "{:.0f}".format,
    "fidelity.kl": "{:.3f}".format,
    "fidelity.bytes_fraction": "{:.1%}".format,
    "quality.fraction_wikitext2": "{:.1%}".format,
    "quality.kl_wikitext2": "{:.3f}".format,
    "quality.fraction_gsm8k": "{:.1%}".format,
    "quality.kl_gsm8k": "{:.3f}".format,
    "quality.lead_wikitext2": "{:.1f}".format,
    "quality.lead_gsm8k": "{:.1f}".format,
    "cliffs.worst_ratio": "{:.2f}".format,
    "codec_speed.decode_vs_prefill": "{:.0f}".format,
    "codec_speed.encode_vs_paper_s8": "{:.2f}".format,
    **{
        f"k8s_servers.{name}": "{:.0f}".format
        for name in ("renderings", "objects", "asked", "pods", "rights", "refused")
    },
}
"""Every figure that the documents may show, and how it is rounded."""

_START: Final = "<!-- figure:"
_MARKER: Final = re.compile(r"<!-- figure:(\S+) -->([^\n]*?)<!-- /figure -->")


def figure(name: str, results: Path = RESULTS) -> str:
    """The text of one figure.

    Raises:
        SystemExit: A document names a figure that has no format here, or a result is no number.
    """
    if name not in FORMATS:
        raise SystemExit(f"figure {name!r}: a document may show {', '.join(FORMATS)}")
    benchmark, _, key = name.partition(".")
    path = results / f"{benchmark}.json"
    if not path.is_file():
        return MISSING
    value = json.loads(path.read_text()).get(key)
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SystemExit(f"{path}: {key} is no number")
    return FORMATS[name](value)


def filled(text: str, results: Path = RESULTS) -> str:
    """`text` with every marker's content taken from the results.

    Raises:
        SystemExit: a marker that is not closed on its line, or as for `figure`.
    """
    made, count = _MARKER.subn(
        lambda found: f"{_START}{found[1]} -->{figure(found[1], results)}<!-- /figure -->", text
    )
    if count != text.count(_START):
        raise SystemExit("a figure's marker is not closed on its line")
    return made


def main() -> int:
    """Rewrites or checks; exit code 1 where a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if different")
    options = parser.parse_args()
    wrong = 0
    for document in DOCUMENTS:
        before = document.read_text(encoding="utf-8")
        after = filled(before)
        for old, new in zip(_MARKER.finditer(before), _MARKER.finditer(after), strict=True):
            if old[2] != new[2]:
                wrong += 1
                sys.stderr.write(f"{document.name}: {old[1]} is {new[2]}, not {old[2]}\n")
        if not options.check and after != before:
            document.write_text(after, encoding="utf-8")
    return 1 if options.check and wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
