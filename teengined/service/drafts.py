"""Tokens guessed ahead: what was asked for at the load, and what is told of it."""

from collections.abc import Iterable
from dataclasses import replace

from teengined.core.errors import RequestError
from teengined.protocol.messages import DraftedTokens, LoadModel
from teengined.scheduler.limits import SchedulerLimits
from teengined.scheduler.speculation import Drafted
from teengined.service.settings import SpeculationSettings

__all__ = ["check_mode", "drafted_tokens", "with_drafts"]


def with_drafts(limits: SchedulerLimits, settings: SpeculationSettings, request: LoadModel) -> SchedulerLimits:
    """Return the limits with those of guesses, as this load or else the configuration wants them."""
    mode = request.speculation or settings.mode
    return replace(
        limits,
        max_drafted=0 if mode == "off" else settings.max_tokens,
        lookup_tokens=0 if mode == "draft" else settings.lookup_window,
        draft_wait_seconds=settings.draft_wait,
    )


def check_mode(mode: str, draft: str) -> None:
    """Refuse what cannot guess as it is told to.

    Raises:
        RequestError: guesses by a model are wanted and none is named, or one is named and not wanted.
    """
    if mode == "draft" and not draft:
        raise RequestError("speculation by a draft model needs one", hint="name a loaded model with --draft")
    if draft and mode in ("off", "lookup"):
        raise RequestError(
            f"a draft model is named, and speculation is {mode}", hint="choose --speculation auto or draft"
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
