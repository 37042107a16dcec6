"""Every figure of a fleet, beside its goal.

    python -m bench.fleet [--trace FILE] [--only match miss …]

Each part runs in a process of its own, once the tests of all are green, and writes its own file:
match.py, miss.py, mixed.py, tls.py and lifetimes.py of this folder say what they measure. The
trace is that of `lifetimes`; without it no hits are replayed. What `--only` leaves out keeps the
figure and the date that fleet.json has of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from bench.fleet import lifetimes, match, miss, mixed, tls
from lexico_lab.record import RESULTS, ROOT, finish, gate, machine, table

PARTS: Final = {
    "match": match.TESTS,
    "miss": miss.TESTS,
    "mixed": mixed.TESTS,
    "tls": tls.TESTS,
    "lifetimes": lifetimes.TESTS,
}
AT_MOST: Final = {
    "match_over_exists": 3.0,
    "miss_overhead": 0.01,
    "p99_over_p50": 10.0,
    "tls_cost": 0.15,
}
AT_LEAST: Final = {
    "reachable_share": 0.98,
    "replay_hit_rate": 0.99,
    "replay_hit_rate_half": 0.9,
}


def measured(part: str, *options: str) -> dict[str, Any]:
    """What a part says in its last line; the tables before it are shown.

    Raises:
        SystemExit: it failed; its errors are above.
    """
    command = [sys.executable, "-m", f"bench.fleet.{part}", "--no-gate", *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench.fleet.{part} failed")
    *shown, last = done.stdout.strip().splitlines()
    print(f"{part}\n" + "\n".join(shown) + "\n", flush=True)
    found: dict[str, Any] = json.loads(last)
    return found


def judged(figures: dict[str, float], date: str) -> list[dict[str, Any]]:
    """A row for each figure that has a goal."""
    bounds = {name: ("<=", goal) for name, goal in AT_MOST.items()}
    bounds |= {name: (">=", goal) for name, goal in AT_LEAST.items()}
    return [
        {
            "figure": name,
            "measured": value,
            "goal": f"{bounds[name][0]} {bounds[name][1]:g}",
            "met": value <= bounds[name][1] if name in AT_MOST else value >= bounds[name][1],
            "date": date,
        }
        for name, value in figures.items()
    ]


def earlier() -> dict[str, dict[str, Any]]:
    """figure → its row of the fleet.json that lies there."""
    file = RESULTS / "fleet.json"
    rows = json.loads(file.read_text())["goals"] if file.is_file() else []
    return {row["figure"]: row for row in rows}


def main() -> None:
    """Runs the parts; writes bench/results/fleet.json."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fleet", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--trace", type=Path, help="as of bench.fleet.lifetimes")
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate(*sorted({test for part in options.only for test in PARTS[part]}))
    described, found = machine(), dict[str, Any]()
    for part in options.only:
        traced = part == "lifetimes" and options.trace is not None
        found |= measured(part, *(["--trace", str(options.trace.resolve())] if traced else []))
    figures = {name: found[name] for name in (*AT_MOST, *AT_LEAST) if name in found}
    now = {row["figure"]: row for row in judged(figures, described["date"])}
    kept = {} if options.only == list(PARTS) else earlier()
    both = kept | now
    rows = [both[name] for name in (*AT_MOST, *AT_LEAST) if name in both]
    print(table(rows))
    finish("fleet", {**{row["figure"]: row["measured"] for row in rows}, "goals": rows}, described)


if __name__ == "__main__":
    main()
