"""Models of which each rank holds a slice: one identity for all, and no slice taken for a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from lexico_client import Client, InMemoryTransport, fingerprint_files
from lexico_client.hf import HuggingFaceCache
from lexico_proto.errors import Unsupported
from tests.support.saved_model import save_tiny

IDS = list(range(1, 25))


@pytest.fixture(autouse=True)
def no_kept_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexico_client._weights_files.default_folder", lambda: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path / "sets") as client:
        yield client


@pytest.fixture(params=[1, 2, 4], ids="{} ranks".format)
def ranks(request: pytest.FixtureRequest) -> Iterator[int]:
    """A group of so many processes, of which this is the last one; nobody answers it."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    count: int = request.param
    distributed.init_process_group("fake", store=FakeStore(), rank=count - 1, world_size=count)
    yield count
    distributed.destroy_process_group()


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def split(model: nn.Module, ranks: int) -> None:
    """As tensor parallelism does it: each rank has a part of the rows of the projections."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (ranks,))
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            linear: Any = module
            rows = linear.weight.detach().chunk(ranks)[-1]
            made = DTensor.from_local(rows.clone(), mesh, [Shard(0)], run_check=False)
            linear.weight = nn.Parameter(made)


def test_every_number_of_ranks_has_the_identity_of_the_files(
    folder: Path, client: Client, ranks: int
) -> None:
    whole = HuggingFaceCache(client, loaded(folder), codec="raw", page_tokens=8).spec
    model, files = loaded(folder), fingerprint_files(folder)
    split(model, ranks)
    shared = HuggingFaceCache(client, model, codec="raw", page_tokens=8, weights=files)
    assert shared.spec.identity == whole.identity
    if ranks == 1:
        assert HuggingFaceCache(client, model, codec="raw", page_tokens=8).spec == whole
        assert shared.load(IDS).tokens == 0
        return
    with pytest.raises(Unsupported, match=f"split over {ranks} ranks.*fingerprint_files"):
        HuggingFaceCache(client, model, codec="raw", page_tokens=8)
    for call in (lambda: shared.load(IDS), lambda: shared.offload(IDS, None)):  # type: ignore
        with pytest.raises(Unsupported, match="slice of its pages"):
            call()


def test_a_model_that_says_so_itself(folder: Path, client: Client) -> None:
    """Releases of transformers differ in what tensors they split it into."""
    model = loaded(folder)
    model._tp_size = 2
    with pytest.raises(Unsupported, match="split over 2 ranks"):
        HuggingFaceCache(client, model, codec="raw", page_tokens=8)


def test_a_write_to_a_slice_is_noticed(folder: Path, client: Client, ranks: int) -> None:
    from lexico_client.engines.hf._weights import sample

    model = loaded(folder)
    split(model, ranks)
    before = sample(model)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.to_local().add_(1)
    assert sample(model) != before
