"""How many encoders the policy wants, and what it is told."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from lexico_codec.pieces import Piece
from lexico_proto.errors import ConfigurationError
from lexico_services.config import ListenConfig, OffloadConfig
from lexico_services.offload.deployment import IngressConfig, Placement, offload_app
from lexico_services.offload.ingress import Ingress
from lexico_services.offload.upload import Upload
from lexico_worker.autoscaling import ALL_AT, FULLNESS, Fullness, encoders_wanted
from lexico_worker.config import EncoderConfig
from lexico_worker.page_encoder import Outcome, PageDone, PageJob
from tests.support.services import Prompt, prompt
from tests.support.waiting import until

MOST = 8


def context(pages: float, *told: float) -> AutoscalingContext:
    """What Serve hands to a policy.

    Args:
        pages: running and queued.
        told: what each encoder says.
    """
    identity = DeploymentID("Encoder", "lexico")
    metrics: Any = {FULLNESS: dict(enumerate(told))} if told else {}
    return AutoscalingContext(
        deployment_id=identity,
        deployment_name=identity.name,
        app_name=identity.app_name,
        current_num_replicas=2,
        target_num_replicas=2,
        running_replicas=[],
        total_num_requests=pages,
        total_queued_requests=0.0,
        aggregated_metrics=metrics,
        raw_metrics={},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=MOST,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=AutoscalingConfig(max_replicas=MOST, target_ongoing_requests=2),
    )


@pytest.mark.parametrize(
    ("pages", "told", "wanted"),
    [
        (0.0, (), 0.0),
        (0.0, (0.0, 0.0), 0.0),
        (7.0, (0.0,), 3.5),  # pages of the queue, two an encoder
        (1.0, (0.0, ALL_AT / 2), MOST / 2),  # few pages, many bytes
        (1.0, (ALL_AT,), MOST),
        (1.0, (1.0,), MOST),  # and no more than there may be
        (15.0, (ALL_AT / 2,), 7.5),  # whichever wants more
    ],
)
def test_the_policy_wants_what_queue_or_bytes_need(
    pages: float, told: tuple[float, ...], wanted: float
) -> None:
    assert encoders_wanted(context(pages, *told))[0] == wanted


def test_the_policy_reaches_serves_controller_by_value() -> None:
    policy = AutoscalingPolicy(policy_function=encoders_wanted)
    assert policy.policy_function == "lexico_worker.autoscaling.encoders_wanted"
    there = policy.get_policy()
    assert there is not encoders_wanted
    assert there(context(1.0, ALL_AT))[0] == MOST


def test_an_encoder_tells_of_the_pages_that_are_with_it() -> None:
    fullness = Fullness()
    assert fullness.highest() == 0.0
    with fullness.of(0.2):
        with fullness.of(0.7), fullness.of(0.7):
            assert fullness.highest() == 0.7
        assert fullness.highest() == 0.2
    assert fullness.highest() == 0.0


class Slow:
    """Encoders that take their time."""

    def __init__(self) -> None:
        self.jobs: list[PageJob] = []
        self.go_on = asyncio.Event()

    async def running(self) -> int | None:
        return None

    async def place(self, page: list[Piece]) -> Any:
        return page.copy()

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        self.jobs.append(job)
        await self.go_on.wait()
        return PageDone(Outcome.STORED)


async def test_each_page_says_how_full_its_ingress_was() -> None:
    slow, sent = Slow(), prompt(pages=3)
    size = sent.spec.page_bytes
    ingress = Ingress(slow, OffloadConfig(max_inflight_bytes=10 * size, pages_ahead=3))
    upload = Upload(b"s" * 16, sent.spec, sent.token_ids, range(3), sent.keys)
    putting = asyncio.create_task(ingress.put(upload, parts_of(sent)))
    await until(lambda: len(slow.jobs) == 3, "three pages with encoders")
    assert sorted(job.fullness for job in slow.jobs) == pytest.approx([0.1, 0.2, 0.3])
    assert ingress.encoding_bytes == 3 * size
    slow.go_on.set()
    await putting
    assert ingress.encoding_bytes == 0


async def parts_of(sent: Prompt) -> Any:
    from lexico_codec.put_messages import parse_put

    for message in sent.body():
        yield parse_put(message.SerializeToString())
        await asyncio.sleep(0)


@pytest.mark.parametrize("delay", ["upscale_delay_s", "downscale_delay_s"])
def test_delays_are_no_negative_numbers(delay: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{delay} must not be negative"):
        EncoderConfig("redis://h", **{delay: -1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize(("max_encoding", "warned"), [(16, False), (15, True)])
def test_encoders_that_would_never_be_wanted_are_told(
    max_encoding: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ingress = IngressConfig(ListenConfig(), OffloadConfig(max_encoding=max_encoding))
    with caplog.at_level(logging.WARNING, "lexico_services"):
        offload_app(ingress, EncoderConfig("redis://h", max_replicas=8), Placement.on("127.0.0.1"))
    assert ("some of them will never be started" in caplog.text) == warned
