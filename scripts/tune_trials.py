"""Try variants of fine-tuning on Fashion-MNIST: accuracy on test images and on shifted ones, for a table of trials.

    python scripts/tune_trials.py FASHION OUT [--variants base random …] [--train 1000] [--test 1000] [--seeds 0 …]
        [--epochs 3] [--mixes 0.5 …] [--size 112] [--whole] [--against VARIANT]

FASHION is what ``make_images.py fashion-mnist`` wrote. Images, shift and probe are those of ``bench_finetune.py``. All
variants train on the same prepared images, which stay in memory, by the trainer of the package. Networks are measured
in the trainer's precision. A result that is already in OUT is kept: the same command goes on. Differences from the
probe have paired 95 % intervals over test images. The table at the end has means over seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from bench_finetune import interval, pipeline, write_images

from pipeline.cache import open_cache
from pipeline.core.callbacks import Callbacks
from pipeline.embedding.from_spec import backbone_of_spec, decode_of_spec
from pipeline.fitting.run_folder import read_run
from pipeline.heads.saved import load_head
from pipeline.stages.finetune import _rows_of_run
from pipeline.training.accelerator import make_accelerator
from pipeline.training.images import CachedImages
from pipeline.training.measure import training_rows
from pipeline.training.mix import choose_share, interpolated, try_shares
from pipeline.training.network import FineTuningNetwork
from pipeline.training.settings import TrainSettings
from pipeline.training.start import fit_without_validation
from pipeline.training.trainer import Trainer, TrainingData

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

BATCH = 32
BASE: dict[str, Any] = {"lr": 3e-4, "layer_decay": 0.8}
"""What ``base`` is: the defaults of version 0.1.0. A variant names its differences from it."""


@dataclass(frozen=True)
class Variant:
    """What a trial changes.

    Attributes
    ----------
    train : dict
        Fields of `TrainSettings`.
    start : str
        ``fitted`` or ``random``.
    C : float or None
        Fit the head to start from with this penalty instead of the chosen one.
    softer : float
        Divide the head to start from by this.
    pull : float
        After each step move all weights this share of the way back to the start.
    honest : bool
        Fit the head to start from without the validation rows.
    statistics : bool
        Let training update the running statistics of batch normalisation.
    """

    train: dict[str, Any] = field(default_factory=dict)
    start: str = "fitted"
    C: float | None = None
    softer: float = 1.0
    pull: float = 0.0
    honest: bool = True
    statistics: bool = False


VARIANTS = {
    "base": Variant(),
    "random": Variant(start="random"),
    "lr 1e-3": Variant({"lr": 1e-3}),
    "lr 1e-3, random": Variant({"lr": 1e-3}, start="random"),
    "lr 3e-3": Variant({"lr": 3e-3}),
    "decay 0.9": Variant({"layer_decay": 0.9}),
    "decay 1": Variant({"layer_decay": 1.0}),
    "decay 1, random": Variant({"layer_decay": 1.0}, start="random"),
    "decay 0.9, lr 1e-3": Variant({"layer_decay": 0.9, "lr": 1e-3}),
    "decay 0.9, lr 1e-3, random": Variant({"layer_decay": 0.9, "lr": 1e-3}, start="random"),
    "decay 0.9, lr 1e-3, standard": Variant({"layer_decay": 0.9, "lr": 1e-3, "augment": "standard"}),
    "decay 0.9, lr 1e-3, mixup": Variant({"layer_decay": 0.9, "lr": 1e-3, "mixup": 0.2}),
    "decay 0.9, lr 1e-3, ema": Variant({"layer_decay": 0.9, "lr": 1e-3, "ema": 0.9}),
    "decay 0.9, lr 1e-3, smoothing": Variant({"layer_decay": 0.9, "lr": 1e-3, "label_smoothing": 0.1}),
    "decay 0.9, lr 1e-3, gradual": Variant({"layer_decay": 0.9, "lr": 1e-3, "schedule": "gradual"}),
    "decay 1, lr 1e-3": Variant({"layer_decay": 1.0, "lr": 1e-3}),
    "augment none": Variant({"augment": "none"}),
    "augment standard": Variant({"augment": "standard"}),
    "augment strong": Variant({"augment": "strong"}),
    "smoothing 0.1": Variant({"label_smoothing": 0.1}),
    "mixup 0.2": Variant({"mixup": 0.2}),
    "C 1e-3": Variant(C=1e-3),
    "C 1e-4": Variant(C=1e-4),
    "softer 3": Variant(softer=3.0),
    "softer 10": Variant(softer=10.0),
    "train statistics": Variant(statistics=True),
    "pull 0.03": Variant(pull=0.03),
    "ema 0.98": Variant({"ema": 0.98}),
    "lr 1e-3, mixup": Variant({"lr": 1e-3, "mixup": 0.2}),
    "lr 1e-3, ema": Variant({"lr": 1e-3, "ema": 0.9}),
    "lr 1e-3, gradual": Variant({"lr": 1e-3, "schedule": "gradual"}),
    "lr 1e-3, C 1e-3": Variant({"lr": 1e-3}, C=1e-3),
    "decay 0.9, lr 1e-3, softer 3": Variant({"layer_decay": 0.9, "lr": 1e-3}, softer=3.0),
    "lr 1e-3, standard": Variant({"lr": 1e-3, "augment": "standard"}),
    "lr 1e-3, strong": Variant({"lr": 1e-3, "augment": "strong"}),
    "lr 1e-3, strong, random": Variant({"lr": 1e-3, "augment": "strong"}, start="random"),
    "lr 3e-3, strong": Variant({"lr": 3e-3, "augment": "strong"}),
    "lr 1e-3, smoothing": Variant({"lr": 1e-3, "label_smoothing": 0.1}),
    "lr 1e-3, softer 3": Variant({"lr": 1e-3}, softer=3.0),
    "lr 1e-3, softer 10": Variant({"lr": 1e-3}, softer=10.0),
    "decay 0.9, lr 1e-3, strong": Variant({"layer_decay": 0.9, "lr": 1e-3, "augment": "strong"}),
    "decay 1, strong": Variant({"layer_decay": 1.0, "augment": "strong"}),
    "gradual": Variant({"schedule": "gradual"}),
    "sgd": Variant({"optimizer": "sgd", "lr": 1e-2}),
    "balanced": Variant({"balanced": True}),
    "epochs 4": Variant({"epochs": 4}),
}


class Prepared:
    """Prepared images in memory, in place of `CachedImages`."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images

    def batches(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for first in range(0, len(rows), BATCH):
            yield self._images[rows[first : first + BATCH]]


def prepared(cache: Any, file: Path) -> NDArray[np.uint8]:
    """Return the prepared images of a cache, kept in a file."""
    if not file.exists():
        spec = cache.spec
        preprocess = backbone_of_spec(spec, None).preprocess
        images = CachedImages(cache, decode_of_spec(spec), preprocess, batch_size=BATCH, workers=1)
        np.save(file, np.concatenate([np.array(batch) for batch in images.batches(np.arange(len(cache)))]))
    return np.load(file, mmap_mode="r")


class Trials:
    """All that the variants of one seed share."""

    def __init__(self, folder: Path, out: Path, seed: int) -> None:
        self.folder, self.out, self.seed = folder, out, seed
        self.cache = open_cache(folder / "cache.h5")
        self.shifted = open_cache(out / "shifted.h5")
        self.images = prepared(self.cache, folder / "images.npy")
        self.shifted_images = prepared(self.shifted, out / "shifted.npy")
        self.rows = _rows_of_run(self.cache, folder / "probe", print)
        self.classes = self.rows.class_names
        self.shifted_y = np.array([self.classes.index(str(k).split("/")[-2]) for k in self.shifted.keys])

    def start(self, variant: Variant) -> tuple[FineTuningNetwork, Any]:
        probe = self.folder / "probe"
        if variant.C is not None:
            probe = self.folder / f"probe-{variant.C:g}"
            if not probe.exists():
                pipeline("fit-head", self.folder / "cache.h5", "-o", probe, "--C", str(variant.C), "--seed", "0")
        head = load_head(probe)
        if variant.honest:
            at = training_rows(self.rows, self.seed, lambda text: None)[0]
            X, y = np.array(self.cache.embeddings[self.rows.index[at]]), self.rows.y[at]
            head = fit_without_validation(head, read_run(probe), X, y) or head
        network = FineTuningNetwork(backbone_of_spec(self.cache.spec, None), head.layer, len(self.classes))
        network.start_from(head)
        torch.manual_seed(self.seed)
        if variant.start == "random":
            network.head.reset_parameters()
        with torch.no_grad():
            for parameter in network.head.parameters():
                parameter /= variant.softer
        return network, head

    def hits(self, network: FineTuningNetwork) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Say of every test image and of every shifted image whether its class was found."""
        test = self.rows.index[self.rows.of("test")]
        found = logits(network, Prepared(self.images), test).argmax(1).numpy()
        shifted = logits(network, Prepared(self.shifted_images), np.arange(len(self.shifted))).argmax(1).numpy()
        return (found == self.rows.y[self.rows.of("test")]).astype(float), (shifted == self.shifted_y).astype(float)

    def probe(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        file = self.folder / "probe-hits.npz"
        if not file.exists():
            head = load_head(self.folder / "probe")
            at = self.rows.of("test")
            test = head.model.scores(np.array(self.cache.embeddings[self.rows.index[at]])).argmax(1) == self.rows.y[at]
            shifted = head.model.scores(np.array(self.shifted.embeddings)).argmax(1) == self.shifted_y
            np.savez(file, test=test.astype(float), shifted=shifted.astype(float))
        with np.load(file) as kept:
            return kept["test"], kept["shifted"]


def logits(network: FineTuningNetwork, images: Prepared, rows: NDArray[np.int64]) -> Tensor:
    network.eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return torch.cat([network(torch.from_numpy(np.array(batch))).float() for batch in images.batches(rows)])


def distance(start: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> float:
    """Return how far the convolutions moved, as a share of their size."""
    names = [name for name, tensor in start.items() if tensor.ndim == 4]
    moved = sum(float((tuned[name] - start[name]).double().square().sum()) for name in names)
    return float(np.sqrt(moved / sum(float(start[name].double().square().sum()) for name in names)))


def run_variant(trials: Trials, name: str, epochs: int, mixes: Sequence[float], *, honest: bool) -> None:
    stem = stem_of(name)
    file = trials.folder / f"trial-{stem}.json"
    if file.exists():
        return
    variant, started = dataclasses.replace(VARIANTS[name], honest=honest), time.perf_counter()
    same = {"epochs": epochs, "seed": trials.seed, "patience": 0, "device": "cpu"}
    settings = TrainSettings(**{**BASE, **same, **variant.train})
    network, _ = trials.start(variant)
    start = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    train, val = training_rows(trials.rows, trials.seed, lambda text: None)
    index = trials.rows.index
    y = np.full(len(trials.cache), -1, dtype=np.int64)
    y[index] = trials.rows.y
    images = Prepared(trials.images)
    data = TrainingData(images, index[train], index[val], y, trials.images.shape[1:3])  # type: ignore[arg-type]
    folder = trials.folder / f".{stem}"
    folder.mkdir(exist_ok=True)

    def pull(*state: Any) -> None:
        if variant.pull:
            with torch.no_grad():
                for key, parameter in network.named_parameters():
                    parameter.lerp_(start[key], variant.pull)

    hooks = Callbacks(threading.Event(), print, pull)
    accelerator = make_accelerator(settings)
    trainer = Trainer(network, data, settings, folder, accelerator, callbacks=hooks)
    if variant.statistics:
        for part in network.modules():
            part.__dict__.pop("train", None)  # what froze them
    training = trainer.run()
    seconds = time.perf_counter() - started
    for leftover in folder.iterdir():
        leftover.unlink()
    folder.rmdir()
    torch.save({"start": start, "best": training.best}, trials.folder / f"trial-{stem}.pt")
    probe = trials.probe()
    tried = try_shares(network, start, training.best, data, accelerator, hooks.stop, most=BATCH) or []
    chosen = choose_share(tried)
    result: dict[str, Any] = {
        "variant": name, "settings": dataclasses.asdict(settings), "seconds": seconds, "history": training.history,
        "best_epoch": training.best_epoch, "moved": distance(start, training.best), "mixes": {},
        "tried": tried, "chosen": chosen,
    }  # fmt: skip
    for share in dict.fromkeys((1.0, chosen, *mixes)):
        network.load_state_dict(interpolated(start, training.best, share))
        hits = trials.hits(network)
        np.savez(trials.folder / f"hits-{stem}-{share:g}.npz", test=hits[0], shifted=hits[1])
        result["mixes"][f"{share:g}"] = {
            "test": float(hits[0].mean()), "shifted": float(hits[1].mean()),
            "test_more": interval(hits[0] - probe[0]), "shifted_more": interval(hits[1] - probe[1]),
        }  # fmt: skip
    result["all_seconds"] = time.perf_counter() - started
    file.write_text(json.dumps(result, indent=2))
    print(row(result), flush=True)


def stem_of(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


def row(result: Mapping[str, Any]) -> str:
    last = result["history"][-1]
    figures = last["train_loss"], last["val_loss"], result["moved"]
    cells = [result["variant"], f"α {result['chosen']:g}", *(f"{figure:.3f}" for figure in figures)]
    for share, found in result["mixes"].items():
        cells += [f"α={share}", f"{found['test']:.3f}", "{:+.3f} ({:+.3f} to {:+.3f})".format(*found["test_more"])]
        cells += [f"{found['shifted']:.3f}", "{:+.3f} ({:+.3f} to {:+.3f})".format(*found["shifted_more"])]
    return "| " + " | ".join(cells) + f" | {result['all_seconds']:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fashion", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--whole", action="store_true", help="start from the probe, which has seen validation rows")
    parser.add_argument("--mixes", type=float, nargs="*", default=[])
    parser.add_argument("--against", default="probe", help="probe, or the variant to subtract in the last table")
    arguments = parser.parse_args()
    out: Path = arguments.out
    write_images(arguments.fashion, out, arguments.train, arguments.test, max(arguments.seeds) + 1)
    same = ("--backbone", "efficientnet_lite0", "--size", str(arguments.size), "--precision", "float32")
    if not (out / "shifted.h5").exists():
        pipeline("extract", out / "shifted", "-o", out / "shifted.h5", *same)
    for seed in arguments.seeds:
        folder = out / f"seed-{seed}"
        if not (folder / "probe").exists():
            pipeline("extract", folder / "images", "-o", folder / "cache.h5", *same)
            pipeline("fit-head", folder / "cache.h5", "-o", folder / "probe", "--seed", str(seed))
        trials = Trials(folder, out, seed)
        for name in arguments.variants:
            run_variant(trials, name, arguments.epochs, arguments.mixes, honest=not arguments.whole)
    folders = [out / f"seed-{seed}" for seed in arguments.seeds]
    for name in arguments.variants:
        for which in ("1", "chosen", *(f"{share:g}" for share in arguments.mixes)):
            print(over_seeds(folders, name, which, arguments.against))


def over_seeds(folders: Sequence[Path], name: str, which: str, against: str) -> str:
    """Return a line of the table: accuracy, and its difference from the probe, or from another variant at α = 1."""
    other = "probe-hits.npz" if against == "probe" else f"hits-{stem_of(against)}-1.npz"
    cells = [name, f"α {which}"]
    for images in ("test", "shifted"):
        found, probe = [], []
        for folder in folders:
            stem = stem_of(name)
            share = which
            if which == "chosen":
                share = f"{json.loads((folder / f'trial-{stem}.json').read_text())['chosen']:g}"
            with np.load(folder / f"hits-{stem}-{share}.npz") as hits, np.load(folder / other) as before:
                found.append(hits[images])
                probe.append(before[images])
        accuracy, difference = np.mean(found, axis=0), np.mean(found, axis=0) - np.mean(probe, axis=0)
        cells += [f"{accuracy.mean():.4f}", "{:+.4f} ({:+.4f} to {:+.4f})".format(*interval(difference))]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
