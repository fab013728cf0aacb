"""The command of stage 3: finetune."""

from __future__ import annotations

from typing import Any

import click

from pipeline.cli.base import CACHE, announce, cli, progress_line, say
from pipeline.cli.signals import stop_on_signal
from pipeline.core.callbacks import Callbacks
from pipeline.stages.options import FINETUNE, add_options


@cli.command()
@click.argument("cache", type=CACHE)
@click.argument("probe", metavar="RUN/", type=CACHE)
@click.option(
    "-o", "--output", required=True, metavar="RUN2/", help="The run folder to write. An existing run is replaced."
)
@add_options(FINETUNE)
def finetune(cache: str, probe: str, output: str, **options: Any) -> None:
    """Train the network behind CACHE, starting from the head of RUN/, and measure the gain.

    The images of the cache must still exist. The command can be stopped at any time; the same command resumes. RUN2/
    is a backbone (extract --weights RUN2/) with its head (predict RUN2/). For several GPUs, start the command with
    torchrun or accelerate launch.
    """
    from pipeline.stages.calls import finetune as train

    announce(f"finetune: reading {cache} and loading the network")
    with stop_on_signal() as stop:
        with progress_line("finetune") as line:
            result = train(cache, probe, output, callbacks=Callbacks(stop, say, line), **options)
        for text in result.headlines():  # none in the other processes of several GPUs
            say(text)
