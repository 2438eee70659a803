"""Calls that ask what a model thinks of a given text: how probable it is, or where it lies."""

import asyncio
import math
import secrets
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from teengined.core.errors import Cancelled, InternalError, NumericalFault, QueueFull, QuotaExceeded, RequestError
from teengined.core.request import FinishReason, Goal, TokenLogprobs, Usage
from teengined.core.sampling import SamplingParams
from teengined.protocol import messages as wire
from teengined.service.admission import cache_salt_of, check_embed, check_prompt, check_score, check_told, timeout_of
from teengined.service.answer import Outcome
from teengined.service.context import ServiceContext
from teengined.service.deployment import LoadedModel
from teengined.service.detached_threads import DetachedThreads
from teengined.service.requests import RequestTable
from teengined.service.server import Call
from teengined.service.submission import Submission

__all__ = ["Scorings", "normalized", "patiently"]

# Of one call for many vectors: enough to fill steps, few enough to leave the queue to others.
_MAX_AT_ONCE = 32
# Between two tries of one of them: room is found soon after it is there, and looking for it costs little.
_SHORTEST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.02, 0.5

T = TypeVar("T")


class Scorings:
    """Handlers of one daemon."""

    def __init__(self, requests: RequestTable) -> None:
        """Share the table of requests with the other handlers."""
        self._requests = requests
        self._arithmetic = DetachedThreads(1)

    async def score(self, context: ServiceContext, call: Call, message: wire.Score) -> wire.Scored:
        """Tell how probable a continuation is."""
        context.deployments.check_open()
        model = context.deployments.get(message.model)
        check_score(message)
        model.check_room(call.owner, 1)
        ends_seconds = time.monotonic() + timeout_of(message.timeout_seconds, model.request_limits)
        before, after = await model.prompts.read_pair(message)
        check_prompt(before + after, 0, model.request_limits)
        check_told(len(after), message.top, model.request_limits)
        submission = Submission(
            request_id=secrets.token_hex(8),
            owner=call.owner,
            prompt=before + after,
            deadline_seconds=ends_seconds,
            # Whether a token is the most probable one is seen from the most probable one.
            sampling=SamplingParams(max_tokens=1, prompt_logprobs=max(1, message.top)),
            salt=cache_salt_of(call.owner, ""),
            goal=Goal.SCORE,
            score_start=len(before),
        )
        outcome = await self._run(model, call, submission)
        if [item.token_id for item in outcome.prompt_logprobs] != list(after):
            raise InternalError("the stages told of other tokens than those of the continuation")
        return _scored(outcome, message.top)

    async def embed(self, context: ServiceContext, call: Call, message: wire.Embed) -> wire.Embedded:
        """Turn each input into a vector. A call that is taken waits for room for the rest of its inputs.

        Raises:
            QueueFull, QuotaExceeded: there is no room for the first one, or was none in time.
        """
        context.deployments.check_open()
        model = context.deployments.get(message.model)
        check_embed(message, model.request_limits)
        model.check_room(call.owner, 1)
        ends_seconds = time.monotonic() + timeout_of(message.timeout_seconds, model.request_limits)
        places = asyncio.Semaphore(_MAX_AT_ONCE)

        async def embed_one(item: str | tuple[int, ...]) -> Outcome:
            async with places:
                prompt = await patiently(partial(_read, model, item), ends_seconds)
                check_prompt(prompt, 0, model.request_limits)
                submission = Submission(
                    request_id=secrets.token_hex(8),
                    owner=call.owner,
                    prompt=prompt,
                    deadline_seconds=ends_seconds,
                    sampling=SamplingParams(max_tokens=1),
                    salt=cache_salt_of(call.owner, ""),
                    goal=Goal.EMBED,
                    pooling=message.pooling,
                )
                return await patiently(partial(self._run, model, call, submission), ends_seconds)

        outcomes = await _all_or_none([embed_one(item) for item in message.texts or message.token_ids])
        # Millions of numbers take a while, in which others are served.
        return await self._arithmetic.run(partial(_embedded, outcomes, normalize=message.normalize))

    async def _run(self, model: LoadedModel, call: Call, submission: Submission) -> Outcome:
        with self._requests.under_way(model, model.submit(submission), call.client) as live:
            outcome = await live.outcome(submission.deadline_seconds)
        if outcome.reason is FinishReason.CANCELLED:
            raise Cancelled(f"request {submission.request_id} was cancelled")
        return outcome


async def patiently(ask: Callable[[], Awaitable[T]], ends_seconds: float) -> T:
    """Return what `ask` returns, asking again while there is no room for it, until `ends_seconds` (monotonic).

    Raises:
        QueueFull, QuotaExceeded: there was none in time.
    """
    while True:
        try:
            return await ask()
        except (QueueFull, QuotaExceeded) as full:
            wanted_seconds = full.retry_after_seconds or 0.0
            delay_seconds = min(max(wanted_seconds, _SHORTEST_DELAY_SECONDS), _LONGEST_DELAY_SECONDS)
            if time.monotonic() + delay_seconds >= ends_seconds:
                raise
            await asyncio.sleep(delay_seconds)


async def _read(model: LoadedModel, item: str | tuple[int, ...]) -> tuple[int, ...]:
    return await model.prompts.read_text(item) if isinstance(item, str) else item


def normalized(vector: bytes) -> bytes:
    """Return a vector (fp32, little-endian) with length 1; one without any length stays.

    Raises:
        NumericalFault: it holds what is no number.
    """
    values = _floats(vector)
    length = math.hypot(*values)
    if not math.isfinite(length):
        raise NumericalFault("the vector is not made of numbers", hint="the model or its precision overflows here")
    return _bytes(array("f", [value / length for value in values])) if length else vector


def _scored(outcome: Outcome, num_top: int) -> wire.Scored:
    told = outcome.prompt_logprobs
    return wire.Scored(
        logprobs=tuple(
            TokenLogprobs(token_id=item.token_id, logprob=item.logprob, top=item.top[:num_top]) for item in told
        ),
        total=math.fsum(item.logprob for item in told),
        is_greedy=all(item.top[:1] and item.top[0][0] == item.token_id for item in told),
        usage=outcome.usage,
    )


def _embedded(outcomes: Sequence[Outcome], *, normalize: bool) -> wire.Embedded:
    vectors = [outcome.vector or b"" for outcome in outcomes]
    sizes = {len(vector) for vector in vectors}
    if len(sizes) != 1 or 0 in sizes:
        raise RequestError("this model gives no vector for a text", hint="ask a model that does")
    return wire.Embedded(
        vectors=tuple(normalized(vector) if normalize else vector for vector in vectors),
        dimensions=sizes.pop() // array("f").itemsize,
        usage=_summed([outcome.usage for outcome in outcomes]),
    )


def _summed(usages: Sequence[Usage]) -> Usage:
    """Return what several sequences used together; they waited and ran side by side."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=0,
        prefill_seconds=max(usage.prefill_seconds for usage in usages),
        decode_seconds=0.0,
        streamed_bytes=sum(usage.streamed_bytes for usage in usages),
        bound_seconds_per_token=max(usage.bound_seconds_per_token for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        queued_seconds=max(usage.queued_seconds for usage in usages),
    )


async def _all_or_none(work: Sequence[Coroutine[Any, Any, Outcome]]) -> list[Outcome]:
    """Return all results, or raise the first error after the others were stopped."""
    tasks = [asyncio.create_task(item) for item in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _floats(vector: bytes) -> "array[float]":
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _bytes(values: "array[float]") -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
