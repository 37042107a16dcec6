"""lexico-adaptive: never worse than lexico, one atom for odd vectors, independent pages."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexico_codec.codecs import AdaptiveCodec, Codec, LexicoCodec, Place, codec_from_config
from lexico_codec.codecs.adaptive import added_atoms
from lexico_codec.codecs.lexico import ragged_codes
from lexico_codec.geometry import Geometry
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.sets.dictionary import AtomSet
from lexico_proto.errors import (
    ConfigurationError,
    DamagedFrame,
    DictionaryMismatch,
    UnknownDictionary,
    Unsupported,
)
from tests.contract.codec_suite import (
    FAR,
    RANDOM,
    SHAPES,
    SMALL,
    CodecSuite,
    Shape,
    bits,
    group_of,
)
from tests.support.dictionaries import random_set, set_info, unit_rows
from tests.support.packed_sets import packed_set

USUAL = AdaptiveCodec()
FIXED = AdaptiveCodec(sparsity=8, tolerance=None, added=16, bits=8)
FP8 = 2.0**-4
"""Largest relative error of a coefficient."""


def relative(decoded: Tensor, group: Tensor) -> Tensor:
    """Error of each vector over its norm."""
    return (decoded.float() - group.float()).norm(dim=-1) / group.float().norm(dim=-1)


def through(codec: Codec, group: Tensor, first_token: int = FAR) -> tuple[bytes, Tensor]:
    dictionary = random_set(group.shape[0], group.shape[-1])
    body = bytes(codec.encode(group, Place(0, first_token), dictionary))
    out = torch.full_like(group, float("nan"))
    codec.decode(memoryview(body), Place(0, first_token), dictionary, out)
    return body, out


def parse(body: bytes, codec: AdaptiveCodec, like: Tensor) -> tuple[list[int], Tensor, Codes]:
    """Atoms that each table adds, those atoms, and codes; of a body without sinks."""
    layers, _, tokens, heads, dim = like.shape
    sizes = [96, 95] * layers
    counts, atoms, rest = added_atoms.read(
        memoryview(body), 2 * layers, dim, codec.bits, codec.added
    )
    whole = [size + count for size, count in zip(sizes, counts, strict=True)]
    return counts, atoms, ragged_codes.read(rest, whole, tokens * heads, codec.sparsity)


def odd_group(kinds: int, times: int, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Keys that are `kinds` random directions, each `times` times in some size; zero values.

    Also the kind of each key.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = unit_rows(kinds, 64, seed)
    kind = torch.randperm(kinds * times, generator=generator) % kinds
    sizes = 1 + 4 * torch.rand(len(kind), 1, generator=generator)
    group = torch.zeros(1, 2, len(kind), 1, 64)
    group[0, 0, :, 0] = sizes * directions[kind]
    return group, kind


class TestAdaptiveCodec(CodecSuite):
    codecs: ClassVar[list[Codec]] = [USUAL, FIXED]

    @pytest.fixture(params=codecs, ids=["usual", "fixed"])
    def codec(self, request: pytest.FixtureRequest) -> Codec:
        codec: AdaptiveCodec = request.param
        return codec

    def has_fixed_size(self, codec: Codec) -> bool:
        return False

    def check_decoded(self, codec: Codec, group: Tensor, out: Tensor, sinks: int) -> None:
        """No vector is worse than in lexico, but for what the tolerance allows."""
        assert isinstance(codec, AdaptiveCodec)
        if group.shape[2] == sinks:
            return
        exact, decoded = group[:, :, sinks:].float(), out[:, :, sinks:].float()
        plain = LexicoCodec(codec.sparsity, codec.tolerance)
        dictionary, coded = random_set(group.shape[0], group.shape[-1]), torch.empty_like(group)
        first = 4 - sinks if sinks else FAR
        body = plain.encode(group, Place(0, first), dictionary)
        plain.decode(memoryview(body), Place(0, first), dictionary, coded)
        allowed = (coded[:, :, sinks:].float() - exact).norm(dim=-1)
        norms = exact.norm(dim=-1)
        allowed = torch.maximum(allowed, (codec.tolerance or 0.0) * norms)
        rounding = 0.0 if group.dtype == torch.float32 else torch.finfo(group.dtype).eps
        slack = (2 * rounding + 1e-4) * norms
        assert bool(((decoded - exact).norm(dim=-1) <= allowed + slack).all())

    @pytest.mark.parametrize("first_layer", [1, 4])
    def test_layers_of_the_middle(self, codec: Codec, first_layer: int) -> None:  # type: ignore[override]
        """A group that starts at layer i uses the dictionaries of layer i."""
        group = group_of(SMALL)
        body = self.encode(codec, group, FAR, first_layer)
        moved = random_set(2, 16, seed=2 * first_layer)  # as `random_set` gives seeds to layers
        assert body == bytes(codec.encode(group, Place(0, FAR), moved))

    # What atoms are added for

    @pytest.mark.parametrize("shape", [(2, 3, 64, 20), (1, 2, 63, 40)], ids=str)
    @pytest.mark.parametrize("delta", [0.15, 0.3, 0.5])
    def test_tolerance_is_met_where_lexico_misses_it(self, shape: Shape, delta: float) -> None:
        group = group_of(shape, "float32")
        missed = relative(through(LexicoCodec(8, delta), group)[1], group)
        assert bool((missed > delta * 1.2).any()), "nothing to do in this test"
        codec = AdaptiveCodec(8, delta, added=255, bits=8)
        body, out = through(codec, group)
        assert bool((relative(out, group) <= delta + 2 * FP8 * delta + FP8).all())
        assert bool((relative(out, group) <= delta * 1.02).float().mean() > 0.95)
        assert max(parse(body, codec, group)[0]) > 0

    def test_a_cap_leaves_the_mildest_vectors(self) -> None:
        group = group_of((1, 3, 64, 30), "float32")
        errors = []
        for added in (1, 8, 64, 255):
            body, out = through(AdaptiveCodec(8, 0.2, added, 8), group)
            assert max(parse(body, AdaptiveCodec(8, 0.2, added, 8), group)[0]) <= added
            errors.append(float(relative(out, group).square().mean()))
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.3 * errors[0]

    @pytest.mark.parametrize("tolerance", [None, 0.3])
    @pytest.mark.parametrize("width", [4, 8])
    def test_repeated_odd_vectors_take_one_added_atom_each(
        self, tolerance: float | None, width: int
    ) -> None:
        group, kind = odd_group(kinds=5, times=30)
        codec = AdaptiveCodec(8, tolerance, added=16, bits=width)
        body, out = through(codec, group)
        counts, atoms, codes = parse(body, codec, group)
        assert counts == [5, 0]
        first = codes.indices[:150, 0]
        assert bool((first >= 96).all())
        for one in range(5):
            assert len(set(first[kind == one].tolist())) == 1
        if tolerance is not None:
            assert bool((codes.counts[:150] == 1).all())
            assert len(body) == 2 + 5 * 64 * width // 8 + 2 * 300 + 3 * 150
        cosines = (atoms @ unit_rows(5, 64, 5).T).abs().amax(1)
        assert float(cosines.min()) > (0.98 if width == 4 else 0.9999)
        assert float(relative(out[:, :1], group[:, :1]).max()) < 0.25

    def test_nothing_is_added_for_vectors_of_atoms(self) -> None:
        """A cache that the set describes has no atoms of its own: a byte a table."""
        dictionary = random_set(1, 64)
        group = torch.zeros(1, 2, 30, 1, 64)
        group[0, 0, :, 0] = dictionary.atoms(0, "key")[:30] * 3
        group[0, 1, :, 0] = dictionary.atoms(0, "value")[30:60]
        for tolerance in (None, 0.3):
            body, out = through(AdaptiveCodec(8, tolerance), group)
            assert body[:2] == b"\0\0"
            assert body[2:] == through(LexicoCodec(8, tolerance), group)[0]
            assert torch.equal(out, through(LexicoCodec(8, tolerance), group)[1])

    def test_zero_vectors_and_zero_tables(self) -> None:
        group = torch.zeros(group_of(SMALL).shape)
        body, out = through(USUAL, group)
        assert len(body) == 4 + 2 * 60
        assert bool((out == 0).all())

    def test_a_vector_beside_a_huge_one(self) -> None:
        """Energies are of the table's scale: nothing overflows, the huge vector is served."""
        group = group_of((1, 2, 64, 40), "float32")
        group[0, 0, 7, 1] *= 1e15
        _, out = through(AdaptiveCodec(8, 0.3, 4, 8), group)
        assert float(relative(out, group)[0, 0, 7, 1]) < 0.1
        assert bool(out.isfinite().all())

    # Pages

    def test_a_page_depends_on_itself_alone(self) -> None:
        """Whatever was coded before, in one process or another, the bytes are the same."""
        one, other = group_of(SMALL, seed=1), group_of(SMALL, seed=2)
        alone = through(USUAL, one)[0]
        through(USUAL, other)
        through(FIXED, one)
        assert through(USUAL, one)[0] == alone
        assert through(USUAL, other)[0] != alone

    @pytest.mark.parametrize("threads", [1, 3])
    def test_same_bytes_on_any_number_of_threads(self, threads: int) -> None:
        group = group_of((2, 3, 64, 40))
        expected, before = through(USUAL, group)[0], torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert through(USUAL, group)[0] == expected
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_empty_groups_of_sinks(self, shape: Shape) -> None:
        layers, heads, dim, _ = shape
        group = group_of((layers, heads, dim, 3))
        body, out = through(USUAL, group, first_token=0)
        assert torch.equal(bits(out), bits(group))
        assert len(body) == group.numel() * 2 + 2 * layers

    # Parameters

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *[("added", value) for value in (0, -1, 256, 40000, 1.5, True, "8", None)],
            *[("bits", value) for value in (1, 9, 0, 4.0, None)],
            *[("sparsity", value) for value in (0, 256, 2.0, True)],
            *[("tolerance", value) for value in (0, 1, -0.5, "0.3")],
        ],
    )
    def test_parameters_out_of_range(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"lexico-adaptive: {name}="):
            AdaptiveCodec(**{name: value})
        with pytest.raises(ConfigurationError, match="its parameters are added, bits, sparsity"):
            codec_from_config("lexico-adaptive", '{"cap":4}')

    def test_more_atoms_than_the_space_has_dimensions(self) -> None:
        with pytest.raises(ConfigurationError, match="lexico-adaptive: sparsity=17"):
            AdaptiveCodec(sparsity=17).check_geometry(Geometry(2, 3, 16, "float16"))

    def test_largest_parameters(self) -> None:
        group = group_of((1, 3, 16, 100), "float32")
        codec = AdaptiveCodec(16, None, 255, 8)
        assert float(relative(through(codec, group)[1], group).max()) < 0.2
        tight = AdaptiveCodec(2, 0.05, 255, 2)
        body, out = through(tight, group)
        assert max(parse(body, tight, group)[0]) > 100
        assert bool(out.isfinite().all())

    # Dictionaries

    def test_sets_of_lexico_serve_and_no_others(self) -> None:
        group, packed = group_of(SMALL), packed_set(2, 16)
        assert random_set(2, 16).serves("lexico-adaptive")
        assert not packed.serves("lexico-adaptive")
        with pytest.raises(DictionaryMismatch, match=r"`lexico train --codec lexico`"):
            USUAL.encode(group, Place(0, 0), packed)
        with pytest.raises(DictionaryMismatch, match="head_dim 16"):
            USUAL.encode(group, Place(0, 0), random_set(2, 17))
        body = memoryview(self.encode(USUAL, group))
        for dictionary, error in ((None, UnknownDictionary), (packed, DictionaryMismatch)):
            with pytest.raises(error):
                USUAL.decode(body, Place(0, 0), dictionary, torch.empty_like(group))

    def test_there_are_no_codes_to_attend_over(self) -> None:
        assert not USUAL.has_codes
        with pytest.raises(Unsupported, match="codec lexico-adaptive keeps no codes"):
            USUAL.read(
                memoryview(b""),
                Place(0, 0),
                random_set(2, 16),
                (2, 2, 5, 3, 16),
                torch.float16,
                torch.device("cpu"),
            )

    def test_layers_of_a_larger_set(self) -> None:
        """Starts of dictionaries count in the whole set; atoms of half a group."""
        group = group_of((2, 3, 63, 40), "float32")
        whole, codec = random_set(5, 63), AdaptiveCodec(4, None, 30)
        body = bytes(codec.encode(group, Place(3, FAR), whole))
        out, again = torch.empty_like(group), torch.empty_like(group)
        codec.decode(memoryview(body), Place(3, FAR), whole, out)
        moved = AtomSet.build(
            [(whole.atoms(i, "key"), whole.atoms(i, "value")) for i in (3, 4)], set_info()
        )
        codec.decode(memoryview(body), Place(0, FAR), moved, again)
        assert torch.equal(out, again)
        assert sum(body[:4]) > 20

    # Bodies that no encoder made

    def test_each_check_of_a_body(self) -> None:
        group, _ = odd_group(kinds=3, times=30)
        codec = AdaptiveCodec(8, 0.3, added=3, bits=4)
        sound, _ = through(codec, group)
        assert list(sound[:2]) == [3, 0]
        codes = 2 + 3 * 32
        index = codes + 2 * 180

        def altered(at: int, *values: int) -> bytes:
            body = bytearray(sound)
            body[at : at + len(values)] = bytes(values)
            return bytes(body)

        dictionary = random_set(1, 64)
        bad = {
            "4 added atoms, the codec allows 3": [altered(0, 4), altered(1, 255)[:1] + b"\4"],
            "added atoms alone": [sound[:codes][:-1], sound[:2]],
            "counts of added atoms": [sound[:1], b""],
            "is zero": [altered(2 + 32, *[0x88] * 32)],
            "beyond a dictionary": [altered(index, 99, 0), altered(index, 0xFF, 0x7F)],
            "negative index": [altered(index, 0xFF, 0xFF)],
            "do not add up": [altered(codes, 2)],
        }
        for message, bodies in bad.items():
            for body in bodies:
                with pytest.raises(DamagedFrame, match=message):
                    codec.decode(
                        memoryview(body), Place(0, FAR), dictionary, torch.empty_like(group)
                    )
        for body in (altered(index, 98, 0), altered(2, 0x00), altered(2, 0xFF)):
            out = torch.full_like(group, float("nan"))
            codec.decode(memoryview(body), Place(0, FAR), dictionary, out)
            assert bool(out.isfinite().all())

    def test_bits_behind_the_last_atom(self) -> None:
        levels = [torch.tensor([[1, -1, 1]], dtype=torch.int8)]
        body = bytearray(added_atoms.write(levels, 3))
        assert len(body) == 1 + 2
        body[2] |= 0x80
        with pytest.raises(DamagedFrame, match="behind the last"):
            added_atoms.read(memoryview(body), 1, 3, 3, 4)

    def test_opposite_overflows_are_numbers(self) -> None:
        """An atom of the set and an added one, each times the largest float32."""
        codec, dictionary = AdaptiveCodec(2, None, 1, 8), random_set(1, 16)
        levels = [(127 * dictionary.atoms(0, "key")[:1]).round().to(torch.int8)]
        codes = Codes(
            torch.tensor([[0, 96], [0, 0]], dtype=torch.int16),
            torch.tensor([[0x7E, 0xFE], [0, 0]], dtype=torch.uint8),
            torch.tensor([2, 0], dtype=torch.uint8),
            torch.tensor([-120, 0], dtype=torch.int8),
        )
        body = added_atoms.write([*levels, levels[0][:0]], 8) + ragged_codes.write(codes)
        out = torch.full((1, 2, 1, 1, 16), float("nan"))
        codec.decode(memoryview(body), Place(0, FAR), dictionary, out)
        assert bool(out.isfinite().all())


@RANDOM
@given(st.integers(2, 8), st.integers(1, 40), st.integers(0, 5), st.integers(0, 1000))
def test_atoms_are_read_as_they_were_written(width: int, m: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3, count, m, generator=generator)
    levels = [added_atoms.to_levels(table, width)[: count - i] for i, table in enumerate(rows)]
    body = added_atoms.write(levels, width) + b"rest"
    counts, atoms, rest = added_atoms.read(memoryview(body), 3, m, width, 5)
    assert counts == [len(table) for table in levels]
    assert torch.equal(atoms, added_atoms.directions(torch.cat(levels)))
    assert bytes(rest) == b"rest"
    np.testing.assert_allclose(atoms.norm(dim=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("width", "least", "outliers"),
    [(2, 0.85, 0.7), (3, 0.95, 0.8), (4, 0.985, 0.92), (8, 0.9999, 0.999)],
)
def test_levels_point_where_the_rows_do(width: int, least: float, outliers: float) -> None:
    rows = unit_rows(50, 128, 3)
    rows[:5, 7] *= 20
    atoms = added_atoms.directions(added_atoms.to_levels(rows, width))
    cosines = torch.nn.functional.cosine_similarity(atoms, rows)
    assert float(cosines[5:].min()) > least
    assert float(cosines[:5].min()) > outliers


def test_levels_of_nothing() -> None:
    for rows in (torch.zeros(2, 5), torch.full((1, 5), 1e-38), torch.full((1, 5), 1e-30)):
        assert bool(added_atoms.to_levels(rows, 4).isfinite().all())
    assert not bool(added_atoms.to_levels(torch.zeros(2, 5), 4).any())


def test_dictionaries_that_take_turns_keep_apart() -> None:
    """Decoding copies the dictionaries once a thread: another set, or thread, must not see it."""
    sets = [random_set(2, 16, 40, seed=seed) for seed in (1, 2)]
    codec = USUAL
    groups = [group_of((2, 2, 16, 24), "float32", seed=seed) for seed in (1, 2)]
    bodies = [codec.encode(g, Place(0, 64), s) for g, s in zip(groups, sets, strict=True)]

    def decoded(which: int) -> Tensor:
        out = torch.empty_like(groups[which])
        codec.decode(memoryview(bodies[which]), Place(0, 64), sets[which], out)
        return out

    first = [decoded(0), decoded(1)]
    with ThreadPoolExecutor(4) as pool:
        for which, out in zip([0, 1] * 20, pool.map(decoded, [0, 1] * 20), strict=True):
            assert torch.equal(out, first[which])


def test_inference_mode_may_come_and_go() -> None:
    """What is kept between calls can be written to in and out of it."""
    group = group_of((2, 2, 16, 24), "float32")
    dictionary = random_set(2, 16, 44)
    body = USUAL.encode(group, Place(0, 64), dictionary)
    outs = []
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            out = torch.empty_like(group)
            USUAL.decode(memoryview(body), Place(0, 64), dictionary, out)
        outs.append(out.clone())
    assert all(torch.equal(out, outs[0]) for out in outs)
