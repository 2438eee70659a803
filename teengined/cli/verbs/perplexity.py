"""`teengine perplexity`: how well a model predicts a text."""

from pathlib import Path

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.loading import load_if_absent
from teengined.cli.model_name import MODEL
from teengined.cli.output import OutputFormat, output_options, write_json
from teengined.cli.progress import Step, open_progress
from teengined.core.errors import RequestError
from teengined.protocol.messages import LoadModel, PlanModel

__all__ = ["command"]


@click.command("perplexity", cls=Verb, short_help="Tell how well a model predicts a text.")
@click.argument("model", type=MODEL)
@click.option("--text", "text_file", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The text.")
@output_options(OutputFormat.TABLE, OutputFormat.JSON)
@click.pass_obj
def command(invocation: Invocation, model: str, text_file: Path, output: OutputFormat) -> None:
    """Score the text FILE with MODEL, loading it first where it is not loaded, and print the perplexity.

    Of the same text, less is better: what a precision costs shows against the same model in fp32.
    """
    from teengined.client.perplexity import measure_perplexity

    text = _read(text_file)
    with invocation.client() as client:
        load_if_absent(client, LoadModel(plan=PlanModel(model=model)), open_progress)
        progress = open_progress()
        try:
            found = measure_perplexity(
                client,
                model,
                text,
                on_progress=lambda done, total: progress.show(
                    Step(label=f"score {text_file.name}", done=done, total=total, unit="characters")
                ),
            )
        finally:
            progress.close()
    if output is OutputFormat.JSON:
        write_json(
            "perplexity",
            {"model": model, "perplexity": found.value, "num_tokens": found.num_tokens, "total": found.total},
        )
    else:
        click.echo(f"{found.value:.4g}  {model}  {found.num_tokens} tokens of {text_file.name}")


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise RequestError(f"the text {file} cannot be read: {error.strerror}") from error
