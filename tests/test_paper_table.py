"""The table of benchmarks/fashion_mnist.py: the kept counts, what follows from them, and the page that shows it."""

import itertools
import json
import re
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta, norm

from ddsmoothing.data import load_data
from ddsmoothing.errors import RunError
from ddsmoothing.training import SmoothAdv
from ddsmoothing.verify.arithmetic import binomial_tail, normal_cdf

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the benchmarks are not in a source distribution", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import fashion_mnist  # noqa: E402
import kept_counts  # noqa: E402
import paper_table  # noqa: E402

FILES = sorted(fashion_mnist.COUNTS.glob("*.npz"))
ROWS = [row for network in fashion_mnist.networks(quick=False) for row in network.rows]
CELL = re.compile(r"^(\d+\.\d)<br>(\d+)-(\d+)$")


def shown():
    """Cells of the page's accuracy tables by method, in order."""
    text = fashion_mnist.PAGE.read_text(encoding="utf-8")
    found = {}
    for part in text.split("\n**")[1:]:
        method, _, _ = part.partition(":")
        lines = [line for line in part.splitlines() if line.startswith("| ")][2:]
        found[method] = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {method: lines for method, lines in found.items() if method in fashion_mnist.METHODS}


def evidence(path, vote="pairwise"):
    """Sigma, right answers, the count that binds, n, alpha and the radius, by other means than the script's."""
    with np.load(path, allow_pickle=False) as file:
        about, rows = json.loads(str(file["about"])), np.arange(len(file["id"]))
        votes, wins, n = (file[name].astype(np.int64) for name in ("votes", "wins", "votes"))
        top, hits = file["top"].astype(int), None
        if vote == "pairwise":
            top = file["anchor"].astype(int)
            wins[rows, top] = n.sum()  # no rival of itself
            hits = wins.min(1)
        else:
            hits = votes[rows, top]
        n, sigma, alpha = n.sum(1), file["sigma"], about["alpha"]
        lower = np.where(hits > 0, beta.ppf(alpha, np.maximum(hits, 1), n - hits + 1), 0.0)
        radius = np.where(lower > 0.5, sigma * norm.ppf(np.maximum(lower, 0.5)), 0.0)
        if vote == "pairwise":
            np.testing.assert_allclose(file["radius"], radius, atol=1e-6)
            radius = file["radius"]
        return sigma, top == file["label"], hits, n, alpha, radius


def test_every_kept_file_is_a_row_of_the_table_and_some_are_there():
    assert FILES
    assert {path.stem for path in FILES} <= {row.name for row in ROWS}
    assert len({row.name for row in ROWS}) == len(ROWS) == 9 * 3 + 5


def test_the_page_shows_what_the_kept_counts_give():
    text = fashion_mnist.PAGE.read_text(encoding="utf-8")
    block = text.split(paper_table.START)[1].split(paper_table.END)[0]
    assert block == "\n" + paper_table.tables(ROWS, fashion_mnist.COUNTS) + "\n"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_kept_radius_says_more_than_its_counts(path):
    sigma, _, hits, n, alpha, radius = evidence(path)
    for i in np.flatnonzero(radius)[:: max(1, len(radius) // 8)]:
        p = Fraction(normal_cdf(Fraction(radius[i]) / Fraction(sigma[i])), 1 << 200)
        assert binomial_tail(int(hits[i]), int(n[i]), p)[0] <= alpha


def test_each_figure_of_the_page_is_a_count_rounded_down_and_unfinished_rows_say_so():
    tables = shown()
    assert set(tables) == set(fashion_mnist.METHODS)
    for row, vote in itertools.product(ROWS, paper_table.VOTES):
        [cells] = [line[2:] for line in tables[row.method] if line[:2] == [row.label, vote]]
        path = fashion_mnist.COUNTS / f"{row.name}.npz"
        if not path.exists():
            assert set(cells) == {paper_table.NOT_RUN}
            continue
        _, right, _, _, _, radius = evidence(path, vote)
        for cell, least in zip(cells, paper_table.RADII, strict=False):
            share, low, high = CELL.match(cell).groups()
            hits = int((right & (radius > 0) & (radius >= least)).sum())
            assert share == f"{hits * 1000 // len(radius) / 10:.1f}"
            assert float(low) <= float(share) <= float(high)
        mean = (right * radius).mean()
        assert 0 <= mean - float(cells[-1].split("<br>")[0]) < 0.001


def test_an_envelope_is_the_largest_of_the_finished_rows_of_its_kind():
    for method, lines in shown().items():
        finished, envelopes, kind = {}, {}, None
        for label, vote, *cells in lines:
            if label.startswith("envelope"):
                envelopes[kind, vote] = [float(cell) for cell in cells[:-1]]
                continue
            kind = label.partition(",")[0]  # an envelope stands below the rows of its kind and vote
            if cells[0] != paper_table.NOT_RUN:
                finished.setdefault((kind, vote), []).append([float(cell.split("<br>")[0]) for cell in cells[:-1]])
        several = {kind: rows for kind, rows in finished.items() if len(rows) > 1}
        assert envelopes == {kind: np.max(rows, axis=0).tolist() for kind, rows in several.items()}, method


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_pairwise_radius_is_never_below_the_one_class_radius_of_the_same_samples(path):
    pairwise, plurality = (evidence(path, vote) for vote in paper_table.VOTES)
    same = pairwise[2] >= plurality[2]  # the pilot's winners may differ; then the answers are of different classes
    assert (pairwise[-1] >= plurality[-1] - 1e-9)[same].all()
    assert same.mean() > 0.9


@pytest.mark.parametrize("factor", [1.001, 0.99])
def test_a_radius_that_its_counts_do_not_give_is_refused(tmp_path, factor):
    with np.load(FILES[0], allow_pickle=False) as file:
        columns = dict(file)
    columns["radius"][np.flatnonzero(columns["radius"])[0]] *= factor
    np.savez(tmp_path / "changed.npz", **columns)
    with pytest.raises(RunError, match="not what its counts give"):
        kept_counts.load(tmp_path / "changed.npz")


def test_a_page_without_the_marks_stays_as_it_is(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n" + paper_table.START)
    with pytest.raises(RunError, match="lacks the lines"):
        paper_table.write_page(page, "new")
    assert page.read_text() == "text\n" + paper_table.START
    page.write_text("text\n" + paper_table.START + "old" + paper_table.END + "rest\n")
    paper_table.write_page(page, "new")
    assert page.read_text() == "text\n" + paper_table.START + "\nnew\n" + paper_table.END + "rest\n"


def test_the_list_shows_how_far_each_cell_is(tmp_path, capsys):
    folder = tmp_path / "full" / "gaussian-0.25"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "metrics.jsonl").write_text("{}\n{}\n")
    assert fashion_mnist.main(["--list", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 19 + len(ROWS)
    epochs = fashion_mnist.METHODS["gaussian"]["epochs"]
    assert [line.split()[-4:] for line in lines if not line.endswith("not run")] == [["2", "of", str(epochs), "epochs"]]


def test_finished_counts_are_kept_together_with_the_page(tmp_path, monkeypatch):
    kept, page, made = tmp_path / "kept", tmp_path / "page.md", tmp_path / "out" / "full" / "counts"
    made.mkdir(parents=True)
    page.write_text(paper_table.START + paper_table.END)
    monkeypatch.setattr(fashion_mnist, "COUNTS", kept)
    monkeypatch.setattr(fashion_mnist, "PAGE", page)
    assert fashion_mnist.main(["--tables", "--out", str(tmp_path / "out")]) == 1  # there is nothing to show
    (made / FILES[0].name).write_bytes(FILES[0].read_bytes())
    assert fashion_mnist.main(["--tables", "--out", str(tmp_path / "out")]) == 0
    assert (kept / FILES[0].name).read_bytes() == FILES[0].read_bytes()
    assert paper_table.tables(ROWS, kept) in page.read_text()


def test_missing_data_are_named_in_one_line(tmp_path, capsys):
    assert fashion_mnist.main(["--data", str(tmp_path / "absent"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert str(tmp_path / "absent") in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small(monkeypatch):
    """The quick form on the shipped images, cut to seconds."""
    sample = load_data("fashion-mnist-sample")
    monkeypatch.setattr(fashion_mnist, "load_data", lambda name, split: sample)
    monkeypatch.setattr(fashion_mnist, "N", 200)
    for name, value in {"QUICK_TRAINING": 64, "QUICK_IMAGES": 2, "QUICK_EPOCHS": 1}.items():
        monkeypatch.setattr(fashion_mnist, name, value)
    attack = SmoothAdv(epsilon=0.25, steps=1)
    methods = {"gaussian": {"epochs": 1}, "smoothadv": {"objective": "smoothadv", "epochs": 1, "smoothadv": attack}}
    monkeypatch.setattr(fashion_mnist, "METHODS", methods)


def test_an_interrupted_small_table_is_continued_and_printed(small, tmp_path, capsys, monkeypatch):
    certify = fashion_mnist.certify_run

    def interrupted(*args, **options):
        certify(*args, **options)
        raise KeyboardInterrupt

    command = ["--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(fashion_mnist, "certify_run", interrupted)
    assert fashion_mnist.main(command) == paper_table.INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err
    before = (tmp_path / "quick/gaussian-0.5/gaussian-0.5-plain/results.jsonl").read_bytes()
    monkeypatch.setattr(fashion_mnist, "certify_run", certify)
    assert fashion_mnist.main(command) == 0
    text = capsys.readouterr().out
    assert "gaussian-0.5-dds: finished" in text and "not run" not in text
    assert "2 test images, n0 = 100, n = 200" in text
    assert (tmp_path / "quick/gaussian-0.5/gaussian-0.5-plain/results.jsonl").read_bytes() == before
    assert len(list((tmp_path / "quick/counts").glob("*.npz"))) == 6
    assert fashion_mnist.main(command) == 0
    assert "finished" not in capsys.readouterr().out  # nothing was left to do
    moved = kept_counts.load(tmp_path / "quick/counts/gaussian-0.5-ds2.npz")
    assert moved.about["training"]["data_dependent"]["step"] == fashion_mnist.MOVES["step"]


def test_a_network_that_another_process_works_on_is_left_to_it(small, tmp_path, capsys):
    busy = tmp_path / "quick" / "gaussian-0.5"
    busy.mkdir(parents=True)
    lock = fashion_mnist.Lock(busy)
    try:
        assert fashion_mnist.main(["--quick", "--out", str(tmp_path)]) == 0
    finally:
        lock.release()
    assert "gaussian-0.5: another process is at work on it" in capsys.readouterr().out
    assert not (busy / "train").exists()


def test_each_sigma_of_certification_starts_where_training_stood():
    for network in fashion_mnist.networks(quick=False):
        for row in network.rows:
            policy = network.policy(row)
            if row.kind == "plain":
                assert policy.kind == "fixed" and policy.sigma == row.sigma
            else:
                assert policy.kind == "search"
                assert policy.sigma_min < policy.sigma0 < policy.sigma_max
        assert (network.config.data_dependent is not None) == (network.rows[-1].kind == "DS2")
