"""The command of stage 3: finetune."""

from __future__ import annotations

from typing import Any, Literal

import click

from pipeline.cli.base import SEED, ProgressLine, cli, say
from pipeline.cli.signals import stop_on_signal


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
@click.option(
    "-o", "--output", required=True, metavar="RUN2/", help="The run folder to write. An existing run is replaced."
)
@click.option(
    "--schedule", default="lp-ft", show_default=True, type=click.Choice(["lp-ft", "gradual", "head-only"]),
    help="What is trained. lp-ft: everything; gradual: stage by stage from the top; head-only: the head.",
)  # fmt: skip
@click.option(
    "--epochs", default=5, show_default=True, type=click.IntRange(1), help="Passes over the training images, at most."
)
@click.option(
    "--lr", default="3e-4", show_default=True, type=_Rate(), help="Learning rate of the head. auto: by a range test."
)
@click.option(
    "--layer-decay", default=0.8, show_default=True, type=click.FloatRange(0, 1, min_open=True),
    help="Learning rate of a block, as a share of that of the block above it. 1: all blocks learn at one rate.",
)  # fmt: skip
@click.option(
    "--weight-decay", default=0.05, show_default=True, type=click.FloatRange(0), help="Weight decay of the optimizer."
)
@click.option(
    "--optimizer", default="adamw", show_default=True, type=click.Choice(["adamw", "sgd"]),
    help="The optimizer. sgd has momentum 0.9.",
)  # fmt: skip
@click.option(
    "--warmup", default=0.1, show_default=True, type=click.FloatRange(0, 1, max_open=True),
    help="Share of the steps in which the learning rate rises.",
)  # fmt: skip
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Images per optimizer step.")
@click.option(
    "--micro-batch",
    type=click.IntRange(1),
    help="Images per forward pass. Fewer need less memory.  [default: the whole step]",
)
@click.option(
    "--label-smoothing", default=0.0, show_default=True, type=click.FloatRange(0, 1, max_open=True),
    help="Label smoothing of the loss.",
)  # fmt: skip
@click.option("--mixup", default=0.0, show_default=True, type=click.FloatRange(0), help="α of mixup. 0: no mixup.")
@click.option(
    "--augment", default="flip", show_default=True, type=click.Choice(["none", "flip", "standard", "strong"]),
    help="Random changes of training images. flip: mirrors; standard: crops too; strong: TrivialAugment too.",
)  # fmt: skip
@click.option("--balanced", is_flag=True, help="Weight the loss so that all classes count equally.")
@click.option(
    "--clip",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Clip gradients to this norm. 0: do not clip.",
)
@click.option(
    "--ema", default=0.0, show_default=True, type=click.FloatRange(0, 1, max_open=True),
    help="Decay of a moving average of the weights; the average is kept. 0: no average.",
)  # fmt: skip
@click.option(
    "--train-statistics",
    is_flag=True,
    help="Update the running statistics of batch normalisation.  [default: keep them]",
)
@click.option(
    "--patience", default=3, show_default=True, type=click.IntRange(0),
    help="End after this many epochs without a better validation loss. 0: never end early.",
)  # fmt: skip
@click.option(
    "--start", default="fitted", show_default=True, type=click.Choice(["fitted", "random"]),
    help="The head to start from. random: a new head, to measure what the fitted one is worth.",
)  # fmt: skip
@click.option(
    "--seed", default=0, show_default=True, type=SEED, help="Seed of all random numbers. The same seed repeats a run."
)
@click.option(
    "--precision", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Precision of training. auto: bfloat16 where the device has it, float32 elsewhere.",
)  # fmt: skip
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where to train. auto: the GPU where there is one.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Number of decode processes.  [default: one per processor]"
)
@click.option("--weights", metavar="W", help="The weights file, when the cache was made with one.")
@click.option("--restart", is_flag=True, help="Discard a checkpoint and start again.  [default: resume]")
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
    """Train the network behind CACHE, starting from the head of RUN/, and measure the gain.

    The images of the cache must still exist. The command can be stopped at any time; the same command resumes. RUN2/
    is a backbone (extract --weights RUN2/) with its head (predict RUN2/). For several GPUs, start the command with
    torchrun or accelerate launch.
    """
    from pipeline.embedding.settings import RunSettings
    from pipeline.stages.finetune import FinetuneSettings
    from pipeline.stages.finetune import finetune as run
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
            say("stopped: the same command resumes")
    if result.metrics:
        say(f"{result.run_dir}: {result.advice}")
