"""`teengine ps`: the models that are loaded."""

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.output import Column, Listing, OutputFormat, output_options, write_listing
from teengined.cli.prose import percent, rate
from teengined.core.plan import Tier
from teengined.core.quantities import format_bytes
from teengined.protocol.messages import Deployment

__all__ = ["COLUMNS", "command", "placement_of"]


def placement_of(deployment: Deployment) -> str:
    """Return which share of the model's bytes rests where, such as `cpu 41% disk 59%`.

    A device's share is exact; what is streamed is divided between host and disk by number of units.
    """
    stages = deployment.plan.stages
    size_bytes = max(deployment.size_bytes, 1)
    shares: dict[str, float] = {}
    for stage in stages:
        kind = stage.device_id.partition(":")[0]
        shares[kind] = shares.get(kind, 0.0) + stage.resident_bytes / size_bytes
    streamed = [unit.tier for stage in stages for unit in stage.units if unit.tier is not Tier.DEVICE]
    rest = max(0.0, 1.0 - sum(shares.values()))
    for tier in (Tier.HOST, Tier.DISK):
        if tier in streamed:
            shares[tier.value] = rest * streamed.count(tier) / len(streamed)
    return " ".join(f"{place} {percent(share)}" for place, share in shares.items() if round(share * 100))


COLUMNS: tuple[Column[Deployment], ...] = (
    Column(header="NAME", cell=lambda item: item.model),
    Column(header="ID", cell=lambda item: item.id),
    Column(header="SIZE", cell=lambda item: format_bytes(item.size_bytes), right=True),
    Column(header="PRECISION", cell=lambda item: item.precision),
    Column(header="PLACEMENT", cell=placement_of),
    Column(header="CONTEXT", cell=lambda item: str(item.plan.context_tokens), right=True),
    Column(header="REQS", cell=lambda item: str(item.num_running + item.num_queued), right=True),
    Column(header="TOK/S", cell=lambda item: rate(item.tokens_per_second), right=True),
    Column(header="BOUND", cell=lambda item: rate(item.bound_tokens_per_second), right=True),
    Column(header="STATE", cell=lambda item: f"{item.state}: {item.problem}" if item.problem else item.state),
)


@click.command("ps", cls=Verb, short_help="List the loaded models.")
@click.argument("prefix", default="")
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL, OutputFormat.NAME)
@click.pass_obj
def command(invocation: Invocation, prefix: str, output: OutputFormat) -> None:
    """List the loaded models whose names begin with PREFIX.

    PLACEMENT tells where the bytes rest, TOK/S what the last answers reached, BOUND what the hardware allows.
    """
    with invocation.client() as client:
        loaded = client.deployments().deployments
    items = [deployment for deployment in loaded if deployment.model.startswith(prefix)]
    write_listing(Listing(kind="ps", items=items, columns=COLUMNS, name=lambda item: item.model), output)
