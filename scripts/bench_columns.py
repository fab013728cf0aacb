"""Measure `fit-head --features` with planted columns: what they add, whether noise does harm, whether a leak shows.

    python scripts/bench_columns.py CACHE.h5 [--train 150] [--fresh 300] [--seeds 3] [--out FILE.json]
    python scripts/bench_columns.py CACHE.h5 --second OTHER.h5

Of each class, ``--train`` rows are fitted on and ``--fresh`` others measured, drawn anew for each seed. The columns are
drawn from the label k of K: ``useful`` says the pair of classes k // 2 in 70% of the rows and any pair in the others;
``noise`` is normal and ``sites`` one of 20 names, both at random; ``gaps`` is k + N(0, 1.5), missing in 40%; ``leak``
is a code of the class, wrong in 2%. The table has the accuracy of the head with the columns, the change from embeddings
alone with its paired interval, the accuracy of the columns alone, and the change of the log loss.
``--second`` measures two networks in one head instead, each alone and both, on the same rows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline import open_cache
from pipeline.stages.fit_head import FitSettings, fit_head

if TYPE_CHECKING:
    from pipeline.cache import Cache

SETS = (("useful",), ("noise",), ("sites",), ("noise", "sites"), ("gaps",), ("useful", "gaps", "noise"), ("leak",))


def planted(cache: Cache, train: int, fresh: int, seed: int) -> pd.DataFrame:
    """Return a table of labels: rows drawn, their split, and the columns."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(cache.labels)
    classes = np.unique(labels[labels >= 0])
    drawn = [rng.permutation(np.flatnonzero(labels == k))[: train + fresh] for k in classes]
    rows = np.concatenate(drawn)
    k, count = labels[rows], len(rows)
    pair = np.where(rng.random(count) < 0.7, k // 2, rng.integers(0, len(classes) // 2, count))
    gaps = k + rng.normal(0, 1.5, count)
    return pd.DataFrame(
        {
            "key": cache.keys_of(rows),
            "label": np.asarray(cache.label_names)[k],
            "split": np.concatenate([np.where(np.arange(len(of)) < train, "train", "test") for of in drawn]),
            "useful": [f"pair{value}" for value in pair],
            "noise": rng.normal(size=count),
            "sites": [f"site{value}" for value in rng.integers(0, 20, count)],
            "gaps": np.where(rng.random(count) < 0.4, np.nan, gaps),
            "leak": [f"c{value}" for value in np.where(rng.random(count) < 0.02, rng.permutation(k), k)],
        }
    )


def measured(cache: str, table: Path, columns: tuple[str, ...], run: Path, head: str) -> dict[str, Any]:
    """Return the metrics of a run."""
    settings = FitSettings(
        head=head, labels=str(table), features=columns, learning_curve=False, report=False, device="cpu"
    )
    return fit_head(cache, run, settings).metrics


def networks(caches: list[str], table: Path, run: Path, head: str) -> str:
    """Return what two networks reach together and alone."""
    settings = FitSettings(head=head, labels=str(table), learning_curve=False, report=False, device="cpu")
    return fit_head(caches, run, settings).headlines()[-1]


def main() -> None:
    """Print a line for each set of columns and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache")
    for name, usual in (("train", 150), ("fresh", 300), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--head", default="logistic")
    parser.add_argument("--second")
    parser.add_argument("--out")
    given = parser.parse_args()
    cache, lines = open_cache(given.cache), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            table = Path(folder) / "table.csv"
            planted(cache, given.train, given.fresh, seed).to_csv(table, index=False)
            if given.second:
                print(seed, networks([given.cache, given.second], table, Path(folder) / "run", given.head), flush=True)
                continue
            alone = measured(given.cache, table, (), Path(folder) / "run", given.head)["test"]
            for columns in SETS:
                metrics = measured(given.cache, table, columns, Path(folder) / "run", given.head)
                inputs = metrics["inputs"]
                embeddings, of_columns = inputs["alone"]
                change = embeddings["others_add"]
                loss = metrics["test"]["log_loss"]["value"] - alone["log_loss"]["value"]
                lines.append({"seed": seed, "columns": columns, "log_loss": loss, **inputs})
                suspects = f"suspects {','.join(inputs['suspects'])}" if "suspects" in inputs else ""
                print(
                    f"{seed} {'+'.join(columns):24} {inputs['all']['value']:.4f} {change['value']:+.4f} "
                    f"({change['low']:+.4f} to {change['high']:+.4f}) alone {of_columns['figure']['value']:.4f} "
                    f"log loss {loss:+.4f} {suspects}",
                    flush=True,
                )
    if given.out:
        Path(given.out).write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    main()
