"""`teengine verify`: compare every byte of a package with its digests."""

from pathlib import Path

import click

from teengined.cli.invocation import Invocation, Verb
from teengined.cli.model_name import MODEL
from teengined.cli.places import store_directory
from teengined.cli.progress import Step, open_progress
from teengined.core.errors import RequestError
from teengined.core.quantities import format_bytes

__all__ = ["command"]


@click.command("verify", cls=Verb, short_help="Check every byte of a model package.")
@click.argument("model", type=MODEL)
@click.option("--store", type=click.Path(path_type=Path), metavar="DIR", help="Directory of packages.")
@click.pass_obj
def command(invocation: Invocation, model: str, store: Path | None) -> None:
    """Compare the package MODEL, a name in the store or a package's directory, with its digests.

    The first unit that differs is named. Needs no daemon.
    """
    from teengined.modelpack.references import looks_like_path
    from teengined.modelpack.store import PackageStore
    from teengined.modelpack.verify import verify_package

    directory = Path(model)
    if store is not None and not store.is_dir():
        raise RequestError(f"there is no directory {store}", hint="name the directory of packages with --store")
    if not (directory / "manifest.json").is_file():
        if directory.is_dir() and looks_like_path(model):
            raise RequestError(
                f"{model} is no model package: it has no manifest.json", hint="`teengine ls` lists names"
            )
        directory = PackageStore(store or store_directory(invocation)).path_of(model)
    progress = open_progress()
    try:
        manifest = verify_package(
            directory, lambda done, total: progress.show(Step(label=f"verifying {model}", done=done, total=total))
        )
    finally:
        progress.close()
    click.echo(f"{model}: {len(manifest.units)} units, {format_bytes(manifest.stored_bytes)}, all as they were written")
