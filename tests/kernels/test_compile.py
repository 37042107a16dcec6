"""Kernels compile for every architecture, no worse than bench/results/compile_report.json says.

The compiler runs in a process of its own, since Triton is in its interpreter here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import aot
from tests.support.waiting import PATIENCE_S

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent.parent
RECORDED = ROOT / "bench" / "results" / "compile_report.json"
FIGURES = ("registers", "stack", "spills_in_loop", "shared")
"""A change must keep these, better them, or be recorded and explained."""

_CHILD = """
import json
import triton
from bench.compile_report import MODULES, TENSOR_CORE_KERNELS, row_of, variants_of
rows = []
for module in MODULES:
    variants = {arch: variants_of(module, arch) for arch in (80, 90, 100)}
    kernels = [variant.kernel for variant in variants[90]]
    # The first of each kernel, and the last; each module's first also for other architectures.
    jobs = {(kernels.index(kernel), 90) for kernel in kernels} | {(len(kernels) - 1, 90)}
    jobs |= {(0, 80), (0, 100)}
    rows += [row_of(module, variants[arch][i], arch) for i, arch in sorted(jobs)]
scoring = [row for row in rows if row["kernel"] in TENSOR_CORE_KERNELS]
print(json.dumps({"triton": triton.__version__, "rows": rows, "scoring": scoring}))
"""
_SASS = """
.L_x_0:
        /*0000*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0010*/                   LDL R3, [R1] ;
        /*0020*/               @P1 BRA `(.L_x_2) ;
.L_x_1:
        /*0030*/               @P0 BRA `(.L_x_0) ;
        /*0040*/                   STL [R1], R3 ;
        /*0050*/                   EXIT ;
.L_x_2:
        /*0060*/                   BRA `(.L_x_1) ;
.L_x_3:
        /*0070*/                   BRA `(.L_x_3);
        /*0080*/                   NOP;
"""


def test_hot_loop_is_the_natural_one_around_the_tensor_core_instructions() -> None:
    instructions, loops = aot._loops(_SASS)
    assert len(instructions) == 9
    hot = aot._hot_loop(instructions, loops)
    # The path laid behind the exit belongs to it, what follows the loop does not.
    assert [line.split()[0] for line in hot] == ["HMMA.16816.F32", "LDL", "@P1", "@P0", "BRA"]


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert report["rows"]
    return report


def test_no_spill_in_a_hot_loop(built: dict[str, Any]) -> None:
    assert not [row for row in built["rows"] if row["supported"] and row["spills_in_loop"]]


def test_scoring_is_on_wgmma(built: dict[str, Any]) -> None:
    rows = [row for row in built["scoring"] if row["architecture"] == 90]
    assert all(row["wgmma"] for row in rows)


def test_as_good_as_recorded(built: dict[str, Any]) -> None:
    recorded = json.loads(RECORDED.read_text())
    if recorded["triton"] != built["triton"]:
        pytest.skip(f"recorded with triton {recorded['triton']}, this is {built['triton']}")
    key = ("variant", "architecture")
    known = {tuple(row[name] for name in key): row for row in recorded["rows"]}
    worse = []
    for row in built["rows"]:
        name = tuple(row[part] for part in key)
        before = known.get(name)
        if before is None:
            worse.append(f"{name}: not recorded")
            continue
        if before["supported"] != row["supported"]:
            worse.append(f"{name}: supported was {before['supported']}, is {row['supported']}")
        elif row["supported"]:
            worse += [
                f"{name}: {figure} was {before[figure]}, is {row[figure]}"
                for figure in FIGURES
                if row[figure] > before[figure]
            ]
            if row["wgmma"] < before["wgmma"]:
                worse.append(f"{name}: wgmma was {before['wgmma']}, is {row['wgmma']}")
    assert not worse, (
        "\n".join(worse)
        + "\nKeep what was recorded, or run `python -m bench.compile_report` and explain it "
        "in the commit."
    )
