"""Which handler does which call."""

import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from teengined.protocol import messages as wire
from teengined.service.context import ServiceContext
from teengined.service.handlers import inspection, loading, metrics, models
from teengined.service.handlers.generation import Generations
from teengined.service.handlers.scoring import Scorings
from teengined.service.requests import RequestTable
from teengined.service.server import HandlerTable

__all__ = ["handler_table"]


def handler_table(context: ServiceContext) -> HandlerTable:
    """Return the handler of every class that clients may send, bound to one daemon."""
    requests = RequestTable()
    generations, scorings = Generations(requests, os.getuid()), Scorings(requests)
    table: dict[type, Callable[..., Awaitable[Any]]] = {
        wire.Hello: inspection.hello,
        wire.GetStatus: inspection.get_status,
        wire.GetMetrics: metrics.get_metrics,
        wire.ListPlugins: inspection.list_plugins,
        wire.ShowConfig: inspection.show_config,
        wire.ListModels: models.list_models,
        wire.ShowModel: models.show_model,
        wire.RemoveModel: models.remove_model,
        wire.ListDeployments: loading.list_deployments,
        wire.PlanModel: loading.plan_model,
        wire.LoadModel: loading.load_model,
        wire.UnloadModel: loading.unload_model,
        wire.MeasureDevices: loading.measure_devices,
        wire.Drain: loading.drain,
        wire.Generate: generations.generate,
        wire.Cancel: generations.cancel,
        wire.ListRequests: generations.list_requests,
        wire.Score: scorings.score,
        wire.Embed: scorings.embed,
    }
    return HandlerTable(
        calls={request: partial(handler, context) for request, handler in table.items()},
        words={wire.Grant: generations.grant},
    )
