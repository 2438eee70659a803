"""How well a model predicts a text: the perplexity, by its log-likelihoods of pieces of the text."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from teengined.client.blocking import Client
from teengined.core.errors import RequestError
from teengined.protocol.messages import Score

__all__ = ["WINDOW_CHARACTERS", "Perplexity", "measure_perplexity", "windows_of"]

# About 400 tokens of English: long enough that the first tokens, which have little before them, weigh little.
WINDOW_CHARACTERS = 1600


@dataclass(frozen=True, slots=True, kw_only=True)
class Perplexity:
    """What a model makes of a text."""

    num_tokens: int
    total: float
    """Log-likelihood of all tokens together, in nats."""

    @property
    def value(self) -> float:
        """The exponential of the mean loss: among how many like tokens the model is unsure at each place."""
        return math.exp(-self.total / self.num_tokens)


def windows_of(text: str, num_characters: int = WINDOW_CHARACTERS) -> Iterator[str]:
    """Yield the text in pieces of whole lines, of at most so many characters where its lines allow."""
    window = ""
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), num_characters):
            piece = line[start : start + num_characters]
            if window and len(window) + len(piece) > num_characters:
                yield window
                window = ""
            window += piece
    if window.strip():
        yield window


def measure_perplexity(
    client: Client,
    model: str,
    text: str,
    *,
    num_characters: int = WINDOW_CHARACTERS,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Perplexity:
    """Score every piece of the text, each by itself; `on_progress` gets characters done and of all.

    Raises:
        RequestError: there is no text.
        TeengineError: whatever the daemon says, such as that a piece is longer than the model's context.
    """
    pieces = [piece for piece in windows_of(text, num_characters) if piece.strip()]
    if not pieces:
        raise RequestError("there is no text to predict", hint="name a file with text in it")
    total, num_tokens, done = 0.0, 0, 0
    for piece in pieces:
        scored = client.score(Score(model=model, continuation=piece))
        total += scored.total
        num_tokens += len(scored.logprobs)
        done += len(piece)
        on_progress(done, len(text))
    return Perplexity(num_tokens=num_tokens, total=total)
