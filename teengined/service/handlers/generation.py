"""Calls that ask a model for text, and what may be said about them while they are under way."""

import secrets
import time
from dataclasses import replace

from teengined.core.errors import NotAllowed
from teengined.core.request import FinishReason
from teengined.protocol import messages as wire
from teengined.service.admission import cache_salt_of, check_generate, check_prompt, check_told, may_act_for, timeout_of
from teengined.service.chunk_stream import ChunkStream
from teengined.service.context import ServiceContext
from teengined.service.prompts import Prompt
from teengined.service.requests import RequestTable
from teengined.service.server import Call
from teengined.service.submission import Submission

__all__ = ["Generations"]


class Generations:
    """Handlers of one daemon."""

    def __init__(self, requests: RequestTable, daemon_uid: int) -> None:
        """Share the table of requests with the other handlers. The daemon's own user may see and stop all of them."""
        self._requests = requests
        self._daemon_uid = daemon_uid

    async def generate(self, context: ServiceContext, call: Call, message: wire.Generate) -> wire.Finished:
        """Check, queue, stream, finish. A caller who leaves cancels; a flood is refused before any work."""
        context.deployments.check_open()
        model = context.deployments.get(message.model)
        limits = model.request_limits
        check_generate(message, limits)
        ends_seconds = time.monotonic() + timeout_of(message.timeout_seconds, limits)
        model.check_room(call.owner, message.sampling.num_choices)
        with self._requests.name(call.owner, message.client_id):
            prompt = await model.prompts.read(message)
            check_prompt(prompt.token_ids, message.sampling.max_tokens, limits)
            if message.sampling.prompt_logprobs is not None:
                check_told(len(prompt.token_ids), message.sampling.prompt_logprobs, limits)
            if message.sampling.grammar is not None:
                await context.grammars.check(message.sampling.grammar, model.package_dir, call.owner)
            context.deployments.check_open()  # Reading may have taken a while.
            stream = _stream(context, call, message)
            submission = replace(
                _submission(call, message, prompt, stream),
                deadline_seconds=ends_seconds,
                parser=model.parser if message.parse else None,
            )
            with self._requests.under_way(model, model.submit(submission), call.client) as live:
                # The first chunk comes from the stages, later; `Accepted` is out before it.
                call.stream(
                    wire.Accepted(
                        request_id=submission.request_id,
                        num_prompt_tokens=len(prompt.token_ids),
                        context_tokens=limits.context_tokens,
                    )
                )
                outcome = await live.outcome(ends_seconds)
        return wire.Finished(
            request_id=submission.request_id,
            sequence=stream.num_sent,
            reason=FinishReason.CANCELLED if live.cancelled else outcome.reason,
            usage=outcome.usage,
            prompt_logprobs=outcome.prompt_logprobs,
        )

    async def cancel(self, _context: ServiceContext, call: Call, message: wire.Cancel) -> wire.Done:
        """Stop a request; its own call ends with reason `cancelled`.

        Raises:
            UnknownRequest: it is not under way.
            NotAllowed: it is another user's.
        """
        live = self._requests.find(message.request_id)
        if not may_act_for(call.owner, live.answer.owner, self._daemon_uid):
            raise NotAllowed(
                f"request {message.request_id} is another user's",
                hint="its user, root and the daemon's user may stop it",
            )
        live.cancel()
        return wire.Done()

    async def list_requests(self, context: ServiceContext, call: Call, message: wire.ListRequests) -> wire.RequestList:
        """Tell what is under way of the caller, and of everyone to root and the daemon's own user."""
        models = [context.deployments.get(message.model)] if message.model else context.deployments.models
        items = (item for model in models for item in model.requests())
        found = [item for item in items if may_act_for(call.owner, item.owner, self._daemon_uid)]
        return wire.RequestList(requests=tuple(sorted(found, key=lambda item: -item.age_seconds)))

    def grant(self, client: bytes, message: wire.Grant) -> None:
        """Let more chunks of an answer go."""
        self._requests.grant(client, message.request_id, message.chunks)


def _stream(context: ServiceContext, call: Call, message: wire.Generate) -> ChunkStream:
    return ChunkStream(
        request_id=secrets.token_hex(8),
        send=call.stream,
        credits=message.credits or None,
        max_buffer_bytes=context.loaded.config.batching.max_stream_buffer,
    )


def _submission(call: Call, message: wire.Generate, prompt: Prompt, stream: ChunkStream) -> Submission:
    return Submission(
        request_id=stream.request_id,
        owner=call.owner,
        prompt=prompt.token_ids,
        prompt_tail=prompt.tail,
        sampling=message.sampling,
        client_id=message.client_id,
        priority=message.priority,
        salt=cache_salt_of(call.owner, message.cache_salt),
        # Of a prompt's tokens all but the first have a probability.
        score_start=0 if message.sampling.prompt_logprobs is None else 1,
        stream=stream,
        speculates=message.speculate,
    )
