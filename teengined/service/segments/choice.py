"""Which format a model writes, told by its chat template and its special tokens."""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from teengined.service.segments.deepseek import DeepseekFold
from teengined.service.segments.fold import PlainFold, SegmentFold
from teengined.service.segments.harmony import HarmonyFold
from teengined.service.segments.hermes import HermesFold
from teengined.service.segments.llama import LlamaFold
from teengined.service.segments.mistral import MistralFold

__all__ = ["open_fold", "parser_for"]

# Most telling first: a template may mention several, and distilled models keep their teacher's markers.
_IN_TEMPLATE = (
    ("harmony", ("<|channel|>",)),
    ("deepseek", ("<｜tool▁calls▁begin｜>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("hermes", ("<tool_call>",)),
    ("llama", ("<|python_tag|>",)),
    ("llama", ("<|start_header_id|>", '"parameters"')),
    ("deepseek", ("<｜Assistant｜>",)),
    ("mistral", ("[THINK]",)),
    ("hermes", ("<think>",)),
    ("hermes", ("</think>",)),
)
_IN_VOCABULARY = (
    ("harmony", "<|channel|>"),
    ("deepseek", "<｜tool▁calls▁begin｜>"),
    ("mistral", "[TOOL_CALLS]"),
    ("hermes", "<tool_call>"),
    ("llama", "<|python_tag|>"),
)
_BY_ARCHITECTURE: Mapping[str, str] = MappingProxyType({"gpt_oss": "harmony", "deepseek_v3": "deepseek"})
# Markers of a few dozen characters, and white space after them.
_TAIL_CHARACTERS = 200


def parser_for(template: str | None, special_tokens: Collection[str], architecture: str) -> str | None:
    """Return the name of the format that a model writes, for `open_fold`; None where nothing tells.

    `template` is the chat template's source, `architecture` transformers' name of the model's type. What the template
    writes for earlier calls is what the model was taught to write; a vocabulary may have markers that nobody taught it.
    """
    if template is not None:
        source = template.replace('\\"', '"')
        return next((name for name, words in _IN_TEMPLATE if all(word in source for word in words)), None)
    told = next((name for name, word in _IN_VOCABULARY if word in special_tokens), None)
    return told or _BY_ARCHITECTURE.get(architecture)


def open_fold(name: str | None, request_id: str, prompt_tail: str) -> SegmentFold:
    """Return a fresh fold for one answer.

    `name` is what `parser_for` said; None takes everything as text. `request_id` (with the choice, where there are
    several) makes the ids of the calls. `prompt_tail` is the rendered prompt, or its last 200 characters: an answer may
    begin inside reasoning that the prompt opened.
    """
    prompt_tail = prompt_tail[-_TAIL_CHARACTERS:]
    match name:
        case "hermes":
            return HermesFold(request_id, prompt_tail)
        case "deepseek":
            return DeepseekFold(request_id, prompt_tail)
        case "mistral":
            return MistralFold(request_id, prompt_tail)
        case "llama":
            return LlamaFold(request_id)
        case "harmony":
            return HarmonyFold(request_id, prompt_tail)
        case _:
            return PlainFold(request_id)
