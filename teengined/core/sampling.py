"""How tokens are drawn: every parameter with its default resolved, and none that no sampler can honour."""

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Grammar", "GrammarKind", "SamplingParams"]

MAX_TEMPERATURE = 100.0
MAX_PENALTY = 2.0
MAX_REPETITION = 10.0
MAX_BIAS = 100.0
# Alternatives of one position: what the field's APIs allow.
MAX_LOGPROBS = 20
# Bounds of one request's tables, far above what people send and far below what would slow their neighbours.
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_LISTED_IDS = 1024
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
        if bool(self.choices) != (self.kind is GrammarKind.CHOICE) or "" in self.choices:
            raise ValueError("choices are given for the kind `choice`, and only there; none is empty")
        if bool(self.text) != (self.kind in (GrammarKind.JSON_SCHEMA, GrammarKind.REGEX, GrammarKind.LARK)):
            raise ValueError(f"text is {'not ' if self.text else ''}given for a grammar of kind {self.kind.value}")


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
        _check_share("repetition_penalty", self.repetition_penalty, MAX_REPETITION)
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
        penalised = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)
        return penalised or self.grammar is not None

    def _check_tables(self) -> None:
        for name, bias in self.logit_bias:
            _check_range(f"logit_bias[{name}]", bias, -MAX_BIAS, MAX_BIAS)
        for name in ("logit_bias", "allowed_token_ids", "banned_token_ids", "stop_token_ids"):
            if len(getattr(self, name)) > MAX_LISTED_IDS:
                raise ValueError(f"{name} has at most {MAX_LISTED_IDS} entries, got {len(getattr(self, name))}")
        if len(self.stop) > MAX_STOPS or any(not 0 < len(text) <= MAX_STOP_CHARACTERS for text in self.stop):
            raise ValueError(f"stop has at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters each")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value}")


def _check_share(name: str, value: float, high: float = 1.0) -> None:
    if not (math.isfinite(value) and 0 < value <= high):
        raise ValueError(f"{name} must be above 0 and at most {high:g}, got {value}")
