"""The commands of stage 2: fit-head, compare, predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from pipeline.cli.base import EXIT_SOME_FAILED, ProgressLine, cli, run_options, say, stop_on_signal

if TYPE_CHECKING:
    from pipeline.embed import RunSettings


@cli.command("fit-head")
@click.argument("cache", type=click.Path())
@click.option(
    "-o", "--output", required=True, metavar="RUN/", help="The run folder to write; a former run is replaced."
)
@click.option(
    "--head",
    default="logistic",
    show_default=True,
    help="logistic, linear (streamed), ridge, lda, svm, knn, centroid, mlp.",
)
@click.option("--layer", default="penultimate", show_default=True, help="The layer of the cache to fit on.")
@click.option("--target", metavar="COLUMN", help="A column of the cache to learn instead of its labels.")
@click.option(
    "--sweep", type=click.Choice(["auto", "full"]), default="auto", show_default=True, help="Values of C: 'full' is 45."
)
@click.option(
    "--C", "cs", type=click.FloatRange(0, min_open=True), multiple=True, help="Try only these values. Repeatable."
)
@click.option(
    "--folds", default=5, show_default=True, type=click.IntRange(2), help="Folds that choose C, on the training rows."
)
@click.option(
    "--scoring",
    type=click.Choice(["accuracy", "log_loss"]),
    default="accuracy",
    show_default=True,
    help="What chooses C.",
)
@click.option(
    "--scaling", type=click.Choice(["none", "standard"]), default="none", show_default=True, help="Of the features."
)
@click.option("--balanced", is_flag=True, help="Weigh rare classes up.")
@click.option("--test-share", default=0.2, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Held out where the cache has no split column.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of hold-out, folds and bootstrap.")
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]), help="For the sweep."
)
@click.option("--no-report", is_flag=True, help="Do not write report.html.")
def fit_head(
    cache: str,
    output: str,
    head: str,
    layer: str,
    target: str | None,
    sweep: Literal["auto", "full"],
    cs: tuple[float, ...],
    folds: int,
    scoring: Literal["accuracy", "log_loss"],
    scaling: Literal["none", "standard"],
    balanced: bool,
    test_share: float,
    seed: int,
    device: str,
    no_report: bool,
) -> None:
    """Fit a head on CACHE, measure it on rows it has not seen, and write the run folder with its report."""
    from pipeline.fit_head import FitSettings
    from pipeline.fit_head import fit_head as run

    settings = FitSettings(
        head=head,
        layer=layer,
        target=target,
        Cs=cs or sweep,
        folds=folds,
        scoring=scoring,
        scaling=scaling,
        class_weight="balanced" if balanced else None,
        test_share=test_share,
        seed=seed,
        device=device,
        report=not no_report,
    )
    result = run(cache, output, settings, say=say)
    for split in ("test", "val"):
        if split in result.metrics:
            figures = result.metrics[split]
            accuracy, loss = figures["accuracy"], figures["log_loss"]
            say(
                f"{split}: accuracy {accuracy['value']:.4f} ({accuracy['low']:.4f} to {accuracy['high']:.4f}), "
                f"log loss {loss['value']:.4f}, on {figures['rows']} rows"
            )
    say(f"{result.run_dir} written in {sum(result.seconds.values()):.1f} s")


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option(
    "--split", type=click.Choice(["test", "val"]), default="test", show_default=True, help="The rows to compare on."
)
def compare(runs: tuple[str, ...], split: str) -> None:
    """Compare RUNS with the first of them, on the same rows.

    Prints each run's accuracy, its difference to the first with a paired bootstrap interval, the rows that only one of
    the two has right, and McNemar's exact p-value.
    """
    from pipeline.compare import compare_runs

    found = compare_runs(runs, split=split)
    click.echo("run\taccuracy\tdifference\tlow\thigh\tonly_first\tonly_this\tp_value")
    for entry in found:
        d = entry.difference
        click.echo(
            f"{entry.run}\t{entry.accuracy.value:.4f}\t{d.value:+.4f}\t{d.low:+.4f}\t{d.high:+.4f}\t"
            f"{entry.only_first}\t{entry.only_this}\t{entry.p_value:.3g}"
        )


@cli.command()
@click.argument("run_dir", metavar="RUN/")
@click.argument("images")
@click.option("-o", "--output", required=True, metavar="OUT.csv", help="The table to write.")
@click.option("--weights", metavar="FILE", help="The backbone's weights, when the cache was made with those of a file.")
@click.option(
    "--trust", is_flag=True, help="Also open a head.joblib, which can run any code: only for files of your own."
)
@run_options
def predict(run_dir: str, images: str, output: str, weights: str | None, trust: bool, run: RunSettings) -> None:
    """Apply the head of RUN/ to IMAGES: class names and probabilities as CSV."""
    from pipeline.predict import predict as predict_images

    progress = ProgressLine("predict")
    with stop_on_signal() as stop:
        try:
            summary = predict_images(
                run_dir, images, output, run, weights=weights, trust=trust, stop=stop, say=say, progress=progress
            )
        finally:
            progress.close()
        if summary.stopped:
            say(f"stopped; {output} was not written")
    say(f"{output}: {summary.total} images, {summary.failed} failed, in {summary.seconds:.1f} s, on {summary.engine}")
    if summary.failed:
        say(f"{summary.failed} images failed: the column 'error' says why")
        click.get_current_context().exit(EXIT_SOME_FAILED)
