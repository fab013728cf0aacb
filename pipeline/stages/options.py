"""The options of the stages: on the command line as they stand here, and in Python as the keywords of a function.

A keyword has the name of its option, with underscores for hyphens; an option ``--no-x`` is the keyword ``x=False``.
`pipeline.stages.keywords` reads the keywords.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from pipeline.core.spec import PENULTIMATE
from pipeline.core.views import VIEWS
from pipeline.stages.option_types import (
    SEED,
    Assignment,
    Cosine,
    CountOrAuto,
    Counts,
    Names,
    Number,
    RateOrAuto,
    ShareOrWord,
)

Options = tuple[Callable[[Any], Any], ...]
"""Decorators that add an option each to a command."""


def add_options(options: Options) -> Callable[[Any], Any]:
    """Return a decorator that adds options to a command, in their order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _no_report() -> Callable[[Any], Any]:
    return click.option("--no-report", "report", is_flag=True, callback=_negated, help="Do not write report.html.")


def _negated(context: click.Context, parameter: click.Parameter, value: bool) -> bool:
    return not value


TRUST_REMOTE_CODE = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run Python files that a repository of transformers brings with its network, with all your rights: read them "
    "first, and name a commit.  [default: refuse such networks]",
)

RUN: Options = (
    click.option(
        "--precision",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "float32", "mixed", "bfloat16", "float16"]),
        help="The network's precision. auto: for extract, the fastest that agrees with float32; otherwise, "
        "the cache's.",
    ),
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "openvino", "torch"]),
        help="The software that runs the network. auto: OpenVINO on a CPU where it can, PyTorch elsewhere.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        help="Where the network runs: cpu, mps, cuda (the first GPU), cuda:1, cuda:all, or cuda:0,cuda:2.",
    ),
    click.option(
        "--batch-size",
        type=CountOrAuto(4096),
        metavar="N|auto",
        default="auto",
        show_default=True,
        help="Images per forward pass. auto: a size that depends on the device.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1, 256),
        default=None,
        help="Number of decode processes.  [default: one per processor]",
    ),
    click.option(
        "--time-limit",
        default=60.0,
        show_default=True,
        type=Number(0.1),
        help="Seconds that reading and decoding one image may take. An image that takes longer fails.",
    ),
    TRUST_REMOTE_CODE,
)

EXTRACT: Options = (
    click.option(
        "--backbone",
        metavar="NAME",
        help="The network: a name that 'pipeline backbones' lists, or hf-hub:ORG/NAME, local-dir:FOLDER, onnx:FILE, "
        "python:MODULE:CALLABLE (docs/backbones.md).  [default: that of --weights RUN/, or efficientnet_lite0]",
    ),
    click.option(
        "--weights",
        metavar="W",
        help="The weights: a name, a .safetensors or .pth file, a fine-tuned RUN/, or 'random'.  [default: "
        "the backbone's]",
    ),
    click.option(
        "--layer",
        multiple=True,
        metavar="NODE[:POOLING]|auto",
        help="Store another layer besides 'penultimate'. POOLING is avg, max, gem, cls or flatten. auto: three layers, "
        "the ends of its blocks at several depths. Repeatable.",
    ),
    click.option(
        "--size",
        type=click.IntRange(1, 8192),
        metavar="PIXELS",
        help="Height and width of the network's input, where the network allows another. Changes the embeddings.  "
        "[default: that of the weights]",
    ),
    click.option(
        "--views",
        type=click.Choice(list(VIEWS)),
        help="Embed further views of every image, as further layers: flip, its mirror image; 5crop, its four corners; "
        "multiscale, its centre enlarged 1.25 and 1.6 times. Heads are fitted on all views.  [default: none]",
    ),
    click.option(
        "--dtype",
        default="float32",
        show_default=True,
        type=click.Choice(["float32", "float16"]),
        help="The type of the stored embeddings. float16 halves the file.",
    ),
    click.option(
        "--max-pixels",
        default=200_000_000,
        show_default=True,
        type=click.IntRange(1),
        help="Images with more pixels than this fail.",
    ),
    click.option(
        "--decode",
        default="cpu",
        show_default=True,
        type=click.Choice(["cpu", "gpu"]),
        help="gpu: decode JPEGs on the GPU if embeddings keep cosine 0.9995 to Pillow's pixels. Changes the "
        "embeddings.",
    ),
    click.option(
        "--labels",
        metavar="TABLE",
        help="Take labels from TABLE, for any kind of IMAGES: CSV or Parquet with 'key', and 'label', "
        "'split', 'group', …",
    ),
    click.option(
        "--allow-missing",
        is_flag=True,
        help="Turn files that a table names and that do not exist into failed rows, instead of stopping.",
    ),
    click.option(
        "--check-content",
        is_flag=True,
        help="Compare the content of every image with the cache, not only size and time. Reads all images.",
    ),
    click.option("--retry-failed", is_flag=True, help="Retry the images that failed before."),
    click.option("--max-failures", metavar="N|P%", help="Stop when more images than this fail.  [default: no limit]"),
    click.option(
        "--retries",
        type=click.IntRange(0),
        default=5,
        show_default=True,
        help="Repeat a read this often that a store could not serve now, such as one answered by 503 or a time-out, "
        "with growing waits. Images that stay out of reach are tried again by the next run.",
    ),
    click.option(
        "--read-timeout",
        type=Number(0, min_open=True),
        default=45,
        show_default=True,
        metavar="SECONDS",
        help="Give up an image after this time of reading, repetitions included. At most three quarters of "
        "--time-limit count.",
    ),
    click.option(
        "--allow-removed",
        metavar="N|P%",
        help="Let an update remove this many finished rows, whose images are gone or are others.  [default: 50%]",
    ),
    click.option(
        "--shard",
        metavar="I/N|slurm",
        help="Extract part I of N, from 1; slurm: of this array task. '{shard}' in CACHE.h5 becomes I. See "
        "pipeline merge.",
    ),
    click.option(
        "--ray",
        metavar="[ADDRESS]",
        is_flag=False,
        flag_value="",
        help="Run on the Ray cluster at ADDRESS. Without ADDRESS: use the running cluster, or start a local one.",
    ),
    click.option(
        "--ray-actors",
        type=click.IntRange(1),
        default=None,
        help="The largest number of engines on the cluster.  [default: as many as it has room for]",
    ),
    *RUN,
)

SCOUT: Options = (
    click.option(
        "--backbones",
        type=Names(),
        metavar="NAME,NAME...",
        help="The networks to compare, each NAME or NAME=WEIGHTS, as extract takes them.  [default: "
        "efficientnet_lite0, which needs no download]",
    ),
    click.option(
        "--set",
        type=click.Choice(["small", "clip", "dino"]),
        help="Compare a list of networks instead: small ones, image towers of CLIP, or networks trained by DINO.",
    ),
    click.option(
        "--layers",
        type=Names(),
        metavar="L,L...|auto",
        help="Compare these layers too, where a network has them, and all of them together. auto: the ends of its "
        "blocks at several depths.  [default: auto for a single network, none for several]",
    ),
    click.option(
        "--rows",
        default=2000,
        show_default=True,
        type=click.IntRange(4),
        help="Labelled images to compare on, drawn with the classes in their shares.",
    ),
    click.option(
        "--minutes",
        type=Number(0, min_open=True),
        help="Take about this long: drop the weakest networks early, or compare on fewer images.  [default: no limit]",
    ),
    click.option(
        "--labels",
        metavar="TABLE",
        help="Take labels from TABLE, as extract does.",
    ),
    click.option(
        "--folds",
        default=5,
        show_default=True,
        type=click.IntRange(2),
        help="Folds that choose C, and hold out the images on which accuracy is measured.",
    ),
    click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the images drawn and the folds."),
    _no_report(),
    *RUN,
)

FIT_HEAD: Options = (
    click.option(
        "--head",
        help="Kind of head. For classes: logistic, linear (streamed), ridge, lda, svm, knn, centroid, mlp or "
        "zero-shot. Numbers: ridge. Label sets: logistic or ridge.  [default: logistic, for numbers ridge]",
    ),
    click.option(
        "--estimator",
        metavar="MODULE:CLASS",
        help="Fit a scikit-learn estimator instead of a head, such as sklearn.svm:SVC.",
    ),
    click.option(
        "--set",
        type=Assignment(),
        metavar="NAME=VALUE",
        multiple=True,
        help="Set a parameter of the head or estimator. Repeatable.",
    ),
    click.option(
        "--prompts",
        metavar="TABLE",
        help="Texts of the classes, for caches of a dual encoder: CSV with class,prompt, a line for each prompt. For "
        "--head zero-shot or --start zero-shot.",
    ),
    click.option(
        "--start",
        default="zero",
        show_default=True,
        type=click.Choice(["zero", "zero-shot"]),
        help="What the penalty of the logistic head pulls the weights to. zero-shot: those of --prompts, for few "
        "labels.",
    ),
    click.option(
        "--weights",
        metavar="W",
        help="The weights of the network that reads --prompts, when the cache was made with a file's.",
    ),
    TRUST_REMOTE_CODE,
    click.option("--layer", default=PENULTIMATE, show_default=True, help="The layer of the cache to fit on."),
    click.option(
        "--layers",
        type=Names(),
        metavar="L,L...|all",
        help="Layers of the cache to choose from, instead of --layer: the folds compare each, and the best ones "
        "together.",
    ),
    click.option(
        "--no-views",
        "views",
        is_flag=True,
        callback=_negated,
        help="Leave out further views that the cache holds of every image.",
    ),
    click.option(
        "--labels",
        metavar="TABLE",
        help="Take labels from TABLE instead of the cache: CSV or Parquet with 'key', and 'label', 'split', 'group', …",
    ),
    click.option(
        "--features",
        type=Names(),
        metavar="COLUMN,COLUMN...",
        help="Columns of the cache, or of --labels, that join the embeddings: numbers are standardised, other values "
        "are categories; COLUMN:category or COLUMN:number says otherwise. Reports what they add and reach alone.",
    ),
    click.option(
        "--target",
        metavar="COLUMN",
        multiple=True,
        help="Predict this column of the cache instead of its labels. Repeatable: each target gets a run below RUN/.",
    ),
    click.option(
        "--task",
        type=click.Choice(["auto", "classification", "regression", "multilabel"]),
        default="auto",
        show_default=True,
        help="auto: treat numeric values as classes unless they are clearly continuous, and report the "
        "choice. Label sets "
        "are never inferred.",
    ),
    click.option(
        "--sweep",
        type=click.Choice(["auto", "full"]),
        default="auto",
        show_default=True,
        help="Values of C to try: 'full' tries 45.",
    ),
    click.option("--C", "C", type=Number(0, min_open=True), multiple=True, help="Try only these values. Repeatable."),
    click.option(
        "--folds",
        default=5,
        show_default=True,
        type=click.IntRange(2),
        help="Folds of the training rows that choose C.",
    ),
    click.option(
        "--scoring",
        type=click.Choice(["accuracy", "log_loss"]),
        default="accuracy",
        show_default=True,
        help="What chooses C.",
    ),
    click.option(
        "--scaling",
        type=click.Choice(["none", "standard"]),
        default="none",
        show_default=True,
        help="Standardise the features before fitting.",
    ),
    click.option("--balanced", is_flag=True, help="Give all classes the same total weight."),
    click.option(
        "--groups",
        metavar="COLUMN",
        help="Keep rows with the same value of this column on one side of every split.  [default: 'group', where "
        "there is such a column]",
    ),
    click.option(
        "--per",
        metavar="COLUMN",
        help="Give one answer for all rows with the same value of this column, such as a patient, and measure it too. "
        "Keeps these rows on one side of every split.",
    ),
    click.option(
        "--pooling",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "mean", "max", "embeddings"]),
        help="How rows become the answer of --per: mean or largest log-probability, or a second head on mean "
        "embeddings. auto: what the folds choose.",
    ),
    click.option(
        "--group-duplicates",
        is_flag=False,
        flag_value="default",
        type=Cosine(),
        metavar="[COSINE]",
        help="Keep images with equal bytes or nearly the same embedding on one side of every split.",
    ),
    click.option(
        "--shots",
        type=Counts(),
        metavar="N,N...",
        help="Also fit on N images of every class, drawn 5 times. Adds a curve to the report.",
    ),
    click.option(
        "--test-share",
        default=0.2,
        show_default=True,
        type=Number(0, 1, min_open=True, max_open=True),
        help="Share of rows to hold out where the cache has no split column.",
    ),
    click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of hold-out, folds and bootstrap."),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="Device that fits the head.",
    ),
    _no_report(),
)

PREDICT: Options = (
    click.option(
        "--weights",
        metavar="FILE",
        help="The backbone's weights, when the cache was made with those of a file. Of several networks: separated by "
        "commas, in the order of the fit.",
    ),
    click.option(
        "--trust", is_flag=True, help="Also open a head.joblib, which can run any code: only for files of your own."
    ),
    click.option(
        "--per",
        metavar="COLUMN",
        help="Also give one answer for all images with the same value of this column of IMAGES, as OUT-per-group.csv.",
    ),
    click.option(
        "--explain",
        metavar="FOLDER",
        help="Write a map over each image of what speaks for the prediction, the nearest training images, and a page, "
        "into FOLDER.",
    ),
    click.option(
        "--abstain-novelty",
        metavar="P",
        type=Number(0, 100),
        help="Leave the label empty where 'novelty', a percentile from 0 to 100, is above P.",
    ),
    click.option(
        "--abstain-confidence",
        metavar="C",
        type=Number(0, 1),
        help="Leave the label empty where the largest probability is below C.",
    ),
    click.option(
        "--coverage",
        metavar="SHARE",
        type=Number(0, 1, min_open=True, max_open=True),
        help="Write the column 'set', the classes among which the true one is this often, such as 0.9; of numbers, "
        "'low' and 'high'.",
    ),
    click.option(
        "--coverage-by-class",
        is_flag=True,
        help="Reach --coverage in each class, not only on average. Takes more training rows of each.",
    ),
    *RUN,
)

FINETUNE: Options = (
    click.option(
        "--schedule",
        default="lp-ft",
        show_default=True,
        type=click.Choice(["lp-ft", "gradual", "head-only"]),
        help="What is trained. lp-ft: everything; gradual: stage by stage from the top; head-only: the head.",
    ),
    click.option(
        "--epochs",
        default=5,
        show_default=True,
        type=click.IntRange(1),
        help="Passes over the training images, at most.",
    ),
    click.option(
        "--lr",
        default="1e-3",
        show_default=True,
        type=RateOrAuto(),
        help="Learning rate of the head. auto: by a range test.",
    ),
    click.option(
        "--layer-decay",
        default=0.9,
        show_default=True,
        type=Number(0, 1, min_open=True),
        help="Learning rate of a block, as a share of that of the block above it. 1: all blocks learn at one rate.",
    ),
    click.option(
        "--weight-decay",
        default=0.05,
        show_default=True,
        type=Number(0),
        help="Weight decay of the optimizer.",
    ),
    click.option(
        "--optimizer",
        default="adamw",
        show_default=True,
        type=click.Choice(["adamw", "sgd"]),
        help="The optimizer. sgd has momentum 0.9.",
    ),
    click.option(
        "--warmup",
        default=0.1,
        show_default=True,
        type=Number(0, 1, max_open=True),
        help="Share of the steps in which the learning rate rises.",
    ),
    click.option(
        "--batch-size", default=32, show_default=True, type=click.IntRange(1), help="Images per optimizer step."
    ),
    click.option(
        "--micro-batch",
        type=click.IntRange(1),
        help="Images per forward pass. Fewer need less memory.  [default: the whole step]",
    ),
    click.option(
        "--label-smoothing",
        default=0.0,
        show_default=True,
        type=Number(0, 1, max_open=True),
        help="Label smoothing of the loss.",
    ),
    click.option("--mixup", default=0.0, show_default=True, type=Number(0), help="α of mixup. 0: no mixup."),
    click.option(
        "--augment",
        default="flip",
        show_default=True,
        type=click.Choice(["none", "flip", "standard", "strong"]),
        help="Random changes of training images. flip: mirrors; standard: crops too; strong: TrivialAugment too.",
    ),
    click.option("--balanced", is_flag=True, help="Weight the loss so that all classes count equally."),
    click.option(
        "--clip",
        default=1.0,
        show_default=True,
        type=Number(0),
        help="Clip gradients to this norm. 0: do not clip.",
    ),
    click.option(
        "--ema",
        default=0.0,
        show_default=True,
        type=Number(0, 1, max_open=True),
        help="Decay of a moving average of the weights; the average is kept. 0: no average.",
    ),
    click.option(
        "--patience",
        default=3,
        show_default=True,
        type=click.IntRange(0),
        help="End after this many epochs without a better validation loss. 0: never end early.",
    ),
    click.option(
        "--mix",
        default="auto",
        show_default=True,
        type=ShareOrWord(),
        help="How much of the tuned network to take; the rest comes from its start. auto: by the validation rows; "
        "none: all of it.",
    ),
    click.option(
        "--start",
        default="fitted",
        show_default=True,
        type=click.Choice(["fitted", "random"]),
        help="The head to start from. random: a new head, to measure what the fitted one is worth.",
    ),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=SEED,
        help="Seed of all random numbers. The same seed repeats a run.",
    ),
    click.option(
        "--precision",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        help="Precision of training. auto: bfloat16 where the device has it, float32 elsewhere.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="Where to train. auto: the GPU where there is one.",
    ),
    click.option(
        "--workers", type=click.IntRange(1, 256), help="Number of decode processes.  [default: one per processor]"
    ),
    click.option("--weights", metavar="W", help="The weights file, when the cache was made with one."),
    TRUST_REMOTE_CODE,
    click.option("--restart", is_flag=True, help="Discard a checkpoint and start again.  [default: resume]"),
    _no_report(),
)
