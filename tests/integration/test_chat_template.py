"""Chat templates in their own process: what hostile ones get, and that nobody else notices."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from teengined.core.errors import RequestError
from teengined.core.request import ChatMessage, ToolCall
from teengined.service import chat_template
from teengined.service.chat_template import ChatTemplate
from teengined.service.rendering.exchange import RenderBounds
from tests.fakes.running_daemon import wait_until

NOW = datetime(2024, 2, 29, tzinfo=UTC)
BOUNDS = RenderBounds(max_characters=10_000, cpu_seconds=0.2, memory_bytes=64 << 20)
HELLO = (ChatMessage(role="system", content="be kind"), ChatMessage(role="user", content="hé <b>"))
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
OPEN = Callable[..., ChatTemplate]


@pytest.fixture
def opened() -> Iterator[OPEN]:
    """Opens templates that are put away after the test."""
    templates: list[ChatTemplate] = []

    def open_template(source: str, bounds: RenderBounds = BOUNDS) -> ChatTemplate:
        templates.append(ChatTemplate(source, {"bos_token": "<s>"}, bounds))
        return templates[-1]

    yield open_template
    for template in templates:
        template.close()


def pid_of(template: ChatTemplate) -> int:
    assert template._renderer is not None
    return template._renderer._process.pid


def test_a_template_sees_turns_tools_options_special_tokens_and_the_time(opened: OPEN):
    source = (
        "{{ bos_token }}{{ strftime_now('%Y-%m-%d') }} {{ mood }} {{ tools[0].name }} {{ messages[1].content }} "
        "{{ messages[2].tool_calls[0].function.arguments.city }}"
    )
    called = ChatMessage(
        role="assistant", content="", tool_calls=(ToolCall(id="1", name="w", arguments='{"city": "Köln"}'),)
    )

    text = opened(source).render((*HELLO, called), ({"name": "weather"},), {"mood": "glad"}, now=NOW)

    assert text == "<s>2024-02-29 glad weather hé <b> Köln"


def test_renderings_share_a_process_and_nothing_else(opened: OPEN):
    template = opened("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ messages[0].content }}")

    texts = [template.render((ChatMessage(role="user", content=word),), now=NOW) for word in ("a", "b")]

    assert texts == ["1a", "1b"]


def test_a_conversation_larger_than_any_pipe_comes_through(opened: OPEN):
    long = ChatMessage(role="user", content="ä" * 3_000_000)

    text = opened("{{ messages[0].content }}", RenderBounds(max_characters=4_000_000)).render((long,), now=NOW)

    assert text == long.content


@pytest.mark.parametrize(
    ("source", "told"),
    [
        pytest.param("{% for %}", "is not valid", id="syntax"),
        pytest.param("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "nested too deeply", id="deep expression"),
        pytest.param("{{ raise_exception('roles must alternate') }}", "roles must alternate", id="its own words"),
        pytest.param("{{ messages.__class__.__mro__ }}", "unsafe", id="attributes"),
        pytest.param("{{ ''.__class__.__base__.__subclasses__() }}", "unsafe", id="subclasses"),
        pytest.param("{{ (1).__class__.mro() }}", "unsafe", id="mro"),
        pytest.param("{{ cycler.__init__.__globals__.os }}", "unsafe", id="globals"),
        pytest.param("{% include '/etc/passwd' %}", "no loader", id="include"),
        pytest.param("{% import 'os' as os %}", "no loader", id="import"),
        pytest.param("{{ messages.append(1) }}", "unsafe", id="mutation"),
        pytest.param("{{ 'a' * 100000000 }}", "operands", id="product"),
        pytest.param("{{ 10 ** 100000000 }}", "operands", id="power"),
        pytest.param("{% for i in range(10 ** 9) %}a{% endfor %}", "Range too big", id="range"),
        pytest.param(LOOP, "was stopped", id="nested loops"),
        pytest.param(
            "{% for a in messages * 9999 %}{% for b in messages * 9999 %}{% endfor %}{% endfor %}",
            "was stopped",
            id="loops over multiplied lists",
        ),
        pytest.param("{{ 'a' | center(10000000000) }}", "memory", id="centred while it is compiled"),
        pytest.param("{{ messages[0].role | center(10000000000) }}", "memory", id="centred while it is rendered"),
        pytest.param("{{ '%9999999999d' % 1 }}", "memory", id="old format"),
        pytest.param("{{ '{:>9999999999}'.format(1) }}", "memory", id="new format"),
        pytest.param("{{ messages | tojson(indent=9999999999) }}", "memory", id="indented"),
        pytest.param(
            "{% set x = namespace(v='aa') %}{% for i in range(99) %}{% set x.v = x.v ~ x.v %}{% endfor %}",
            "memory|was stopped",
            id="doubled text",
        ),
        pytest.param(
            "{% set x = namespace(v=[1]) %}{% for i in range(99) %}{% set x.v = x.v + x.v %}{% endfor %}",
            "memory|was stopped",
            id="doubled list",
        ),
        pytest.param(
            "{% set x = namespace(v=[]) %}{% for i in range(99999) %}{% set x.v = [x.v] %}{% endfor %}{{ x.v }}",
            "nested too deeply|was stopped",
            id="nested list",
        ),
        pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself too often", id="recursion"),
        pytest.param(
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "was stopped",
            id="branching recursion",
        ),
        pytest.param(
            "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "calls itself", id="recursive loop"
        ),
        pytest.param("{% for i in range(50000) %}aaaaaaaaaa{% endfor %}", "more than 10000 characters", id="output"),
        pytest.param("{{ '\\ud800' }}", "surrogate", id="half a surrogate pair"),
        pytest.param("{{ 1 / 0 }}", "ZeroDivisionError", id="arithmetic"),
        pytest.param("{{ nothing.at.all }}", "'nothing' is undefined", id="undefined"),
        pytest.param("{{ 'x'.encode('idna-or-so') }}", "LookupError", id="late import"),
    ],
)
def test_a_template_that_fails_loops_or_reaches_out_is_refused(opened: OPEN, source: str, told: str):
    with pytest.raises(RequestError, match=told):
        opened(source).render(HELLO, now=NOW)


def test_a_template_that_cannot_be_compiled_is_tried_once(opened: OPEN):
    template = opened("{% for %}")

    for _ in range(2):
        with pytest.raises(RequestError, match="not valid"):
            template.render(HELLO, now=NOW)

    assert template._renderer is None


def test_an_endless_rendering_holds_up_nobody(opened: OPEN):
    source = "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}done"
    template = opened(source, RenderBounds(max_characters=100, cpu_seconds=100.0, wall_seconds=100.0))
    problems: list[RequestError] = []

    def loop() -> None:
        try:
            template.render((ChatMessage(role="user", content="loop"),), now=NOW)
        except RequestError as error:
            problems.append(error)

    endless = threading.Thread(target=loop)
    endless.start()
    wait_until(lambda: template._renderer is not None, "the process started")

    assert template.render(HELLO, now=NOW) == "done"
    assert endless.is_alive()

    # Its process is gone, and so is the one that the template asks once more.
    while endless.is_alive():
        template.close()
        endless.join(0.05)
    assert "was stopped" in problems[0].message


def test_a_process_that_was_killed_has_a_successor(opened: OPEN):
    template = opened("done")
    template.render(HELLO, now=NOW)
    first = pid_of(template)

    os.kill(first, signal.SIGKILL)

    assert template.render(HELLO, now=NOW) == "done"
    assert pid_of(template) != first


def test_the_process_ends_with_whoever_asks_it(opened: OPEN):
    template = opened("done")
    template.render(HELLO, now=NOW)
    assert template._renderer is not None
    process, control = template._renderer._process, template._renderer._control

    control.shutdown(2)  # What the kernel does when the daemon is gone.

    assert process.wait(10) == 0


@pytest.mark.parametrize("depth", [100, 330, 500, 990, 100_000])
def test_deeply_nested_arguments_are_rendered_or_refused(opened: OPEN, depth: int):
    deep = ToolCall(id="1", name="f", arguments="[" * depth + "]" * depth)
    turn = ChatMessage(role="assistant", content="", tool_calls=(deep,))
    template = opened("{{ messages[0].tool_calls[0].function.arguments | tojson }}", RenderBounds(max_characters=10**6))

    if depth > 200:  # Somewhere below a thousand Python's own readers and writers give up, in one process or the other.
        with contextlib.suppress(RequestError):
            assert template.render((turn,), now=NOW).strip('"') == deep.arguments
    else:
        assert template.render((turn,), now=NOW) == deep.arguments


def test_a_process_that_ends_before_it_says_anything_is_no_refusal_of_the_template(
    opened: OPEN, monkeypatch: pytest.MonkeyPatch
):
    template = opened("{{ messages[0].content }}")
    with monkeypatch.context() as patched:
        patched.setattr(chat_template, "_PROGRAM", (sys.executable, "-c", ""))
        with pytest.raises(RequestError, match="was stopped"):
            template.render(HELLO, now=NOW)

    assert template.render(HELLO, now=NOW) == "be kind"
