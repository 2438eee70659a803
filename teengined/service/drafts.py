"""Tokens guessed ahead: what was asked for at the load, and what is told of it."""

from collections.abc import Iterable
from dataclasses import replace

from teengined.protocol.messages import DraftedTokens, LoadModel
from teengined.scheduler.limits import SchedulerLimits
from teengined.scheduler.speculation import Drafted
from teengined.service.settings import SpeculationSettings

__all__ = ["drafted_tokens", "with_drafts"]


def with_drafts(limits: SchedulerLimits, settings: SpeculationSettings, request: LoadModel) -> SchedulerLimits:
    """Return the limits with those of guesses, as this load or else the configuration wants them."""
    mode = request.speculation or settings.mode
    return replace(
        limits, max_drafted=0 if mode == "off" else settings.max_tokens, lookup_tokens=settings.lookup_window
    )


def drafted_tokens(drafted: Iterable[Drafted]) -> tuple[DraftedTokens, ...]:
    """Return the scheduler's counts as clients are told of them."""
    return tuple(
        DraftedTokens(
            request_class=item.request_class,
            source=item.source,
            is_on=item.is_on,
            num_drafted=item.num_drafted,
            num_accepted=item.num_accepted,
        )
        for item in drafted
    )
