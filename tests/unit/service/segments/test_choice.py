import pytest

from teengined.service.segments import open_fold, parser_for

HERMES = "{% if tools %}<tools>{{ tools }}</tools> Answer in <tool_call> tags.{% endif %}<|im_start|>assistant"
LLAMA = "<|start_header_id|>{{ role }}<|end_header_id|>{{ '{\"name\": ' }}{{ '\\\"parameters\\\": ' }}"
LLAMA_CODE = "<|start_header_id|>ipython{{ '<|python_tag|>' + call }}"
MISTRAL = "[INST]{{ content }}[/INST][TOOL_CALLS]{{ calls }}"
DEEPSEEK = "<｜User｜>{{ content }}<｜Assistant｜><think>{{ '<｜tool▁calls▁begin｜>' }}"
DEEPSEEK_PLAIN = "<｜User｜>{{ content }}<｜Assistant｜>"
HARMONY = "<|start|>assistant<|channel|>analysis<|message|>{{ thinking }}<|end|>"
THINKER = "<|im_start|>assistant\n<think>\n"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (HERMES, "hermes"),
        (LLAMA, "llama"),
        (LLAMA_CODE, "llama"),
        (MISTRAL, "mistral"),
        (DEEPSEEK, "deepseek"),
        (DEEPSEEK_PLAIN, "deepseek"),
        (HARMONY, "harmony"),
        (THINKER, "hermes"),
        (PLAIN, None),
    ],
)
def test_the_template_tells_the_format(template: str, name: str | None):
    assert parser_for(template, (), "llama") == name


def test_a_template_tells_more_than_the_vocabulary():
    assert parser_for(HERMES, ("[TOOL_CALLS]", "<|python_tag|>"), "mistral") == "hermes"
    assert parser_for(PLAIN, ("<|python_tag|>",), "llama") is None


@pytest.mark.parametrize(
    ("special_tokens", "architecture", "name"),
    [
        (("<s>", "[TOOL_CALLS]"), "mistral", "mistral"),
        (("<|python_tag|>",), "llama", "llama"),
        (("<|channel|>", "<|message|>"), "gpt_oss", "harmony"),
        ((), "gpt_oss", "harmony"),
        ((), "llama", None),
    ],
)
def test_without_a_template_the_vocabulary_and_the_architecture_tell(special_tokens, architecture: str, name: str):
    assert parser_for(None, special_tokens, architecture) == name


@pytest.mark.parametrize(
    ("name", "marker"),
    [
        ("hermes", "<tool_call>"),
        ("llama", "<|python_tag|>"),
        ("mistral", "[TOOL_CALLS]"),
        ("deepseek", "<｜tool▁call▁begin｜>"),
        ("harmony", "<|channel|>"),
    ],
)
def test_each_format_says_which_special_tokens_it_needs(name: str, marker: str):
    assert marker in open_fold(name, "r1", "").kept_special_tokens


def test_no_format_needs_none():
    assert open_fold(None, "r1", "").kept_special_tokens == frozenset()
