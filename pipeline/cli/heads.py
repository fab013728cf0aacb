"""The commands of stage 2: fit-head, compare, predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from pipeline.cli.base import EXIT_SOME_FAILED, SEED, ProgressLine, cli, run_options, say, stop_on_signal

if TYPE_CHECKING:
    from pipeline.embedding.settings import RunSettings


@cli.command("fit-head")
@click.argument("cache", type=click.Path())
@click.option(
    "-o", "--output", required=True, metavar="RUN/", help="The run folder to write. An earlier run there is replaced."
)
@click.option(
    "--head",
    help="Kind of head. For classes: logistic, linear (streamed), ridge, lda, svm, knn, centroid or mlp. Numbers: "
    "ridge. Label sets: logistic or ridge.  [default: logistic, for numbers ridge]",
)
@click.option(
    "--estimator",
    metavar="MODULE:CLASS",
    help="Fit a scikit-learn estimator instead of a head, such as sklearn.svm:SVC.",
)
@click.option(
    "--set",
    "assignments",
    metavar="NAME=VALUE",
    multiple=True,
    help="Set a parameter of the head or estimator. Repeatable.",
)
@click.option("--layer", default="penultimate", show_default=True, help="The layer of the cache to fit on.")
@click.option(
    "--target", "targets", metavar="COLUMN", multiple=True,
    help="Predict this column of the cache instead of its labels. Repeatable: each target gets a run below RUN/.",
)  # fmt: skip
@click.option(
    "--task",
    type=click.Choice(["auto", "classification", "regression", "multilabel"]),
    default="auto",
    show_default=True,
    help="auto: treat numeric values as classes unless they are clearly continuous, and report the choice. Label sets "
    "are never inferred.",
)
@click.option(
    "--sweep",
    type=click.Choice(["auto", "full"]),
    default="auto",
    show_default=True,
    help="Values of C to try: 'full' tries 45.",
)
@click.option(
    "--C", "cs", type=click.FloatRange(0, min_open=True), multiple=True, help="Try only these values. Repeatable."
)
@click.option(
    "--folds", default=5, show_default=True, type=click.IntRange(2), help="Folds of the training rows that choose C."
)
@click.option(
    "--scoring",
    type=click.Choice(["accuracy", "log_loss"]),
    default="accuracy",
    show_default=True,
    help="What chooses C.",
)
@click.option(
    "--scaling",
    type=click.Choice(["none", "standard"]),
    default="none",
    show_default=True,
    help="Standardise the features before fitting.",
)
@click.option("--balanced", is_flag=True, help="Give all classes the same total weight.")
@click.option(
    "--group-duplicates", is_flag=False, flag_value="default", metavar="[COSINE]",
    help="Keep images with equal bytes or nearly the same embedding on one side of every split.",
)  # fmt: skip
@click.option(
    "--shots", metavar="N,N...", help="Also fit on N images of every class, drawn 5 times. Adds a curve to the report."
)
@click.option("--test-share", default=0.2, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Share of rows to hold out where the cache has no split column.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of hold-out, folds and bootstrap.")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Device that fits the head.",
)
@click.option("--no-report", is_flag=True, help="Do not write report.html.")
def fit_head(
    cache: str,
    output: str,
    head: str | None,
    estimator: str | None,
    assignments: tuple[str, ...],
    layer: str,
    targets: tuple[str, ...],
    task: Literal["auto", "classification", "regression", "multilabel"],
    sweep: Literal["auto", "full"],
    cs: tuple[float, ...],
    folds: int,
    scoring: Literal["accuracy", "log_loss"],
    scaling: Literal["none", "standard"],
    balanced: bool,
    group_duplicates: str | None,
    shots: str | None,
    test_share: float,
    seed: int,
    device: str,
    no_report: bool,
) -> None:
    """Fit a head on CACHE, measure it on rows it has not seen, and write the run folder with its report."""
    from pipeline.fit_head import FitSettings, fit_heads
    from pipeline.fit_head import fit_head as fit_one

    settings = FitSettings(
        head=head,
        estimator=estimator,
        layer=layer,
        target=targets[0] if targets else None,
        task=task,
        Cs=cs or sweep,
        folds=folds,
        scoring=scoring,
        scaling=scaling,
        class_weight="balanced" if balanced else None,
        group_duplicates=_cosine(group_duplicates),
        test_share=test_share,
        seed=seed,
        device=device,
        shots=_numbers(shots),
        report=not no_report,
        params=dict(_assignment(text) for text in assignments),
    )
    if len(targets) < 2:
        results = [fit_one(cache, output, settings, say=say)]
    else:
        results = fit_heads(cache, output, targets, settings, say=say)
    for result in results:
        for line in result.headlines():
            say(f"{result.run_dir.name}: {line}" if len(results) > 1 else line)
    say(f"{output} written in {sum(sum(result.seconds.values()) for result in results):.1f} s")


def _assignment(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE, the value as a Python literal where it is one, as text otherwise."""
    import ast

    name, equals, value = text.partition("=")
    if not (name.strip() and equals):
        raise click.BadParameter(
            f"expected NAME=VALUE, got {text!r}: write it like --set n_neighbors=5", param_hint="--set"
        )
    try:
        return name.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name.strip(), value


def _cosine(text: str | None) -> float | None:
    from pipeline.evaluation.near_duplicates import DEFAULT_THRESHOLD

    if text in (None, "default"):
        return None if text is None else DEFAULT_THRESHOLD
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(
            f"expected a cosine such as 0.98, got {text!r}: give a number, or leave it out",
            param_hint="--group-duplicates",
        ) from None


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise click.BadParameter(
            f"expected numbers such as 1,2,5,10, got {text!r}: separate whole numbers with commas", param_hint="--shots"
        ) from None


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
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
@click.argument("images")
@click.option("-o", "--output", required=True, metavar="OUT.csv", help="The table to write.")
@click.option("--weights", metavar="FILE", help="The backbone's weights, when the cache was made with those of a file.")
@click.option(
    "--trust", is_flag=True, help="Also open a head.joblib, which can run any code: only for files of your own."
)
@run_options
def predict(run_dir: str, images: str, output: str, weights: str | None, trust: bool, run: RunSettings) -> None:
    """Apply the head of RUN/ to IMAGES: classes or labels with probabilities, or numbers, as CSV."""
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
        say(f"{summary.failed} images failed: the column 'error' holds the reasons")
    if summary.left_out.reasons:
        say(str(summary.left_out))
    if summary.failed or summary.left_out.lost:
        click.get_current_context().exit(EXIT_SOME_FAILED)
