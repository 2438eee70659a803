"""What the simulated world is made of: sequences from outside, and parts of a scheduler with a mind of their own."""

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from teengined.core.request import FinishReason
from teengined.interfaces.policy import SchedulingPolicy
from teengined.protocol.worker_messages import SequenceOpen
from teengined.scheduler.events import End, Submitted
from teengined.scheduler.lookup import LookupIndex
from teengined.scheduler.speculation import Speculation
from tests.unit.scheduler.model_worker import NUM_TOKEN_IDS, drawn, fingerprint

if TYPE_CHECKING:
    from tests.unit.scheduler.test_simulation import Story


class Whimsical(SchedulingPolicy):
    """Another order every time, the same for the same question."""

    name = "whimsical"

    def order(self, sequences, now_seconds):
        ids = sorted(view.id for view in sequences)
        random.Random(f"{now_seconds} {ids}").shuffle(ids)
        return ids


@dataclass
class Life:
    """What the outside knows of one sequence."""

    submitted: Submitted
    choice: int
    prints: list[bytes]
    emitted: list[int] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    end: End | None = None
    expected: FinishReason | None = None

    @property
    def tokens(self):
        return (*self.submitted.prompt, *self.emitted)

    @property
    def opening(self):
        return SequenceOpen(
            sequence_id=self.submitted.sequence_ids[self.choice],
            num_prompt_tokens=len(self.submitted.prompt),
            sampling=self.submitted.sampling,
            choice=self.choice,
        )

    def add(self, token_id):
        self.prints.append(fingerprint(self.prints[-1] if self.prints else self.submitted.salt, token_id))


class Oracle(LookupIndex):
    """Knows what will be drawn, and says so, up to a mistake."""

    def __init__(self, story: "Story", life: Life) -> None:
        super().__init__(1, 1)
        self.story = story
        self.life = life

    def propose(self, read, num_tokens, num_most):
        rng, life = self.story.random, self.life
        assert read(0, num_tokens) == life.tokens
        prints, guess = list(life.prints), []
        while len(guess) < rng.randint(1, num_most):
            token_id = drawn(life.opening, len(prints), prints[-1])
            guess.append(rng.choice([token_id, token_id, token_id, rng.randrange(NUM_TOKEN_IDS)]))
            prints.append(fingerprint(prints[-1], guess[-1]))
        return tuple(guess)


class Moody(Speculation):
    """Wants any number of guesses."""

    rng: random.Random

    def num_wanted(self, request_class, source, num_decoding, seconds_each=0.0):
        return self.rng.randint(0, self.max_drafted)
