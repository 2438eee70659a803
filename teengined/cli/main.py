"""The way in: `teengine`, its table of verbs, and the one place where a failure becomes an exit code.

The table holds each verb's module and its one-line help, so that `teengine --help` imports none of them. A verb's
module has one `click.Command` named `command`.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from teengined.cli.failure import BROKEN_PIPE, report
from teengined.cli.invocation import Invocation, shared_options
from teengined.core.nearest import nearest

__all__ = ["SECTIONS", "Entry", "VerbTable", "cli", "main"]


class Entry(NamedTuple):
    """Where a verb is and what it says in the list."""

    module: str
    help: str
    alias: bool = False


SECTIONS: Mapping[str, Mapping[str, Entry]] = {
    "Talk": {
        "run": Entry("run", "Ask a model: one prompt, standard input, or a chat."),
        "demo": Entry("demo", "Run a model larger than its devices, from download to answer."),
    },
    "Models": {
        "pull": Entry("pull", "Get a model by alias or ORG/NAME and convert it."),
        "convert": Entry("convert", "Convert a checkpoint into a model package."),
        "synth": Entry("synth", "Write a package of a known shape with random weights."),
        "verify": Entry("verify", "Check every byte of a model package."),
        "ls": Entry("ls", "List the model packages."),
        "show": Entry("show", "Show one model package."),
        "rm": Entry("rm", "Delete model packages."),
        "plan": Entry("plan", "Predict where a model would run and how fast, without loading it."),
        "load": Entry("load", "Load a model onto the devices."),
        "unload": Entry("unload", "Give a model's memory back."),
        "stop": Entry("unload", "Give a model's memory back.", alias=True),
        "ps": Entry("ps", "List the loaded models."),
        "perplexity": Entry("perplexity", "Tell how well a model predicts a text."),
        "requests": Entry("requests", "List the requests under way, or cancel them."),
    },
    "Daemon": {
        "status": Entry("status", "Show the daemon, its devices and its models."),
        "metrics": Entry("metrics", "Print the daemon's metrics, as Prometheus reads them."),
        "config": Entry("config", "Show and check the configuration."),
        "plugins": Entry("plugins", "List drivers, policies, precisions, transports and sources."),
        "doctor": Entry("doctor", "Check this host and say how to mend what is wrong."),
        "completion": Entry("completion", "Print the shell's completion script."),
        "version": Entry("version", "Print the versions of command and daemon."),
    },
}


class VerbTable(click.Group):
    """The root group: resolves names through `SECTIONS` and imports a verb when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every verb in the order of the help."""
        return [name for verbs in SECTIONS.values() for name, entry in verbs.items() if not entry.alias]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and return its command; None for a name that is not in the table."""
        for verbs in SECTIONS.values():
            if cmd_name in verbs:
                return importlib.import_module(f"teengined.cli.verbs.{verbs[cmd_name].module}").command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb. A name that is none may be a slip of the hand."""
        near = nearest(args[0], self.list_commands(ctx))
        if near and not any(args[0] in verbs for verbs in SECTIONS.values()):
            ctx.fail(f"No such command {args[0]!r}; did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb. A reader that went away is an exit code; click would make it a plain failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise click.exceptions.Exit(BROKEN_PIPE) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections from the table alone."""
        for section, verbs in SECTIONS.items():
            rows = [(name, entry.help) for name, entry in verbs.items() if not entry.alias]
            with formatter.section(section):
                formatter.write_dl(rows, col_spacing=2)


cli = VerbTable(
    "teengine",
    params=list(shared_options(hidden=False)),
    help="The transfer engine: run language models that are larger than any one of your devices.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and end the process with its exit code."""
    invocation = Invocation()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(words, "teengine", complete_var="_TEENGINE_COMPLETE", standalone_mode=False, obj=invocation)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the edge of the process: everything becomes an exit code here
        code = report(error, debug=invocation.debug, words=words)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
