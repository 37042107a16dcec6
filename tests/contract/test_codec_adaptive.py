"""lexico-adaptive: never worse than lexico, one atom for odd vectors, independent pages."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from lexico_codec.codecs import AdaptiveCodec, Codec, LexicoCodec, Place
from tests.contract.adaptive_case import (
    FIXED,
    FP8,
    USUAL,
    AdaptiveCase,
    odd_group,
    parse,
    relative,
    through,
)
from tests.contract.codec_suite import (
    FAR,
    SHAPES,
    SMALL,
    CodecSuite,
    Shape,
    bits,
    group_of,
)
from tests.support.dictionaries import random_set, unit_rows


class TestAdaptiveCodec(AdaptiveCase, CodecSuite):
    @pytest.mark.parametrize("first_layer", [1, 4])
    def test_layers_of_the_middle(self, codec: Codec, first_layer: int) -> None:
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
