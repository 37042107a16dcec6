"""Frames of versions 1 and 2 are read for ever: see tests/support/goldens.py."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lexico_codec.codecs import CODECS
from lexico_codec.codecs.adaptive import added_atoms
from lexico_codec.codecs.packed import packed_codes
from lexico_codec.codecs.residual.header import Header, bands_of
from lexico_codec.frame import FLOAT8_VERSION, VERSION, parse_frame
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.tensors import tensor_from
from lexico_codec.wire import spec_from_wire
from lexico_proto.v1 import types_pb2 as pb
from tests.support import goldens
from tests.support.goldens import Golden, digest
from tests.support.residual_sets import products, transform_of

GOLDENS = [
    pytest.param(golden, id=golden.name)
    for golden in (
        goldens.raw(),
        goldens.lossless(),
        *goldens.FLOAT8,
        goldens.lexico(),
        goldens.adaptive(),
        goldens.packed(),
        goldens.residual(),
    )
]


def stored(golden: Golden) -> tuple[dict[str, str], bytes]:
    return json.loads(golden.path("json").read_text()), golden.path("frame").read_bytes()


def test_every_codec_has_a_golden() -> None:
    assert (VERSION, FLOAT8_VERSION) == (1, 2)
    others = {golden.name for golden in goldens.FLOAT8}
    assert {path.stem for path in goldens.FOLDER.glob("*.frame")} == set(CODECS) | others


@pytest.mark.parametrize("golden", GOLDENS)
def test_nothing_that_was_written_down_has_changed(golden: Golden) -> None:
    """The input, the namespace, the page key, the spec's message, the frame itself."""
    said, frame = stored(golden)
    now = goldens.document(golden, frame)
    assert {k: v for k, v in now.items() if k != "decoded_float32"} == {
        k: v for k, v in said.items() if k != "decoded_float32"
    }
    message = pb.CacheSpec.FromString(base64.b64decode(said["spec"]))
    assert spec_from_wire(message) == golden.spec


@pytest.mark.parametrize("golden", goldens.FLOAT8, ids=lambda golden: golden.name)
def test_caches_in_eight_bits_are_read_to_the_bit(golden: Golden) -> None:
    said, frame = stored(golden)
    assert frame[4:6] == b"\2\0"
    assert parse_frame(frame)[0].dtype == golden.spec.geometry.dtype
    for data in (frame, golden.encode()):
        assert digest(golden.decode(data)) == said["decoded_blake2b"] == digest(golden.tensor)


def test_raw_is_read_and_written_to_the_byte() -> None:
    golden = goldens.raw()
    said, frame = stored(golden)
    assert digest(golden.decode(frame)) == said["decoded_blake2b"] == digest(golden.tensor)
    assert golden.encode() == frame


def test_lossless_is_read_to_the_bit() -> None:
    golden = goldens.lossless()
    said, frame = stored(golden)
    for data in (frame, golden.encode()):  # another zlib may deflate to other bytes
        assert digest(golden.decode(data)) == said["decoded_blake2b"] == digest(golden.tensor)
    sizes = np.frombuffer(parse_frame(frame)[1], "<u4", 8).reshape(4, 2)
    assert sizes[:, 0].tolist() == [12 * 2 * 16] * 4, "mantissas lie as they are"
    assert int(sizes[:, 1].max()) < 12 * 2 * 16, "exponents are deflated"


def test_lexico_is_read_as_it_was() -> None:
    golden = goldens.lexico()
    said, frame = stored(golden)
    data = base64.b64decode(said["decoded_float32"])
    expected = tensor_from(data, torch.float32, golden.spec.group_shape(0))
    torch.testing.assert_close(golden.decode(frame), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(expected[:, :, :4], golden.tensor[:, :, :4])


def test_lexico_picks_the_atoms_that_it_picked() -> None:
    golden = goldens.lexico()
    frame = stored(golden)[1]
    now, then = (bytes(parse_frame(data)[1]) for data in (golden.encode(), frame))
    exact, vectors = 2 * 2 * 4 * 2 * 16 * 4, 2 * 2 * 2 * 2
    counts = np.frombuffer(then, np.uint8, vectors, offset=exact)
    assert sorted(counts.tolist()) == [0] + [4] * (vectors - 1)
    codes = exact + 2 * vectors
    assert len(now) == len(then) == codes + 3 * int(counts.sum())
    assert now[: exact + vectors] == then[: exact + vectors], "sinks or counts"
    indices = slice(codes, codes + 2 * int(counts.sum()))
    assert now[indices] == then[indices], "indices"
    # Coefficients and exponents may round to the neighbour on another machine.
    again, before = golden.decode(golden.encode()), golden.decode(frame)
    assert (again - before).norm() <= 0.05 * before.norm()


def test_adaptive_is_read_as_it_was() -> None:
    golden = goldens.adaptive()
    said, frame = stored(golden)
    data = base64.b64decode(said["decoded_float32"])
    expected = tensor_from(data, torch.float32, golden.spec.group_shape(0))
    torch.testing.assert_close(golden.decode(frame), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(expected[:, :, :4], golden.tensor[:, :, :4])
    counts = list(parse_frame(frame)[1][goldens.ADAPTIVE_SINKS :][:4])
    assert counts == [2, 1, 2, 2]


def test_adaptive_adds_what_it_added() -> None:
    golden = goldens.adaptive()
    frame = stored(golden)[1]
    now, then = (parse_frame(data)[1] for data in (golden.encode(), frame))
    exact = goldens.ADAPTIVE_SINKS
    assert bytes(now[: exact + 4]) == bytes(then[: exact + 4]), "sinks or counts of added atoms"
    counts, atoms, _ = added_atoms.read(then[exact:], 4, 16, bits=4, most=2)
    again, same, _ = added_atoms.read(now[exact:], 4, 16, bits=4, most=2)
    assert counts == again
    torch.testing.assert_close(same, atoms, atol=0.15, rtol=0)  # a level to the neighbour
    # Where two atoms score alike another machine may pick the other one.
    off, before = golden.decode(golden.encode()) - golden.tensor, golden.decode(frame)
    assert abs(float(off.norm() / (before - golden.tensor).norm()) - 1) < 0.1
    assert float(off[0, 1, 4:].norm() / golden.tensor[0, 1, 4:].norm()) < 0.04


def test_packed_is_read_as_it_was() -> None:
    golden = goldens.packed()
    said, frame = stored(golden)
    expected = tensor_from(
        base64.b64decode(said["decoded_float32"]), torch.float32, golden.spec.group_shape(0)
    )
    torch.testing.assert_close(golden.decode(frame), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(expected[:, :, :4], golden.tensor[:, :, :4])
    assert float((expected - golden.tensor).norm() / golden.tensor.norm()) < 0.6


def test_packed_picks_the_atoms_that_it_picked() -> None:
    golden = goldens.packed()
    frame = stored(golden)[1]
    exact = 2 * 2 * 4 * 2 * 16 * 4
    sizes, limits = (48, 700, 48, 700), goldens.PACKED_LIMITS
    now, then = (
        packed_codes.read(parse_frame(data)[1][exact:], sizes, limits, rows=4)
        for data in (golden.encode(), frame)
    )
    assert torch.equal(now.counts, then.counts)
    assert torch.equal(now.indices, then.indices)
    most = then.counts.view(4, -1).amax(1)
    assert most.tolist() == list(limits)
    assert int(then.counts.min()) == 0
    # Coefficients and scales may round to the neighbour on another machine.
    again, before = golden.decode(golden.encode()), golden.decode(frame)
    assert (again - before).norm() <= 0.1 * before.norm()


def header_of(golden: Golden, frame: bytes) -> tuple[memoryview, Header]:
    body = parse_frame(frame)[1]
    assert golden.dictionary is not None
    transform = transform_of(golden.dictionary)
    told = bands_of(transform, 1, transform.steps["near"])
    return body, Header.unpack(body, transform, told, 37)


def test_residual_is_read_as_it_was() -> None:
    golden = goldens.residual()
    said, frame = stored(golden)
    expected = tensor_from(
        base64.b64decode(said["decoded_float32"]), torch.float32, golden.spec.group_shape(0)
    )
    with products(quick=False):
        torch.testing.assert_close(golden.decode(frame), expected, atol=1e-4, rtol=1e-4)
    with products(quick=True):
        off = (goldens.residual().decode(frame) - expected).abs().amax((0, 1, 3, 4))
    assert bool((off <= 2**-6 * expected.abs().amax((0, 1, 3, 4))).all())
    assert torch.equal(expected[:, :, :4], golden.tensor[:, :, :4])
    assert float((expected - golden.tensor).norm() / golden.tensor.norm()) < 0.01
    body, header = header_of(golden, frame)
    assert len(set(header.gains.tolist())) > 6
    assert len(set(header.energies.tolist())) > 2
    assert len(set(header.bands.tolist())) > 1
    assert not bool(header.exact.any())
    assert len(body) > 2 * 4 + 37 * 4, "two blocks of tokens"


def test_residual_is_written_about_as_it_was() -> None:
    """Levels may round to the neighbour on another machine, as products of matrices do."""
    golden = goldens.residual()
    frame = stored(golden)[1]
    with products(quick=False):
        again = golden.encode()
        off = golden.decode(again) - golden.decode(frame)
    assert abs(len(again) - len(frame)) <= 16
    assert float(off.square().mean().sqrt()) < 0.02
    assert torch.equal(header_of(golden, again)[1].exact, header_of(golden, frame)[1].exact)


@pytest.mark.parametrize("golden", [g for g in GOLDENS if g.id in goldens.PURSUED])
def test_golden_input_has_no_near_ties(golden: Golden) -> None:
    assert goldens.least_margin(golden) >= goldens.LEAST_MARGIN


def test_golden_set_is_written_as_it_was() -> None:
    for name, make in goldens.SETS.items():
        assert make().digest == DictionarySet.load(goldens.FOLDER / f"{name}.safetensors").digest


def test_goldens_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in goldens.FOLDER.iterdir()}
    monkeypatch.setattr("sys.argv", ["goldens"])
    assert goldens.main() == 1
    assert "--rewrite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in goldens.FOLDER.iterdir()} == before
    monkeypatch.setattr(goldens, "FOLDER", tmp_path / "v1")
    assert goldens.main() == 0
    written = {path.name: path.read_bytes() for path in goldens.FOLDER.iterdir()}
    assert written.keys() == {path.name for path in before}
    (goldens.FOLDER / "raw.frame").write_bytes(b"kept")
    (goldens.FOLDER / "raw.json").unlink()
    assert goldens.main() == 1
    assert not (goldens.FOLDER / "raw.json").exists(), "refused, yet wrote some"
    assert (goldens.FOLDER / "raw.frame").read_bytes() == b"kept"
    monkeypatch.setattr("sys.argv", ["goldens", "--rewrite"])
    assert goldens.main() == 0
    assert {path.name: path.read_bytes() for path in goldens.FOLDER.iterdir()} == written
