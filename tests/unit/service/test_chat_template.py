import pytest

from teengined.core.errors import RequestError
from teengined.core.request import ChatMessage
from teengined.service.chat_template import ChatTemplate

HELLO = (ChatMessage(role="system", content="be kind"), ChatMessage(role="user", content="hé <b>"))


def render(source: str, max_characters: int = 10_000) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, max_characters).render(HELLO)


def test_template_sees_messages_special_tokens_and_the_generation_prompt():
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m['content'] }}\n{% endfor %}"

    assert render(source + "{% if add_generation_prompt %}bot:{% endif %}") == "<s>system:be kind\nuser:hé <b>\nbot:"


def test_block_tags_leave_no_blank_lines():
    assert render("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\n") == "x\n"


def test_tojson_writes_plain_unicode():
    assert render("{{ messages[1].content | tojson }}") == '"hé <b>"'


def test_generation_blocks_and_loop_controls_are_understood():
    source = "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% break %}{% endfor %}"

    assert render(source) == "system"


def test_undefined_tools_count_as_absent():
    assert render("{% if tools %}tools{% else %}none{% endif %}") == "none"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "refuses"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe"),
        ("{{ 'a' * 100000000 }}", "operands"),
        ("{{ 10 ** 100000000 }}", "operands"),
        ("{% for i in range(100000000) %}a{% endfor %}", "refuses"),
        ("{% for i in range(50000) %}aaaaaaaaaa{% endfor %}", "more than 10000 characters"),
        ("{{ 1 / 0 }}", "refuses"),
        ("{{ nothing.at.all }}", "refuses"),
    ],
)
def test_template_that_fails_or_reaches_out_is_refused(source: str, told: str):
    with pytest.raises(RequestError, match=told):
        render(source)


def test_date_is_there_for_templates_that_tell_it():
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10
