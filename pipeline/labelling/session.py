"""A labelling session: the cache, the journal, the labels and the head, and what the page asks of them.

Axes: n rows that are done, called *positions* from 0 on; K classes.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache.lock import write_lock
from pipeline.core.callbacks import Say, ignore
from pipeline.core.outputs import check_file
from pipeline.core.spec import PENULTIMATE
from pipeline.core.text import valid_text
from pipeline.labelling import queries
from pipeline.labelling.audit import BATCH, Figure, audit_order, audited, sampled
from pipeline.labelling.clusters import find_groups
from pipeline.labelling.features import read_features
from pipeline.labelling.journal import Journal, LabelError
from pipeline.labelling.model import Linear, decided, fit, out_of_fold
from pipeline.labelling.state import CLASSES, NUMBERS, SETS, TASKS, replay
from pipeline.labelling.table import digest, table_bytes, value_text, write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.cache import Cache
    from pipeline.labelling.clusters import Groups
    from pipeline.labelling.journal import Entry
    from pipeline.labelling.state import Value
    from pipeline.labelling.words import Words

JOURNAL = ".journal"
"""Added to the name of the table of labels."""
SHOWN_OF_GROUP = 60
SHOWN_UNSURE = 60
SHOWN_ALIKE = 200
MOST_SHOWN = 5000
_SINCE = 10
"""Actions over which changed predictions are counted."""
_PAGE_SECONDS = 20.0
"""A page that has asked for nothing for so long counts as closed."""


class StaleError(LabelError):
    """An action of a page that does not show the newest labels."""


class Session:
    """The labels of a cache while somebody works on them; safe to use from several threads.

    Use `open_session`, which holds the lock.

    Parameters
    ----------
    cache : Cache
        An open cache.
    path : Path
        The table of labels; its journal stands beside it.
    task : str, optional
        What is labelled; by default what the journal says, or classes.
    layer : str
        The layer that the head sees.
    say : callable
        Takes lines for the user.

    Raises
    ------
    LabelError
        The journal cannot be used or belongs to another task, or the table was changed by another program.
    """

    def __init__(
        self, cache: Cache, path: Path, task: str | None = None, *, layer: str = PENULTIMATE, say: Say = ignore
    ) -> None:
        self.cache, self.path, self.say = cache, path, say
        self._lock = threading.RLock()
        self.journal = _open_journal(cache, path, task, say)
        self.labels = replay(str(self.journal.header["task"]), self.journal.entries)
        self.task = self.labels.task
        self.features = read_features(cache, layer)
        self.keys: list[str] = cache.keys[self.features.rows].tolist()
        self.position = {key: n for n, key in enumerate(self.keys)}
        self.order = audit_order(self.keys, str(self.journal.header["seed"]))
        self.held_back = np.zeros(len(self.keys), np.bool_)
        self.held_back[self.order] = True
        self.history: list[dict[str, Any]] = [e["figure"] for e in self.journal.entries if e.get("do") == "saved"]
        self.history = [figure for figure in self.history if figure]
        self.outputs: NDArray[np.float32] | None = None
        self._model: Linear | None = None
        self._decided: deque[NDArray[np.int64]] = deque(maxlen=_SINCE + 1)
        self._pages: dict[str, float] = {}
        self._groups: Groups | None = None
        self._strange: NDArray[np.float32] | None = None
        self._rebuild()
        self._fit()
        unknown = len(self.labels.values.keys() - self.position.keys())
        if unknown:
            say(f"{unknown} labels are of images that {cache.path} does not hold or could not read: they are kept")
        self.save()

    def __len__(self) -> int:
        return len(self.keys)

    # --- actions ----------------------------------------------------------------------------------------------

    def act(self, entry: Mapping[str, Any], *, seen: int) -> int:
        """Do an action: journal, labels, head, in this order.

        Parameters
        ----------
        entry : mapping
            See `pipeline.labelling.state`; images by position (``rows``) or by key (``keys``).
        seen : int
            How many actions the page knew of.

        Returns
        -------
        int
            How many actions there are now.

        Raises
        ------
        StaleError
            There are others: two pages are open.
        LabelError
            The action cannot be done, or not be written.
        """
        with self._lock:
            if seen != self.labels.actions:
                raise StaleError("another page has labelled since: this page now shows its labels, repeat the action")
            checked = self.labels.check(self._with_keys(entry))
            self.journal.append({**checked, "time": int(time.time())})
            classes = self.labels.classes
            changed = self.labels.apply(checked)
            if classes == self.labels.classes[: len(classes)]:
                self._grow()
                self._update(changed)
            else:
                self._rebuild()
            if classes != self.labels.classes or self._concerns_head(changed):
                self._fit()
            return self.labels.actions

    def _concerns_head(self, keys: Sequence[str]) -> bool:
        """Return whether the head is fitted on one of these images: labels of the audit leave it as it is."""
        places = [self.position[key] for key in keys if key in self.position]
        return not bool(self.held_back[places].all())

    def save(self) -> None:
        """Write the table of labels, and what was written to the journal; after the last of several actions."""
        with self._lock:
            figure = self.figure()
            data = table_bytes(self.labels.values, self.keys, self._sampled_keys())
            entry: Entry = {"do": "saved", "sha256": digest(data), "figure": self._figure_entry(figure)}
            if self._is_saved(entry):
                return
            # Before the table is replaced: a table that the journal does not know was changed by another program.
            self.journal.append(entry)
            self.journal.entries.append(entry)
            if entry["figure"] is not None:
                self.history.append(entry["figure"])
            write_bytes(self.path, data)

    def _is_saved(self, entry: Entry) -> bool:
        last = next((e for e in reversed(self.journal.entries) if e.get("do") == "saved"), None)
        return last is not None and last["sha256"] == entry["sha256"] and self.path.exists()

    def _figure_entry(self, figure: Figure) -> Entry | None:
        if not figure.rows:
            return None
        return {"labels": int(self.known[~self.held_back].sum()), "actions": self.labels.actions, **figure.as_dict()}

    def _with_keys(self, entry: Mapping[str, Any]) -> Entry:
        found = {name: value for name, value in entry.items() if name != "rows"}
        if "rows" in entry:
            found["keys"] = [self.keys[n] for n in self.checked_rows(entry["rows"])]
        return found

    def checked_rows(self, rows: Any) -> list[int]:
        """Return positions that a page has sent.

        Raises
        ------
        LabelError
            They are none.
        """
        if not isinstance(rows, list) or not all(type(n) is int and 0 <= n < len(self.keys) for n in rows):
            raise LabelError(f"expected positions from 0 to {len(self.keys) - 1}, found others: reload the page")
        return list(dict.fromkeys(rows))

    # --- labels as arrays -------------------------------------------------------------------------------------

    def _rebuild(self) -> None:
        """Set the arrays of labels from all labels."""
        n, k = len(self.keys), len(self.labels.classes)
        self.known = np.zeros(n, np.bool_)
        self._place = {name: i for i, name in enumerate(self.labels.classes)}
        if self.task == SETS:
            self.y: NDArray[Any] = np.zeros((n, k), np.bool_)
        else:
            self.y = np.zeros(n, np.float64 if self.task == NUMBERS else np.int64)
        self._model = None
        self._update(self.labels.values)

    def _grow(self) -> None:
        """Make room for new classes behind the others."""
        self._place = {name: i for i, name in enumerate(self.labels.classes)}
        if self.task == SETS and self.y.shape[1] < len(self._place):
            self.y = np.pad(self.y, ((0, 0), (0, len(self._place) - self.y.shape[1])))

    def _update(self, keys: Sequence[str] | Mapping[str, Any]) -> None:
        """Set the arrays where labels have changed."""
        for key in keys:
            at = self.position.get(key)
            if at is None:
                continue
            value = self.labels.values.get(key)
            self.known[at] = value is not None
            if self.task == SETS:
                self.y[at] = False
                names = value if isinstance(value, tuple) else ()
                self.y[at, [self._place[name] for name in names]] = True
            elif value is not None:
                self.y[at] = self._place[value] if isinstance(value, str) else value

    @property
    def training(self) -> NDArray[np.int64]:
        """Positions of the labelled images on which the head is fitted."""
        return np.flatnonzero(self.known & ~self.held_back)

    @property
    def width(self) -> int:
        """K; 1 for numbers."""
        return 1 if self.task == NUMBERS else len(self.labels.classes)

    def _fit(self) -> None:
        """Refit the head and score every image."""
        rows = self.training
        if not self._can_fit(rows):
            self._model = self.outputs = None
            return
        start = None if self._model is None else self._model.weights
        self._model = fit(self.task, self.features.points[rows], self.y[rows], self.width, start)
        self.outputs = self._model.outputs(self.features.points)
        self._decided.append(decided(self.task, self.outputs))

    def _can_fit(self, rows: NDArray[np.int64]) -> bool:
        if self.task == CLASSES:
            return len(np.unique(self.y[rows])) > 1
        return len(rows) > 1 and self.width > 0

    # --- what the page shows ----------------------------------------------------------------------------------

    def state(self, page: str = "") -> dict[str, Any]:
        """Return what the page shows beside the images."""
        with self._lock:
            now = time.monotonic()
            self._pages = {name: at for name, at in self._pages.items() if now - at < _PAGE_SECONDS}
            if page:
                self._pages[page] = now
            undo, redo = self.labels.undoable, self.labels.redoable
            return {
                "task": self.task,
                "cache": valid_text([Path(self.cache.path).name])[0],
                "table": str(self.path),
                "rows": len(self.keys),
                "actions": self.labels.actions,
                "labelled": int(self.known.sum()),
                "classes": self._class_counts(),
                "undo": None if undo is None else described(undo),
                "redo": None if redo is None else described(redo),
                "fitted": self.outputs is not None,
                "changed": self._changed(),
                "audit": self.figure().as_dict() | {"held": len(self.order), "batch": BATCH},
                "history": self.history[-200:],
                "pages": len(self._pages),
            }

    def _class_counts(self) -> list[dict[str, Any]]:
        names = self.labels.classes
        if self.task == NUMBERS:
            return []
        if self.task == SETS:
            own = self.y[self.known].sum(axis=0)
            guess = None if self.outputs is None else (self.outputs >= 0.5).sum(axis=0)
        else:
            own = np.bincount(self.y[self.known], minlength=len(names))
            guess = None if self.outputs is None else np.bincount(self.outputs.argmax(axis=1), minlength=len(names))
        return [
            {"name": name, "labelled": int(own[k]), "predicted": None if guess is None else int(guess[k])}
            for k, name in enumerate(names)
        ]

    def _changed(self) -> dict[str, int] | None:
        """Return how many images would be labelled otherwise than some actions ago."""
        if len(self._decided) < 2:
            return None
        return {"since": len(self._decided) - 1, "rows": int((self._decided[0] != self._decided[-1]).sum())}

    def figure(self) -> Figure:
        """Return how right the head is on the audit's sample."""
        if self.outputs is None:
            return Figure(0, np.nan, np.nan, np.nan)
        rows = self.sample()
        return audited(self.task, self.y[rows], self.outputs[rows])

    def sample(self) -> NDArray[np.int64]:
        """Return the positions of the audit's sample: labelled, drawn at random, in their order."""
        return sampled(self.order, self.keys, self.labels.values)

    def _sampled_keys(self) -> set[str]:
        return {self.keys[n] for n in self.sample().tolist()}

    def captions(self, rows: Sequence[int]) -> list[list[Any]]:
        """Return for each position its label, the head's guess, and how certain the guess is (0 to 1, or None)."""
        with self._lock:
            return [[self._label_text(n), *self._guess(n)] for n in rows]

    def _label_text(self, n: int) -> str | None:
        value: Value | None = self.labels.values.get(self.keys[n])
        return None if value is None else value_text(value)

    def _guess(self, n: int) -> tuple[str | None, float | None]:
        if self.outputs is None or self.held_back[n]:  # the audit is not told what the head thinks
            return None, None
        out = self.outputs[n]
        if self.task == NUMBERS:
            return f"{out[0]:.4g}", None
        if self.task == CLASSES:
            return self.labels.classes[int(out.argmax())], round(float(out.max()), 3)
        names = tuple(name for name, p in zip(self.labels.classes, out, strict=True) if p >= 0.5)
        return value_text(names), round(float(np.maximum(out, 1 - out).min()), 3)

    def colours(self) -> bytes:
        """Return a byte for each image: the class to colour it by, plus one; 0 for none, 255 for images held back."""
        with self._lock:
            found = np.zeros(len(self.keys), np.uint8)
            if self.outputs is not None:
                found[:] = self._colour_of(self.outputs)
            if self.task != NUMBERS and self.width:
                truth = self._colour_of(self.y) if self.task == SETS else np.minimum(self.y + 1, 200)
                found = np.where(self.known, truth, found).astype(np.uint8)
            found[self.held_back] = 255
            return found.tobytes()

    def _colour_of(self, outputs: NDArray[Any]) -> NDArray[Any]:
        if self.task == NUMBERS:
            order = outputs[:, 0].argsort().argsort()
            return np.asarray(1 + order * 8 // max(len(order), 1))
        best = np.minimum(outputs.argmax(axis=1) + 1, 200)
        return np.where(outputs.max(axis=1) >= 0.5, best, 0) if self.task == SETS else best

    def places(self) -> bytes:
        """Return the map: two little-endian float32 for each image, the first two directions."""
        return np.ascontiguousarray(self.features.points[:, :2], dtype="<f4").tobytes()

    # --- views ------------------------------------------------------------------------------------------------

    def view(self, name: str, *, of: int = 0) -> dict[str, Any]:
        """Return a view: positions, most useful first, with a title and what to do.

        Parameters
        ----------
        name : str
            ``groups``, ``unsure``, ``class``, ``disagreements``, ``like``, ``strange``, ``labelled`` or ``audit``.
        of : int
            The group in the order of the list, the class, or the position that others should be like.

        Raises
        ------
        LabelError
            There is no such view.
        """
        make = getattr(self, f"_view_{name}", None) if name.isidentifier() else None
        if make is None:
            raise LabelError(f"there is no view {name!r}: reload the page")
        with self._lock:
            return self._shown(name, of, make(of))

    def _shown(self, name: str, of: int, found: dict[str, Any]) -> dict[str, Any]:
        rows = [int(n) for n in found["rows"][:MOST_SHOWN]]
        return {"name": name, "of": of, **found, "rows": rows, "captions": self.captions(rows[:200])}

    def view_words(self, text: str, words: Words) -> dict[str, Any]:
        """Return the view of the images that are nearest to a text; see `view`.

        Raises
        ------
        PipelineError
            See `pipeline.labelling.words.Words.nearest`.
        """
        with self._lock:
            rows = self.features.rows[self.left]
        found = words.nearest(text, rows, SHOWN_ALIKE)  # without the lock: the first search loads a network
        title = f"Nearest to the words “{text}”, the most similar first"
        with self._lock:
            return self._shown("words", 0, {"rows": np.searchsorted(self.features.rows, found), "title": title})

    @property
    def left(self) -> NDArray[np.bool_]:
        """Which positions have no label and are not held back."""
        return ~self.known & ~self.held_back

    def groups(self) -> Groups:
        """Return the groups of similar images, found at the first call."""
        with self._lock:
            if self._groups is None:
                self._groups = find_groups(self.features.points)
            return self._groups

    def _view_groups(self, of: int) -> dict[str, Any]:
        groups, left = self.groups(), self.left
        order = groups.order(left)
        if not order:
            return {"rows": [], "title": "Every image has a label", "list": []}
        size = np.bincount(groups.member[left], minlength=groups.count)
        of = min(max(of, 0), len(order) - 1)
        rows = groups.rows_of(order[of], left)[:SHOWN_OF_GROUP]
        shown = [{"rows": groups.rows_of(g, left)[:1].tolist(), "size": int(size[g])} for g in order[:60]]
        title = f"Group {of + 1} of {len(order)}: {size[order[of]]} images that look alike"
        if len(rows) < size[order[of]]:
            title += f", the {len(rows)} nearest to its centre"
        return {"rows": rows, "title": title, "list": shown, "of": of}

    def _view_unsure(self, of: int) -> dict[str, Any]:
        if self.outputs is None or self.task == NUMBERS:
            rows = self._spread_out(SHOWN_UNSURE)
            return {"rows": rows, "title": "Images unlike each other"}
        rows = queries.unsure(self.task, self.outputs, self.features.points, self.left, SHOWN_UNSURE)
        return {"rows": rows, "title": "Images of which the head is unsure, and no two alike"}

    def _spread_out(self, count: int) -> NDArray[np.int64]:
        """Return images far from those with a label and from each other."""
        rows = np.flatnonzero(self.left)
        some = np.random.default_rng(self.labels.actions).permutation(len(rows))[: count * 20]
        return queries.diverse(rows[some], np.ones(len(some), np.float32), self.features.points, count)

    def _view_class(self, of: int) -> dict[str, Any]:
        if not 0 <= of < len(self.labels.classes):
            raise LabelError("there is no such class: reload the page")
        name = self.labels.classes[of]
        if self.outputs is None:
            return {"rows": [], "title": f"Not known yet what looks like {name!r}: label two classes first"}
        rows = queries.of_class(self.task, self.outputs, of, self.left)
        return {"rows": rows, "title": f"Taken for {name!r}, the most certain first: {len(rows)} images"}

    def _view_disagreements(self, of: int) -> dict[str, Any]:
        rows = self.training
        if not self._can_fit(rows) or len(rows) < 4:
            return {"rows": [], "title": "Too few labels to doubt any"}
        outputs = out_of_fold(self.task, self.features.points[rows], self.y[rows], self.width)
        found = queries.disagreements(self.task, outputs, self.y[rows], rows)
        return {"rows": found, "title": f"Labels that a head fitted without them does not give: {len(found)}"}

    def _view_like(self, of: int) -> dict[str, Any]:
        of = self.checked_rows([of])[0]
        rows = queries.like(of, self.features.points, self.left, SHOWN_ALIKE)
        return {"rows": rows, "title": f"Like {valid_text([self.keys[of]])[0]}, the most similar first"}

    def _view_strange(self, of: int) -> dict[str, Any]:
        if self._strange is None:
            self._strange = queries.strangeness(self.features.points)
        rows = np.flatnonzero(self.left)
        return {"rows": rows[np.argsort(-self._strange[rows], kind="stable")], "title": "Unlike any other image"}

    def _view_labelled(self, of: int) -> dict[str, Any]:
        rows = np.flatnonzero(self.known & ~self.held_back)
        if self.task != SETS:
            rows = rows[np.argsort(self.y[rows], kind="stable")]
        return {"rows": rows, "title": f"Images with a label: {len(rows)}"}

    def _view_audit(self, of: int) -> dict[str, Any]:
        waiting = [n for n in self.order.tolist() if not self.known[n]][:BATCH]
        if not waiting:
            return {"rows": [], "title": "Every image that was held back for the audit has a label"}
        return {"rows": waiting, "title": f"Audit: label these {len(waiting)} images, which were drawn at random"}

    def item(self, row: int) -> dict[str, Any]:
        """Return the key and the columns of an image."""
        row = self.checked_rows([row])[0]
        at = np.array([self.features.rows[row]])
        facts = {name: str(self.cache.column(name, at)[0]) for name in self.cache.columns}
        if len(self.cache.label_names) and self.cache.labels[at[0]] >= 0:
            facts = {"label in the cache": self.cache.label_names[self.cache.labels[at[0]]], **facts}
        label, guess, certainty = self.captions([row])[0]
        shown = dict(zip(valid_text(facts), valid_text(facts.values()), strict=True))
        return {"key": valid_text([self.keys[row]])[0], "facts": shown, "label": label, "guess": guess,
                "certainty": certainty}  # fmt: skip

    def close(self) -> None:
        """Write the table and close the journal."""
        self.save()
        self.journal.close()


@contextlib.contextmanager
def open_session(
    cache: Cache, path: Path, task: str | None = None, *, layer: str = PENULTIMATE, say: Say = ignore
) -> Iterator[Session]:
    """Yield a session that alone may write its table and journal.

    Raises
    ------
    LockedError
        Another process does.
    LabelError
        As for `Session`.
    """
    path = check_file(path, LabelError, replaceable=False)
    with write_lock(path):
        session = Session(cache, path, task, layer=layer, say=say)
        try:
            yield session
        finally:
            session.close()


def _open_journal(cache: Cache, path: Path, task: str | None, say: Say) -> Journal:
    at = path.with_name(path.name + JOURNAL)
    if path.exists() and not at.exists():
        raise LabelError(
            f"{path} exists and has no journal beside it: choose another output, and add its labels with --merge {path}"
        )
    header = {"task": task or CLASSES, "seed": secrets.token_hex(8), "cache": valid_text([Path(cache.path).name])[0]}
    journal = Journal(at, header)
    found = journal.header.get("task")
    if found not in TASKS or (task is not None and found != task):
        raise LabelError(f"{at} holds labels for --task {found}, asked was {task}: choose another output")
    if journal.dropped:
        say("the last action was not finished when the program ended, and is not counted")
    if path.exists():
        known = {entry["sha256"] for entry in journal.entries if entry.get("do") == "saved"}
        if digest(path.read_bytes()) not in known:
            raise LabelError(
                f"{path} was changed by another program, whose labels would be lost: move it away, and add its labels "
                "with --merge"
            )
    return journal


def described(entry: Entry) -> str:
    """Return an action in a few words."""
    do, count = entry["do"], len(entry.get("keys") or entry.get("values") or ())
    images = f"{count} image{'' if count == 1 else 's'}"
    if do in ("class", "rename"):
        return f"class {entry['value']}" + (f" renamed to {entry['to']}" if do == "rename" else "")
    if do == "labels":
        return f"labels of {images}"
    value = entry.get("value")
    text = "no label" if value is None else value_text(tuple(value) if isinstance(value, list) else value)
    return f"{images}: {'not ' if do == 'drop' else ''}{text}"
