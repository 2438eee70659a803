"""`teengine ps`: the models that are loaded."""

from collections.abc import Sequence

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.output import Column, Listing, OutputFormat, output_options, write_listing
from teengined.cli.prose import percent, printable, rate
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
        cached = 0 if stage.experts is None else stage.experts.cache_bytes
        shares[kind] = shares.get(kind, 0.0) + (stage.resident_bytes + cached) / size_bytes
    streamed = {Tier.HOST: deployment.num_host_units, Tier.DISK: deployment.num_disk_units}
    rest = max(0.0, 1.0 - sum(shares.values()))
    for tier, num_units in streamed.items():
        if num_units:
            shares[tier.value] = rest * num_units / sum(streamed.values())
    return " ".join(f"{place} {percent(share)}" for place, share in shares.items() if round(share * 100))


def _kv_of(deployment: Deployment) -> str:
    """Return which share of the KV running sequences hold, and what is kept besides for prompts that begin alike."""
    if not deployment.num_blocks:
        return ""
    cached = deployment.num_cached_blocks / deployment.num_blocks
    used = percent(deployment.num_used_blocks / deployment.num_blocks)
    return f"{used}+{percent(cached)}" if deployment.num_cached_blocks else used


def _spooled_of(deployment: Deployment) -> str:
    """Return which share of the room below the devices is in use, such as `host 40% disk 3%`."""
    tiers = deployment.kv_tiers
    rooms = (
        ("host", tiers.num_host_blocks, tiers.num_host_slots),
        ("disk", tiers.num_disk_blocks, tiers.num_disk_slots),
    )
    shares = " ".join(f"{name} {percent(used / slots)}" for name, used, slots in rooms if slots)
    return f"{shares}: {tiers.problem}" if tiers.problem else shares


def _host_pool_of(deployment: Deployment) -> str:
    """Return what the model keeps in the pool of host memory, whoever shares it."""
    return format_bytes(deployment.host_pool_bytes) if deployment.host_pool_bytes else ""


def _share_of(deployment: Deployment) -> str:
    """Return how near the last answers came to the bound."""
    if min(deployment.tokens_per_second, deployment.bound_tokens_per_second) <= 0:
        return ""
    return percent(deployment.tokens_per_second / deployment.bound_tokens_per_second)


def _experts_of(deployment: Deployment) -> str:
    """Return which share of the experts asked for was cached, which could have been, and by which policies."""
    experts = deployment.experts
    if experts is None or not experts.policies:
        return ""
    policies = "+".join(dict.fromkeys(experts.policies))
    hits = f"{percent(experts.hit_rate)} of {percent(experts.best_hit_rate)} {policies}"
    if not any(experts.guessing_stages):
        return hits
    return f"{hits}, {percent(experts.guessed_rate)} ahead, {percent(experts.guess_right_rate)} right"


def _bubbles_of(deployment: Deployment) -> str:
    """Return each stage's idle share, in order of the stages."""
    return " ".join(percent(share) for share in deployment.stage_bubbles)


def _drafts_of(deployment: Deployment) -> str:
    """Return which share of guessed tokens was right, by class of requests; `off` where guessing does not pay."""
    return " ".join(
        f"{item.request_class} {percent(item.num_accepted / item.num_drafted)}" + ("" if item.is_on else " off")
        for item in deployment.drafted
        if item.num_drafted
    )


COLUMNS: tuple[Column[Deployment], ...] = (
    Column(header="NAME", cell=lambda item: item.model),
    Column(header="ID", cell=lambda item: item.id),
    Column(header="SIZE", cell=lambda item: format_bytes(item.size_bytes), right=True),
    Column(header="PRECISION", cell=lambda item: item.precision),
    Column(header="PLACEMENT", cell=placement_of),
    Column(header="CONTEXT", cell=lambda item: str(item.plan.context_tokens), right=True),
    Column(header="RUN", cell=lambda item: str(item.num_running), right=True),
    Column(header="WAIT", cell=lambda item: str(item.num_queued), right=True),
    Column(header="KV", cell=_kv_of, right=True),
    Column(header="SPOOL", cell=_spooled_of),
    Column(header="HOST", cell=_host_pool_of, right=True),
    Column(header="ALL TOK/S", cell=lambda item: rate(item.total_tokens_per_second), right=True),
    Column(header="TOK/S", cell=lambda item: rate(item.tokens_per_second), right=True),
    Column(header="BOUND", cell=lambda item: rate(item.bound_tokens_per_second), right=True),
    Column(header="SHARE", cell=_share_of, right=True),
    Column(header="EXPERTS", cell=_experts_of),
    Column(header="BUBBLES", cell=_bubbles_of),
    Column(header="DRAFTS", cell=_drafts_of),
    Column(header="STATE", cell=lambda item: f"{item.state}: {item.problem}" if item.problem else item.state),
)


@click.command("ps", cls=Verb, short_help="List the loaded models.")
@click.argument("prefix", default="")
@output_options(OutputFormat.TABLE, OutputFormat.JSON, OutputFormat.JSONL, OutputFormat.NAME)
@click.pass_obj
def command(invocation: Invocation, prefix: str, output: OutputFormat) -> None:
    """List the loaded models whose names begin with PREFIX.

    PLACEMENT tells where the bytes rest. RUN and WAIT count sequences, KV the share of its memory that they
    hold, and after a plus what is kept for prompts that begin alike. SPOOL is the share of the room for KV in
    host memory and on disk that is in use, HOST what the model keeps in the host memory that all devices share.
    ALL TOK/S is of all answers together in the last seconds, TOK/S what the last answers reached each, BOUND
    what the hardware allows one, SHARE how near they came. EXPERTS tells how often a routed expert was cached
    when it was asked for, how often the best cache would have had it, and by which policy; and where reading
    ahead on a router's guess makes steps faster, which share of what was not cached was read ahead, and which
    share of the guesses was right. BUBBLES tells for each stage the share of the time in which it waited for the
    others, DRAFTS which share of the tokens that were guessed ahead was right, and where guessing is off because
    it does not pay.
    """
    placements = output in (OutputFormat.JSON, OutputFormat.JSONL)
    with invocation.client() as client:
        loaded = client.deployments(placements=placements).deployments
    items = [deployment for deployment in loaded if deployment.model.startswith(prefix)]
    write_listing(
        Listing(
            kind="ps", items=items, columns=COLUMNS, name=lambda item: item.model, nothing=_nothing(prefix, loaded)
        ),
        output,
    )


def _nothing(prefix: str, loaded: Sequence[Deployment]) -> str:
    if not loaded:
        return "no model is loaded; `teengine load MODEL` loads one"
    return f"no loaded model begins with {printable(prefix)!r}; there are: {', '.join(item.model for item in loaded)}"
