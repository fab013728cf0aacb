"""The command of stage 3: finetune."""

from __future__ import annotations

from typing import Any, Literal

import click

from pipeline.cli.base import SEED, ProgressLine, cli, say, stop_on_signal


class _Rate(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A learning rate, or auto."""

    name = "RATE|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | Literal["auto"]:
        if value == "auto":
            return "auto"
        try:
            rate = float(value)
        except ValueError:
            rate = -1.0
        if not 0 < rate < float("inf"):
            self.fail(f"expected a positive number or auto, found {value!r}", param, ctx)
        return rate


@cli.command()
@click.argument("cache", type=click.Path())
@click.argument("probe", metavar="RUN/", type=click.Path())
@click.option("-o", "--output", required=True, metavar="RUN2/", help="The run folder to write, or to replace.")
@click.option(
    "--schedule", default="lp-ft", show_default=True, type=click.Choice(["lp-ft", "gradual", "head-only"]),
    help="What learns: everything; stage by stage from the top; the head alone.",
)  # fmt: skip
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(1))
@click.option("--lr", default="3e-4", show_default=True, type=_Rate(), help="Of the head; auto: from a range test.")
@click.option(
    "--layer-decay", default=0.8, show_default=True, type=click.FloatRange(0, 1, min_open=True),
    help="Learning rate of a block as a share of the one above it.",
)  # fmt: skip
@click.option("--weight-decay", default=0.05, show_default=True, type=click.FloatRange(0))
@click.option("--optimizer", default="adamw", show_default=True, type=click.Choice(["adamw", "sgd"]))
@click.option(
    "--warmup", default=0.1, show_default=True, type=click.FloatRange(0, 1, max_open=True), help="Share of the steps."
)
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Images to a step.")
@click.option(
    "--micro-batch", type=click.IntRange(1), help="Images at once, added up to a step.  [default: the whole step]"
)
@click.option("--label-smoothing", default=0.0, show_default=True, type=click.FloatRange(0, 1, max_open=True))
@click.option("--mixup", default=0.0, show_default=True, type=click.FloatRange(0), help="α; 0 for none.")
@click.option(
    "--augment", default="flip", show_default=True, type=click.Choice(["none", "flip", "standard", "strong"]),
    help="flip; standard: random crops too; strong: TrivialAugment too.",
)  # fmt: skip
@click.option("--balanced", is_flag=True, help="Weigh rare classes up.")
@click.option("--clip", default=1.0, show_default=True, type=click.FloatRange(0), help="Norm of gradients; 0: any.")
@click.option(
    "--ema", default=0.0, show_default=True, type=click.FloatRange(0, 1, max_open=True),
    help="Decay of an average of the weights, which is then kept; 0 for none.",
)  # fmt: skip
@click.option("--train-statistics", is_flag=True, help="Let batch normalisation's running statistics move.")
@click.option(
    "--patience", default=3, show_default=True, type=click.IntRange(0),
    help="Epochs without a better validation loss before the end; 0: all epochs.",
)  # fmt: skip
@click.option(
    "--start", default="fitted", show_default=True, type=click.Choice(["fitted", "random"]), help="Of the head."
)
@click.option("--seed", default=0, show_default=True, type=SEED)
@click.option(
    "--precision", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Of training; auto: bfloat16 where the device computes in it.",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--workers", type=click.IntRange(1, 256), help="Decode processes.  [default: one per processor]")
@click.option("--weights", metavar="W", help="The backbone's weights, when the cache was made with those of a file.")
@click.option("--restart", is_flag=True, help="Begin anew where a stopped run could go on.")
@click.option("--no-report", is_flag=True, help="Do not write report.html.")
def finetune(
    cache: str,
    probe: str,
    output: str,
    start: Literal["fitted", "random"],
    micro_batch: int | None,
    workers: int | None,
    weights: str | None,
    restart: bool,
    no_report: bool,
    **train: Any,
) -> None:
    """Train the network behind CACHE, gently, from the head of RUN/ on, and measure whether it was worth it.

    The images of the cache must still be there. Stop it at any time: the same command goes on where it stopped. RUN2/
    is a backbone (extract --weights RUN2/) with its head (predict RUN2/). Several GPUs: start it with torchrun or
    accelerate launch.
    """
    from pipeline.embedding.settings import RunSettings
    from pipeline.finetune import FinetuneSettings
    from pipeline.finetune import finetune as run
    from pipeline.training.settings import TrainSettings

    settings = FinetuneSettings(
        train=TrainSettings(micro_batch=micro_batch or 0, **train),
        start=start,
        run=RunSettings(device=train["device"], workers=workers or 0),
        weights=weights,
        restart=restart,
        report=not no_report,
    )
    progress = ProgressLine("finetune")
    with stop_on_signal() as stop:
        try:
            result = run(cache, probe, output, settings, stop=stop, say=say, progress=progress)
        finally:
            progress.close()
        if result.stopped:
            say("stopped; the same command goes on")
    if result.metrics:
        say(f"{result.run_dir}: {result.advice}")
