"""The commands of stage 1: extract, backbones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.base import EXIT_SOME_FAILED, ProgressLine, cli, run_options, say, stop_on_signal

if TYPE_CHECKING:
    from pipeline.embedding.settings import RunSettings
    from pipeline.extract import Summary


@cli.command()
@click.argument("images")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="CACHE.h5",
    help="The cache to write. An existing cache is completed or updated.",
)
@click.option(
    "--backbone",
    metavar="NAME",
    help="The network; 'pipeline backbones' lists the names.  [default: that of --weights RUN/, or efficientnet_lite0]",
)
@click.option(
    "--weights",
    metavar="W",
    help="The weights: a name, a .safetensors or .pth file, a fine-tuned RUN/, or 'random'.  [default: the backbone's]",
)
@click.option(
    "--layer", "layers", multiple=True, metavar="NODE[:POOLING]",
    help="Store another layer besides 'penultimate'. POOLING is avg, max, gem, cls or flatten. Repeatable.",
)  # fmt: skip
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "float16"]),
    help="The type of the stored embeddings. float16 halves the file.",
)
@click.option(
    "--max-pixels",
    default=200_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Images with more pixels than this fail.",
)
@click.option(
    "--jpeg-scale", default="full", show_default=True, type=click.Choice(["full", "half"]),
    help="half: decode large JPEGs at 1/2, 1/4 or 1/8, to at least twice the target size. Changes the embeddings.",
)  # fmt: skip
@click.option(
    "--decode", "decoder", default="cpu", show_default=True, type=click.Choice(["cpu", "gpu"]),
    help="gpu: decode JPEGs on the GPU if embeddings keep cosine 0.9995 to Pillow's pixels. Changes the embeddings.",
)  # fmt: skip
@click.option(
    "--labels", metavar="TABLE",
    help="Take labels from TABLE, for any kind of IMAGES: CSV or Parquet with 'key', and 'label', 'split', 'group', …",
)  # fmt: skip
@click.option(
    "--allow-missing",
    is_flag=True,
    help="Turn files that a table names and that do not exist into failed rows, instead of stopping.",
)
@click.option(
    "--check-content",
    is_flag=True,
    help="Compare the content of every image with the cache, not only size and time. Reads all images.",
)
@click.option("--retry-failed", is_flag=True, help="Retry the images that failed before.")
@click.option("--max-failures", metavar="N|P%", help="Stop when more images than this fail.  [default: no limit]")
@click.option(
    "--shard", metavar="I/N|slurm",
    help="Extract part I of N, from 1; slurm: of this array task. '{shard}' in CACHE.h5 becomes I. See pipeline merge.",
)  # fmt: skip
@click.option(
    "--ray", "ray_address", metavar="[ADDRESS]", is_flag=False, flag_value="",
    help="Run on the Ray cluster at ADDRESS. Without ADDRESS: use the running cluster, or start a local one.",
)  # fmt: skip
@click.option(
    "--ray-actors", type=click.IntRange(1), default=None,
    help="The largest number of engines on the cluster.  [default: as many as it has room for]",
)  # fmt: skip
@run_options
def extract(
    images: str,
    output: str,
    backbone: str | None,
    weights: str | None,
    layers: tuple[str, ...],
    dtype: str,
    max_pixels: int,
    jpeg_scale: str,
    decoder: str,
    labels: str | None,
    allow_missing: bool,
    check_content: bool,
    retry_failed: bool,
    max_failures: str | None,
    shard: str | None,
    ray_address: str | None,
    ray_actors: int | None,
    run: RunSettings,
) -> None:
    """Embed every image of IMAGES into a cache.

    IMAGES is a folder (sub-folders are classes), a CSV or Parquet table with a column 'path' (and optionally
    'label', 'split', 'group' and others), a tar or zip archive, a Parquet or HDF5 file of images, a glob or a brace
    pattern of these ('shards-{000..099}.tar'), or an fsspec URL of any (s3://, gs://, http(s)://, hf://).

    The command can be stopped at any time. The same command resumes.
    """
    from pipeline.core.shards import Shard
    from pipeline.decoding.image import GPU, PILLOW, DecodePolicy
    from pipeline.extract import ExtractSettings
    from pipeline.extract import extract as extract_images

    part = Shard.parse(shard) if shard else None
    output = part.name(output) if part else output
    settings = ExtractSettings(
        backbone=backbone,
        weights=weights,
        layers=layers,
        dtype=dtype,
        decode=DecodePolicy(
            max_pixels=max_pixels, jpeg_scale=jpeg_scale, jpeg_decoder=GPU if decoder == "gpu" else PILLOW
        ),
        run=run,
        allow_missing=allow_missing,
        labels=labels,
        check_content=check_content,
        retry_failed=retry_failed,
        max_failures=max_failures,
        shard=part,
    )
    executor = None
    if ray_address is not None:
        from pipeline.embedding.ray import RayExecutor

        executor = RayExecutor(ray_address or None, actors=ray_actors or 0)
    progress = ProgressLine("extract")
    with stop_on_signal() as stop:
        try:
            summary = extract_images(images, output, settings, executor=executor, stop=stop, say=say, progress=progress)
        finally:
            progress.close()
        _say_summary(summary, output)
        if summary.stopped:
            left = summary.total - summary.already - summary.computed - summary.failed
            say(f"stopped, {left} left: the same command resumes")
    if summary.failed:
        say(f"{summary.failed} images failed: 'pipeline info --failed {output}' lists them")
    if summary.failed or summary.left_out.lost:
        click.get_current_context().exit(EXIT_SOME_FAILED)


def _say_summary(summary: Summary, output: str) -> None:
    seconds = summary.seconds
    rate = summary.computed / seconds["total"] if seconds["total"] else 0.0
    say(
        f"{output}: {summary.already + summary.computed} of {summary.total} images done ({summary.computed} now, "
        f"{summary.failed} failed) in {seconds['total']:.1f} s, {rate:.0f} images/s, on {summary.engine}"
    )
    if summary.bottleneck is not None:
        say(f"time: {summary.bottleneck}")
    if summary.changes:
        say("archive: " + ", ".join(f"{count} {what}" for what, count in summary.changes.items() if count))
    if summary.failures:
        say(
            "failed: "
            + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(summary.failures.items()))
        )
    if summary.left_out.reasons:
        say(str(summary.left_out))


@cli.command()
@click.option(
    "--family",
    type=click.Choice(["efficientnet_lite0", "torchvision", "timm"]),
    help="List only this family.  [default: all]",
)
def backbones(family: str | None) -> None:
    """List the names that --backbone takes."""
    from pipeline.backbones import list_backbones

    for name in list_backbones(family):
        click.echo(name)
