"""Several answers read side by side from a daemon, and what is made of the moments at which their tokens came."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from teengined.client.asynchronous import AsyncClient
from teengined.core.sampling import SamplingParams
from teengined.protocol.messages import Generate, TokenChunk

__all__ = ["Stamps", "StreamFigures", "figures_of", "percentile", "read_stream", "read_streams"]

Stamps = Sequence[Sequence[float]]
"""For each stream the seconds, since all of them were asked for, at which each of its tokens came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFigures:
    """One engine with one number of streams."""

    tokens_per_s: float
    """Of all streams together while all of them decode: from the last one's first token to the first one's last."""
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float

    def mapping(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


async def read_stream(client: AsyncClient, request: Generate, start_seconds: float | None = None) -> list[float]:
    """Return when each token of one answer came, since `start_seconds` (perf_counter) or the call."""
    start = time.perf_counter() if start_seconds is None else start_seconds
    stamps: list[float] = []
    async for event in client.generate(request):
        if isinstance(event, TokenChunk):
            stamps += [time.perf_counter() - start] * len(event.token_ids)
    return stamps


def read_streams(endpoint: str, model: str, prompts: Sequence[Sequence[int]], num_tokens: int) -> Stamps:
    """Ask for all answers at once, greedy, through one client, and read them to their ends."""

    async def read() -> Stamps:
        async with AsyncClient(endpoint) as client:
            start = time.perf_counter()
            sampling = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
            requests = [Generate(model=model, token_ids=tuple(prompt), sampling=sampling) for prompt in prompts]
            return await asyncio.gather(*(read_stream(client, request, start) for request in requests))

    return asyncio.run(read())


def figures_of(stamps: Stamps) -> StreamFigures:
    """Return the figures of one case; every stream has at least two tokens.

    Gaps between tokens are those of each stream by itself, after its first token.
    """
    begin, end = max(times[0] for times in stamps), min(times[-1] for times in stamps)
    if end <= begin:  # They never ran all together: count from the first token to the last.
        begin, end = min(times[0] for times in stamps), max(times[-1] for times in stamps)
    num_tokens = sum(begin < moment <= end for times in stamps for moment in times)
    gaps = [later - earlier for times in stamps for earlier, later in itertools.pairwise(times)]
    firsts = [times[0] for times in stamps]
    return StreamFigures(
        tokens_per_s=num_tokens / (end - begin),
        ttft_p50_ms=statistics.median(firsts) * 1e3,
        ttft_p99_ms=percentile(firsts, 0.99) * 1e3,
        itl_p50_ms=statistics.median(gaps) * 1e3,
        itl_p99_ms=percentile(gaps, 0.99) * 1e3,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
