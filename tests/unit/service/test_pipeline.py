import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from teengined.core.errors import (
    DeadlineExceeded,
    InternalError,
    MessageTooLarge,
    PackageCorrupt,
    PeerLost,
    TeengineError,
)
from teengined.protocol.worker_messages import SampledToken, SequencePart, StepDone
from teengined.scheduler.events import Run, StepCompleted, StepFailed
from teengined.service.pipeline import FinishedStep, Pipeline


class Stages:
    """Two stages that are told steps, and their workers."""

    device_ids = ("cpu:0", "cpu:1")

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.killed: list[str] = []
        self.refuses = False

    def index_of(self, device_id: str) -> int:
        return self.device_ids.index(device_id)

    def run(self, run: Run) -> None:
        if self.refuses:
            raise MessageTooLarge("much too large")
        self.sent.append(run.step)

    def note_progress(self, device_id: str) -> None:
        pass

    def kill(self, device_id: str, reason: str) -> None:
        self.killed.append(device_id)


class Story:
    def __init__(self, step_timeout: float = 100.0) -> None:
        self.stages = Stages()
        self.finished: list[FinishedStep] = []
        self.broken: list[TeengineError] = []
        self.pipeline = Pipeline(
            stages=cast("Any", self.stages),
            pool=cast("Any", self.stages),
            step_timeout=step_timeout,
            on_finished=self.finished.append,
            on_broken=self.broken.append,
        )

    def run(self, *steps: int) -> None:
        for step in steps:
            self.pipeline.run(Run(step=step, parts=(SequencePart(sequence_id=1, token_ids=(5,), start_position=0),)))

    def done(self, device_id: str, step: int, token: int | None = None) -> None:
        tokens = () if token is None else (SampledToken(sequence_id=1, token_id=token),)
        message = StepDone(
            deployment_id="d",
            stage_index=self.stages.index_of(device_id),
            step=step,
            tokens=tokens,
            seconds=0.001,
            compute_seconds=0.001,
            stall_seconds=0.0,
            streamed_bytes=10,
        )
        self.pipeline.on_step_done(device_id, message)

    async def until_broken(self) -> TeengineError:
        async with asyncio.timeout(20):
            while not self.broken:  # noqa: ASYNC110 - a list tells nobody
                await asyncio.sleep(0.001)
        return self.broken[0]


def tell(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def test_step_is_over_when_every_stage_has_reported():
    async def story() -> None:
        made = Story()
        made.run(0, 1)
        made.done("cpu:0", 0)
        made.done("cpu:0", 1)
        assert made.finished == []
        made.done("cpu:1", 0, token=7)
        made.done("cpu:1", 1, token=8)

        assert [step.event.step for step in made.finished] == [0, 1]
        event = made.finished[0].event
        assert isinstance(event, StepCompleted)
        assert event.tokens[0].token_id == 7
        assert sum(part.streamed_bytes for part in made.finished[0].parts) == 20
        assert not made.pipeline.busy
        made.pipeline.abandon()

    tell(story)


@pytest.mark.parametrize("first", [0, 1])
def test_stage_that_knows_why_is_believed_before_its_neighbour(first: int):
    async def story() -> None:
        made = Story()
        made.run(0)
        reports = [("cpu:0", InternalError("it is broken")), ("cpu:1", PeerLost("the other end is gone"))]
        for device_id, error in (reports[first], reports[1 - first]):
            made.pipeline.on_step_error(device_id, 0, error)

        event = made.finished[0].event
        assert isinstance(event, StepFailed)
        assert isinstance(event.error, InternalError)

    tell(story)


@pytest.mark.parametrize("first", [0, 1])
def test_stage_that_knows_whose_fault_it_was_is_believed_whoever_speaks_first(first: int):
    async def story() -> None:
        made = Story()
        made.run(0)
        reports = [("cpu:0", PackageCorrupt("it is damaged"), (7,)), ("cpu:1", PeerLost("nothing came"), ())]
        for device_id, error, blamed_ids in (reports[first], reports[1 - first]):
            made.pipeline.on_step_error(device_id, 0, error, blamed_ids)

        event = made.finished[0].event
        assert isinstance(event, StepFailed)
        assert (type(event.error), event.blamed_ids) == (PackageCorrupt, (7,))

    tell(story)


def test_step_that_one_stage_finished_and_another_did_not_has_failed():
    async def story() -> None:
        made = Story()
        made.run(0, 1)
        made.done("cpu:0", 0)
        made.pipeline.on_step_error("cpu:1", 0, InternalError("no"))
        made.done("cpu:0", 1)
        made.done("cpu:1", 1, token=3)

        assert [type(step.event) for step in made.finished] == [StepFailed, StepCompleted]
        made.pipeline.abandon()

    tell(story)


def test_reports_of_steps_that_were_given_up_are_dropped():
    async def story() -> None:
        made = Story()
        made.run(0)
        made.pipeline.abandon()
        made.done("cpu:0", 0)
        made.pipeline.on_step_error("cpu:1", 0, InternalError("no"))

        assert (made.finished, made.pipeline.busy) == ([], False)

    tell(story)


def test_stages_that_do_not_finish_the_oldest_step_in_time_are_killed():
    async def story() -> None:
        made = Story(step_timeout=0.02)
        made.run(0, 1)
        made.done("cpu:0", 0)

        assert isinstance(await made.until_broken(), DeadlineExceeded)
        assert made.stages.killed == ["cpu:1"]
        made.pipeline.abandon()

    tell(story)


def test_step_has_its_time_from_when_it_is_the_oldest():
    async def story() -> None:
        made = Story(step_timeout=0.2)
        loop = asyncio.get_running_loop()
        began = loop.time()
        made.run(0, 1)
        await asyncio.sleep(0.1)
        made.done("cpu:0", 0)
        made.done("cpu:1", 0, token=1)
        await made.until_broken()

        assert loop.time() - began >= 0.3
        made.pipeline.abandon()

    tell(story)


def test_step_that_cannot_be_sent_breaks_the_pipeline_once_its_sender_is_done():
    async def story() -> None:
        made = Story()
        made.stages.refuses = True
        made.run(0)
        assert made.broken == []

        assert isinstance(await made.until_broken(), MessageTooLarge)
        made.pipeline.abandon()

    tell(story)
