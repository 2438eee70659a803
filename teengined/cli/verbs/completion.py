"""`teengine completion`: the script that teaches a shell to complete this command."""

import sys

import click

from teengined.cli.invocation import Verb

__all__ = ["command"]

# The backspace keeps click from filling the lines below it into a paragraph.
_HELP = """Print the completion script for SHELL.

\b
teengine completion bash > ~/.local/share/bash-completion/completions/teengine
teengine completion zsh  > ~/.zfunc/_teengine
teengine completion fish > ~/.config/fish/completions/teengine.fish
"""


@click.command("completion", cls=Verb, help=_HELP, short_help="Print the shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL."""
    from click.shell_completion import get_completion_class

    from teengined.cli.main import cli

    script = get_completion_class(shell)
    if script is None:  # the choice above names only shells that click knows
        raise AssertionError(shell)
    sys.stdout.write(script(cli, {}, "teengine", "_TEENGINE_COMPLETE").source() + "\n")
