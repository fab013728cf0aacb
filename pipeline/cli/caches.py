"""The commands about caches: info, status, verify, merge, export."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

import click

from pipeline.cli.base import CACHE, EXIT_SOME_FAILED, EXIT_TO_DO, cli, print_json, progress_line, say
from pipeline.core.names import one_line, shown
from pipeline.core.spec import PENULTIMATE
from pipeline.stages.option_types import EMPTY_TOO

if TYPE_CHECKING:
    from pipeline.cache import Cache
    from pipeline.cache.update import HashItems

_WATCH_EVERY_S = 3.0


@cli.command()
@click.argument("cache", type=CACHE)
@click.option("--failed", is_flag=True, help="Print only the failed images, one per line: key, tab, reason.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def info(cache: str, failed: bool, as_json: bool) -> None:
    """Show what is in a cache and what produced it."""
    from pipeline.cache.info import describe, describe_failures

    if failed:
        for key, reason in describe_failures(cache):
            click.echo("\t".join(one_line(shown(text)) for text in (key, reason)))
        return
    facts = describe(cache)
    if as_json:
        print_json(facts)
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {one_line(shown(_one_line(value)))}")


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_one_line(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_one_line(inner) for inner in value) or "none"
    return str(value)


@cli.command()
@click.argument("caches", nargs=-1, required=True, metavar="FILE...")
@click.option("--watch", is_flag=True, help="Look again every few seconds, until no part has rows to do.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--idle-shards",
    is_flag=True,
    help="Print only the numbers of the shards that have rows to do and no process, such as 3,7: what sbatch --array "
    "takes.",
)
def status(caches: tuple[str, ...], watch: bool, as_json: bool, idle_shards: bool) -> None:
    """Show how far the caches of several jobs are, while they run.

    FILE is a cache, a pattern such as 'photos-*.h5' or a folder of caches. A line for each gives what is done, failed
    and to do, its rate, the process that writes it, and the time left. "died" is a part whose process ended without
    finishing, "unreadable" one whose file is damaged.

    Exit code 0: all done. 3: all done, but some images failed. 4: some are still to do.
    """
    from pipeline.cache.parts import find_parts, look_at

    while True:
        parts = look_at(find_parts(caches))
        if idle_shards:
            click.echo(",".join(map(str, parts.idle_shards)))
        elif as_json:
            print_json({"parts": [part.to_json() for part in parts.parts], "missing_shards": list(parts.missing)})
        else:
            click.echo("\n".join([*(one_line(shown(str(part))) for part in parts.parts), parts.total()]))
        if parts.complete or not watch:
            break
        time.sleep(_WATCH_EVERY_S)
        click.clear()  # nothing unless on a terminal
    if not parts.complete or parts.failed:
        click.get_current_context().exit(EXIT_SOME_FAILED if parts.complete else EXIT_TO_DO)


@cli.command()
@click.argument("cache", type=CACHE)
@click.option("--images", is_flag=True, help="Compare the image files with the cache too. Reads all images.")
def verify(cache: str, images: bool) -> None:
    """Check every byte of a cache.

    Exit code 0: sound and complete. 1: damaged; the message says what and where. 3: sound, but some rows are to do or
    failed, or images have changed.
    """
    from pipeline.cache.verify import verify as verify_cache

    with progress_line("verify") as progress:
        found = verify_cache(
            cache,
            hash_images=_hashes_of_images if images else None,
            progress=progress,
        )
    say(f"{cache}: sound; {found.done} of {found.rows} rows done, {found.failed} failed, {found.to_do} to do")
    if found.uncommitted:
        say(f"{found.uncommitted} of those to do are written, not committed: pipeline extract computes them again")
    for keys, what in (
        (found.images_changed, "have changed"),
        (found.images_gone, "cannot be read any more"),
    ):
        if keys:
            more = ", …" if len(keys) > 3 else ""
            say(
                f"{len(keys)} images {what} ({', '.join(map(one_line, keys[:3]))}{more}): "
                "pipeline extract --check-content brings the cache up to date"
            )
    if not found.complete:
        click.get_current_context().exit(EXIT_SOME_FAILED)


def _hashes_of_images(cache: Cache) -> HashItems:
    from pipeline.sources.reopen import reopen_source  # keeps --help quick

    return reopen_source(cache.source, cache.items, cache.path.parent).content_hashes()


@cli.command()
@click.argument("caches", nargs=-1, required=True, type=CACHE, metavar="A.h5 B.h5...")
@click.option("-o", "--output", required=True, metavar="C.h5", help="The cache to write. It must not exist.")
@click.option(
    "--on-duplicate", default="refuse", show_default=True, type=click.Choice(["refuse", "first", "last"]),
    help="Which cache to use for an image on which they differ. refuse: stop with an error.",
)  # fmt: skip
def merge(caches: tuple[str, ...], output: str, on_duplicate: Literal["refuse", "first", "last"]) -> None:
    """Merge the rows of several caches with the same settings into a new one.

    Of a job array (pipeline extract --shard), all shards must be given. The new cache is then the one that a single
    run would have made.
    """
    from pipeline.cache.merge import merge as merge_caches

    made = merge_caches(caches, output, on_duplicate=on_duplicate, say=say)
    say(f"{output}: {made.rows} rows, {made.duplicates} duplicates left out, {made.to_do} to do, {made.failed} failed")
    if made.to_do or made.failed:
        click.get_current_context().exit(EXIT_SOME_FAILED)


@cli.command()
@click.argument("cache", type=CACHE)
@click.option(
    "--to",
    "kind",
    required=True,
    type=click.Choice(["parquet", "npy", "csv", "h5ad", "onnx"]),
    help="The format of the file.",
)
@click.option("-o", "--output", required=True, metavar="OUT", help="The file to write.")
@click.option(
    "--split",
    "splits",
    multiple=True,
    type=EMPTY_TOO,
    metavar="NAME",
    help="Write only rows of this split. Repeatable.  [default: all]",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    type=EMPTY_TOO,
    metavar="NAME",
    help="Write only rows of this class. Repeatable.  [default: all]",
)
@click.option("--layer", default=PENULTIMATE, show_default=True, help="The layer of the cache to write.")
def export(cache: str, kind: str, output: str, splits: tuple[str, ...], labels: tuple[str, ...], layer: str) -> None:
    """Write the done rows of CACHE, with keys, labels and columns, in another format.

    parquet: a column 'embedding' of lists. npy: an array, and OUT.csv with one line per row of it. csv: columns e0,
    e1, … h5ad: for scanpy and related tools (needs anndata). onnx: network and head as one file, from images to
    probabilities; CACHE is then a run folder.
    """
    if kind == "onnx":
        from pipeline.training.onnx import export_onnx

        if splits or labels or layer != PENULTIMATE:
            raise click.UsageError("--split, --label and --layer are about rows, of which an ONNX file has none")
        worst = export_onnx(cache, output)
        say(f"{output} written; its probabilities lie within {worst:.1g} of PyTorch's")
        return
    from pipeline.selection.export import export as export_rows

    with progress_line("export", unit="rows") as progress:
        written = export_rows(
            cache, output, kind, split=splits or None, label=labels or None, layer=layer, progress=progress
        )
    say(f"{', '.join(map(str, written))} written")
