from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.text import Text

import ddsmoothing as dds
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.plots import FIGURES, PHOTOS, curves, images_figure, save, svg_text
from ddsmoothing.plots.chosen import once
from ddsmoothing.plots.images import extremes, images_table, images_text, noisy_copies
from ddsmoothing.runs import Results, import_file
from ddsmoothing.sigma import SigmaPolicy
from results_helpers import of_vote, planted, with_header

Cli = Callable[..., object]
RADII = [1.0, 0.3, 0.0, 0.7]
LABELS = [1, 1, 2, 2]
PREDICTIONS = [1, 1, -1, 1]


@pytest.fixture
def runs(run_l2: dds.Run, tmp_path: Path) -> list[dds.Run]:
    """Two fixed sigmas, a chosen one and a memory over it."""
    notes = [("kept", 1.0), ("cut", 0.3), ("abstained", 0.0), ("answered", 0.7)]
    same = {"labels": LABELS, "predictions": PREDICTIONS, "sigmas": [0.5, 0.12, 0.25, 1.0]}
    return [
        planted(run_l2, tmp_path / "small", [0.4, 0.4, 0.1, 0.0], labels=LABELS, predictions=[1, 1, 2, -1], sigma=0.12),
        planted(run_l2, tmp_path / "large", [0.9, 0.0, 0.0, 0.9], labels=LABELS, predictions=[1, -1, -1, 2], sigma=0.5),
        planted(run_l2, tmp_path / "chosen", RADII, **same),
        planted(run_l2, tmp_path / "kept", [1.0, 0.2, 0.0, 0.7], level="memory", notes=notes, **same),
    ]


@pytest.fixture(scope="session")
def searched(make_run: Callable[..., dds.Run], tmp_path_factory: pytest.TempPathFactory) -> dds.Run:
    sigmas = np.array([0.125, 0.25, 0.5])
    return make_run(tmp_path_factory.mktemp("runs") / "given", SigmaPolicy.given(sigmas), maximum=3)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_the_same_text_every_time_and_readable_xml(name: str, runs: list[dds.Run]) -> None:
    picture = FIGURES[name]
    assert picture.applies(runs)
    first = svg_text(picture.draw(runs))
    with mpl.rc_context({"font.size": 23, "axes.grid": False, "svg.hashsalt": "other"}):  # the caller's own taste
        assert svg_text(picture.draw(runs)) == first
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert "dc:date" not in first
    assert len(picture.text(runs)) > 40
    table = picture.table(runs)
    assert {len(row) for row in table.rows} == {len(table.columns)}


@pytest.mark.parametrize("name", FIGURES)
def test_one_input_and_nothing_certified(name: str, run_l2: dds.Run, tmp_path: Path) -> None:
    picture = FIGURES[name]
    notes = [("abstained", 0.0)]
    none = [
        planted(run_l2, tmp_path / "fixed", [0.0], predictions=[-1]),
        planted(run_l2, tmp_path / "own", [0.0], predictions=[-1], sigmas=[0.25]),
        planted(run_l2, tmp_path / "kept", [0.0], predictions=[-1], sigmas=[0.25], level="memory", notes=notes),
    ]
    assert picture.applies(none)
    assert svg_text(picture.draw(none))
    assert picture.text(none)
    assert picture.table(none).rows


def test_figures_say_what_they_need(runs: list[dds.Run], run_l1: dds.Run, run_l2: dds.Run, tmp_path: Path) -> None:
    def names(*some: Results) -> list[str]:
        return [name for name, picture in FIGURES.items() if picture.applies(some)]

    small, _, chosen, kept = runs
    assert names(small) == ["certified_accuracy", "confidence"]
    assert names(chosen) == ["certified_accuracy", "sigma", "confidence"]
    assert names(kept) == ["certified_accuracy", "sigma", "memory"]
    assert names(small, chosen) == ["certified_accuracy", "sigma", "paired_radius", "confidence"]
    assert names(small, kept) == ["certified_accuracy", "sigma", "confidence", "memory"]  # levels are not compared
    assert names(small, run_l1) == ["confidence"]
    (tmp_path / "x.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\n0\t1\t1\t0.5\t1\n")
    assert names(import_file(tmp_path / "x.tsv", tmp_path / "in")) == ["certified_accuracy"]  # no sigma, no bounds
    rows = tuple(row.model_copy(update={"label": None, "correct": None}) for row in chosen.rows)
    assert names(dds.Run(path=chosen.path, header=chosen.header, rows=rows)) == ["sigma", "confidence"]


def test_the_drawn_curve_is_never_above_the_truth(runs: list[dds.Run]) -> None:
    """Between two points of a curve the lower value is drawn; the envelope is the upper edge of the fixed curves."""
    figure = FIGURES["certified_accuracy"].draw(runs[:3])
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    envelope = lines.pop("envelope of the fixed sigmas (no one classifier)")
    assert len(lines) == 3
    at = np.linspace(0.0, 0.95, 500)
    seen = {}
    for line, run in zip(lines.values(), runs, strict=False):
        assert line.get_drawstyle() == "steps-pre"
        seen[run.name] = _read(line, at)
        truth = 100 * dds.certified_accuracy(run, at)
        assert (seen[run.name] <= truth + 1e-9).all()
        assert (seen[run.name] == truth).mean() > 0.9
    assert (_read(envelope, at) == np.maximum(seen["small"], seen["large"])).all()


def _read(line: Any, at: np.ndarray) -> np.ndarray:
    """A drawn curve's values; 0 beyond its end."""
    x, y = (np.asarray(values) for values in line.get_data())
    return np.append(y, 0.0)[np.searchsorted(x, at, side="left")]


def test_a_curve_and_its_band_end_where_it_reaches_zero(runs: list[dds.Run]) -> None:
    axes = FIGURES["certified_accuracy"].draw(runs[:3]).axes[0]
    radii, drawn, best = curves(runs[:3])
    assert best is not None
    step = radii[1]
    for line, largest in zip(axes.get_lines(), (0.9, 0.4, 0.9, 1.0), strict=True):
        x, y = (np.asarray(values) for values in line.get_data())
        assert (y[:-1] > 0.0).all()
        assert y[-1] == 0.0
        assert largest < x[-1] <= largest + step + 1e-9
    for band, (_, values) in zip(axes.collections, drawn, strict=True):
        assert band.get_paths()[0].vertices[:, 0].max() == radii[int((values > 0).sum()) - 1]


def test_a_run_that_says_the_same_at_another_level_is_drawn_once(
    runs: list[dds.Run], run_l2: dds.Run, tmp_path: Path
) -> None:
    _, _, chosen, cut = runs
    hair = [radius * (1.0 - 1e-12) for radius in RADII]
    same = planted(
        run_l2,
        tmp_path / "whole",
        hair,
        level="memory",
        notes=[("kept", radius) for radius in RADII],
        labels=LABELS,
        predictions=PREDICTIONS,
        sigmas=[0.5, 0.12, 0.25, 1.0],
    )
    assert [label for _, label in once([chosen, cut])] == [
        "data-dependent sigma (pointwise)",
        "data-dependent sigma (memory)",
    ]
    ((kept, label),) = once([chosen, same])
    assert label == "data-dependent sigma (pointwise and memory)"
    assert (kept.radius == np.minimum(chosen.radius, same.radius)).all()  # nothing is too large for either
    assert len(FIGURES["certified_accuracy"].draw([chosen, same]).axes[0].get_lines()) == 1
    assert [len(FIGURES["sigma"].draw(some).axes) for some in ([chosen, same], [chosen, cut])] == [2, 3]
    fixed = planted(run_l2, tmp_path / "fixed", [0.5], sigma=0.25)
    remembered = planted(run_l2, tmp_path / "remembered", [0.5], sigma=0.25, level="memory", notes=[("kept", 0.5)])
    assert [text for _, text in once([fixed, remembered])] == ["fixed sigma 0.25, level memory the same"]
    assert len(once([of_vote(chosen, "plurality"), same])) == 2


def test_figures_say_units_and_vote(runs: list[dds.Run]) -> None:
    small, _, chosen, _ = runs
    said = [with_header(run, units="standard deviations") for run in (small, chosen)]
    for name in ("certified_accuracy", "sigma", "paired_radius"):
        text = " ".join(axes.get_xlabel().replace("\n", " ") for axes in FIGURES[name].draw(said).axes)
        assert "standard deviations" in text
        assert "pixel" not in text
    assert not FIGURES["certified_accuracy"].applies([small, said[1]])  # units do not share an axis
    with pytest.raises(RunError, match="different units"):
        FIGURES["certified_accuracy"].draw([small, said[1]])
    small, pairwise = (of_vote(small, vote) for vote in ("plurality", "pairwise"))
    assert "pairwise vote" in FIGURES["certified_accuracy"].draw([pairwise]).axes[0].get_title()
    assert (
        "fashion-mnist-cnn on fashion-mnist-sample" in FIGURES["certified_accuracy"].draw([small]).axes[0].get_title()
    )
    for some, words in (
        ([small], "top class's probability"),
        ([pairwise], "beats its strongest rival"),
        ([small, pairwise], "probability of the event that binds"),
    ):
        assert words in FIGURES["confidence"].draw(some).axes[0].get_xlabel()
        assert words in FIGURES["confidence"].text(some)


@pytest.mark.parametrize("name", ["certified_accuracy", "paired_radius", "sigma", "memory"])
def test_no_title_is_cut(name: str, run_l2: dds.Run, tmp_path: Path) -> None:
    """Long names break into lines inside the figure."""
    model = run_l2.header.model.model_copy(update={"name": "a-rather-long-name-of-a-network/" * 4})
    same = {"labels": LABELS, "predictions": PREDICTIONS, "sigmas": [0.5, 0.12, 0.25, 1.0], "model": model}
    notes = [("kept", radius) for radius in RADII]
    some = [
        planted(run_l2, tmp_path / "a-fixed-sigma", [0.4] * 4, labels=LABELS, sigma=0.12),
        planted(run_l2, tmp_path / "chosen", RADII, **same),
        planted(run_l2, tmp_path / "kept", [1.0, 0.2, 0.0, 0.7], level="memory", notes=notes, **same),
    ]
    figure = FIGURES[name].draw(some)
    svg_text(figure)  # lays it out
    width = figure.bbox.width
    said = {axes.get_title(loc=place) for axes in figure.axes for place in ("left", "center", "right")}
    said = (said | {figure.get_suptitle()}) - {""}
    titles = [one for one in figure.findobj(Text) if one.get_text() in said]
    assert {one.get_text() for one in titles} == said
    for title in titles:
        box = title.get_window_extent()
        assert -1.0 <= box.x0 <= box.x1 <= width + 1.0, title.get_text()


def test_the_table_under_the_curves_is_floored(runs: list[dds.Run]) -> None:
    table = FIGURES["certified_accuracy"].table(runs[:3])
    for name, run in (("fixed sigma 0.12", runs[0]), ("data-dependent sigma (pointwise)", runs[2])):
        column = table.columns.index(name)
        for row in table.rows:
            share = 100 * dds.certified_accuracy(run, [float(row[0])])[0]
            assert float(row[column]) <= share < float(row[column]) + 0.1
    assert "no single classifier" in table.notes[0]
    assert FIGURES["certified_accuracy"].table(runs[2:3]).notes == ()


def test_sigma_table_counts_every_input_once(runs: list[dds.Run]) -> None:
    table = FIGURES["sigma"].table(runs[2:3])
    counts = [[int(row[table.columns.index(name)]) for row in table.rows] for name in table.columns[2:6]]
    assert [sum(column) for column in counts] == [4, 2, 1, 1]
    heights = [patch.get_height() for patch in FIGURES["sigma"].draw(runs[2:3]).axes[0].patches]
    assert sum(heights) == 4


def test_pairs_show_winners_and_losers(runs: list[dds.Run]) -> None:
    picture = FIGURES["paired_radius"]
    table = picture.table(runs)
    assert [row[2:6] for row in table.rows] == [("4", "1", "2", "1"), ("4", "2", "1", "1")]
    figure = picture.draw(runs)
    assert "1 won, 2 lost, 1 equal" in figure.axes[0].get_title().replace("\n", " ")
    assert "2 inputs won radius, 1 lost, 1 stayed equal" in picture.text(runs)


def test_the_change_of_the_radius_is_drawn_where_ties_can_be_told_apart(runs: list[dds.Run]) -> None:
    """Radii with sigma .12 are .4 .4 .1 0, with .5 they are .9 0 0 .9."""
    picture = FIGURES["paired_radius"]
    for axes, base in zip(picture.draw(runs).axes, runs[:2], strict=True):
        theirs, ours = (np.where(run.correct, run.radius, 0.0) for run in (base, runs[2]))
        points = np.concatenate(
            [c.get_offsets() for c in axes.collections if len(c.get_offsets()) and c.get_sizes().any()]
        )
        assert sorted(points[:, 1]) == pytest.approx(sorted(ours - theirs))
        assert len(set(points[:, 0].tolist())) == 4  # none lies on another
        free = [x for x in theirs if 0.0 < x < theirs.max()]
        assert set(free) <= set(points[:, 0].tolist())
        low, high = axes.get_xlim()
        assert low < points[:, 0].min() <= points[:, 0].max() < high
    names = [{label.get_text() for label in axes.get_xticklabels()} for axes in picture.draw(runs).axes]
    assert ["none\n2" in one for one in names] == [False, True]  # one input alone lies on no other
    assert all("largest\n2" in one for one in names)


def test_confidence_is_the_share_of_inputs_at_each_bound(run_l2: dds.Run) -> None:
    figure = FIGURES["confidence"].draw([run_l2])
    x, y = (np.asarray(values) for values in figure.axes[0].get_lines()[0].get_data())
    for nines, share in zip(x[:-1], y[:-1], strict=True):
        p = 1 - 10.0**-nines
        assert share == pytest.approx(100 * (run_l2.p_lower >= p - 1e-12).mean())
    assert y[-1] == 0.0
    half = next(row for row in FIGURES["confidence"].table([run_l2]).rows if row[0] == "0.5")
    assert float(half[1]) <= 100 * (run_l2.p_lower >= 0.5).mean()


def test_memory_shows_what_was_cut(runs: list[dds.Run]) -> None:
    picture = FIGURES["memory"]
    figure = picture.draw(runs)
    segments = figure.axes[0].collections[0].get_segments()
    assert [segment.tolist() for segment in segments] == [[[2.0, 0.2], [2.0, 0.3]]]
    assert "1 kept, 1 cut, 1 answered, 1 abstained" in picture.text(runs)
    table = picture.table(runs)
    assert sum(int(row[table.columns.index("cut")]) for row in table.rows) == 1


def test_names_are_shown_as_they_are(run_l2: dds.Run, tmp_path: Path) -> None:
    """A folder's name is no mathematics and no markup."""
    a = planted(run_l2, tmp_path / "$x^2$ <b>", [0.5], sigmas=[0.2])
    b = planted(run_l2, tmp_path / "$\\frac$", [0.4], sigmas=[0.2])
    assert ElementTree.fromstring(svg_text(FIGURES["certified_accuracy"].draw([a, b]))) is not None


def test_images_at_their_own_sigma(searched: dds.Run, data: dds.Dataset) -> None:
    figure = images_figure(searched, data)
    clean = [axes.images[0].get_array() for axes in figure.axes[::3]]
    shown = [int(re.findall(r"input (\d+)", axes.get_xlabel())[0]) for axes in figure.axes[::3]]
    for picture, i in zip(clean, shown, strict=True):
        np.testing.assert_allclose(np.asarray(picture), data[i][0][0].numpy(), atol=1e-7)
    assert images_text(searched, data).count("sigma 0.") == len(shown)
    assert [row[0] for row in images_table(searched, data, [50, 0]).rows] == ["50", "0"]
    assert svg_text(images_figure(searched, data, [50])) == svg_text(images_figure(searched, data, [50]))


def test_noisy_copies_have_the_row_s_sigma(searched: dds.Run) -> None:
    x = np.full((1, 28, 28), 0.5)
    for row in searched.rows:
        copies = noisy_copies(searched, row, x, 200)
        clipped = np.clip(0.5 + row.sigma * np.random.default_rng(0).standard_normal(200_000), 0, 1)
        assert copies.std() == pytest.approx(clipped.std(), rel=0.02)
        assert not np.array_equal(copies[0], copies[1])


def test_the_smallest_and_the_largest_sigma(run_l2: dds.Run, data: dds.Dataset, tmp_path: Path) -> None:
    sigmas = [0.5, 0.1, 0.3, 0.2, 0.7, 0.6, 0.9]
    radii, predictions = [0.4, 0.1, 0.0, 0.2, 0.3, 0.3, 0.5], [1, 1, -1, 1, 1, 2, 1]
    run = planted(run_l2, tmp_path / "run", radii, predictions=predictions, sigmas=sigmas)
    run = with_header(run, config={"classes": [f"c{k}" for k in range(10)]})
    small, large = extremes(run, data)
    assert [row.sigma for row in small] == [0.1, 0.2, 0.5]  # without the one that abstained
    assert [row.sigma for row in large] == [0.6, 0.7, 0.9]
    photo = PHOTOS["extremes"]
    figure = photo.draw(run, data)
    assert svg_text(photo.draw(run, data)) == svg_text(figure)
    clean = [axes.images[0].get_array() for axes in (*figure.axes[:3], *figure.axes[6:9])]
    for picture, row in zip(clean, [*small, *large], strict=True):
        np.testing.assert_allclose(np.asarray(picture), data[row.id][0][0].numpy(), atol=1e-7)
    assert figure.axes[3].get_xlabel() == "sigma 0.1\nradius 0.100"
    assert "class 2 c2, label 1 c1" in figure.axes[6].get_xlabel().replace("\n", " ")
    assert "smallest" in photo.text(run, data)
    assert [row[0] for row in photo.table(run, data).rows] == [str(row.id) for row in [*small, *large]]
    assert photo.applies(run)
    assert not photo.applies(run_l2)
    one = planted(run_l2, tmp_path / "one", [0.4], sigmas=[0.5])
    assert not photo.applies(one)


def test_every_noisy_picture_has_a_caption(searched: dds.Run, data: dds.Dataset) -> None:
    for axes, row in zip(images_figure(searched, data).axes[2::3], searched.rows, strict=False):
        assert axes.get_xlabel().startswith("noise at sigma ")
        assert "radius" in axes.get_xlabel()
        assert row.sigma > 0


def test_images_refuse_what_they_cannot_show(searched: dds.Run, run_l2: dds.Run, data: dds.Dataset) -> None:
    other = dds.Dataset(name="other", split="test", x=data.x, y=data.y)
    with pytest.raises(InputError, match="not the data set"):
        images_figure(searched, other)
    with pytest.raises(InputError, match="input 7 is not in"):
        images_figure(searched, data, [7])
    flat = dds.Dataset(name="flat", split="test", x=np.zeros((600, 9), np.float32), y=None)
    fingerprint = searched.header.data.model_validate(flat.fingerprint())
    header = searched.header.model_copy(update={"data": fingerprint})
    with pytest.raises(InputError, match="no images"):
        images_figure(dds.Run(path=searched.path, header=header, rows=searched.rows), flat)


def test_colour_images(searched: dds.Run) -> None:
    rng = np.random.default_rng(0)
    data = dds.Dataset(name="c", split="test", x=rng.integers(0, 256, (101, 3, 8, 8)).astype(np.uint8), y=None)
    header = searched.header.model_copy(
        update={"data": searched.header.data.model_validate(data.fingerprint()), "norm": "l1"}
    )
    figure = images_figure(dds.Run(path=searched.path, header=header, rows=searched.rows), data, [100])
    assert np.asarray(figure.axes[0].images[0].get_array()).shape == (8, 8, 3)


def test_an_unwritable_folder(run_l2: dds.Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        save(FIGURES["confidence"].draw([run_l2]), tmp_path / "file" / "x", "x")


def test_many_points_become_pixels(run_l2: dds.Run, tmp_path: Path) -> None:
    n = 2001
    run = planted(run_l2, tmp_path / "many", np.linspace(0, 1, n).tolist(), sigmas=np.linspace(0.1, 1, n).tolist())
    text = svg_text(FIGURES["sigma"].draw([run]))
    assert "<image" in text
    assert len(text) < 500_000
    assert text == svg_text(FIGURES["sigma"].draw([run]))


def test_plot_draws_everything_there_is(
    cli: Cli, searched: dds.Run, run_l2: dds.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddsmoothing.plots.style.KINDS", ("svg",))
    answer = cli("plot", run_l2.path, searched.path, "--out", tmp_path)
    assert (answer.code, answer.err) == (0, "")
    names = [Path(line).name for line in answer.out.splitlines()]
    figures = ("certified_accuracy", "sigma", "paired_radius", "confidence", "extremes_given", "images_given")
    assert names == [f"{n}.svg" for n in figures]
    assert len(list(tmp_path.iterdir())) == len(names)
    answer = cli("plot", run_l2.path, "--out", tmp_path, "--data", "fashion-mnist-sample", "--ids", "50")
    assert answer.out.splitlines()[-1].endswith("images_l2.svg")
    answer = cli("plot", run_l2.path, "--out", tmp_path / "none", "--ids", "50")
    assert (answer.code, "--data" in answer.err, (tmp_path / "none").exists()) == (2, True, False)
    answer = cli("plot", searched.path, "--out", tmp_path, "--ids", "0,x")
    assert (answer.code, "--ids" in answer.err) == (2, True)
    answer = cli("plot", searched.path, "--out", tmp_path / "none", "--data", "none.npz")
    assert (answer.code, (tmp_path / "none").exists()) == (1, False)
