"""`teengine synth`: a package of a known shape with random weights."""

from pathlib import Path

import click

from teengined.cli.converter_process import run_modelpack
from teengined.cli.invocation import Invocation, Verb
from teengined.cli.output import OutputFormat, output_options, write_event, write_json
from teengined.cli.places import store_places
from teengined.cli.progress import open_progress
from teengined.core.quantities import format_bytes

__all__ = ["command"]


@click.command("synth", cls=Verb, short_help="Write a package of a known shape with random weights.")
@click.argument("name")
@click.option("--like", required=True, metavar="SHAPE", help="kimi-k2, deepseek-v3, llama-1b …, or a config.json.")
@click.option("--parameters", metavar="N", help="About as many, such as 1T or 30B; else as the shape has.")
@click.option("--precision", metavar="P", default="int8", show_default=True, help="How matrices are stored.")
@click.option("--compute-dtype", metavar="D", help="Activations: auto, fp32, bf16, fp16.")
@click.option("--distinct", metavar="SIZE", help="How many bytes may differ, such as 30GB; the rest shares them.")
@click.option("--store", type=click.Path(path_type=Path), metavar="DIR", help="Directory of packages.")
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL)
@click.pass_obj
def command(invocation: Invocation, name: str, store: Path | None, output: OutputFormat, **choices: str | None) -> None:
    """Write the package NAME with random weights: it weighs and moves as the real one, and says nothing.

    Units of one shape share bytes on disk beyond --distinct, so that a trillion parameters fit a small disk. Reads are
    real as long as the distinct bytes are more than the memory. An interrupted run goes on where it stopped.
    """
    arguments = ["synth", *store_places(invocation, store).arguments]
    for choice, value in choices.items():
        if value is not None:
            arguments += [f"--{choice.replace('_', '-')}", value]
    done = run_modelpack([*arguments, "--", name], name, open_progress(json_lines=output is OutputFormat.JSONL))
    told = {key: value for key, value in done.items() if key != "event"}
    if output is OutputFormat.JSONL:
        write_event("done", told)
    elif output is OutputFormat.JSON:
        write_json("synth", told)
    else:
        for note in told["notes"]:
            click.echo(f"note: {note}", err=True)
        sizes = f"{format_bytes(told['size_bytes'])}, {format_bytes(told['stored_bytes'])} on disk"
        click.echo(f"{told['name']}  {sizes}  {told['precision']}  {told['path']}")
