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
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lexico_codec.codecs import LexicoCodec, RawCodec
from lexico_codec.dictionary import DictionarySet
from lexico_codec.geometry import Geometry, Rope
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.spec import CacheSpec
from lexico_codec.tensors import bytes_of
from lexico_codec.wire import spec_to_wire
from tests.support.dictionaries import set_info

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


def integers(seed: int) -> Iterator[int]:
    """Numbers in 0..2^15-1: the linear congruential generator of the C standard's example."""
    state = seed
    while True:
        state = (1103515245 * state + 12345) % (1 << 31)
        yield state >> 16


def tensor_of(shape: tuple[int, ...], seed: int) -> Tensor:
    """Multiples of 1/128 in -8..8, exact in float16 and float32."""
    source = integers(seed)
    size = torch.Size(shape).numel()
    values = [(next(source) % 2048 - 1024) / 128 for _ in range(size)]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def sign_atoms(atoms: int, seed: int) -> Tensor:
    """Rows of ±1/4, 16 wide: their norm is exactly one."""
    source = integers(seed)
    signs = [0.25 if next(source) % 2 else -0.25 for _ in range(atoms * 16)]
    return torch.tensor(signs).reshape(atoms, 16)


def raw() -> Golden:
    geometry = Geometry(3, 2, 8, "float16", Rope((1.0, 0.25), "interleaved", 1.5))
    spec = CacheSpec(bytes(range(32)), geometry, RawCodec(), page_tokens=5, group_layers=2)
    tensor = tensor_of(spec.group_shape(1), 7).half()
    tensor.view(-1)[:4] = torch.tensor([-0.0, 2.0**-24, 65504.0, -65504.0])
    return Golden("raw", spec, list(range(100, 115)), 1, 1, tensor)


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
    return DictionarySet.build(layers, set_info(kv_heads=2, sparsity=4))


def least_margin(golden: Golden) -> float:
    """Least lead of a picked atom over the next, of the vector's norm, in float64."""
    assert golden.dictionary is not None
    least = float("inf")
    sinks = golden.spec.codec.sink_tokens(0, golden.spec.page_tokens)
    for layer in range(golden.spec.geometry.layers):
        for i, part in enumerate(("key", "value")):
            atoms = golden.dictionary.atoms(layer, part).double()
            for x in golden.tensor[layer, i, sinks:].reshape(-1, 16).double():
                picked: list[int] = []
                residual = x
                while len(picked) < 4 and float(x.norm()) > 0:
                    scores = (atoms @ residual).abs()
                    first, second = scores.topk(2).values.tolist()
                    least = min(least, (first - second) / float(x.norm()))
                    picked.append(int(scores.argmax()))
                    basis = atoms[picked].T
                    residual = x - basis @ torch.linalg.lstsq(basis, x[:, None]).solution[:, 0]
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
    dictionary = lexico_dictionary()
    goldens = [raw(), lexico(dictionary)]
    margin = least_margin(goldens[1])
    if margin < LEAST_MARGIN:
        raise ValueError(f"near-tie in the golden input: margin {margin}")
    files = {FOLDER / "lexico.safetensors": dictionary.to_bytes()}
    for golden in goldens:
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
