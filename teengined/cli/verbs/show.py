"""`teengine show`: one package in full."""

import sys

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.model_name import MODEL
from teengined.cli.output import OutputFormat, output_options, write_json
from teengined.cli.prose import count
from teengined.core.quantities import format_bytes
from teengined.protocol.messages import ModelDetail

__all__ = ["command", "detail_lines"]


@click.command("show", cls=Verb, short_help="Show one model package.")
@click.argument("model", type=MODEL)
@output_options(OutputFormat.TABLE, OutputFormat.JSON)
@click.pass_obj
def command(invocation: Invocation, model: str, output: OutputFormat) -> None:
    """Show what is known about the package MODEL."""
    with invocation.client() as client:
        detail = client.show(model)
    if output is OutputFormat.JSON:
        write_json("show", detail)
    else:
        sys.stdout.writelines(f"{line}\n" for line in detail_lines(detail))


def detail_lines(detail: ModelDetail) -> list[str]:
    """Return one `name  value` line a fact."""
    summary = detail.summary
    facts = [
        ("name", summary.name),
        ("digest", summary.digest),
        ("source", detail.source),
        ("architecture", summary.architecture),
        ("parameters", count(summary.num_parameters)),
        ("size", format_bytes(summary.size_bytes)),
        ("precision", f"{summary.precision}, computed in {detail.compute_dtype}"),
        ("layers", f"{detail.num_layers} of width {detail.hidden_size}"),
        ("experts", str(detail.num_experts) if detail.num_experts else ""),
        ("vocabulary", str(detail.vocab_size)),
        ("context", f"{detail.max_context_tokens} tokens, {format_bytes(detail.kv_bytes_per_token)} of KV each"),
        ("units", str(detail.num_units)),
        *(("note", note) for note in detail.numeric_notes),
    ]
    return [f"{name:<14}{value}" for name, value in facts if value]
