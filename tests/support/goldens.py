"""Golden frames: bytes that every later version must read, and how they were made.

    python -m tests.support.goldens              write those that are not there yet
    python -m tests.support.goldens --rewrite    write all of them again

A golden that changes breaks every page in every store: bytes that change are a new codec id, not a
new golden. Inputs are integer arithmetic, so no library's random numbers are part of them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lexico_codec.codecs import (
    AdaptiveCodec,
    LexicoCodec,
    LosslessCodec,
    PackedCodec,
    RawCodec,
    ResidualCodec,
)
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.kernels.pursuit.preparation import Preparation
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.sets.dictionary import AtomSet, DictionarySet, TransformSet
from lexico_codec.spec import CacheSpec
from lexico_codec.tensors import bytes_of
from lexico_codec.wire import spec_to_wire
from tests.support.dictionaries import set_info
from tests.support.golden_numbers import hadamard, integers, sign_atoms, tensor_of
from tests.support.residual_sets import products

FOLDER = Path(__file__).parents[1] / "fixtures" / "frames" / "v1"
LEAST_MARGIN = 1e-3
"""By how much, of a vector's norm, the best atom beats the next at every step of a golden input:
no machine's rounding may decide which one is picked.
"""


@dataclass(frozen=True)
class Golden:
    """One layer group and all that its frame depends on."""

    name: str
    spec: CacheSpec
    tokens: list[int]
    page: int
    group: int
    tensor: Tensor
    dictionary: DictionarySet | None = None

    @property
    def page_key(self) -> bytes:
        return page_keys(self.spec, self.tokens)[self.page]

    def encode(self) -> bytes:
        return bytes(
            encode_group(
                self.spec, self.page_key, self.page, self.group, self.tensor, self.dictionary
            )
        )

    def decode(self, frame: bytes) -> Tensor:
        """Today's reading of a frame."""
        shape, dtype = self.spec.group_shape(self.group), self.spec.geometry.torch_dtype
        out = torch.full(shape, float("nan"), dtype=dtype)
        decode_group(self.spec, self.page_key, self.page, self.group, frame, out, self.dictionary)
        return out

    def path(self, suffix: str) -> Path:
        return FOLDER / f"{self.name}.{suffix}"


def raw() -> Golden:
    geometry = Geometry(3, 2, 8, "float16", Rope((1.0, 0.25), "interleaved", 1.5))
    spec = CacheSpec(bytes(range(32)), geometry, RawCodec(), page_tokens=5, group_layers=2)
    tensor = tensor_of(spec.group_shape(1), 7).half()
    tensor.view(-1)[:4] = torch.tensor([-0.0, 2.0**-24, 65504.0, -65504.0])
    return Golden("raw", spec, list(range(100, 115)), 1, 1, tensor)


def lossless() -> Golden:
    """Keys' planes and values' have one that is deflated and one that is not."""
    geometry = Geometry(2, 2, 16, "bfloat16", Rope((1.0, 0.25), "interleaved", 1.5))
    spec = CacheSpec(bytes(range(32)), geometry, LosslessCodec(), page_tokens=12)
    tensor = tensor_of(spec.group_shape(0), 9).bfloat16()
    tensor.view(-1)[:4] = torch.tensor([-0.0, 2.0**-133, 2.0**127, -(2.0**127)])
    return Golden("lossless", spec, list(range(100, 124)), 1, 0, tensor)


def in_eight_bits(golden: Golden, dtype: str) -> Golden:
    """The same of a cache in 8 bits, of version 2."""
    geometry = replace(golden.spec.geometry, dtype=dtype)
    most = torch.finfo(geometry.torch_dtype).max
    tensor = golden.tensor.float().clamp(-most, most).to(geometry.torch_dtype)
    spec = replace(golden.spec, geometry=geometry)
    return replace(golden, name=f"{golden.name}-{dtype}", spec=spec, tensor=tensor)


FLOAT8 = (in_eight_bits(raw(), "float8_e4m3fn"), in_eight_bits(lossless(), "float8_e5m2"))


def lexico(dictionary: DictionarySet | None = None) -> Golden:
    if dictionary is None:  # the stored artefact, so that no writer's layout is part of the golden
        dictionary = DictionarySet.load(FOLDER / "lexico.safetensors")
    geometry = Geometry(2, 2, 16, "float32", Rope((1.0, 0.5, 0.25)))
    spec = CacheSpec(
        bytes(range(32)), geometry, LexicoCodec(sparsity=4), dictionary.digest, page_tokens=6
    )
    tensor = tensor_of(spec.group_shape(0), LEXICO_SEED).float()
    tensor[1, 0, 5, 1] = 0.0  # a vector without atoms
    return Golden("lexico", spec, list(range(6)), 0, 0, tensor, dictionary)


LEXICO_SEED = 118
"""Gives margins above `LEAST_MARGIN`."""


def lexico_dictionary() -> DictionarySet:
    layers = [(sign_atoms(48, 10 * layer + 1), sign_atoms(40, 10 * layer + 2)) for layer in (0, 1)]
    return AtomSet.build(layers, set_info(kv_heads=2, sparsity=4))


def adaptive(dictionary: DictionarySet | None = None) -> Golden:
    """Noise, and values of layer 0 that are one vector in four sizes: an added atom codes them."""
    if dictionary is None:
        dictionary = DictionarySet.load(FOLDER / "lexico.safetensors")
    geometry = Geometry(2, 2, 16, "float32", Rope((1.0, 0.5, 0.25)))
    codec = AdaptiveCodec(sparsity=3, tolerance=0.25, added=2, bits=4)
    spec = CacheSpec(bytes(range(32)), geometry, codec, dictionary.digest, page_tokens=12)
    tensor = tensor_of(spec.group_shape(0), 14).float()
    whole = (tensor_of((16,), 33) * 0.875).round()  # levels of 4 bits: the atom is exact
    sizes = torch.tensor([0.25, 0.5, 1.0, 2.0]).repeat(4)
    tensor[0, 1, 4:] = whole * sizes.view(8, 2, 1)
    tensor[1, 0, 11, 1] = 0.0
    return Golden("lexico-adaptive", spec, list(range(12)), 0, 0, tensor, dictionary)


ADAPTIVE_SINKS = 2 * 2 * 4 * 2 * 16 * 4
"""Bytes."""


def packed(dictionary: DictionarySet | None = None) -> Golden:
    if dictionary is None:
        dictionary = DictionarySet.load(FOLDER / "lexico-packed.safetensors")
    assert isinstance(dictionary, AtomSet)
    geometry = Geometry(2, 2, 16, "float32", Rope((1.0, 0.5, 0.25), "interleaved", 1.25))
    codec = PackedCodec(sparsity=4, tolerance=0.25, bits=4)
    spec = CacheSpec(bytes(range(32)), geometry, codec, dictionary.digest, page_tokens=6)
    tensor = tensor_of(spec.group_shape(0), PACKED_SEED).float()
    tensor[1, 1, 5, 1] = dictionary.means(1, 1)[1, 1]  # a value without atoms
    return Golden("lexico-packed", spec, list(range(6)), 0, 0, tensor, dictionary)


PACKED_SEED = 12
"""Gives margins above `LEAST_MARGIN`."""
PACKED_LIMITS = (4, 3, 8, 1)
"""Atoms of each table, as the errors of the set share them out."""


def packed_dictionary() -> AtomSet:
    """Keys in int8, values in float16; a dictionary whose indices have low bits apart."""
    layers = [
        ((4 * sign_atoms(48, 10 * layer + 3)).to(torch.int8), sign_atoms(700, 10 * layer + 4))
        for layer in (0, 1)
    ]
    means = [(tensor_of((2, 16), 50 + i) / 8, tensor_of((2, 16), 60 + i) / 8) for i in (0, 1)]
    falls = torch.tensor([4.0, 3.0, 8.0, 1.0])  # errors end at zero after so many atoms
    errors = (falls[:, None] - torch.arange(9)).clamp_min(0).view(2, 2, 9)
    info = set_info(kv_heads=2, sparsity=4)
    return AtomSet.build(layers, info, means, errors)


def residual(dictionary: DictionarySet | None = None) -> Golden:
    """Two tables of two blocks of tokens each: sinks, odd tokens, strong and weak ones, escapes,
    raw bits, two atoms.
    """
    if dictionary is None:
        dictionary = DictionarySet.load(FOLDER / "lexico-residual.safetensors")
    geometry = Geometry(2, 2, 16, "float32", Rope((1.0, 0.5, 0.25), "interleaved", 1.25))
    codec = ResidualCodec(quality="near", run_layers=1)
    spec = CacheSpec(bytes(range(32)), geometry, codec, dictionary.digest, page_tokens=41)
    tensor = tensor_of(spec.group_shape(1), 21).float()
    tensor *= 2.0 ** (torch.arange(41) % 4 - 2).float()[:, None, None]
    tensor[0, 1, 9, 0] *= 512  # levels of every size
    tensor[0, 0, 10:12] = 0
    return Golden("lexico-residual", spec, list(range(41)), 0, 1, tensor, dictionary)


RESIDUAL_STEPS = (0.125, 1.0, 64.0)


def residual_dictionary() -> DictionarySet:
    """Two runs of a layer; two blocks a table; all numbers exact, but for the atoms' norms."""
    source = integers(31)
    stretch = 2.0 ** ((torch.arange(16) % 5).float() - 2)
    falls = 16 * 2.0 ** -(torch.arange(64) // 20).float()
    symbols = torch.arange(32)
    frequencies = []
    for size in range(46):  # about as wide as the class: 16, 32, 64 .. for each level further out
        weights = 1 + 2000 // (1 + (symbols - 15).abs().pow(2) * 32 // (1 + size))
        counts = weights * 4000 // weights.sum()
        counts[:3] *= int(size > 8)  # the furthest levels are escaped
        counts[31] = 3 + size
        counts[15] += 4096 - counts.sum()
        frequencies.append(counts)
    signs = sign_atoms(48, 41).view(2, 24, 16)
    atoms = (4 * signs).to(torch.int8) * torch.tensor([127, 90, 64, 32]).to(torch.int8).repeat(4)
    orders = torch.tensor([[(k * 29 + run) % 64 for k in range(64)] for run in (0, 1)])
    tensors = {
        "means": tensor_of((4, 2, 16), 70) / 8,
        "bases": (hadamard(16) * stretch).expand(4, 2, 16, 16).half(),
        "scales": torch.tensor([0.5, 0.25, 0.125, 0.25]),
        "selected": torch.arange(16).mul(4).expand(2, 16).int() + torch.tensor([[0], [3]]).int(),
        "cross": (64 * hadamard(16)).expand(2, 16, 16).to(torch.int8),
        "cross_scales": torch.full((2, 16), 2.0**-8),
        "order": orders.int(),
        "deviations": falls.expand(2, 64),
        "gains": torch.tensor([[next(source) % 64 / 64 - 0.5 for _ in range(12)]] * 2),
        "atoms": atoms,
        "remaining": falls[:16].expand(2, 16) / 2,
        "coefficients": torch.tensor([[16.0, 8.0]] * 2),
        "frequencies": torch.stack(frequencies).int(),
        "shifts": (torch.arange(46).int() // 3 - 8).clamp(min=0),
        "points": (torch.arange(16) - torch.arange(16).clamp(max=1) / 16).expand(46, 16),
        "steps": torch.tensor(RESIDUAL_STEPS),
    }
    stored = {
        name: tensor.float() if tensor.dtype == torch.float64 else tensor
        for name, tensor in tensors.items()
    }
    return TransformSet.build(stored, set_info(kv_heads=2, sparsity=2))


SETS = {
    "lexico": lexico_dictionary,
    "lexico-packed": packed_dictionary,
    "lexico-residual": residual_dictionary,
}
"""What makes the set of a golden."""
PURSUED = ("lexico", "lexico-packed")
"""Goldens whose frames name atoms of vectors."""


def coded_vectors(golden: Golden) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(vectors, atoms, most atoms) of each table, float64, as the codec pursues them."""
    assert isinstance(golden.dictionary, AtomSet)
    sinks = golden.spec.codec.sink_tokens(0, golden.spec.page_tokens)
    layers = golden.spec.geometry.layers
    tables = golden.tensor.flatten(0, 1)[:, sinks:]
    limits: tuple[int, ...] = (4,) * len(tables)
    if golden.dictionary.unrotated:
        means, turned = golden.dictionary.means(0, layers), (True, False) * layers
        tables = Preparation(golden.spec.geometry.rope, turned, sinks, means).apply(tables)
        limits = PACKED_LIMITS
    for table, limit in enumerate(limits):
        atoms = golden.dictionary.stack(0, layers).dictionary(table)
        yield tables[table].reshape(-1, 16).double(), atoms.double(), limit


def least_margin(golden: Golden) -> float:
    """Least lead of a picked atom over the next, of the vector's norm, in float64.

    Where the codec has a tolerance, also the least distance from it of an error that was judged.
    """
    least = float("inf")
    tolerance = getattr(golden.spec.codec, "tolerance", None)
    for vectors, atoms, limit in coded_vectors(golden):
        for x in vectors:
            picked: list[int] = []
            residual, norm = x, float(x.norm())
            while len(picked) < limit and norm > 0:
                scores = (atoms @ residual).abs()
                first, second = scores.topk(2).values.tolist()
                least = min(least, (first - second) / norm)
                picked.append(int(scores.argmax()))
                basis = atoms[picked].T
                residual = x - basis @ torch.linalg.lstsq(basis, x[:, None]).solution[:, 0]
                if tolerance is not None:
                    left = float(residual.norm()) / norm
                    least = min(least, abs(left - tolerance))
                    if left <= tolerance:
                        break
    return least


def document(golden: Golden, frame: bytes) -> dict[str, object]:
    """What the .json beside a frame says."""
    tensor = golden.decode(frame)
    said: dict[str, object] = {
        "codec": golden.spec.codec.name,
        "codec_config": golden.spec.codec.config_json(),
        "spec": base64.b64encode(spec_to_wire(golden.spec).SerializeToString()).decode(),
        "namespace": golden.spec.namespace.hex(),
        "tokens": golden.tokens,
        "page": golden.page,
        "group": golden.group,
        "page_key": golden.page_key.hex(),
        "input_blake2b": digest(golden.tensor),
        "frame_blake2b": hashlib.blake2b(frame, digest_size=32).hexdigest(),
    }
    if golden.dictionary is None:
        said["decoded_blake2b"] = digest(tensor)
    else:  # sums of floats may differ in the last bit from machine to machine
        said["dictionary"] = golden.dictionary.digest.hex()
        said["decoded_float32"] = base64.b64encode(bytes_of(tensor)).decode()
    return said


def digest(tensor: Tensor) -> str:
    return hashlib.blake2b(bytes_of(tensor), digest_size=32).hexdigest()


def write(*, rewrite: bool) -> list[Path]:
    """Writes golden files.

    Raises:
        FileExistsError: a file is there already and `rewrite` is False; nothing is written then.
    """
    sets = {name: make() for name, make in SETS.items()}
    goldens = [
        raw(),
        lossless(),
        *FLOAT8,
        lexico(sets["lexico"]),
        adaptive(sets["lexico"]),
        packed(sets["lexico-packed"]),
        residual(sets["lexico-residual"]),
    ]
    for golden in goldens:
        if golden.name not in PURSUED:
            continue
        margin = least_margin(golden)
        if margin < LEAST_MARGIN:
            raise ValueError(f"near-tie in the golden input {golden.name}: margin {margin}")
    files = {FOLDER / f"{name}.safetensors": made.to_bytes() for name, made in sets.items()}
    for golden in goldens:
        with products(quick=False):
            frame = golden.encode()
            text = json.dumps(document(golden, frame), indent=2) + "\n"
        files |= {golden.path("frame"): frame, golden.path("json"): text.encode()}
    existing = sorted(path for path in files if path.exists())
    if existing and not rewrite:
        raise FileExistsError(f"{', '.join(path.name for path in existing)}: give --rewrite")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        path.write_bytes(data)
    return sorted(files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rewrite", action="store_true", help="replace goldens that are there")
    try:
        written = write(rewrite=parser.parse_args().rewrite)
    except FileExistsError as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
