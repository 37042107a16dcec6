"""What Triton's compiler makes of every kernel, for GPUs that need not be there.

    python -m bench.compile_report [--only NAME ...] [--architectures 80 90 100]

Each variant that the kernels name is compiled for sm_80, sm_90 and sm_100: registers and stack a
thread, local loads and stores (spills) in all and in the hot loop, instructions of that loop,
shared memory a program, tensor core instructions. Needs triton, and no device.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
from dataclasses import asdict
from typing import Any, Final

os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported

from bench.aot import ARCHITECTURES, Unsupported, compile_variant
from lexico_codec.kernels.attend import triton_attend
from lexico_codec.kernels.entropy import triton_decode as triton_entropy
from lexico_codec.kernels.pursuit import triton_decode, triton_encode
from lexico_codec.kernels.variants import Variant
from lexico_lab.record import finish, machine, table

MODULES: Final = {
    "triton_encode": triton_encode,
    "triton_decode": triton_decode,
    "triton_attend": triton_attend,
    "triton_entropy": triton_entropy,
}
"""Kernel modules under the names that the report knows them by."""
TENSOR_CORE_KERNELS: Final = ("triton_encode",)
"""Whose variants all score on tensor cores; on sm_90 that must be wgmma."""
WITHOUT_FP8: Final = (80,)
"""Architectures whose tensor cores have no FP8: a variant named so may be refused there."""

Row = dict[str, Any]


def variants_of(module: str, architecture: int) -> list[Variant]:
    """What a kernel module wants compiled for an architecture."""
    found: list[Variant] = MODULES[module].variants(architecture)
    return found


def may_be_refused(variant: Variant, architecture: int) -> bool:
    """Whether the compiler's refusal is expected."""
    return architecture in WITHOUT_FP8 and "fp8" in variant.name.split()


def row_of(module: str, variant: Variant, architecture: int) -> Row:
    """One line of the table.

    Raises:
        Unsupported: the compiler refuses what it should not.
    """
    row: Row = {"kernel": module, "variant": variant.name, "architecture": architecture}
    try:
        return row | {"supported": True, **asdict(compile_variant(variant, architecture))}
    except Unsupported:
        if not may_be_refused(variant, architecture):
            raise
        return row | {"supported": False}


def summary(rows: list[Row]) -> dict[str, Any]:
    """The two things that hold whatever the compiler's version."""
    built = [row for row in rows if row["supported"]]
    scoring = [
        row for row in built if row["kernel"] in TENSOR_CORE_KERNELS and row["architecture"] == 90
    ]
    spills = {
        f"sm_{architecture}": sum(
            row["spills_in_loop"] for row in built if row["architecture"] == architecture
        )
        for architecture in ARCHITECTURES
    }
    return {
        "spills_in_loop": sum(spills.values()),
        "spills_in_loop_by_architecture": spills,
        "wgmma": all(row["wgmma"] > 0 for row in scoring),
    }


def main() -> None:
    """Compiles everything, prints the table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of variants' names")
    parser.add_argument("--architectures", nargs="+", type=int, default=list(ARCHITECTURES))
    options = parser.parse_args()
    import triton

    jobs = [
        (module, variant, architecture)
        for module in MODULES
        for architecture in options.architectures
        for variant in variants_of(module, architecture)
        if any(part in variant.name for part in options.only)
    ]
    described = machine()
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        rows = list(pool.map(lambda job: row_of(*job), jobs))
    built = [row for row in rows if row["supported"]]
    if built:
        print(table([{k: v for k, v in row.items() if k != "supported"} for row in built]))
    for row in rows:
        if not row["supported"]:
            print(f"{row['variant']} sm_{row['architecture']}: unsupported, as expected")
    result = {**summary(rows), "triton": triton.__version__, "rows": rows}
    if options.only == [""] and options.architectures == list(ARCHITECTURES):
        finish("compile_report", result, described)


if __name__ == "__main__":
    main()
