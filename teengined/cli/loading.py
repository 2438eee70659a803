"""Loading a model with a progress line; `load`, `run` and `demo` share it."""

from typing import TYPE_CHECKING

from teengined.cli.progress import Progress, Step
from teengined.protocol.messages import Loaded, LoadModel, LoadProgress

if TYPE_CHECKING:
    from teengined.client import Client

__all__ = ["is_loaded", "load", "progress_step"]


def load(client: "Client", request: LoadModel, progress: Progress) -> Loaded:
    """Load and return when the model answers requests; `progress` is closed, whatever happens."""
    name = request.name or request.plan.model
    try:
        return client.load(request, on_progress=lambda told: progress.show(progress_step(told, name)))
    finally:
        progress.close()


def is_loaded(client: "Client", name: str) -> bool:
    """Say whether requests for `name` would be answered now."""
    return any(item.model == name and item.state == "ready" for item in client.deployments().deployments)


def progress_step(told: LoadProgress, name: str) -> Step:
    """Return the daemon's progress as a line about `name`."""
    return Step(label=f"{told.phase} {name}".strip(), done=told.done, total=told.total, unit=told.unit)
