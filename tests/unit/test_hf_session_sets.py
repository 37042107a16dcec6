"""Sessions of a model without a set, until one is published and behind it: what was stored lossless
before is found, what is stored from then on is coded, and no prompt is of both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_client import Client, InMemoryTransport
from lexico_client.hf import HuggingFaceCache, Session
from lexico_codec.codecs import LosslessCodec
from tests.support.client_fixtures import PATIENT
from tests.support.coded_models import DICTIONARY, PAGE_TOKENS, llama
from tests.support.sessions import PLAIN, STATIC_COUNTS, batch_of, ids_of, outcomes_of, warmed
from tests.support.waiting import wait_until

OLD, NEW, NEITHER = ids_of(60, 1), ids_of(50, 2), ids_of(20, 3)


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}], ids=str)
def test_a_set_that_is_published_while_a_session_is_in_use(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    if settings and not STATIC_COUNTS:
        pytest.skip("static caches of this transformers are refused")
    model = llama(attn_implementation="sdpa")
    eager = replace(PATIENT, sets=1e-9)
    with Client(transport=InMemoryTransport(), dictionaries_dir=tmp_path, timeouts=eager) as client:
        shared = HuggingFaceCache(
            client, model, codec="paper", page_tokens=PAGE_TOKENS, recent_tokens=4
        )
        assert shared.spec.codec == LosslessCodec()
        with Session(shared) as session:
            warmed(session, [OLD])
            client.publish_dictionary(DICTIONARY, shared.spec)
            wait_until(lambda: shared.spec.dictionary == DICTIONARY.digest, "the set")
            warmed(session, [NEW])
            expected = model.generate(torch.tensor([OLD]), **PLAIN)
            got = session.generate(torch.tensor([OLD]), **PLAIN | settings, offload=False)
            assert torch.equal(got.output, expected), "lossless, as nothing else is there"
            assert got.report.reloaded_tokens == 56
            batch = batch_of([OLD, NEW, NEITHER])
            both = session.generate(**batch, **PLAIN | settings)
            assert [each.reloaded_tokens for each in both.report.prompts] == [56, 46, 0]
            assert [each.pages for each in both.report.prompts] == [7, 6, 0]
            assert torch.equal(both.output[0], expected[0])
            assert outcomes_of(both.report) == ["s" * 8, "p" * 6 + "s", "s" * 3]
            moved = session.generate(torch.tensor([OLD]), **PLAIN | settings)
            assert moved.report.reloaded_tokens == 56, "coded now, and the four newest are not"
