"""The commands that analyse a cache: search, duplicates, outliers, check-labels, map, select, and others."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from pipeline.cli.base import CACHE, announce, cli, print_json, say
from pipeline.core.items import Status
from pipeline.core.names import SHOWN
from pipeline.core.spec import PENULTIMATE
from pipeline.core.text import counted
from pipeline.errors import AnalysisError
from pipeline.stages.option_types import SEED, Number
from pipeline.stages.options import RUN, add_options

if TYPE_CHECKING:
    from collections.abc import Callable

_layer = click.option("--layer", default=PENULTIMATE, show_default=True, help="The layer of the cache to use.")


def _to_write(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse an output that cannot be written, before the work begins."""
    if value is None or context.resilient_parsing:
        return value
    from pipeline.core.outputs import check_different, check_file  # keeps --help quick

    check_different(value, *(context.params.get(name) for name in ("output", "page") if name != parameter.name))
    check_file(value, AnalysisError)
    return value


_output = click.option(
    "-o",
    "--output",
    callback=_to_write,
    metavar="OUT.csv",
    help="Write the table to this file, as CSV or Parquet.  [default: CSV to standard output]",
)
_page = click.option(
    "--page", metavar="OUT.html", callback=_to_write, help="Also write a page that shows the images.  [default: none]"
)
_seed = click.option(
    "--seed",
    default=0,
    show_default=True,
    type=SEED,
    help="Seed of random numbers. The same seed gives the same result.",
)


def _give(table: Any, output: str | None) -> None:
    """Write the columns to the file named, or to standard output as CSV."""
    from pipeline.selection.frames import write_csv, write_table

    if output is not None:
        write_table(table, output)
        return
    text = io.StringIO(newline="")
    write_csv(table, text)
    sys.stdout.buffer.write(text.getvalue().encode("utf-8", SHOWN))


def _give_page(page: str | None, write: Callable[..., int], opened: Any, found: Any) -> None:
    if page is not None:
        unread = write(page, opened, found)
        say(f"{page} written, {Path(page).stat().st_size / 1e6:.1f} MB")
        if unread:
            say(
                f"warning: {unread} images of the page cannot be read at {opened.source.get('location', 'all')}: mount "
                "or move them back, or extract from where they are"
            )


@cli.command()
@click.argument("cache", type=CACHE)
@click.argument("queries", nargs=-1, metavar="[QUERY]...")
@click.option(
    "--text", "texts", multiple=True, help="Search for a text, in a cache of a dual encoder such as CLIP. Repeatable."
)
@click.option("-k", "k", default=10, show_default=True, type=click.IntRange(1), help="Number of images per query.")
@click.option(
    "--approximate",
    is_flag=True,
    help="Search a graph of neighbours (faiss) and report its recall. Pays for very many queries.  [default: exact]",
)
@click.option("--weights", metavar="FILE", help="The weights file, when the cache was made with one.")
@_layer
@_output
@_page
@add_options(RUN)
def search(
    cache: str,
    queries: tuple[str, ...],
    texts: tuple[str, ...],
    k: int,
    approximate: bool,
    weights: str | None,
    layer: str,
    output: str | None,
    page: str | None,
    **run: Any,
) -> None:
    """Find the images of CACHE that are nearest to each QUERY (an image file or a key of the cache) and each text.

    With ``-`` as the only QUERY, each line of standard input is a query.
    """
    from pipeline.analysis.search import search as find
    from pipeline.cache import open_cache
    from pipeline.stages.calls import run_settings

    if not (queries or texts):
        raise click.UsageError("expected a QUERY or --text, got neither: name an image, a key or a text")
    if queries == ("-",):
        lines = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
        # Only line feeds end a line: a name may hold the other breaks that splitlines knows.
        queries = tuple(dict.fromkeys(line for line in lines.replace("\r\n", "\n").split("\n") if line))
    announce(f"search: comparing with the rows of {cache}")
    opened = open_cache(cache)
    started = time.perf_counter()
    settings = run_settings(run)
    found = find(
        opened, queries, texts=texts, k=k, layer=layer, approximate=approximate, weights=weights, run=settings, say=say
    )
    _give(found.columns, output)
    recall = "" if found.recall is None else f", recall {found.recall:.3f} against an exact search"
    asked = counted(len(found.queries), "query", "queries")
    among = counted(int((opened.status == Status.DONE).sum()), "row")
    say(f"{asked} among {among} in {time.perf_counter() - started:.2f} s{recall}")
    if page is not None:
        from pipeline.report.galleries import write_search_page

        _give_page(page, write_search_page, opened, found)


@cli.command()
@click.argument("cache", type=CACHE)
@click.option(
    "--threshold",
    type=Number(0, 1, min_open=True),
    help="Least similarity of near duplicates. Lower finds more.  [default: 0.992 of pixels, 0.98 of embeddings]",
)
@click.option(
    "--no-images",
    is_flag=True,
    help="Compare embeddings only. Faster, but also pairs different objects that look alike.",
)
@click.option(
    "--across",
    metavar="COLUMN",
    help="Keep only groups whose images differ in this column. --across split shows what training and test share.  "
    "[default: all groups]",
)
@_layer
@_output
@_page
def duplicates(
    cache: str,
    threshold: float | None,
    no_images: bool,
    across: str | None,
    layer: str,
    output: str | None,
    page: str | None,
) -> None:
    """Find images of CACHE that show the same picture: copied, resized, recompressed or slightly cropped."""
    from pipeline.analysis.duplicates import duplicates_across, find_duplicates, values_of
    from pipeline.cache import open_cache

    announce(f"duplicates: comparing the images of {cache}")
    opened = open_cache(cache)
    if across is not None:
        values_of(opened, across)  # before the work
    started = time.perf_counter()
    found = find_duplicates(opened, threshold=threshold, layer=layer, use_pixels=not no_images, say=say)
    if across is not None:
        found = duplicates_across(found, opened, across)
    _give(found.table, output)
    groups = int(found.table["group"].max()) if len(found.table) else 0
    say(
        f"{groups} groups of {len(found.table)} images ({found.exact} exact pairs, {found.near} near) "
        f"among {len(opened)} in {time.perf_counter() - started:.1f} s"
    )
    if found.leak is not None:
        say(found.leak)
    if found.unread:
        say(f"{found.unread} images cannot be read: they were compared by content only")
    if page is not None:
        from pipeline.report.galleries import write_duplicates_page

        _give_page(page, write_duplicates_page, opened, found)


@cli.command()
@click.argument("cache", type=CACHE)
@click.option(
    "--threshold",
    default=3.5,
    show_default=True,
    type=Number(0, min_open=True),
    help="Robust standard deviations from which an image stands out. Lower finds more.",
)
@click.option(
    "-k",
    "k",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="The neighbour whose distance counts. Groups of up to this many similar images can stand out.",
)
@click.option("--no-images", is_flag=True, help="Judge by embeddings only, without sharpness, size and blank images.")
@_layer
@_output
@_page
def outliers(
    cache: str, threshold: float, k: int, no_images: bool, layer: str, output: str | None, page: str | None
) -> None:
    """Rank the images of CACHE by how unusual they are: far from all others, blank, extreme in sharpness or size."""
    from pipeline.analysis.outliers import find_outliers
    from pipeline.cache import open_cache

    announce(f"outliers: comparing the images of {cache}")
    opened = open_cache(cache)
    started = time.perf_counter()
    found = find_outliers(opened, k=k, threshold=threshold, layer=layer, use_pixels=not no_images, say=say)
    _give(found.table, output)
    say(f"{found.summary()}, in {time.perf_counter() - started:.1f} s")
    if found.unread:
        say(f"{found.unread} images cannot be read: they were judged by their embeddings only")
    if page is not None:
        from pipeline.report.galleries import write_outliers_page

        _give_page(page, write_outliers_page, opened, found)


@cli.command("check-labels")
@click.argument("cache", type=CACHE)
@click.option(
    "--C", "cs", type=Number(0, min_open=True), multiple=True,
    help="Value of C to choose from. Repeatable.  [default: 0.001, 0.01, 0.1]",
)  # fmt: skip
@click.option("--folds", default=5, show_default=True, type=click.IntRange(2), help="Number of folds.")
@_seed
@_layer
@_output
@_page
def check_labels(
    cache: str, cs: tuple[float, ...], folds: int, seed: int, layer: str, output: str | None, page: str | None
) -> None:
    """Rank the labels of CACHE by out-of-fold probabilities, most doubtful first."""
    from pipeline.analysis.labels import DEFAULT_CS
    from pipeline.analysis.labels import check_labels as check
    from pipeline.cache import open_cache

    say(f"check-labels: fitting heads to the rows of {cache}")
    opened = open_cache(cache)
    started = time.perf_counter()
    found = check(opened, layer=layer, Cs=cs or DEFAULT_CS, folds=folds, seed=seed, say=say)
    _give(found.table, output)
    say(
        f"{int(found.table['is_issue'].sum())} of {len(found.table)} labels look wrong; out-of-fold accuracy "
        f"{found.accuracy:.4f} at C = {found.C:.3g}, in {time.perf_counter() - started:.1f} s"
    )
    if page is not None:
        from pipeline.report.galleries import write_labels_page

        _give_page(page, write_labels_page, opened, found)


@cli.command("map")
@click.argument("cache", type=CACHE)
@click.option(
    "--method", default="umap", show_default=True, type=click.Choice(["pca", "umap", "tsne"]), help="The projection."
)
@click.option(
    "--neighbours",
    default=15,
    show_default=True,
    type=click.IntRange(2),
    help="Neighbours of UMAP. Fewer show more detail.",
)
@click.option("--epochs", type=click.IntRange(1), help="Epochs of UMAP.  [default: 200 above 10 000 rows, 500 below]")
@_seed
@_layer
@_output
@_page
def map_(
    cache: str,
    method: Literal["pca", "umap", "tsne"],
    neighbours: int,
    epochs: int | None,
    seed: int,
    layer: str,
    output: str | None,
    page: str | None,
) -> None:
    """Compute two coordinates per image of CACHE: a table of key, label, x, y."""
    from pipeline.analysis.projection import map_cache
    from pipeline.cache import open_cache

    announce(f"map: reading {cache}")
    opened = open_cache(cache)
    started = time.perf_counter()
    found = map_cache(opened, method, layer=layer, n_neighbors=neighbours, n_epochs=epochs, seed=seed, say=say)
    if output is not None or page is None:
        _give(found.table, output)
    say(f"{len(found.table)} images projected by {method} in {time.perf_counter() - started:.1f} s")
    if page is not None:
        from pipeline.report.galleries import write_map_page

        _give_page(page, write_map_page, opened, found)


@cli.command()
@click.argument("cache", type=CACHE)
@click.option("-k", "k", default=100, show_default=True, type=click.IntRange(1), help="Number of images.")
@click.option(
    "--method",
    default="typicality",
    show_default=True,
    type=click.Choice(["k-centre", "typicality"]),
    help="How to choose. typicality suits the first labels, k-centre suits many labels.",
)
@click.option(
    "--all",
    "among_all",
    is_flag=True,
    help="Choose among all rows, as if none had a label.  [default: rows without a label]",
)
@_seed
@_layer
@_output
def select(
    cache: str,
    k: int,
    method: Literal["k-centre", "typicality"],
    among_all: bool,
    seed: int,
    layer: str,
    output: str | None,
) -> None:
    """Choose which images of CACHE to label next, among those without a label."""
    from pipeline.analysis.active_learning import select as choose
    from pipeline.cache import open_cache

    started = time.perf_counter()
    announce(f"select: reading {cache}")
    found = choose(open_cache(cache), k, method, layer=layer, among_all=among_all, seed=seed)
    _give(found.table, output)
    say(f"{len(found.table)} of {found.candidates} images by {method} in {time.perf_counter() - started:.1f} s")


@cli.command("compare-caches")
@click.argument("caches", nargs=-1, required=True, type=CACHE, metavar="A.h5 [B.h5...]")
@click.option("--layer", "layers", multiple=True, help="Compare only this layer. Repeatable.  [default: all]")
@click.option("-k", "k", default=10, show_default=True, type=click.IntRange(1), help="Number of neighbours to compare.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@_seed
def compare_caches(caches: tuple[str, ...], layers: tuple[str, ...], k: int, as_json: bool, seed: int) -> None:
    """Compare embeddings of the same images: several caches, or the layers of one.

    Prints how well each embedding separates the labels (nearest neighbours, with intervals and the paired difference
    to the first), then, for each pair, linear CKA and the share of common neighbours.
    """
    announce(f"compare-caches: reading {' and '.join(caches)}")
    from pipeline.analysis.compare_caches import compare_caches as compare
    from pipeline.cache import open_cache

    found = compare([open_cache(path) for path in caches], layers=layers, k=k, seed=seed)
    if as_json:
        import json

        tables = {"separation": found.separation, "pairs": found.pairs}
        entries = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        print_json({"rows": found.rows, "asked": found.asked, **entries})
        return
    for table in (found.separation, found.pairs):
        if len(table):
            click.echo(table.to_csv(index=False, sep="\t", float_format="%.4f", lineterminator="\n"))
    if not len(found.separation):
        say("no common row has a label: separation of classes was not measured")
    say(f"{found.rows} common images, neighbours searched for {found.asked} of them")


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("cache", type=CACHE)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS]")
@click.option(
    "-o",
    "--output",
    callback=_to_write,
    metavar="OUT.parquet",
    help="The table to write.  [default: CACHE.h5.atlas.parquet]",
)
@click.option(
    "--method",
    default="umap",
    show_default=True,
    type=click.Choice(["pca", "umap", "tsne"]),
    help="The projection of the map.",
)
@_seed
@_layer
def explore(cache: str, options: tuple[str, ...], output: str | None, method: Any, seed: int, layer: str) -> None:
    """Open CACHE in Apple's embedding-atlas. OPTIONS are passed to it, such as ``--port 5060``."""
    from pipeline.analysis.atlas import atlas_command, check_atlas, write_atlas_table
    from pipeline.analysis.projection import map_cache
    from pipeline.cache import open_cache
    from pipeline.core.outputs import check_file

    check_atlas()
    opened = open_cache(cache)
    table = output or str(check_file(f"{cache}.atlas.parquet", AnalysisError))
    write_atlas_table(table, opened, map_cache(opened, method, layer=layer, seed=seed, say=say))
    say(f"{table} written; opening it in embedding-atlas (Ctrl-C ends it)")
    sys.stdout.flush()
    command = atlas_command(table, options)
    os.execv(command[0], command)
