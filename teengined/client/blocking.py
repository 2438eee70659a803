"""The blocking client. One thread at a time; open one client for each thread."""

from teengined.client.blocking_connection import OnProgress
from teengined.client.blocking_inspection import BlockingInspection
from teengined.protocol import messages as wire

__all__ = ["Client"]


class Client(BlockingInspection):
    """A connection to the daemon of this host.

    Every method raises the class of `teengined.core.errors` that the daemon's error names, `DaemonUnreachable` where
    none answers, and `DeadlineExceeded` where one call took longer than `timeout_seconds`. Calls that may take long
    (load, unload, plan, measure, generate, score, embed, drain) have no deadline here: the daemon bounds them, and
    after each `timeout_seconds` of silence it is asked whether it still lives.
    """

    def status(self, *, placements: bool = True) -> wire.Status:
        """Return the daemon, its devices and deployments; without `placements` as in `deployments`."""
        return self._call(wire.GetStatus(placements=placements), wire.Status)

    def models(self, prefix: str = "") -> wire.ModelList:
        """Return the packages in the store."""
        return self._call(wire.ListModels(prefix=prefix), wire.ModelList)

    def show(self, model: str) -> wire.ModelDetail:
        """Return one package."""
        return self._call(wire.ShowModel(model=model), wire.ModelDetail)

    def remove(self, model: str) -> None:
        """Delete a package that is not loaded."""
        self._call(wire.RemoveModel(model=model), wire.Done, long=True)

    def deployments(self, *, placements: bool = True) -> wire.DeploymentList:
        """Return the loaded models; without `placements`, their plans leave out where each unit rests."""
        return self._call(wire.ListDeployments(placements=placements), wire.DeploymentList)

    def plan(self, request: wire.PlanModel) -> wire.PlanReply:
        """Return the plan that `load` would use now."""
        return self._call(request, wire.PlanReply, long=True)

    def load(self, request: wire.LoadModel, on_progress: OnProgress | None = None) -> wire.Loaded:
        """Load a model and return when it answers."""
        return self._call(request, wire.Loaded, long=True, on_progress=on_progress)

    def unload(self, model: str, now: bool = False) -> None:
        """Give a model's memory back, after its running requests or `now`."""
        self._call(wire.UnloadModel(model=model, now=now), wire.Done, long=True)

    def cancel(self, request_id: str) -> None:
        """Stop a request. May be called while an answer is being read."""
        self._call(wire.Cancel(request_id=request_id), wire.Done)

    def measure(self, refresh: bool = False, on_progress: OnProgress | None = None) -> wire.Profiles:
        """Return what the devices, the disk and the links were measured to do."""
        return self._call(wire.MeasureDevices(refresh=refresh), wire.Profiles, long=True, on_progress=on_progress)

    def drain(self) -> None:
        """Let the daemon finish what runs, refuse what is new, and exit; returns when it has begun."""
        self._call(wire.Drain(), wire.Done)

    def score(self, request: wire.Score) -> wire.Scored:
        """Return how probable a continuation is."""
        return self._call(request, wire.Scored, long=True)

    def embed(self, request: wire.Embed) -> wire.Embedded:
        """Return a vector for each input."""
        return self._call(request, wire.Embedded, long=True)

    def requests(self, model: str = "") -> wire.RequestList:
        """Return the requests under way, of one model or of all."""
        return self._call(wire.ListRequests(model=model), wire.RequestList)
