"""The page as text: what it says, that it needs nothing else, and that nothing it shows becomes markup."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddsmoothing as dds
from ddsmoothing import analysis, tables
from ddsmoothing.analysis import RADII
from ddsmoothing.report import page, thumbnails, write_report
from ddsmoothing.report.headers import common_facts, different_facts
from ddsmoothing.report.thumbnails import datasets_of, pictures_of
from ddsmoothing.runs import import_file
from ddsmoothing.sigma import SigmaPolicy
from report_helpers import HOSTILE, altered, hostile, written
from results_helpers import of_vote, planted, with_header

Cli = Callable[..., object]


class Parsed(HTMLParser):
    """Tags with their attributes, text outside of scripts, and the scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.pieces: list[tuple[str, dict[str, str | None], str]] = []
        self._inside = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside].append(data)
        else:
            self.text += data
            if self._inside:
                self.pieces.append((*self.tags[-1], data))

    def of(self, name: str) -> str:
        """The text of the first element of that name."""
        return next(text for tag, _, text in self.pieces if tag == name)

    def tile(self, name: str) -> str:
        return next(text for _, attributes, text in self.pieces if attributes.get("data-tile") == name)

    @property
    def marks(self) -> list[str]:
        return [text for _, attributes, text in self.pieces if attributes.get("class") == "mark"]

    @property
    def data(self) -> dict:
        return json.loads(self.raw["script"][0])


@pytest.fixture(scope="module")
def run_dds(make_run: Callable[..., dds.Run], tmp_path_factory: pytest.TempPathFactory) -> dds.Run:
    return make_run(tmp_path_factory.mktemp("runs") / "dds", SigmaPolicy.search(0.35), n=100)


@pytest.fixture(scope="module")
def parsed(run_l2: dds.Run, run_dds: dds.Run, data: dds.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Parsed:
    return Parsed(write_report([run_l2, run_dds], tmp_path_factory.mktemp("page") / "r.html", [data]))


def test_the_page_says_what_was_certified_and_what_was_not(parsed: Parsed) -> None:
    assert "with probability at least 1 - 0.001" in parsed.text
    assert "uses this input's sigma everywhere" in parsed.text
    assert "says nothing about a system that chooses sigma anew" in parsed.text
    assert "Level pointwise is not level stateless" in parsed.text
    assert "a subset" in parsed.text
    assert "partial run" not in parsed.text
    assert "rounded, no evidence" not in parsed.text


def test_the_first_screen_says_what_how_good_and_why_to_trust_it(parsed: Parsed, run_dds: dds.Run) -> None:
    day = run_dds.header.created[:10]
    title = "fashion-mnist-cnn on fashion-mnist-sample, 12 of 1,000 inputs, "
    assert parsed.of("h1").startswith(title)
    assert parsed.of("title").startswith(title)
    assert day in parsed.of("h1")
    assert [a["id"] for tag, a in parsed.tags if tag == "h2"][:2] == ["overview", "what"]
    lead = next(a["id"] for tag, a in parsed.tags if tag == "div" and a.get("class") == "plot")
    assert lead == "l2-certified_accuracy"
    trust = parsed.data["tiles"]["runs"][1]["trust"]
    assert trust in parsed.text
    assert "false with probability at most 0.001; at most " in trust
    assert "ddsmoothing verify recomputes" in trust
    targets = {a["id"] for _, a in parsed.tags if a.get("id")}
    links = [a["href"] for tag, a in parsed.tags if tag == "a"]
    assert len(links) >= 7
    assert {link.removeprefix("#") for link in links if link} <= targets


def test_tiles_are_the_figures_of_the_run_with_their_intervals(run_l2: dds.Run, tmp_path: Path) -> None:
    """Three of seven certified at 0.3, of which two hold half of what is certified at 0; one abstained."""
    radii, labels = [0.8, 0.6, 0.3, 0.2, 0.0, 0.9, 0.1], [1, 1, 1, 1, 1, 2, 2]
    run = planted(run_l2, tmp_path / "run", radii, labels=labels, predictions=[1, 1, 1, 1, -1, 1, 1])
    parsed = Parsed(write_report([run], tmp_path / "r.html"))
    tiles = parsed.data["tiles"]
    (one,) = tiles["runs"]
    assert (tiles["radii"], tiles["radii"][tiles["radius"]]) == (["0", "0.25", "0.5", "0.75", "1"], "0.5")
    assert [value for value, _ in one["accuracy"]] == ["57.1 %", "42.8 %", "28.5 %", "14.2 %", "0.0 %"]
    for (_, interval), radius in zip(one["accuracy"], RADII, strict=True):
        low, high = analysis.certified_accuracy_interval(run, [radius])[0]
        shown = [float(end) for end in interval.removesuffix(" %").split("-")]
        assert shown[0] <= 100 * low < shown[0] + 1
        assert shown[1] - 1 < 100 * high <= shown[1]
    assert one["acr"][0] == "0.271"
    assert one["abstained"][0] == "14.3 %"
    assert parsed.tile("zero") == "57.1 %"
    assert parsed.tile("chosen") == "28.5 %"
    chosen = Parsed(write_report([run], tmp_path / "c.html", radius=0.6)).data["tiles"]
    assert chosen["radii"][chosen["radius"]] == "0.6"
    assert chosen["runs"][0]["accuracy"][chosen["radius"]][0] == "28.5 %"


def test_tiles_without_labels_say_certified_and_a_run_with_a_sigma_each_stands_first(
    run_l2: dds.Run, run_dds: dds.Run, tmp_path: Path
) -> None:
    bare = altered(run_dds, row={"label": None, "correct": None})
    tiles = Parsed(write_report([run_l2, bare], tmp_path / "r.html")).data["tiles"]
    assert tiles["run"] == 1
    shown = tiles["runs"][1]
    assert shown["what"].startswith("Certified, of whatever class")
    certified = int(((run_dds.prediction >= 0) & (run_dds.radius > 0)).sum())
    assert shown["accuracy"][0][0] == tables.percent(certified, len(run_dds)) + " %"
    stopped = altered(run_l2, {"sampler": "target"})
    assert Parsed(write_report([stopped], tmp_path / "s.html")).data["tiles"]["runs"][0]["acr"] == ["-", ""]


def test_runs_of_other_models_data_votes_and_units_are_marked(run_l2: dds.Run, tmp_path: Path) -> None:
    model = run_l2.header.model.model_copy(update={"name": "other-net", "sha256": "1" * 64})
    data = run_l2.header.data.model_copy(update={"name": "other-data", "sha256": "0" * 64})
    others = [with_header(run_l2, model=model), with_header(run_l2, data=data), of_vote(run_l2, "plurality")]
    for other, words in zip(
        others, ("of 2 models", "of 2 data sets", "smoothed classifiers of two kinds"), strict=True
    ):
        marks = Parsed(write_report([run_l2, other], tmp_path / "r.html")).marks
        assert any(words in mark for mark in marks), marks
    text = Parsed(write_report([run_l2, others[0]], tmp_path / "r.html")).text
    assert "other-net" in text
    apart = Parsed(write_report([run_l2, with_header(run_l2, units="cm")], tmp_path / "r.html"))
    assert "runs of several norms or units" in apart.marks
    ids = [a["id"] for tag, a in apart.tags if tag == "div" and a.get("class") == "plot"]
    assert len(ids) == len(set(ids))
    assert {"l2-certified_accuracy", "l2-certified_accuracy-2"} <= set(ids)
    columns = Parsed(write_report([with_header(run_l2, units="those of the input")], tmp_path / "r.html")).text
    assert "pixel" not in columns


def test_headers_say_common_values_once_and_differences_in_a_table(
    run_l2: dds.Run, run_dds: dds.Run, tmp_path: Path
) -> None:
    common, different = dict(common_facts([run_l2, run_dds])), different_facts([run_l2, run_dds])
    assert common["model"] == "fashion-mnist-cnn"
    assert common["model's SHA-256"] == run_l2.header.model.sha256
    assert different is not None
    assert {"folder", "sigma", "sampler"} <= set(different.columns)
    assert not set(common) & set(different.columns)
    assert len(different.rows) == 2
    assert different_facts([run_l2]) is None
    (tmp_path / "t.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\n0\t9\t9\t0.33\t1\n")
    beside = different_facts([run_l2, import_file(tmp_path / "t.tsv", tmp_path / "theirs")])
    assert beside is not None
    assert {"folder", "created"} <= set(beside.columns) <= {"run", "folder", "created", "vote"}
    text = Parsed(write_report([run_l2, run_dds], tmp_path / "r.html")).text
    assert text.count(str(run_l2.header.model.sha256)) == 1


def test_classes_are_named_where_the_runs_know_them(run_l2: dds.Run, run_dds: dds.Run, tmp_path: Path) -> None:
    names = [f"name {k}" for k in range(10)]
    some = [with_header(run, config={"classes": names}) for run in (run_l2, run_dds)]
    assert Parsed(write_report(some, tmp_path / "r.html")).data["classes"] == names
    assert Parsed(write_report([some[0], run_dds], tmp_path / "r.html")).data["classes"] == []


def test_every_figure_has_a_text_and_a_table(parsed: Parsed) -> None:
    figures = sum(tag == "figure" for tag, _ in parsed.tags)
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert figures == len(images) >= 4
    assert all(len(image["alt"] or "") > 30 for image in images)
    assert sum(tag == "details" for tag, _ in parsed.tags) == figures


def test_the_page_loads_nothing_and_allows_only_its_own_script_and_style(parsed: Parsed) -> None:
    for _, attributes in parsed.tags:
        assert not any(name == "style" or name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    policy = next(a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    for kind, text in (("script", parsed.raw["script"][1]), ("style", parsed.raw["style"][0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert len(parsed.raw["script"]) == 2


def test_the_same_runs_give_the_same_bytes(
    parsed: Parsed, run_l2: dds.Run, run_dds: dds.Run, data: dds.Dataset, tmp_path: Path
) -> None:
    again = write_report([run_l2, run_dds], tmp_path / "again.html", [data])
    assert again.read_bytes() == parsed.path.read_bytes()


def test_rows_are_those_of_the_runs_and_no_radius_grows(parsed: Parsed, run_l2: dds.Run, run_dds: dds.Run) -> None:
    rows, names = parsed.data["rows"], parsed.data["names"]
    assert len(rows["id"]) == len(run_l2) + len(run_dds)
    for number, run in enumerate((run_l2, run_dds)):
        mine = [i for i, which in enumerate(rows["run"]) if which == number]
        assert [rows["id"][i] for i in mine] == run.ids.tolist()
        for i, row in zip(mine, run.rows, strict=True):
            assert row.radius - 1e-4 < rows["radius"][i] <= row.radius
            assert rows["prediction"][i] == (None if row.prediction == -1 else row.prediction)
            assert names["reason"][rows["reason"][i]] == row.reason
            wanted = "not certified" if row.prediction == -1 else "correct" if row.correct else "wrong"
            assert names["outcome"][rows["outcome"][i]] == wanted


def test_curves_never_say_more_than_was_certified(parsed: Parsed, run_l2: dds.Run, run_dds: dds.Run) -> None:
    (curves,) = parsed.data["curves"]
    lines = {line["label"]: line["y"] for line in curves["lines"]}
    for run, label in zip((run_l2, run_dds), parsed.data["names"]["run"], strict=True):
        true = 100 * dds.certified_accuracy(run, curves["x"])
        shown = np.array(lines[label])
        assert (shown <= true + 1e-9).all()
        assert (shown[[0, -1]] > true[[0, -1]] - 0.1001).all()
    left, top, right, bottom = curves["box"]
    assert 0 < left < right <= 1
    assert 0 < top < bottom < 1


def test_pictures_are_the_inputs_and_noisy_copies_at_their_own_sigma(
    run_l2: dds.Run, run_dds: dds.Run, data: dds.Dataset
) -> None:
    runs = [run_l2, run_dds]
    pictures = pictures_of(runs, datasets_of(runs, [data]), 5)

    def pixels(place: int) -> np.ndarray:
        return np.array(Image.open(io.BytesIO(base64.b64decode(pictures.png[place]))))

    assert (pictures.chosen, pictures.wanted) == (5, 5)
    assert len(pictures.png) == 5 * 3
    for number, run in enumerate(runs):
        ids = list(pictures.clean[number])
        assert ids[0] == run.ids[0]
        assert ids[-1] == run.ids[-1]
        spread = []
        for key in ids:
            clean = pixels(pictures.clean[number][key])
            assert (clean == data.x[key][0]).all()
            noise = pixels(pictures.noisy[number][key]).astype(float) / 255 - clean / 255
            black = clean == 0
            spread.append(2 * np.mean(noise[black] ** 2) / dict(zip(run.ids, run.sigma, strict=True))[key] ** 2)
        if number == 0:  # half of the noise is clipped at black; at sigma 0.25 hardly any at white
            assert np.mean(spread) == pytest.approx(1.0, abs=0.1)


def test_large_and_many_pictures_stay_within_the_page(
    run_l2: dds.Run, data: dds.Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    wide = thumbnails.png_of(rng.random((3, 200, 130)))
    assert Image.open(io.BytesIO(wide)).size == (33, 50)
    for shape in ((1, 28, 28), (3, 32, 32), (3, 224, 224)):
        text = base64.b64encode(thumbnails.png_of(rng.random(shape)))
        assert len(text) <= thumbnails.largest_text(shape)
    monkeypatch.setattr(thumbnails, "LARGEST_TEXT", 12_000)
    pictures = pictures_of([run_l2], [data], 500)
    assert 1 <= pictures.chosen < pictures.wanted == len(run_l2)
    assert sum(map(len, pictures.png)) <= 12_000
    assert f"of {len(run_l2)} wanted" in write_report([run_l2], tmp_path / "r.html", [data]).read_text()


def test_a_page_that_would_be_too_large_is_not_written(
    run_l2: dds.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LARGEST_PAGE", 10_000)
    with pytest.raises(dds.DdsmoothingError, match="fewer runs"):
        write_report([run_l2], tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_another_input_than_the_certified_one_gets_no_picture(run_l2: dds.Run, data: dds.Dataset) -> None:
    other = altered(run_l2, row={"input_sha256": "0" * 64})
    with pytest.raises(dds.DdsmoothingError, match="not the one"):
        pictures_of([other], [data])
    beyond = altered(run_l2, row={"id": 5000})
    with pytest.raises(dds.DdsmoothingError, match="not in their data set"):
        pictures_of([beyond], [data])
    with pytest.raises(dds.DdsmoothingError, match="none of these runs"):
        datasets_of([run_l2], [dds.Dataset(name="other", split="test", x=data.x[:64], y=None)])


def test_inputs_that_are_no_images_get_no_pictures(run_l2: dds.Run, tmp_path: Path) -> None:
    flat = dds.Dataset(name="flat", split="test", x=np.zeros((4, 9), np.float32), y=None)
    assert not pictures_of([run_l2], [flat]).png
    text = Parsed(write_report([run_l2], tmp_path / "r.html")).text
    assert "No pictures" in text
    assert "Noisy" not in text


def test_partial_runs_and_others_results_are_marked(run_l2: dds.Run, tmp_path: Path) -> None:
    subset = run_l2.header.subset.model_copy(update={"size": 15})
    (tmp_path / "t.tsv").write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t9\t9\t0.33\t1\t0:00:01\n1\t2\t-1\t0\t0\t0\n"
    )
    theirs = import_file(tmp_path / "t.tsv", tmp_path / "theirs")
    parsed = Parsed(write_report([altered(run_l2, {"subset": subset}), theirs], tmp_path / "r.html"))
    assert "Partial run: 12 of 15 inputs" in parsed.text
    assert "partial run" in parsed.text
    assert "rounded, no evidence" in parsed.text
    assert "nothing is certified here" in parsed.text
    assert None in parsed.data["rows"]["sigma"]


def test_runs_without_labels_and_of_two_norms(run_l2: dds.Run, run_l1: dds.Run, tmp_path: Path) -> None:
    bare = altered(run_l2, row={"label": None, "correct": None})
    parsed = Parsed(write_report([bare, run_l1], tmp_path / "r.html"))
    assert "certified, no label" in parsed.data["names"]["outcome"]
    assert {parsed.data["rows"]["outcome"][i] for i in range(0, 24, 2)} <= {2, 3}
    assert [curves["id"] for curves in parsed.data["curves"]] == ["l1-certified_accuracy"]
    assert "L1 norm" in parsed.text
    assert "L2 norm" in parsed.text


def test_no_name_becomes_markup(run_l2: dds.Run, tmp_path: Path) -> None:
    parsed = Parsed(write_report([hostile(run_l2, tmp_path), run_l2], tmp_path / "r.html"))
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert all((a["src"] or "").startswith("data:") for tag, a in parsed.tags if tag == "img")
    assert HOSTILE in parsed.text
    assert "</" not in parsed.raw["script"][0]


def test_large_numbers_reach_the_browser_as_they_are(run_l2: dds.Run, tmp_path: Path) -> None:
    parsed = Parsed(write_report([altered(run_l2, row={"label": 2**62 + 1})], tmp_path / "r.html"))
    assert parsed.data["rows"]["label"][0] == str(2**62 + 1)


def test_the_command(cli: Cli, run_l2: dds.Run, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    answer = cli("report", run_l2.path, "--out", out, "--thumbnails", 3)
    assert (answer.code, answer.out.strip()) == (0, str(out))
    assert len(Parsed(out).data["pictures"]) == 6
    assert cli("report", run_l2.path, "--out", out, "--thumbnails", "none").code == 0
    assert not Parsed(out).data["pictures"]


def test_bad_input_is_one_line(cli: Cli, run_l2: dds.Run, tmp_path: Path, npz: Callable[..., Path]) -> None:
    other = npz(x=np.zeros((3, 1, 2, 2), np.uint8))
    (tmp_path / "t.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\n0\t9\t9\t0.33\t1\n")
    import_file(tmp_path / "t.tsv", tmp_path / "theirs")
    (tmp_path / "file").write_text("")
    out = ("--out", tmp_path / "r.html")
    for code, message, args in (
        (1, "not a run folder", (tmp_path / "none", *out)),
        (2, "expected a number of inputs, or none", (run_l2.path, *out, "--thumbnails", "some")),
        (2, "none of these runs", (run_l2.path, *out, "--data", other)),
        (2, "leave it out", (tmp_path / "theirs", *out, "--data", other)),
        (2, "--radius is nan", (run_l2.path, *out, "--radius", "nan")),
        (1, "cannot write", (run_l2.path, "--out", tmp_path / "file" / "r.html", "--thumbnails", "none")),
    ):
        answer = cli("report", *args)
        assert (answer.code, message in answer.err) == (code, True), answer.err
        assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "r.html").exists()


def test_written_runs_are_read_back(run_l2: dds.Run, tmp_path: Path) -> None:
    assert written(run_l2, tmp_path / "again").rows == run_l2.rows
