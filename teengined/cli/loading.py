"""Loading a model with a progress line; `load`, `run` and `demo` share it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from teengined.cli.progress import Progress, Step
from teengined.core.errors import Conflict
from teengined.protocol.messages import Deployment, Loaded, LoadModel, LoadProgress

if TYPE_CHECKING:
    from teengined.client import Client

__all__ = ["load", "load_if_absent", "progress_step"]


def load(client: "Client", request: LoadModel, progress: Progress) -> Loaded:
    """Load and return when the model answers requests; `progress` is closed, whatever happens."""
    name = request.name or request.plan.model
    try:
        return client.load(request, on_progress=lambda told: progress.show(progress_step(told, name)))
    finally:
        progress.close()


def load_if_absent(client: "Client", request: LoadModel, open_progress: Callable[[], Progress]) -> None:
    """Load a model unless requests for it would be answered now.

    Raises:
        Conflict: they would, but not as `request` asks for.
    """
    name = request.name or request.plan.model
    for deployment in client.deployments(placements=False).deployments:
        if deployment.model == name and deployment.state == "ready":
            _check_loaded_so(deployment, request)
            return
    load(client, request, open_progress())


def _check_loaded_so(deployment: Deployment, request: LoadModel) -> None:
    unlike = ", ".join(_differences(deployment, request))
    if unlike:
        name = deployment.model
        raise Conflict(
            f"{name} is loaded already, and {unlike}",
            hint=f"`teengine unload {name}`, then this command again; or `teengine load` it under another --name",
        )


def _differences(deployment: Deployment, request: LoadModel) -> Iterator[str]:
    """Yield in words what only a load can settle and was settled otherwise.

    Empty is what was not asked for, or what an older daemon does not tell.
    """
    if request.draft and request.draft != deployment.draft:
        yield f"{deployment.draft or 'no model'} drafts for it, not {request.draft}"
    settled = (
        ("--speculation", "" if request.speculation == "off" else request.speculation, deployment.speculation),
        ("--numerics", request.plan.numerics, deployment.numerics),
        ("--kv-dtype", request.plan.kv_dtype, deployment.kv_dtype),
    )
    for option, asked, loaded in settled:
        if asked and loaded and asked != loaded:
            yield f"it was loaded with {option} {loaded}, not {asked}"


def progress_step(told: LoadProgress, name: str) -> Step:
    """Return the daemon's progress as a line about `name`."""
    return Step(label=f"{told.phase} {name}".strip(), done=told.done, total=told.total, unit=told.unit)
