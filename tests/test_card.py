"""The certificate card: its schema, its figures, and what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from scipy.stats import binom

import ddsmoothing as dds
from ddsmoothing.memory.risk import Risk
from ddsmoothing.report import card_of, card_schema, claims, write_card
from ddsmoothing.report.claims import down, radii_for, set_risk, share_down, up
from ddsmoothing.report.render import escape_markdown
from ddsmoothing.runs import import_file
from ddsmoothing.runs.schema import MemoryNote
from report_helpers import HOSTILE, altered, hostile, many, written

Cli = Callable[..., object]
SHIPPED = json.loads((files("ddsmoothing.report") / "certificate.schema.json").read_text())


def remembered(run: dds.Run, risk: Risk, attempts: list[int | None]) -> dds.Run:
    """The run as a memory with this risk would have left it; None: answered from a region stored before."""
    rows = [
        row.model_copy(
            update={
                "level": "memory",
                "memory": MemoryNote(
                    kind="answered" if t is None else "kept",
                    certified=row.radius,
                    prediction=row.prediction,
                    by=1 if t is None else None,
                    attempt=t,
                    alpha=None if t is None else risk.of(t),
                ),
            }
        )
        for row, t in zip(run.rows, attempts, strict=False)
    ]
    found = altered(run, {"level": "memory"})
    return type(found)(path=found.path, header=found.header, rows=tuple(rows))


def test_the_shipped_schema_is_that_of_the_model() -> None:
    assert card_schema() == SHIPPED, "write json.dumps(card_schema(), indent=2) to report/certificate.schema.json"
    jsonschema.Draft202012Validator.check_schema(SHIPPED)


def test_cards_keep_the_schema_and_wrong_ones_do_not(run_l2: dds.Run, run_l1: dds.Run) -> None:
    validator = jsonschema.Draft202012Validator(SHIPPED)
    cards = [card_of(run_l2), card_of(run_l1), card_of(altered(run_l2, row={"label": None, "correct": None}))]
    for card in cards:
        assert not list(validator.iter_errors(json.loads(card.model_dump_json())))
    good = json.loads(cards[0].model_dump_json())
    for wrong in (
        {"claim": good["claim"] | {"level": "everywhere"}},
        {"evidence": "x"},
        {"surprise": 1},
        {"risk": good["risk"] | {"alpha": 1.5}},
    ):
        assert list(validator.iter_errors(good | wrong))
    assert list(validator.iter_errors({key: value for key, value in good.items() if key != "limits"}))


def test_classes_are_named_where_the_run_knows_them(run_l2: dds.Run, tmp_path: Path) -> None:
    names, validator = [f"c|{k}" for k in range(10)], jsonschema.Draft202012Validator(SHIPPED)
    run = written(altered(run_l2, {"config": {"classes": names}}), tmp_path / "run")
    card = write_card(run, tmp_path / "card.json", tmp_path / "card.md")
    assert card.model.classes == tuple(names)
    assert r"10 classes (c\|0, c\|1, " in (tmp_path / "card.md").read_text()
    found = json.loads((tmp_path / "card.json").read_text())
    assert not list(validator.iter_errors(found))
    del found["model"]["classes"]  # as cards were before
    assert not list(validator.iter_errors(found))
    bare = card_of(written(altered(run_l2, {"config": {}}), tmp_path / "bare"))
    assert bare.model.classes is None


def test_figures_are_those_of_analysis_on_the_safe_side(run_l2: dds.Run) -> None:
    card = card_of(run_l2)
    results = card.results
    assert card.evidence == hashlib.sha256((run_l2.path / "results.jsonl").read_bytes()).hexdigest()
    assert results.correct == int(run_l2.correct.sum())
    assert results.inputs == results.certified + results.abstained == len(run_l2)
    assert results.average_certified_radius is not None
    acr = dds.acr(run_l2)
    assert acr - 1e-4 < results.average_certified_radius.value <= acr < results.average_certified_radius.high
    assert results.certified_accuracy is not None
    for row in results.certified_accuracy:
        true = float(dds.certified_accuracy(run_l2, row.radius))
        assert true - 1e-4 < row.value <= true
        assert row.low <= row.value <= row.high
        assert row.of_these_inputs == pytest.approx(max(0.0, true - card.risk.false_at_most / len(run_l2)), abs=1e-4)
    assert results.largest_radius <= run_l2.radius.max()


def test_rounding_goes_to_the_safe_side() -> None:
    assert [down(0.12349), up(0.12341), down(-0.00001)] == [0.1234, 0.1235, -0.0001]
    for k, n in ((114, 200), (29, 100), (1, 3), (2, 3), (0, 7), (7, 7)):
        shown = Fraction(str(share_down(k / n, n)))
        assert 0 <= Fraction(k, n) - shown < Fraction(1, 10_000)
    assert share_down(114 / 200, 200) == 0.57


def test_radii_go_on_as_far_as_something_is_certified(run_l2: dds.Run) -> None:
    assert radii_for([run_l2]) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert radii_for([altered(run_l2, row={"radius": 2.2})])[-3:] == [1.0, 1.5, 2.0]
    assert len(radii_for([altered(run_l2, row={"radius": 1e5})])) == 13


@pytest.mark.parametrize(("alpha", "size"), [(0.001, 12), (0.001, 10_000), (1e-9, 12), (0.3, 7)])
def test_so_many_certificates_may_be_false(run_l2: dds.Run, alpha: float, size: int) -> None:
    subset = run_l2.header.subset.model_copy(update={"size": size})
    risk = set_risk(altered(run_l2, {"alpha": alpha, "subset": subset}))
    assert risk is not None
    assert Fraction(risk.expected) >= Fraction(alpha) * size
    assert risk.expected == pytest.approx(alpha * size, rel=1e-12)
    assert binom.sf(risk.false, size, alpha) <= risk.rho
    if risk.false:  # fewer would claim too much
        assert binom.sf(risk.false - 1, size, alpha) > risk.rho


def test_a_memory_counts_every_certification_it_ever_made(run_l2: dds.Run) -> None:
    each = Risk(alpha=0.01)
    risk = set_risk(remembered(run_l2, each, [5, 6, None, 7]))
    assert risk is not None
    assert (risk.alpha, risk.certifications) == (0.01, 8)  # the fourth attempt more that there might have been
    assert risk.expected == pytest.approx(0.08)
    assert set_risk(remembered(run_l2, each, [None, None])) is None


@pytest.mark.parametrize("attempts", [[1, 2, 3], [9, 10, None, 11], [40], [1]])
def test_with_delta_for_the_whole_memory_no_more_than_delta_is_at_stake(
    run_l2: dds.Run, attempts: list[int | None]
) -> None:
    whole = Risk(delta=0.0005)
    risk = set_risk(remembered(run_l2, whole, attempts))
    assert risk is not None
    made = max(t for t in attempts if t is not None)
    true = math.fsum(whole.of(t) for t in range(1, made + 1))
    assert true <= risk.expected <= 0.0005 * (1 + 1e-9)
    assert risk.alpha >= whole.of(1) * (1 - 1e-12)
    assert risk.false == 0


def test_one_attempt_of_a_memory_with_alpha_is_not_taken_for_a_small_share(run_l2: dds.Run) -> None:
    risk = set_risk(remembered(run_l2, Risk(alpha=0.001), [3, None, None]))
    assert risk is not None
    assert risk.expected >= 5 * 0.001


def test_a_memory_that_certified_nothing_has_no_card(run_l2: dds.Run) -> None:
    run = remembered(run_l2, Risk(alpha=0.01), [None, None])
    with pytest.raises(dds.DdsmoothingError, match="certified nothing"):
        card_of(run)
    assert "the run which stored it" in claims.statement(run.header, None)


def test_each_level_has_its_own_words(run_l2: dds.Run) -> None:
    risk = set_risk(run_l2)
    texts = {}
    for level in ("pointwise", "memory", "stateless"):
        for sigma in (0.25, None):
            run = altered(run_l2, {"level": level, "sigma": sigma})
            texts[level, sigma] = claims.statement(run.header, risk)
            assert texts[level, sigma].count(". ") == 1, "two sentences"
    assert len(set(texts.values())) == 4
    assert "this input's sigma everywhere" in texts["pointwise", None]
    assert "one sigma" in texts["pointwise", 0.25]
    assert "every later query" in texts["memory", None].lower()


def test_limits_name_what_weakens_a_run(run_l2: dds.Run) -> None:
    plain = " ".join(claims.limits(run_l2))
    bad = altered(
        run_l2,
        {
            "snap": True,
            "label_aware": True,
            "sampler": "target",
            "model": run_l2.header.model.model_copy(update={"sha256": None}),
            "subset": run_l2.header.subset.model_copy(update={"size": 99}),
        },
        {"noise": "float"},
    )
    for word in ("Partial run: 12 of 99", "used labels", "wanted radii", "floating-point", "moved to the", "no hash"):
        assert word not in plain
        assert word in " ".join(claims.limits(bad))
    card = card_of(bad)
    assert card.results.average_certified_radius is None
    assert card.data.partial


def test_the_command_writes_json_and_markdown(cli: Cli, run_l2: dds.Run, tmp_path: Path) -> None:
    answer = cli("card", run_l2.path, "--out", tmp_path / "c.json", "--markdown", tmp_path / "c.md")
    assert (answer.code, answer.out.split()) == (0, [str(tmp_path / "c.json"), str(tmp_path / "c.md")])
    value = json.loads((tmp_path / "c.json").read_text())
    text = (tmp_path / "c.md").read_text()
    assert value["claim"]["statement"] in text
    for row in value["results"]["certified_accuracy"]:
        assert f"| {row['radius']} | {row['value']} | {row['low']} - {row['high']} | {row['of_these_inputs']} |" in text
    assert all(escape_markdown(limit) in text for limit in value["limits"])
    assert value["model"]["sha256"] in text
    assert cli("card", run_l2.path, "--out", tmp_path / "again.json").code == 0
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "c.json").read_bytes()


def test_names_become_no_markdown(run_l2: dds.Run, tmp_path: Path, cli: Cli) -> None:
    bad = hostile(run_l2, tmp_path)
    assert cli("card", bad.path, "--out", tmp_path / "c.json", "--markdown", tmp_path / "c.md").code == 0
    text = (tmp_path / "c.md").read_text()
    assert "<" not in text.replace("\\<", "")
    assert escape_markdown(HOSTILE) in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    widths = {line.replace("\\|", "").count("|") for line in rows}
    assert widths == {3, 5}
    assert escape_markdown("a\nb") == "a\\\\nb"


def test_results_without_evidence_have_no_card(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\n0\t9\t9\t0.33\t1\n")
    import_file(tmp_path / "t.tsv", tmp_path / "theirs")
    for path in ("theirs", "none"):
        answer = cli("card", tmp_path / path, "--out", tmp_path / "c.json")
        assert answer.code == 1
        assert len(answer.err.splitlines()) == 1
    answer = cli("card", tmp_path / "theirs", "--out", tmp_path / "c.json")
    assert "rounded radii" in answer.err
    assert not (tmp_path / "c.json").exists()


def test_an_unwritable_card(cli: Cli, run_l2: dds.Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = cli("card", run_l2.path, "--out", tmp_path / "file" / "c.json")
    assert (answer.code, "cannot write" in answer.err, len(answer.err.splitlines())) == (1, True, 1)


def test_helpers_make_many_rows(run_l2: dds.Run) -> None:
    run = many(run_l2, 1000)
    assert (len(run), run.partial, len(np.unique(run.radius))) == (1000, False, 1000)


def test_a_card_names_the_grid_and_what_it_rounds(run_l2: dds.Run) -> None:
    usual = card_of(run_l2)
    assert usual.method.levels == 255
    assert any("rounds its noisy input to the 8-bit grid first" in limit for limit in usual.limits)
    other = card_of(altered(run_l2, {"levels": 100, "snap": True}))
    assert (other.method.levels, other.method.snap) == (100, True)
    assert sum("grid of multiples of 1/100" in limit for limit in other.limits) == 2
    assert not any("8-bit" in limit for limit in other.limits)
    floating = card_of(altered(run_l2, row={"noise": "float", "tv": 0.0}))
    assert not any("rounds its noisy input" in limit for limit in floating.limits)


def test_numbers_have_two_digits_and_no_tails(run_l2: dds.Run, tmp_path: Path) -> None:
    """1 in 1,000 of 60 is 0.06, not 0.060000000000000005, and nothing is rounded to the better side."""
    rows = tuple(run_l2.rows[0].model_copy(update={"id": i}) for i in range(60))
    subset = run_l2.header.subset.model_copy(update={"size": 60})
    header = run_l2.header.model_copy(update={"alpha": 0.001, "subset": subset})
    risk = card_of(dataclasses.replace(run_l2, header=header, rows=rows)).risk
    assert risk.expected_false_at_most == 0.06
    odd = header.model_copy(update={"subset": subset.model_copy(update={"size": 123})})
    assert card_of(dataclasses.replace(run_l2, header=odd, rows=rows)).risk.expected_false_at_most == 0.13
    write_card(run_l2, tmp_path / "card.json", tmp_path / "card.md")
    text = (tmp_path / "card.json").read_text() + (tmp_path / "card.md").read_text()
    assert not re.findall(r"\d\.\d{10,}", text)
