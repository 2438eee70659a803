"""The asyncio client: the blocking client's verbs, any number of calls at once on one connection."""

from teengined.client.asyncio_connection import OnProgress
from teengined.client.asyncio_inspection import AsyncInspection
from teengined.protocol import messages as wire

__all__ = ["AsyncClient"]


class AsyncClient(AsyncInspection):
    """As `teengined.client.Client`, for one event loop. Calls may run side by side."""

    async def status(self, *, placements: bool = True) -> wire.Status:
        """Return the daemon, its devices and deployments; without `placements` as in `deployments`."""
        return await self._call(wire.GetStatus(placements=placements), wire.Status)

    async def models(self, prefix: str = "") -> wire.ModelList:
        """Return the packages in the store."""
        return await self._call(wire.ListModels(prefix=prefix), wire.ModelList)

    async def show(self, model: str) -> wire.ModelDetail:
        """Return one package."""
        return await self._call(wire.ShowModel(model=model), wire.ModelDetail)

    async def remove(self, model: str) -> None:
        """Delete a package that is not loaded."""
        await self._call(wire.RemoveModel(model=model), wire.Done, long=True)

    async def deployments(self, *, placements: bool = True) -> wire.DeploymentList:
        """Return the loaded models; without `placements`, their plans leave out where each unit rests."""
        return await self._call(wire.ListDeployments(placements=placements), wire.DeploymentList)

    async def plan(self, request: wire.PlanModel) -> wire.PlanReply:
        """Return the plan that `load` would use now."""
        return await self._call(request, wire.PlanReply, long=True)

    async def load(self, request: wire.LoadModel, on_progress: OnProgress | None = None) -> wire.Loaded:
        """Load a model and return when it answers."""
        return await self._call(request, wire.Loaded, long=True, on_progress=on_progress)

    async def unload(self, model: str, now: bool = False) -> None:
        """Give a model's memory back, after its running requests or `now`."""
        await self._call(wire.UnloadModel(model=model, now=now), wire.Done, long=True)

    async def cancel(self, request_id: str) -> None:
        """Stop a request."""
        await self._call(wire.Cancel(request_id=request_id), wire.Done)

    async def measure(self, refresh: bool = False, on_progress: OnProgress | None = None) -> wire.Profiles:
        """Return what the devices, the disk and the links were measured to do."""
        request = wire.MeasureDevices(refresh=refresh)
        return await self._call(request, wire.Profiles, long=True, on_progress=on_progress)

    async def drain(self) -> None:
        """Let the daemon finish what runs, refuse what is new, and exit; returns when it has begun."""
        await self._call(wire.Drain(), wire.Done)

    async def score(self, request: wire.Score) -> wire.Scored:
        """Return how probable a continuation is."""
        return await self._call(request, wire.Scored, long=True)

    async def embed(self, request: wire.Embed) -> wire.Embedded:
        """Return a vector for each input."""
        return await self._call(request, wire.Embedded, long=True)

    async def requests(self, model: str = "") -> wire.RequestList:
        """Return the requests under way, of one model or of all."""
        return await self._call(wire.ListRequests(model=model), wire.RequestList)
