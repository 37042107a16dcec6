"""Host side of the fused encoder: scratch, forms of the atoms, and one launch for all tables."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Final

import torch
from torch import Tensor

from lexico_codec.kernels.pursuit import tuning
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.preparation import Preparation
from lexico_codec.kernels.pursuit.triton_encode_kernel import encode_kernel
from lexico_codec.kernels.pursuit.tuning import Launch
from lexico_codec.kernels.variants import Variant
from lexico_proto.errors import ConfigurationError, NonFiniteCache

_SCORED: Final[dict[str, tuple[torch.dtype, float]]] = {
    "fp16": (torch.float16, 1.0),
    "bf16": (torch.bfloat16, 1.0),
    "fp8": (torch.float8_e4m3fn, 64.0),  # components of unit atoms are small for E4M3
}
"""Scoring: the type of its factors, and what atoms are multiplied by."""
_NORM: Final = {"fp16": 0, "bf16": 0, "fp8": 7}
"""log2 of the norm to which residuals are brought before they are scored."""
_LEAST_WIDTH: Final = {"fp16": 16, "bf16": 16, "fp8": 32}
"""Components that a tensor core takes at once."""
_READ: Final = (torch.float16, torch.bfloat16, torch.float32)
_ROPES: Final = {"half": 1, "interleaved": 2}
_INTERPRETED: Final = (9, 0)  # the capability that the interpreter stands in for
_WITHOUT_SMS: Final = 3  # programs there: fewer than tiles, so that each codes several


def encode(
    vectors: Tensor,
    atoms: Atoms,
    sparsity: int,
    tolerance: float | None,
    preparation: Preparation | None,
    quantised: bool,
    scoring: str,
) -> Codes:
    """Codes all tables in one launch. Arguments are those of `kernels.encode`, checked there.

    Args:
        vectors: `[tables, tokens, heads, m]`, any strides, any floating point type but float64.

    Raises:
        NonFiniteCache: a prepared vector that is not finite, or a norm that overflows.
        ConfigurationError: fp8 scoring on a device without it.
    """
    device, m = vectors.device, vectors.shape[3]
    total = vectors.shape[:3].numel()
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else _INTERPRETED
    if scoring == "fp8" and capability < (8, 9):
        raise ConfigurationError(
            f"scoring: fp8 needs compute capability 8.9, this device has "
            f"{'.'.join(map(str, capability))}"
        )
    types = (
        (torch.int16, torch.uint8, torch.uint8)
        if quantised
        else (torch.int32, torch.float32, torch.int32)
    )
    codes = Codes(
        torch.empty(total, sparsity, dtype=types[0], device=device),
        torch.empty(total, sparsity, dtype=types[1], device=device),
        torch.empty(total, dtype=types[2], device=device),
        torch.empty(total, dtype=torch.int8, device=device) if quantised else None,
    )
    if total == 0:
        return codes
    if vectors.dtype not in _READ:
        vectors = vectors.float()
    launch = tuning.tune(_padded(m, scoring), scoring, max(atoms.sizes), capability)
    fault = torch.zeros(1, dtype=torch.int32, device=device)
    with torch.no_grad(), _on(device):
        arguments = {
            **_input(vectors),
            **_prepared(vectors, atoms, preparation),
            **_dictionaries(atoms, scoring),
            **_output(codes, fault),
            **_work(vectors, sparsity, scoring, launch),
            "sparsity": sparsity,
            "tolerance_squared": float(tolerance or 0.0) ** 2,
        }
        programs = len(arguments["limits"])
        encode_kernel[(programs,)](
            **arguments,
            **_constants(m, sparsity, scoring, launch),
            QUANTISED=quantised,
            num_warps=launch.warps,
            num_stages=launch.stages,
            maxnreg=launch.registers,
            enable_fp_fusion=True,  # said, because Triton's default is to change
        )
    if bool(fault):
        raise NonFiniteCache("vectors: a norm overflows")
    return codes


def _input(vectors: Tensor) -> dict[str, Any]:
    tables, tokens, heads, m = vectors.shape
    by_table, by_token, by_head, by_column = vectors.stride()
    return {
        "x": vectors,
        "x_table": by_table,
        "x_token": by_token,
        "x_head": by_head,
        "x_column": by_column,
        "tables": tables,
        "rows": tokens * heads,
        "heads": heads,
        "m": m,
    }


def _prepared(vectors: Tensor, atoms: Atoms, preparation: Preparation | None) -> dict[str, Any]:
    """What un-rotation, mean and scale need; the stack stands in for what is not read."""
    given = preparation or Preparation()
    arguments: dict[str, Any] = {
        "cosines": atoms.stack,
        "sines": atoms.stack,
        "turned": atoms.stack,
        "rope_inverse": 1.0,
        "pairs": 0,
        "mean": atoms.stack,
        "scale": atoms.stack,
        "ROPE": 0,
        "MEAN": given.mean is not None,
        "SCALE": given.scale is not None,
    }
    if given.rope is not None and any(given.turned):
        cosines, sines = given.angles(vectors.shape[1], vectors.device)
        turned = given.turned
        arguments |= {
            "cosines": cosines,
            "sines": sines,
            "turned": atoms.form(
                ("turned", turned),
                lambda: torch.tensor(turned, dtype=torch.uint8, device=vectors.device),
            ),
            "rope_inverse": 1.0 / given.rope.scale,
            "pairs": given.rope.rotary_dim // 2,
            "ROPE": _ROPES[given.rope.pairing],
        }
    if given.mean is not None:
        arguments["mean"] = given.mean.to(vectors.device, torch.float32).contiguous()
    if given.scale is not None:
        arguments["scale"] = given.scale.to(vectors.device, torch.float32).contiguous()
    return arguments


def _dictionaries(atoms: Atoms, scoring: str) -> dict[str, Any]:
    dtype, factor = _SCORED[scoring]
    width = _padded(atoms.m, scoring)

    def padded() -> Tensor:  # [sum of N, MP]
        return torch.nn.functional.pad(atoms.stack, (0, width - atoms.m)).contiguous()

    return {
        "scored": atoms.form(("scored", scoring), lambda: (padded() * factor).to(dtype)),
        "stack": atoms.stack if width == atoms.m else atoms.form(("padded", width), padded),
        "starts": atoms.starts_tensor(),
    }


def _output(codes: Codes, fault: Tensor) -> dict[str, Any]:
    return {
        "indices": codes.indices,
        "coefficients": codes.coefficients,
        "counts": codes.counts,
        "exponents": fault if codes.exponents is None else codes.exponents,  # or not written
        "fault": fault,
    }


def _work(vectors: Tensor, sparsity: int, scoring: str, launch: Launch) -> dict[str, Any]:
    """Scratch, a slice a program: its size does not grow with the vectors."""
    tables, tokens, heads, m = vectors.shape
    device, rows = vectors.device, launch.block_rows
    width, steps = _padded(m, scoring), _padded_steps(sparsity)
    direction = _direction_type(m, sparsity)
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "residuals": ((rows, width), torch.float32),
        "operands": ((rows, width), _SCORED[scoring][0]),
        "directions": ((sparsity, rows, width), direction),
        "triangles": ((sparsity, rows, steps), torch.float32),
        "amplitudes": ((rows, steps), torch.float32),
        "winners": ((rows, steps), torch.int32),
        "limits": ((2, rows), torch.float32),
        "marks": ((2, rows), torch.int32),
    }
    sizes = [torch.Size(shape).numel() * dtype.itemsize for shape, dtype in shapes.values()]
    jobs = tables * -(-tokens * heads // rows)
    programs = min(jobs, _multiprocessors(device) * launch.programs)
    programs = max(1, min(programs, tuning.SCRATCH_BYTES // sum(sizes)))
    return {
        name: _scratch((programs, *shape), dtype, device) for name, (shape, dtype) in shapes.items()
    }


def _scratch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that the kernel writes before it reads it; tests hand over NaN."""
    return torch.empty(shape, dtype=dtype, device=device)


def _constants(m: int, sparsity: int, scoring: str, launch: Launch) -> dict[str, Any]:
    return {
        "keep": 0x7FFFFFFF - (launch.block_atoms - 1),
        "BM": launch.block_rows,
        "BN": launch.block_atoms,
        "HB": launch.part_rows,
        "MP": _padded(m, scoring),
        "SP": _padded_steps(sparsity),
        "AHEAD": launch.ahead,
        "CACHE": launch.cache,
        "NORM": _NORM[scoring],
        "ASM": _assembles(),
    }


def _padded(m: int, scoring: str) -> int:
    """Components with padding: a power of two, because Triton has no other ranges."""
    return max(_LEAST_WIDTH[scoring], 1 << (m - 1).bit_length())


def _padded_steps(sparsity: int) -> int:
    return max(8, 1 << (sparsity - 1).bit_length())


def _direction_type(m: int, sparsity: int) -> torch.dtype:
    """float16 directions halve the traffic; near the full rank their rounding would show."""
    return torch.float16 if 4 * sparsity <= m else torch.float32


def _assembles() -> bool:
    return os.environ.get("TRITON_INTERPRET") != "1"  # the interpreter has no inline assembly


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _WITHOUT_SMS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def variants(architecture: int) -> list[Variant]:
    """What the compile report builds for sm_80, 90 or 100, each with its own launch parameters.

    The padded widths, all scorings, plain and prepared.
    """
    return [
        _variant(m, scoring, full, divmod(architecture, 10))
        for m, scoring, full in (
            (64, "fp16", False),
            (64, "fp8", True),
            (128, "fp16", False),
            (128, "fp16", True),
            (128, "bf16", True),
            (128, "fp8", False),
            (128, "fp8", True),
            (256, "fp16", True),
            (256, "fp8", False),
        )
    ]


def _variant(m: int, scoring: str, full: bool, capability: tuple[int, int]) -> Variant:
    """One of sparsity 16; `full` prepares and quantises."""
    sparsity = 16
    launch = tuning.tune(m, scoring, 4096, capability)
    factors = {"fp16": "*fp16", "bf16": "*bf16", "fp8": "*fp8e4nv"}[scoring]
    pointers = {
        "x": "*bf16",
        "cosines": "*fp32",
        "sines": "*fp32",
        "turned": "*u8" if full else "*fp32",
        "mean": "*fp32",
        "scale": "*fp32",
        "scored": factors,
        "stack": "*fp32",
        "starts": "*i64",
        "indices": "*i16" if full else "*i32",
        "coefficients": "*u8" if full else "*fp32",
        "counts": "*u8" if full else "*i32",
        "exponents": "*i8" if full else "*i32",
        "fault": "*i32",
        "residuals": "*fp32",
        "operands": factors,
        "directions": "*fp16" if _direction_type(m, sparsity) == torch.float16 else "*fp32",
        "triangles": "*fp32",
        "amplitudes": "*fp32",
        "winners": "*i32",
        "limits": "*fp32",
        "marks": "*i32",
    }
    constants = {
        **_constants(m, sparsity, scoring, launch),
        "ASM": True,
        "ROPE": int(full),
        "MEAN": full,
        "SCALE": full,
        "QUANTISED": full,
    }
    del constants["keep"]  # a number handed over at run time
    numbers = {"rope_inverse": "fp32", "tolerance_squared": "fp32"}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, numbers.get(name, "i32"))
        for name in encode_kernel.arg_names
    }
    return Variant(
        name=f"encode m{m} s{sparsity} {scoring}{' prepared quantised' if full else ''}",
        kernel=encode_kernel,
        signature=signature,
        constexprs=constants,
        num_warps=launch.warps,
        num_stages=launch.stages,
        maxnreg=launch.registers,
    )
