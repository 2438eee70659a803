"""How tokens are drawn: every parameter with its default resolved, and none that no sampler can honour."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["MAX_LOGPROBS", "Grammar", "GrammarKind", "SamplingParams"]

MAX_TEMPERATURE = 100.0
MAX_PENALTY = 2.0
MIN_REPETITION = 0.01
MAX_REPETITION = 10.0
MAX_BIAS = 100.0
# Alternatives of one position: what the field's APIs allow.
MAX_LOGPROBS = 20
# Bounds of one request's tables, far above what people send and far below what would slow their neighbours.
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_LISTED_IDS = 1024
# Where the vocabulary ends is known to the model alone; ids are whole numbers of 31 bits everywhere.
MAX_TOKEN_ID = 2**31 - 1
MAX_GRAMMAR_CHARACTERS = 64 << 10
MAX_GRAMMAR_CHOICES = 1024


class GrammarKind(StrEnum):
    """In which language a grammar is written."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    CHOICE = "choice"
    LARK = "lark"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What the text of an answer must be. Whether it is a valid grammar is found out at admission."""

    kind: GrammarKind
    text: str = ""
    """The schema (JSON), regular expression or Lark grammar; empty for `json_object` and `choice`."""
    choices: tuple[str, ...] = ()
    """For `choice`: the answer is one of these."""

    def __post_init__(self) -> None:
        """Refuse what is too large to be looked at, and what lacks its text."""
        size = len(self.text) + sum(map(len, self.choices))
        if size > MAX_GRAMMAR_CHARACTERS:
            raise ValueError(f"a grammar has at most {MAX_GRAMMAR_CHARACTERS} characters, got {size}")
        if len(self.choices) > MAX_GRAMMAR_CHOICES:
            raise ValueError(f"a grammar has at most {MAX_GRAMMAR_CHOICES} choices, got {len(self.choices)}")
        wants_text = self.kind in (GrammarKind.JSON_SCHEMA, GrammarKind.REGEX, GrammarKind.LARK)
        if bool(self.text) != wants_text:
            raise ValueError(f"a grammar of kind {self.kind.value} {'needs a' if wants_text else 'takes no'} text")
        if bool(self.choices) != (self.kind is GrammarKind.CHOICE):
            raise ValueError(f"a grammar of kind {self.kind.value} {'takes no' if self.choices else 'needs'} choices")
        if "" in self.choices:
            raise ValueError(f"choices[{self.choices.index('')}] of the grammar is empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn. Checked on construction, so that a value that exists is a valid one.

    Order of application: penalties, bias and bans, temperature, then top-k, top-p, min-p and typical set on the
    probabilities that are left, each as the field knows it.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    """Before so many, neither an end of sequence nor a stop token is drawn, and stop strings do not count."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """0: all."""
    top_p: float = 1.0
    min_p: float = 0.0
    """Least probability, as a share of the largest."""
    typical_p: float = 1.0
    """Locally typical sampling (Meister and others, 2022): mass of the tokens nearest to the expected surprise."""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens seen in prompt or answer."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens seen in the answer."""
    frequency_penalty: float = 0.0
    """The same, for each time."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    """Empty: all."""
    banned_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    """Texts that end the answer, wherever token borders fall."""
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    """Leave the stop text that was found in the answer."""
    num_choices: int = 1
    """Answers to one prompt, which share its KV."""
    logprobs: int | None = None
    """Alternatives to tell for each token; 0: the token's own only; None: nothing."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    grammar: Grammar | None = None
    seed: int = 0
    """With choice and position it fixes every draw, whatever runs beside it."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse what no sampler can honour."""
        _check_range("max_tokens", self.max_tokens, 1, 2**31)
        _check_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        _check_range("temperature", self.temperature, 0, MAX_TEMPERATURE)
        _check_range("top_k", self.top_k, 0, 2**31)
        _check_share("top_p", self.top_p)
        _check_range("min_p", self.min_p, 0, 1)
        _check_share("typical_p", self.typical_p)
        _check_range("repetition_penalty", self.repetition_penalty, MIN_REPETITION, MAX_REPETITION)
        _check_range("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_range("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_range("num_choices", self.num_choices, 1, MAX_CHOICES)
        _check_range("logprobs", self.logprobs or 0, 0, MAX_LOGPROBS)
        _check_range("prompt_logprobs", self.prompt_logprobs or 0, 0, MAX_LOGPROBS)
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be between 0 and 2^64 - 1, got {self.seed}")
        self._check_tables()

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    @property
    def uses_history(self) -> bool:
        """Whether the tokens so far change the next one's logits."""
        return self.has_penalties or self.grammar is not None

    @property
    def has_penalties(self) -> bool:
        """Whether tokens that were seen get other logits."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    def _check_tables(self) -> None:
        _check_length("logit_bias", self.logit_bias, MAX_LISTED_IDS)
        for token_id, bias in self.logit_bias:
            _check_range("token ids of logit_bias", token_id, 0, MAX_TOKEN_ID)
            _check_range(f"logit_bias of token {token_id}", bias, -MAX_BIAS, MAX_BIAS)
        _check_ids("allowed_token_ids", self.allowed_token_ids)
        _check_ids("banned_token_ids", self.banned_token_ids)
        _check_ids("stop_token_ids", self.stop_token_ids)
        _check_length("stop", self.stop, MAX_STOPS)
        for index, text in enumerate(self.stop):
            _check_range(f"length of stop[{index}]", len(text), 1, MAX_STOP_CHARACTERS)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # NaN is neither
        raise ValueError(f"{name} must be between {low:.10g} and {high:.10g}, got {value}")


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value}")


def _check_length(name: str, entries: Sequence[object], most: int) -> None:
    if len(entries) > most:
        raise ValueError(f"{name} must have at most {most} entries, got {len(entries)}")


def _check_ids(name: str, token_ids: Sequence[int]) -> None:
    _check_length(name, token_ids, MAX_LISTED_IDS)
    for index, token_id in enumerate(token_ids):
        _check_range(f"{name}[{index}]", token_id, 0, MAX_TOKEN_ID)
