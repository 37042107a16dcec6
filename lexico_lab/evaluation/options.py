"""The options of `lexico eval`, and what they ask for."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from lexico_codec.geometry import DTYPES
from lexico_lab.evaluation.settings import EvalSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `lexico eval`."""
    fields = EvalSettings.__dataclass_fields__
    number = {name: fields[name].default for name in fields}
    parser.add_argument("--model", required=True, help="smollm2, a folder, or a name on the hub")
    parser.add_argument(
        "--text",
        required=True,
        action="append",
        type=Path,
        help="UTF-8 text, or .jsonl with question and answer; can be repeated",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the report")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="dictionary set, a file or a built-in name; can be repeated (default: those that fit)",
    )
    parser.add_argument(
        "--codec",
        action="append",
        default=[],
        help='codec NAME or NAME:{"sparsity":8}, or a preset; can be repeated (default: all that '
        "the sets serve)",
    )
    for name, text in (
        ("texts", "texts a file"),
        ("prefix", "tokens prefilled, stored and reloaded"),
        ("recent_tokens", "newest tokens that no reload brings"),
        ("continuation", "tokens predicted after the prefix"),
        ("page_tokens", "tokens a page"),
        ("turns", "reloads of a growing conversation; 0 for none"),
        ("turn_tokens", "tokens a turn"),
        ("pairs", "facts hidden for retrieval, 2..12; 0 for none"),
        ("seed", "of hidden facts and bootstrap"),
    ):
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=number[name], help=f"{text} (%(default)s)")
    parser.add_argument("--dtype", choices=[*DTYPES], default="float16", help="of the stored cache")
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also run published methods",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME",
        help="run these of the published methods alone, by a part of their name, and in every "
        "section, but for those that evict; can be repeated (default: the usual ones, in quality "
        "against bytes)",
    )
    parser.add_argument("--peer-text", type=Path, help="what peers learn from")
    parser.add_argument("--state", type=Path, help="folder for resuming (default: OUT.state)")


def run(args: argparse.Namespace) -> str:
    """Evaluates as the parsed options say.

    Returns:
        Where the report lies, and its first table for the terminal; or as JSON, for programs.

    Raises:
        LexicoError: see `evaluate`.
    """
    from lexico_lab.evaluation.run import REPORT, evaluate  # as help needs none of it

    same = ("model", "out", "texts", "prefix", "recent_tokens", "continuation", "page_tokens")
    more = ("turns", "turn_tokens", "pairs", "seed", "dtype", "peers", "peer_text")
    settings = EvalSettings(
        sources=tuple(args.text),
        sets=tuple(args.set),
        codecs=tuple(args.codec),
        peer=tuple(args.peer),
        state=args.state or args.out.with_name(args.out.name + ".state"),
        **{name: getattr(args, name) for name in (*same, *more)},
    )
    start = time.monotonic()
    document = evaluate(settings)
    seconds = time.monotonic() - start
    if args.state is None:
        shutil.rmtree(settings.state)
    if args.json:
        return json.dumps(summary_of(document, settings.out, seconds), indent=1)
    return f"{table_of(document)}\n{settings.out / REPORT}: {seconds / 60:.1f} min"


def summary_of(document: dict[str, Any], out: Path, seconds: float) -> dict[str, Any]:
    """What `lexico eval --json` says: the table of the terminal, and where the rest is."""
    from lexico_lab.evaluation.run import DATA, REPORT

    sources = [
        {
            "name": source["name"],
            "ways": [
                {
                    "name": row["name"],
                    "bytes_fraction": row["fraction"]["mean"],
                    "kl": row["kl"]["mean"],
                }
                for row in source["fidelity"]
            ],
        }
        for source in document["sources"]
    ]
    return {
        "report": str(out / REPORT),
        "data": str(out / DATA),
        "seconds": round(seconds, 3),
        "sources": sources,
        "not_run": [
            {"name": row["name"], "sources": row["sources"], "reason": row["reason"]}
            for row in document["not_run"]
        ],
    }


def table_of(document: dict[str, Any]) -> str:
    """KL and bytes, for the terminal, and what is missing of ways that are in every section."""
    lines: list[str] = []
    for source in document["sources"]:
        wide = max([32, *(len(row["name"]) for row in source["fidelity"])])
        rows = [
            f"{row['name']:{wide}} {100 * row['fraction']['mean']:7.2f} {row['kl']['mean']:10.5f}"
            for row in source["fidelity"]
        ]
        lines += [f"{source['name']:{wide}} {'bytes %':>7} {'KL':>10}", *rows]
    asked = bool(document["settings"]["peer"])  # for all of the others by name
    named = {way["name"] for way in document["ways"] if way["every_section"] or asked}
    every = len(document["sources"])
    for row in document["not_run"]:
        if row["name"] in named:
            where = "" if len(row["sources"]) == every else f" on {', '.join(row['sources'])}"
            lines.append(f"{row['name']}: not run{where}: {row['reason']}")
    return "\n".join(lines)
