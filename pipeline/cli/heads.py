"""The commands of stage 2: fit-head, compare, predict."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.base import CACHE, EXIT_SOME_FAILED, announce, cli, progress_line, say
from pipeline.cli.signals import stop_on_signal
from pipeline.core.callbacks import Callbacks
from pipeline.stages.options import FIT_HEAD, PREDICT, add_options


@cli.command("fit-head")
@click.argument("caches", nargs=-1, required=True, type=CACHE, metavar="CACHE...")
@click.option(
    "-o", "--output", required=True, metavar="RUN/", help="The run folder to write. An earlier run there is replaced."
)
@add_options(FIT_HEAD)
def fit_head(caches: tuple[str, ...], output: str, **options: Any) -> None:
    """Fit a head on CACHE, measure it on rows it has not seen, and write the run folder with its report.

    Caches of the same images by several networks are joined in one head.
    """
    from pipeline.stages.calls import fit_head as fit

    announce(f"fit-head: reading {', '.join(caches)}")
    result = fit(caches[0] if len(caches) == 1 else caches, output, callbacks=Callbacks(say=say), **options)
    say("\n".join(result.headlines()))
    say("\n".join(["what would help:", *(f"  {line}" for line in result.advice())]))
    say(f"{output} written in {sum(result.seconds.values()):.1f} s")


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=CACHE)
@click.option(
    "--split", type=click.Choice(["test", "val"]), default="test", show_default=True, help="The rows to compare on."
)
def compare(runs: tuple[str, ...], split: str) -> None:
    """Compare RUNS with the first of them, on the same rows.

    Print each run's accuracy (of label sets the share that is wholly right, of numbers the mean absolute error), its
    difference to the first with a paired bootstrap interval, the rows that only one of the two predicts correctly (or
    more closely), and the exact p-value of McNemar's test (or the sign test).
    """
    from pipeline.fitting.compare import compare_runs

    found = compare_runs(runs, split=split)
    click.echo(f"run\t{found[0].measure}\tdifference\tlow\thigh\tonly_first\tonly_this\tp_value")
    for entry in found:
        d = entry.difference
        click.echo(
            f"{entry.run}\t{entry.figure.value:.4f}\t{d.value:+.4f}\t{d.low:+.4f}\t{d.high:+.4f}\t"
            f"{entry.only_first}\t{entry.only_this}\t{entry.p_value:.3g}"
        )


@cli.command()
@click.argument("run_dir", metavar="RUN/")
@click.argument("images", nargs=-1, required=True, metavar="IMAGES...")
@click.option("-o", "--output", required=True, metavar="OUT.csv", help="The table to write.")
@add_options(PREDICT)
def predict(run_dir: str, images: tuple[str, ...], output: str, **options: Any) -> None:
    """Apply the head of RUN/ to IMAGES: classes or labels with probabilities, or numbers, as CSV.

    Several IMAGES are the caches of a head on several networks, in the order of its fit.
    """
    from pipeline.stages.calls import predict as predict_images

    announce(f"predict: reading {', '.join(images)}, then loading the network of {run_dir}")
    given = images[0] if len(images) == 1 else images
    with stop_on_signal() as stop:
        with progress_line("predict") as line:
            summary = predict_images(run_dir, given, output, callbacks=Callbacks(stop, say, line), **options)
        say("\n".join(summary.headlines()))
    if summary.failed:
        say(f"{summary.failed} images failed: the column 'error' holds the reasons")
    if summary.failed or summary.left_out.lost:
        click.get_current_context().exit(EXIT_SOME_FAILED)
