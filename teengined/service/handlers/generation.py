"""Answers: a request is checked against the model and the deployment before anything is promised."""

import asyncio

from teengined.core.errors import ContextTooLong, RequestError, UnknownRequest
from teengined.core.sampling import SamplingParams
from teengined.protocol import messages as wire
from teengined.service.answer import Answer
from teengined.service.context import ServiceContext
from teengined.service.deployment import LoadedModel, Submission
from teengined.service.server import Call

__all__ = ["Generations"]


class Generations:
    """Requests under way, by the id that the daemon gave them."""

    def __init__(self) -> None:
        """Start empty."""
        self._live: dict[str, tuple[LoadedModel, Answer]] = {}

    async def generate(self, context: ServiceContext, call: Call, message: wire.Generate) -> wire.Finished:
        """Check, queue, stream, finish. A caller who leaves cancels."""
        context.deployments.check_open()
        model = context.deployments.get(message.model)
        prompt = await _prompt_tokens(model, message)
        _check_context(model, prompt, message.sampling)
        submission = Submission(
            owner=call.client.hex(),
            prompt=prompt,
            sampling=message.sampling,
            timeout_seconds=_timeout(context, message),
            deliver=call.stream,
        )
        # The first chunk comes from the stages, later; `Accepted` is out before it.
        answer = model.submit(submission)
        self._live[answer.request_id] = (model, answer)
        try:
            call.stream(
                wire.Accepted(
                    request_id=answer.request_id,
                    num_prompt_tokens=len(prompt),
                    context_tokens=model.stages.plan.context_tokens,
                )
            )
            return await asyncio.shield(answer.ended)
        finally:
            del self._live[answer.request_id]
            if not answer.ended.done():
                model.cancel(answer)

    async def cancel(self, _context: ServiceContext, _call: Call, message: wire.Cancel) -> wire.Done:
        """Stop a request; its own call ends with reason `cancelled`."""
        live = self._live.get(message.request_id)
        if live is None:
            raise UnknownRequest(f"no request {message.request_id:.80} is under way", hint="it may have finished")
        model, answer = live
        model.cancel(answer)
        return wire.Done()


async def _prompt_tokens(model: LoadedModel, message: wire.Generate) -> tuple[int, ...]:
    num_given = (message.prompt is not None) + bool(message.messages) + bool(message.token_ids)
    if num_given != 1:
        raise RequestError(f"exactly one of prompt, messages and token_ids must be given, got {num_given}")
    if message.prompt is not None:
        prompt = await asyncio.to_thread(model.text.encode, message.prompt)
    elif message.messages:
        prompt = await asyncio.to_thread(model.text.encode_chat, message.messages)
    else:
        prompt = message.token_ids
    if not prompt:
        raise RequestError("the prompt has no tokens", hint="write at least one word")
    vocab_size = model.manifest.vocab_size
    if not 0 <= min(prompt) <= max(prompt) < vocab_size:
        raise RequestError(f"token ids must be between 0 and {vocab_size - 1}, got {min(prompt)} to {max(prompt)}")
    return prompt


def _check_context(model: LoadedModel, prompt: tuple[int, ...], sampling: SamplingParams) -> None:
    context_tokens = model.stages.plan.context_tokens
    needed = len(prompt) + sampling.max_tokens
    if needed > context_tokens:
        room = context_tokens - len(prompt)
        ask = f"ask for at most {room} tokens" if room > 0 else "shorten the prompt"
        raise ContextTooLong(
            f"{len(prompt)} prompt tokens and max_tokens {sampling.max_tokens} make {needed}; "
            f"{model.name} is loaded with a context of {context_tokens}",
            hint=f"{ask}, or load it with a larger --context",
        )


def _timeout(context: ServiceContext, message: wire.Generate) -> float:
    longest = context.loaded.config.limits.max_request_time
    if message.timeout_seconds < 0 or message.timeout_seconds != message.timeout_seconds:
        raise RequestError(f"timeout_seconds must be at least 0, got {message.timeout_seconds}")
    return min(message.timeout_seconds or longest, longest)
