"""The command line: the only place that prints, and that turns errors into exit codes.

Data go to files or standard output; messages and progress to standard error. Heavy modules are imported inside the
commands, so that ``--help`` stays quick.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import click

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from pipeline.embed import RunSettings
    from pipeline.extract import Summary

EXIT_ERROR = 1
EXIT_SOME_FAILED = 3
LOG_EVERY_S = 30.0


class _Stopped(Exception):
    """A signal asked for the end, and everything finished so far is safe."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_code = 128 + signum


class _Commands(click.Group):
    """Turns what went wrong into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PipelineError as error:
            say(f"error: {error}")
            ctx.exit(EXIT_ERROR)
        except _Stopped as stopped:
            ctx.exit(stopped.exit_code)
        except KeyboardInterrupt:  # a command that had nothing to commit
            ctx.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            # The reader of our output (head, a pager) has had enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)


def say(text: str) -> None:
    """Print a message for people."""
    click.echo(text, err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="embedding-pipeline", prog_name="pipeline")
def cli() -> None:
    """Run a frozen pretrained network once over an image archive, cache the embeddings, fit heads in seconds."""


def main() -> None:
    """Run the command line."""
    cli(prog_name="pipeline")


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set; a second signal ends the process at once.

    Raises
    ------
    _Stopped
        On leaving, when a signal had come.
    """
    stop = threading.Event()
    came: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if came:
            os._exit(128 + signum)
        came.append(signum)
        stop.set()
        say("\nstopping: committing what is done (once more to stop at once)")

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if came:
        raise _Stopped(came[0])


class ProgressLine:
    """A bar with images/s and time left on a terminal, a line now and then in a log."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._first = (0, 0.0)
        self._logged = 0.0

    def __call__(self, ready: int, failed: int, total: int) -> None:
        """Show the state."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=ready,
                unit=" images",
                desc=self._what,
                disable=not sys.stderr.isatty(),
                dynamic_ncols=True,
                smoothing=0.1,
            )
            self._first, self._logged = (ready, time.monotonic()), time.monotonic()
            return
        if not self._bar.disable:
            self._bar.update(ready - self._bar.n)
            if failed:
                self._bar.set_postfix_str(f"{failed} failed", refresh=False)
        elif time.monotonic() - self._logged > LOG_EVERY_S:
            self._logged = time.monotonic()
            rate = (ready - self._first[0]) / max(self._logged - self._first[1], 1e-9)
            left = (total - ready) / max(rate, 1e-9)
            say(
                f"{self._what}: {ready} of {total} images, {failed} failed, {rate:.0f} images/s, "
                f"{left / 60:.0f} min left"
            )

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how to run a network here; the command gets them as one `RunSettings`."""

    @functools.wraps(command)
    def with_settings(
        *args: Any,
        engine: str,
        device: str,
        precision: str,
        batch_size: int | None,
        workers: int | None,
        time_limit: float,
        **others: Any,
    ) -> None:
        from pipeline.decode_pool import Limits
        from pipeline.embed import RunSettings

        limits = Limits(seconds=time_limit)
        command(*args, run=RunSettings(engine, device, precision, batch_size or 0, workers or 0, limits), **others)

    for option in reversed(
        [
            click.option(
                "--precision",
                default="auto",
                show_default=True,
                type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
                help="Of the network; auto takes the fastest whose numbers agree with float32.",
            ),
            click.option(
                "--engine", default="auto", show_default=True, type=click.Choice(["auto", "openvino", "torch"])
            ),
            click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps."),
            click.option(
                "--batch-size",
                type=click.IntRange(1, 4096),
                default=None,
                help="Images per forward pass.  [default: what suits the device]",
            ),
            click.option(
                "--workers",
                type=click.IntRange(1, 256),
                default=None,
                help="Decode processes.  [default: one per processor]",
            ),
            click.option(
                "--time-limit",
                default=60.0,
                show_default=True,
                type=click.FloatRange(0.1),
                help="Seconds an image may take.",
            ),
        ]
    ):
        with_settings = option(with_settings)
    return with_settings


@cli.command()
@click.argument("images")
@click.option("-o", "--output", required=True, metavar="CACHE.h5", help="The cache to write, or to complete.")
@click.option("--backbone", default="efficientnet_lite0", show_default=True, help="See 'pipeline backbones'.")
@click.option("--weights", metavar="W", help="Name of the weights, a .safetensors or .pth file, or 'random'.")
@click.option(
    "--layer", "layers", multiple=True, metavar="NODE[:POOLING]",
    help="Another layer besides 'penultimate'; pooling is avg, max, gem, cls or flatten. Repeatable.",
)  # fmt: skip
@click.option(
    "--dtype", default="float32", show_default=True, type=click.Choice(["float32", "float16"]), help="Of the file."
)
@click.option(
    "--max-pixels", default=200_000_000, show_default=True, type=click.IntRange(1), help="Larger images fail."
)
@click.option(
    "--jpeg-scale", default="full", show_default=True, type=click.Choice(["full", "half"]),
    help="half: decode large JPEGs at 1/2, 1/4 or 1/8, to at least twice the size they are resized to; other numbers.",
)  # fmt: skip
@click.option("--allow-missing", is_flag=True, help="Files a table names and that do not exist become failed rows.")
@click.option(
    "--check-content", is_flag=True, help="Compare the content of every image with the cache, not only size and time."
)
@click.option("--retry-failed", is_flag=True, help="Try again the images that failed before.")
@click.option("--max-failures", metavar="N|P%", help="Stop early when more images fail than this.")
@run_options
def extract(
    images: str,
    output: str,
    backbone: str,
    weights: str | None,
    layers: tuple[str, ...],
    dtype: str,
    max_pixels: int,
    jpeg_scale: str,
    allow_missing: bool,
    check_content: bool,
    retry_failed: bool,
    max_failures: str | None,
    run: RunSettings,
) -> None:
    """Embed every image of IMAGES into a cache.

    IMAGES is a folder (sub-folders are classes), or a CSV or Parquet table with a column 'path' and, if you like,
    'label', 'split', 'group' and more. Stop it at any time: the same command goes on where it stopped.
    """
    from pipeline.decode import DecodePolicy
    from pipeline.extract import ExtractSettings
    from pipeline.extract import extract as extract_images

    settings = ExtractSettings(
        backbone=backbone,
        weights=weights,
        layers=layers,
        dtype=dtype,
        decode=DecodePolicy(max_pixels=max_pixels, jpeg_scale=jpeg_scale),
        run=run,
        allow_missing=allow_missing,
        check_content=check_content,
        retry_failed=retry_failed,
        max_failures=max_failures,
    )
    progress = ProgressLine("extract")
    with stop_on_signal() as stop:
        try:
            summary = extract_images(images, output, settings, stop=stop, say=say, progress=progress)
        finally:
            progress.close()
        _say_summary(summary, output)
        if summary.stopped:
            left = summary.total - summary.already - summary.computed - summary.failed
            say(f"stopped; the same command goes on: {left} left")
    if summary.failed:
        say(f"{summary.failed} images failed: 'pipeline info --failed {output}' lists them")
        click.get_current_context().exit(EXIT_SOME_FAILED)


def _say_summary(summary: Summary, output: str) -> None:
    seconds = summary.seconds
    rate = summary.computed / seconds["total"] if seconds["total"] else 0.0
    say(
        f"{output}: {summary.already + summary.computed} of {summary.total} images done ({summary.computed} now, "
        f"{summary.failed} failed) in {seconds['total']:.1f} s, {rate:.0f} images/s, on {summary.engine}"
    )
    if summary.read_out is not None:
        say(f"time: {summary.read_out}")
    if summary.changes:
        say("archive: " + ", ".join(f"{count} {what}" for what, count in summary.changes.items() if count))
    if summary.failures:
        say(
            "failed: "
            + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(summary.failures.items()))
        )
    if summary.skipped:
        what = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.skipped.items()))
        say(f"left out: {what} (such as {', '.join(summary.skipped_examples)})")


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


@cli.command("fit-head")
@click.argument("cache", type=click.Path())
@click.option(
    "-o", "--output", required=True, metavar="RUN/", help="The run folder to write; a former run is replaced."
)
@click.option("--head", default="logistic", show_default=True, help="logistic, ridge, lda, svm, knn, centroid or mlp.")
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
@click.argument("cache", type=click.Path())
@click.option("--failed", is_flag=True, help="List the failed images, one line each: key, tab, reason.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def info(cache: str, failed: bool, as_json: bool) -> None:
    """Show what is in a cache and what made it."""
    from pipeline.info import describe, describe_failures

    if failed:
        for key, reason in describe_failures(cache):
            click.echo(f"{key}\t{reason}")
        return
    facts = describe(cache)
    if as_json:
        import json

        click.echo(json.dumps(facts, indent=2))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {_one_line(value)}")


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_one_line(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_one_line(inner) for inner in value) or "none"
    return str(value)


@cli.command()
@click.argument("cache", type=click.Path())
@click.option("--images", is_flag=True, help="Compare the image files with the cache as well.")
def verify(cache: str, images: bool) -> None:
    """Check every byte of a cache.

    Exit code 0: sound and complete. 1: damaged; the message says what and where. 3: sound, but rows are to do or
    failed, or images are not what they were.
    """
    from pipeline.cache.verify import verify as verify_cache
    from pipeline.content import hash_files_of
    from pipeline.decode import Status

    progress = ProgressLine("verify")
    try:
        found = verify_cache(
            cache,
            legal_status=frozenset(map(int, Status)),
            hash_images=hash_files_of if images else None,
            progress=progress,
        )
    finally:
        progress.close()
    say(f"{cache}: sound; {found.done} of {found.rows} rows done, {found.failed} failed, {found.to_do} to do")
    if found.uncommitted:
        say(f"{found.uncommitted} of those to do are written, not committed: pipeline extract computes them again")
    for keys, what in (
        (found.images_changed, "have other content now"),
        (found.images_gone, "cannot be read any more"),
    ):
        if keys:
            more = ", …" if len(keys) > 3 else ""
            say(
                f"{len(keys)} images {what} ({', '.join(keys[:3])}{more}): "
                "pipeline extract --check-content brings the cache up to date"
            )
    if not found.complete:
        click.get_current_context().exit(EXIT_SOME_FAILED)


@cli.command()
@click.argument("caches", nargs=-1, required=True, type=click.Path(), metavar="A.h5 B.h5...")
@click.option("-o", "--output", required=True, metavar="C.h5", help="The cache to write; must not exist.")
@click.option(
    "--on-duplicate", default="refuse", show_default=True, type=click.Choice(["refuse", "first", "last"]),
    help="Which cache is right about an image that they disagree on.",
)  # fmt: skip
def merge(caches: tuple[str, ...], output: str, on_duplicate: Literal["refuse", "first", "last"]) -> None:
    """Put the rows of several caches, made with the same settings, into a new one."""
    from pipeline.cache.merge import merge as merge_caches

    made = merge_caches(caches, output, on_duplicate=on_duplicate, say=say)
    say(f"{output}: {made.rows} rows, {made.duplicates} duplicates left out, {made.to_do} to do, {made.failed} failed")
    if made.to_do or made.failed:
        click.get_current_context().exit(EXIT_SOME_FAILED)


@cli.command()
@click.option("--family", type=click.Choice(["efficientnet_lite0", "torchvision", "timm"]), help="Only this one's.")
def backbones(family: str | None) -> None:
    """List the names that --backbone takes."""
    from pipeline.backbones import list_backbones

    for name in list_backbones(family):
        click.echo(name)
