"""The report of a fine-tuning: was it worth it, how it went, and which images it fixed and broke."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.report import plots
from pipeline.report.classification import classes_content
from pipeline.report.content import MOST_IMAGES, number_cell, picture, text_cell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.fitting.compare import Prediction
    from pipeline.fitting.rows import Rows
    from pipeline.report.content import Content


def training_content(
    cache: Cache, rows: Rows, results: dict[str, Any], run: dict[str, Any], probe: Mapping[str, Prediction]
) -> Content:
    """Return what the page of a fine-tuning shows.

    Parameters
    ----------
    cache, rows, results, run
        As in `pipeline.report.page.write_report`.
    probe : mapping of str to Prediction
        The probe's, of every measured row, by key.
    """
    content = classes_content(cache, rows, results, run)
    training, against = results["metrics"]["training"], results["metrics"]["against_probe"]
    content.lead += f" {against['advice'].capitalize()}."
    gain = against["difference"]
    content.cards.insert(
        0,
        {
            "name": "Against the probe",
            "what": "accuracy minus that of the head it started from, on the same rows, resampled in pairs",
            "value": f"{gain['value']:+.4f}",
            "interval": f"{gain['low']:+.4f} to {gain['high']:+.4f}",
        },
    )
    content.tables.insert(0, _networks_table(results, against))
    rest, content.layout = content.layout, []
    content.pair(_training_plots(content, training, results["metrics"]["mix"]))
    content.layout += rest
    content.galleries = _changed(cache, rows, results, probe) + content.galleries
    return content


def _training_plots(content: Content, training: Mapping[str, Any], mix: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keep the figures of the training and the mix; return their places."""
    places = [
        content.plot(
            "training",
            plots.training_figure(training["history"], training["best_epoch"]),
            "Training",
            "Loss by epoch; 0 is the start, too low where it was fitted on the validation rows; the dashed line is "
            f"the epoch kept. Head start: {training['start']}.",
        ),
        content.plot(
            "depth",
            plots.depth_figure(training["rates_by_depth"]),
            "Learning rate by depth",
            "Peak rate of every block, from the image to the head.",
        ),
    ]
    if mix["tried"]:
        places.append(
            content.plot(
                "mix",
                plots.mix_figure(mix["tried"], mix["share"]),
                "Mix of start and tuned network",
                "Validation loss and accuracy of networks between the start (0) and the tuned network (1); the dashed "
                "line is the one taken.",
            )
        )
    if training["range_test"]["rates"]:
        places.append(
            content.plot(
                "range",
                plots.range_figure(training["range_test"]["rates"], training["range_test"]["losses"], training["lr"]),
                "Range test",
                "Loss while the rate rises from step to step; the dashed line is the rate taken.",
            )
        )
    return places


def _networks_table(results: dict[str, Any], against: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of probe, tuned network and mix on the same held-out rows."""
    mix = results["metrics"]["mix"]
    name = "tuned network" if mix["share"] == 1 else f"mix: {mix['share']:g} of the tuned network"
    entries = [("probe", against["probe_accuracy"], None), (name, against["accuracy"], against["difference"])]
    if "tuned" in mix:
        entries.insert(1, ("tuned network", mix["tuned"]["accuracy"], mix["tuned"]["difference"]))
    return {
        "id": "networks",
        "title": "Probe, tuned network and mix",
        "hint": f"Accuracy on the {results['held_out']} rows; differences with their paired 95 % interval.",
        "columns": [("network", True), ("accuracy", False), ("minus the probe", False), ("interval", True)],
        "rows": [
            [
                text_cell(network),
                number_cell(accuracy["value"]),
                number_cell(math.nan if gain is None else gain["value"]),
                text_cell("–" if gain is None else f"{gain['low']:+.4f} to {gain['high']:+.4f}"),
            ]
            for network, accuracy, gain in entries
        ],
    }


def _changed(
    cache: Cache, rows: Rows, results: dict[str, Any], probe: Mapping[str, Prediction]
) -> list[dict[str, Any]]:
    """Return galleries of what the probe had wrong and the network has right, and the other way round."""
    split = results["held_out"]
    at, probabilities = rows.of(split), results["predictions"][split]
    label = np.asarray(rows.class_names)[rows.y[at]]
    now = np.asarray(rows.class_names)[probabilities.argmax(axis=1)]
    before = np.asarray([probe[str(key)].predicted for key in cache.keys_of(rows.index[at])])
    out = []
    for name, title, mask in (
        ("fixed", "Fixed by fine-tuning", (before != label) & (now == label)),
        ("broken", "Broken by fine-tuning", (before == label) & (now != label)),
    ):
        surest: NDArray[np.int64] = np.flatnonzero(mask)
        surest = surest[np.argsort(-probabilities[surest].max(axis=1), kind="stable")][:MOST_IMAGES]
        if len(surest):
            pictures = [
                picture(cache, int(rows.index[at[i]]), str(label[i]), f"{before[i]} → {now[i]}", "") for i in surest
            ]
            hint = f"{int(mask.sum())} rows of the {split} split; the probe's prediction → the network's, surest first."
            out.append({"id": name, "title": title, "hint": hint, "pictures": pictures})
    return out
