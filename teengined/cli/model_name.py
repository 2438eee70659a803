"""The MODEL argument, which the shell can complete from the daemon's store."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["MODEL", "ModelName"]

# A shell waits for this on every press of the tab key.
COMPLETION_SECONDS = 0.2


class ModelName(click.ParamType[str]):
    """Any text; completes to the names of packages."""

    name = "model"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        """Return the packages that begin with what was typed; none where no daemon answers at once."""
        from click.shell_completion import CompletionItem

        from teengined.client import Client
        from teengined.core.errors import TeengineError

        try:
            with Client(timeout_seconds=COMPLETION_SECONDS) as client:
                return [CompletionItem(model.name) for model in client.models(incomplete).models]
        except TeengineError:
            return []


MODEL = ModelName()
