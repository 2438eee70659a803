"""What is asked of a model: prompts and sampling parameters with every default resolved."""

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ChatMessage", "FinishReason", "SamplingParams", "Usage"]

MAX_TEMPERATURE = 100.0


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn. Checked on construction, so that a value that exists is a valid one."""

    max_tokens: int = 256
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0
    """With the choice and the position it fixes every draw, whatever runs beside it."""
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Refuse what no sampler can honour."""
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= MAX_TEMPERATURE):
            raise ValueError(f"temperature must be between 0 and {MAX_TEMPERATURE:g}, got {self.temperature}")
        if not (math.isfinite(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be between 0 and 2^64 - 1, got {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one generation used, as measured."""

    prompt_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float
    streamed_bytes: int
    """Weight bytes moved from disk or host for this request."""
    bound_seconds_per_token: float
    """Decode time of one token at the bound: max(bytes moved / measured bandwidth, measured compute)."""
