from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.cache import open_cache
from pipeline.errors import LockedError
from pipeline.labelling.audit import audit_order, audited, sampled
from pipeline.labelling.journal import LabelError, read_journal
from pipeline.labelling.session import StaleError, open_session
from tests.labelling.sample import make_digits, targets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.labelling.session import Session

COUNT = 200


@pytest.fixture(scope="module")
def cache_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("session"), COUNT, labelled=True)


@pytest.fixture
def session(cache_path: Path, tmp_path: Path) -> Iterator[Session]:
    with open_session(open_cache(cache_path), tmp_path / "labels.csv") as found:
        yield found


def act(session: Session, **entry: Any) -> int:
    return session.act(entry, seen=session.labels.actions)


def label_truly(session: Session, rows: list[int]) -> None:
    right = targets(COUNT)
    for name in sorted({right[n] for n in rows}):
        act(session, do="label", rows=[n for n in rows if right[n] == name], value=name)


def free(session: Session) -> list[int]:
    return [int(n) for n in np.flatnonzero(session.left)]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_head_is_fitted_after_every_action_and_scores_every_image(session: Session) -> None:
    rows = free(session)
    label_truly(session, rows[:1])
    assert session.outputs is None
    label_truly(session, rows[1:100])
    assert session.outputs is not None
    rest = [n for n in range(COUNT) if not session.known[n]]
    names = np.array(session.labels.classes)
    right = np.array(targets(COUNT))
    assert (names[session.outputs.argmax(axis=1)][rest] == right[rest]).mean() > 0.8
    state = session.state()
    assert state["labelled"] == 100
    assert sum(entry["labelled"] for entry in state["classes"]) == 100
    assert sum(entry["predicted"] for entry in state["classes"]) == COUNT


def test_arrays_follow_undo_and_renaming(session: Session) -> None:
    rows = free(session)
    act(session, do="label", rows=rows[:3], value="a")
    act(session, do="label", rows=rows[3:6], value="b")
    act(session, do="rename", value="a", to="c")
    assert [session.labels.classes[k] for k in session.y[rows[:6]]] == ["c"] * 3 + ["b"] * 3
    for _ in range(3):
        act(session, do="undo")
    assert not session.known.any()
    assert session.outputs is None
    for _ in range(3):
        act(session, do="redo")
    assert session.known.sum() == 6
    assert session.state()["redo"] is None
    assert session.state()["undo"] == "class a renamed to c"


def test_a_session_goes_on_where_it_ended(cache_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    with open_session(open_cache(cache_path), path) as session:
        label_truly(session, free(session)[:40])
        label_truly(session, session.view("audit")["rows"])
        values, order, figure = dict(session.labels.values), session.order.tolist(), session.figure()
    assert {line["key"]: line["label"] for line in table(path)} == values
    assert sum(line["split"] == "test" for line in table(path)) == figure.rows == 10
    with open_session(open_cache(cache_path), path) as again:
        assert again.labels.values == values
        assert again.order.tolist() == order
        assert again.figure() == figure
        assert again.history[-1]["rows"] == 10
        act(again, do="undo")
    assert len(table(path)) < len(values)


def test_an_action_is_in_the_journal_before_it_counts(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*entries: Any, sync: bool = True) -> None:
        raise LabelError("no space")

    monkeypatch.setattr(session.journal, "append", fail)
    with pytest.raises(LabelError, match="no space"):
        act(session, do="label", rows=[1], value="a")
    assert session.labels.values == {}
    assert session.labels.actions == 0
    monkeypatch.undo()
    act(session, do="label", rows=[1], value="a")
    assert read_journal(session.journal.path)[1][-1]["keys"] == [session.keys[1]]


def test_an_action_of_a_page_that_is_behind_is_refused(session: Session) -> None:
    act(session, do="label", rows=[1], value="a")
    with pytest.raises(StaleError, match="another page"):
        session.act({"do": "undo"}, seen=0)
    assert session.labels.actions == 1


def test_a_second_server_is_refused(session: Session) -> None:
    with pytest.raises(LockedError, match="is being written"), open_session(session.cache, session.path):
        pass


def test_a_table_that_was_changed_elsewhere_is_not_overwritten(cache_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    with open_session(open_cache(cache_path), path) as session:
        act(session, do="label", rows=[1], value="a")
    edited = path.read_text() + "more,b\n"
    path.write_text(edited)
    with pytest.raises(LabelError, match="changed by another program"), open_session(open_cache(cache_path), path):
        pass
    assert path.read_text() == edited
    other = tmp_path / "own.csv"
    other.write_text("key,label\n0001.png,one\n")
    with pytest.raises(LabelError, match="no journal beside it"), open_session(open_cache(cache_path), other):
        pass
    path.unlink()
    with open_session(open_cache(cache_path), path) as session:
        assert session.labels.values == {session.keys[1]: "a"}
    assert table(path) == [{"key": "0001.png", "label": "a"}]


def test_a_journal_of_another_task_is_refused(cache_path: Path, tmp_path: Path) -> None:
    with open_session(open_cache(cache_path), tmp_path / "l.csv", "multilabel"):
        pass
    with (
        pytest.raises(LabelError, match="--task multilabel"),
        open_session(open_cache(cache_path), tmp_path / "l.csv", "regression"),
    ):
        pass


def test_labels_of_images_that_left_the_cache_are_kept(cache_path: Path, tmp_path: Path) -> None:
    smaller = make_digits(tmp_path / "smaller", 60)
    path = tmp_path / "l.csv"
    with open_session(open_cache(cache_path), path) as session:
        act(session, do="label", rows=[3, 150], value="a")
    said: list[str] = []
    with open_session(open_cache(smaller), path, say=said.append) as session:
        assert len(session.labels.values) == 2
    assert "1 labels are of images" in said[0]
    assert [line["key"] for line in table(path)] == ["0003.png", "0150.png"]


def test_no_view_but_the_audit_shows_what_is_held_back(session: Session) -> None:
    label_truly(session, free(session)[:60])
    held = set(session.order.tolist())
    assert len(held) == COUNT // 5
    for name in ("groups", "unsure", "class", "disagreements", "like", "strange", "labelled"):
        assert held.isdisjoint(session.view(name, of=1)["rows"][name == "like" :]), name
    assert set(session.view("audit")["rows"]) <= held
    assert set(np.flatnonzero(np.frombuffer(session.colours(), np.uint8) == 255).tolist()) == held
    assert {tuple(caption) for caption in session.view("audit")["captions"]} == {(None, None, None)}


def test_labels_of_the_audit_do_not_change_the_head(session: Session) -> None:
    label_truly(session, free(session)[:60])
    before = session.outputs
    assert before is not None
    label_truly(session, session.view("audit")["rows"])
    assert session.outputs is before
    assert set(session.training.tolist()).isdisjoint(session.order.tolist())
    figure = session.figure()
    right = np.array(targets(COUNT))[session.order[:10]]
    names = np.array(session.labels.classes)[before.argmax(axis=1)][session.order[:10]]
    assert figure.value == pytest.approx((right == names).mean())
    assert figure.low < figure.value <= figure.high


def test_only_the_beginning_of_the_random_order_counts() -> None:
    keys = [f"k{n}" for n in range(100)]
    order = audit_order(keys, "seed")
    assert len(set(order.tolist())) == 20
    labelled = {keys[n] for n in order[[0, 1, 3, 4]].tolist()}
    assert sampled(order, keys, labelled).tolist() == order[:2].tolist()
    shuffled = [keys[n] for n in np.random.default_rng(0).permutation(100)]
    assert [shuffled[n] for n in audit_order(shuffled, "seed")] == [keys[n] for n in order]
    assert audit_order(keys, "other").tolist() != order.tolist()


def test_every_image_is_held_back_equally_often() -> None:
    keys = [f"{n}.jpg" for n in range(50)]
    counts = np.bincount(np.concatenate([audit_order(keys, str(seed)) for seed in range(2000)]), minlength=50)
    expected, deviation = 2000 * 0.2, np.sqrt(2000 * 0.2 * 0.8)
    assert np.abs(counts - expected).max() < 4.5 * deviation


def test_figures_of_the_audit_by_task() -> None:
    sets = audited(
        "multilabel", np.array([[True, False], [True, True]]), np.array([[0.9, 0.2], [0.9, 0.2]], np.float32)
    )
    assert sets.value == 0.5
    numbers = audited("regression", np.array([1.0, 2.0, 4.0]), np.array([[1.5], [2.5], [2.0]], np.float32))
    assert numbers.value == pytest.approx(1.0)
    assert numbers.low < 1 < numbers.high
    assert audited("classification", np.zeros(0, np.int64), np.zeros((0, 2), np.float32)).as_dict()["value"] is None


def test_the_unsure_view_does_not_repeat_itself(session: Session) -> None:
    label_truly(session, free(session)[:30])
    rows = session.view("unsure")["rows"]
    assert len(set(rows)) == len(rows) == 60
    assert not session.known[rows].any()
    points = session.features.points[rows[:20]]
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)[np.triu_indices(20, 1)]
    assert session.outputs is not None
    doubtful = session.features.points[session.left][:, :]
    near = np.linalg.norm(doubtful[:, None] - doubtful[None], axis=2)
    assert apart.min() > np.partition(near, 1, axis=1)[:, 1].min()


def test_the_view_of_a_class_is_most_certain_first(session: Session) -> None:
    label_truly(session, free(session)[:80])
    assert session.outputs is not None
    for k in range(len(session.labels.classes)):
        rows = session.view("class", of=k)["rows"]
        assert (np.diff(session.outputs[rows, k]) <= 0).all()
        assert (session.outputs[rows].argmax(axis=1) == k).all()


def test_wrong_labels_come_first_among_disagreements(session: Session) -> None:
    rows = free(session)
    label_truly(session, rows)
    wrong = rows[::40]
    right = targets(COUNT)
    for n in wrong:
        act(session, do="label", rows=[n], value="nine" if right[n] == "zero" else "zero")
    found = session.view("disagreements")["rows"]
    assert len(set(found[: 2 * len(wrong)]) & set(wrong)) >= len(wrong) - 1


def test_like_this_one_is_nearest_by_cosine(session: Session) -> None:
    rows = session.view("like", of=free(session)[0])["rows"]
    points = session.features.points
    cosine = points @ points[rows[0]] / np.linalg.norm(points, axis=1)
    assert rows[0] == free(session)[0]
    assert (np.diff(cosine[rows]) <= 1e-6).all()


def test_changed_predictions_are_counted_against_ten_actions_ago(session: Session) -> None:
    decided = []
    for n in free(session)[:40]:
        label_truly(session, [n])
        if session.outputs is not None:
            decided.append(session.outputs.argmax(axis=1))
    assert session.state()["changed"] == {"since": 10, "rows": int((decided[-1] != decided[-11]).sum())}


def test_label_sets_and_numbers_are_labelled_too(cache_path: Path, tmp_path: Path) -> None:
    right = targets(COUNT)
    with open_session(open_cache(cache_path), tmp_path / "sets.csv", "multilabel") as session:
        rows = free(session)[:120]
        act(session, do="label", rows=rows, value=[])
        act(session, do="add", rows=[n for n in rows if right[n] in ("zero", "six")], value="round")
        act(session, do="add", rows=[n for n in rows if right[n] in ("one", "six")], value="tall")
        assert session.outputs is not None
        is_round = np.array([name in ("zero", "six") for name in right])
        assert ((session.outputs[:, 0] >= 0.5) == is_round).mean() > 0.9
        assert session.view("unsure")["rows"]
    cells = {line["label"] for line in table(tmp_path / "sets.csv")}
    assert cells == {"|", "round", "tall", "round|tall"}
    with open_session(open_cache(cache_path), tmp_path / "numbers.csv", "regression") as session:
        ink = np.asarray(session.cache.column("ink"))
        for n in free(session)[:100]:
            act(session, do="label", rows=[n], value=float(ink[n]))
        assert session.outputs is not None
        assert np.corrcoef(session.outputs[:, 0], ink)[0, 1] > 0.99
        assert session.view("unsure")["rows"]
        assert session.state()["classes"] == []
    assert float(table(tmp_path / "numbers.csv")[0]["label"]) == ink[0] or session.held_back[0]


def test_columns_and_key_of_an_image_are_shown(session: Session) -> None:
    item = session.item(5)
    assert item["key"] == "0005.png"
    assert item["facts"]["label in the cache"] == "five"
    assert float(item["facts"]["ink"]) > 0


@pytest.mark.parametrize("rows", [None, "1", [True], [1.0], [-1], [COUNT]])
def test_positions_that_are_none_are_refused(session: Session, rows: Any) -> None:
    with pytest.raises(LabelError, match="reload the page"):
        act(session, do="label", rows=rows, value="a")
    assert session.labels.actions == 0


def test_names_of_any_bytes_come_back_from_the_table(tmp_path: Path) -> None:
    from pipeline.sources.label_table import with_labels

    names = ["two\nlines.png", "caf\udce9.png", "cafe\u0301.png", 'a "quote", b.png', " space .png", "\u2028.png"]
    path = make_digits(tmp_path / "names", names=names)
    assert os.fsencode(names[1]).endswith(b"\xe9.png")
    classes = ["None", "007", "1.0", "a, b", "=1+1", "nan"]
    with open_session(open_cache(path), tmp_path / "l.csv") as session:
        session.held_back[:] = False
        for n, name in enumerate(classes):
            act(session, do="label", rows=[session.keys.index(names[n])], value=name)
    items, left_out = with_labels(open_cache(path).items, str(tmp_path / "l.csv"))
    assert not left_out
    keys = [os.fsdecode(bytes(key)) for key in items.keys]
    found = {key: items.label_names[code] for key, code in zip(keys, items.labels.tolist(), strict=True)}
    assert found == dict(zip(names, classes, strict=True))
