import errno
import io

import click
import pytest

from teengined.cli.failure import report
from teengined.core.errors import ConfigError, DoesNotFit, UnknownModel
from teengined.core.quantities import parse_bytes


def told(error: BaseException, *, debug: bool = False, words: tuple[str, ...] = ()) -> tuple[int, str]:
    stream = io.StringIO()
    return report(error, debug=debug, words=words, stream=stream), stream.getvalue()


def test_an_error_is_two_lines_and_its_own_exit_code():
    code, text = told(UnknownModel("no model named 'x'", hint="teengine pull smollm2"))

    assert code == 4
    assert text == "error: no model named 'x'\nhint: teengine pull smollm2\n"


def test_line_breaks_of_a_message_do_not_look_like_more_messages():
    assert told(ConfigError("one\ntwo"))[1] == "error: one two\n"


def test_names_in_a_message_cannot_drive_the_terminal():
    assert told(UnknownModel("no \x1b[31mred", hint="load \x9b2Jit")) == (4, "error: no [31mred\nhint: load 2Jit\n")


@pytest.mark.parametrize(("error", "code"), [(DoesNotFit("x"), 7), (KeyboardInterrupt(), 130), (click.Abort(), 130)])
def test_exit_codes_follow_the_error(error: BaseException, code: int):
    assert told(error)[0] == code


def test_a_wrong_use_is_code_2_and_names_the_help():
    code, text = told(click.UsageError("no such option --bogus"))

    assert code == 2
    assert "hint: teengine --help" in text


def test_what_nobody_expected_is_told_without_a_traceback_and_how_to_see_it():
    code, text = told(ZeroDivisionError("division by zero"), words=("show", "my model"))

    assert code == 1
    assert text.startswith("error: internal error: ZeroDivisionError: division by zero\n")
    assert "hint: teengine --debug show 'my model'" in text


def test_full_disk_behind_the_output_is_no_internal_error():
    code, text = told(OSError(errno.ENOSPC, "No space left on device"))

    assert code == 7
    assert text.startswith("error: the output cannot be written: No space left on device\n")


def test_debug_shows_the_traceback_first():
    with pytest.raises(ValueError, match="is not a size") as caught:
        parse_bytes("many")

    code, text = told(caught.value, debug=True)

    assert text.startswith("Traceback")
    assert "in parse_bytes" in text
    assert code == 1


def test_an_exit_keeps_its_code_and_says_nothing():
    assert told(SystemExit(3)) == (3, "")


def test_a_group_without_a_verb_is_its_page_of_help():
    code, text = told(click.exceptions.NoArgsIsHelpError(click.Context(click.Group("teengine", help="The engine."))))

    assert code == 2
    assert text.startswith("Usage: ")
    assert "[ARGS]...\n\n  The engine.\n" in text
