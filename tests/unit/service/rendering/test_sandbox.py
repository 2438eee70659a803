from datetime import UTC, datetime
from typing import Any

import jinja2
import pytest

from teengined.service.rendering.sandbox import CompiledTemplate, TooLong

NOW = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
HELLO: dict[str, Any] = {
    "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hé <b>"}],
    "add_generation_prompt": True,
    "tools": None,
}


def render(source: str, max_characters: int = 10_000) -> str:
    return CompiledTemplate(source, {"bos_token": "<s>"}).render(HELLO, NOW, max_characters)


def test_template_sees_messages_special_tokens_and_the_generation_prompt():
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m['content'] }}\n{% endfor %}"

    assert render(source + "{% if add_generation_prompt %}bot:{% endif %}") == "<s>system:be kind\nuser:hé <b>\nbot:"


def test_block_tags_leave_no_blank_lines():
    assert render("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\n") == "x\n"


def test_tojson_writes_plain_unicode_and_takes_a_layout():
    assert render("{{ messages[1].content | tojson }}") == '"hé <b>"'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": 2,\n "b": 1\n}'


def test_generation_blocks_and_loop_controls_are_understood():
    source = "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% break %}{% endfor %}"

    assert render(source) == "system"


def test_undefined_tools_count_as_absent():
    assert render("{% if tools %}tools{% else %}none{% endif %}") == "none"


def test_the_date_is_the_one_that_was_given():
    assert render("{{ strftime_now('%d %B %Y, %H:%M') }}") == "29 February 2024, 12:30"


def test_a_rendering_that_is_too_long_ends_where_it_becomes_so():
    with pytest.raises(TooLong):
        render("{% for i in range(50000) %}aaaaaaaaaa{% endfor %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__closure__[0].cell_contents }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ 'a' * 100000000 }}",
        "{{ 10 ** 100000000 }}",
        "{{ messages.append(1) }}",
    ],
)
def test_what_reaches_out_or_makes_much_of_little_is_refused(source: str):
    with pytest.raises(jinja2.TemplateError, match=r"unsafe|limited|not safely"):
        render(source)


@pytest.mark.parametrize("source", ["{{ messages | attr('__class__') }}", "{{ self.__dict__ }}", "{{ lipsum }}"])
def test_what_is_not_there_for_templates_is_empty(source: str):
    assert render(source) == ""
