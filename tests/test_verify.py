from __future__ import annotations

import ast
import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ddsmoothing as dds
from conftest import Answer
from ddsmoothing.bounds import (
    binomial_tail_at_most,
    clopper_pearson_lower,
    clopper_pearson_upper,
    normal_quantile_above,
    normal_quantile_below,
    randomized_lower,
)
from ddsmoothing.campaigns import SigmaPolicy, certify_run
from ddsmoothing.campaigns.resample import resample_run
from ddsmoothing.cli import main
from ddsmoothing.errors import InputError, RunError
from ddsmoothing.noise import grid_table
from ddsmoothing.runs import load_run
from ddsmoothing.verify import verify_run
from ddsmoothing.verify.arithmetic import (
    LARGEST_N,
    binomial_pmf,
    binomial_tail,
    grid_distance,
    log_factorial,
    normal_cdf,
    normal_quantile,
)
from reference import binomial_tail as exact_tail
from reference import normal_cdf as reference_cdf

SOURCE = Path(dds.__file__).parent
CHECKED = {"bounds", "certificate", "claims", "noise", "compat2021", "plan", "counting", "runs", "analysis"}
MakeRun = Callable[..., dds.Run]
Change = Callable[[dict[str, Any]], None]


def imported(path: Path) -> set[str]:
    """Top names, and below ddsmoothing its modules, of all imports of a file, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module
            names.add(node.module)
    return {".".join(name.split(".")[:2]) if name.startswith("ddsmoothing") else name.split(".")[0] for name in names}


def test_it_imports_nothing_of_what_it_checks() -> None:
    """Nor anything that imports it: what it needs of the package is the names of the errors and its own modules."""
    for path in (SOURCE / "verify").glob("*.py"):
        names = imported(path)
        assert {n for n in names if n.startswith("ddsmoothing")} <= {"ddsmoothing.errors", "ddsmoothing.verify"}, path
        assert not {name.removeprefix("ddsmoothing.") for name in names} & CHECKED
        assert names - {"ddsmoothing.errors", "ddsmoothing.verify"} <= set(sys.stdlib_module_names) | {"numpy", "scipy"}
    assert imported(SOURCE / "errors.py") <= set(sys.stdlib_module_names) | {"pydantic"}  # for type checking alone


# the arithmetic, against exact fractions and an independent series


@given(n=st.integers(1, 300), k=st.integers(0, 300), p=st.floats(1e-6, 1.0 - 1e-6))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_binomial_tail_encloses_the_exact_one(n: int, k: int, p: float) -> None:
    low, high = (Fraction(value) for value in binomial_tail(k, n, Fraction(p)))
    exact = exact_tail(k, n, p) if k <= n else Fraction(0)
    assert low <= exact <= high
    assert high - low <= Fraction(1, 10**38) or low == Fraction(999, 1000)


@pytest.mark.parametrize("n", [0, 1, 5, 63, 64, 65, 100, 1000])
def test_log_factorial(n: int) -> None:
    assert abs(log_factorial(n).exp() / Decimal(math.factorial(n)) - 1) < Decimal("1e-24")


def test_pmf_sums_to_one() -> None:
    total = sum(Fraction(binomial_pmf(k, 200, Fraction(1, 3))) for k in range(201))
    assert abs(total - 1) < Fraction(1, 10**38)


def test_too_many_samples_are_refused() -> None:
    with pytest.raises(OverflowError, match="samples"):
        binomial_tail(5, LARGEST_N + 1, Fraction(1, 2))


@pytest.mark.parametrize("z", [-9.5, -3.25, -1.0, -1e-9, 0.0, 0.3, 1.0, 2.46, 5.77, 8.2, 11.0, 38.0])
def test_normal_cdf(z: float) -> None:
    value = Fraction(normal_cdf(Fraction(z)), 2**200)
    if abs(z) <= 14:
        assert abs(value - Fraction(reference_cdf(z))) < Fraction(1, 10**50)
    else:
        assert value == 1


@pytest.mark.parametrize("p", [1e-12, 0.001, 0.3, 0.5, 0.501, 0.9, 0.999, 1 - 1e-9, 1 - 2**-53])
def test_normal_quantile(p: float) -> None:
    low, high = normal_quantile(Fraction(p))
    assert high - low < Fraction(1, 10**24)
    edges = [reference_cdf(Decimal(z.numerator) / Decimal(z.denominator)) for z in (low, high)]
    assert edges[0] - Decimal("1e-25") < Decimal(p) < edges[1] + Decimal("1e-25")
    assert normal_quantile_below(p) <= high
    assert normal_quantile_above(p) >= low


@pytest.mark.parametrize("scale", [0.0625, 0.12, 0.25, 0.3456, 1.0])
@pytest.mark.parametrize("name", ["gaussian", "uniform"])
def test_grid_distance_is_the_budget_of_the_sampler(name: str, scale: float) -> None:
    assert float(grid_distance(name, scale)) == pytest.approx(grid_table(name, scale).tau, rel=1e-7)


LARGE = [
    *[(k, 100_000) for k in (1, 50, 40_000, 50_300, 50_600, 62_000, 70_000, 99_000, 99_990, 99_999, 100_000)],
    *[(k, 10_000) for k in (5_100, 5_600, 9_000, 10_000)],
    *[(k, 1_000_000) for k in (506_000, 999_000, 1_000_000)],
]


@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-7])
@pytest.mark.parametrize(("k", "n"), LARGE)
def test_bounds_of_the_package_hold_and_are_tight_at_large_n(k: int, n: int, alpha: float) -> None:
    p = Fraction(clopper_pearson_lower(k, n, alpha))
    assert Fraction(binomial_tail(k, n, p)[1]) <= Fraction(alpha)
    assert Fraction(binomial_tail(k, n, p * (1 + Fraction(1, 10**9)))[0]) > Fraction(alpha)
    upper = Fraction(clopper_pearson_upper(n - k, n, alpha))
    assert Fraction(binomial_tail(k, n, 1 - upper)[1]) <= Fraction(alpha)  # P[X <= n - k] at the upper bound


@pytest.mark.parametrize(("k", "n"), [(700, 1000), (1000, 1000), (55_000, 100_000), (3, 100)])
@pytest.mark.parametrize("coin", [1.0, 0.5, 1e-3, 2.0**-53])
def test_randomized_bounds_hold_at_large_n(k: int, n: int, coin: float) -> None:
    alpha, p = 0.001, randomized_lower(k, n, 0.001, coin)
    plain = clopper_pearson_lower(k, n, alpha)
    at, above = (Fraction(binomial_tail(j, n, Fraction(p))[1]) for j in (k, k + 1))
    assert p == plain or (1 - Fraction(coin)) * above + Fraction(coin) * at <= Fraction(alpha)
    assert p >= plain


@pytest.mark.parametrize(("k", "n", "p"), [(1, 100_000, 0.9), (99_999, 100_000, 1e-300), (1, 10**6, 1 - 2**-53)])
def test_a_tail_that_overflows_is_bounded_too(k: int, n: int, p: float) -> None:
    value = binomial_tail_at_most(k, n, p)
    assert 0.0 <= value <= 1.0
    assert Fraction(value) >= Fraction(binomial_tail(k, n, Fraction(p))[0])


# whole runs


@pytest.fixture(scope="module")
def runs(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("verified")
    variants: dict[str, tuple[SigmaPolicy, dict[str, Any]]] = {
        "plain": (SigmaPolicy.fixed(0.25), {"n0": 20, "n": 200}),
        "plurality": (SigmaPolicy.fixed(0.25), {"n0": 20, "n": 200, "vote": "plurality"}),
        "two-class": (SigmaPolicy.fixed(0.25), {"n0": 20, "n": 200, "norm": "l1", "bound": "two-class"}),
        "plan": (SigmaPolicy.search(0.25), {"n0": None, "n": None, "n_max": 1000}),
        "target": (SigmaPolicy.fixed(0.25), {"n0": None, "n": None, "radii": [0.1, 0.3]}),
        "coin": (SigmaPolicy.fixed(0.5), {"randomized": True, "maximum": 8}),
        "coin-l1": (SigmaPolicy.fixed(0.5), {"randomized": True, "norm": "l1", "maximum": 8}),
        "wrong-stopped": (SigmaPolicy.fixed(0.6), {"label_aware": True}),
    }
    for name, (policy, options) in variants.items():
        make_run(root / name, policy, **({"maximum": 6} | options))
    return {name: root / name for name in variants}


NAMES = ("plain", "plurality", "two-class", "plan", "target", "coin", "coin-l1", "wrong-stopped")


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_the_package_is_sound(name: str, runs: dict[str, Path]) -> None:
    found = verify_run(runs[name])
    assert [str(finding) for finding in found.findings] == []
    assert found.ok
    assert found.rows in (6, 8)
    assert found.d == 784


def test_float_noise_and_long_inputs(tmp_path: Path, half: Any) -> None:
    x = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    data = dds.Dataset(name="floats", split="test", x=x, y=(x[:, 0] > 0.4).astype(np.int64))
    smoothed = dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=2)
    certify_run(smoothed, data, SigmaPolicy.fixed(0.3), tmp_path / "run", model_name="half", n=2000)
    found = verify_run(tmp_path / "run")
    assert found.ok
    assert found.d is None


def tampered(source: Path, target: Path, change: Change, line: int = 2, file: str = "results.jsonl") -> Path:
    """A copy of a run with one line (or the header) changed."""
    shutil.copytree(source, target)
    if file == "header.json":
        value = json.loads((target / file).read_text())
        change(value)
        (target / file).write_text(json.dumps(value))
        return target
    lines = (target / file).read_text().splitlines()
    row = json.loads(lines[line - 1])
    change(row)
    lines[line - 1] = json.dumps(row)
    (target / file).write_text("\n".join(lines) + "\n")
    return target


def put(**values: Any) -> Change:
    return lambda row: row.update(values)


def scaled(name: str, factor: float) -> Change:
    return lambda row: row.update({name: row[name] * factor})


def inside(part: int, change: Change) -> Change:
    """A change of the pilot (0) or of what certifies (1)."""
    return lambda row: change(row["measurements"][part])


def both(**values: Any) -> Change:
    return lambda row: [one.update(values) for one in row["measurements"]]  # type: ignore[func-returns-value]


def one_more(name: str) -> Change:
    """One sample moved from the smallest entry but 0 to the largest."""

    def change(part: dict[str, Any]) -> None:
        values = part[name]
        values[values.index(max(values))] += 1
        values[values.index(min(v for v in values if v))] -= 1

    return change


def other_label(row: dict[str, Any]) -> None:
    row["label"] = (row["label"] + 1) % 10


def without(name: str) -> Change:
    return lambda row: row.pop(name)


TAMPERED: list[tuple[str, Change, str]] = [
    ("plain", scaled("radius", 1 + 1e-7), "radius is .* more than the"),
    ("plain", scaled("radius", 0.5), "radius is .* less than the"),
    ("plain", scaled("p_lower", 1 + 1e-9), "p_lower is .* more than the counts allow"),
    ("plain", scaled("p_lower", 0.999), "p_lower is .* less than the counts give"),
    ("plain", scaled("p_upper", 0.999), "p_upper is .* less than the counts allow"),
    ("plain", scaled("p_upper", 1.001), "p_upper is .* more than the counts give"),
    ("two-class", scaled("p_upper", 0.99), "p_upper is .* less than the counts allow"),
    ("two-class", scaled("radius", 1 + 1e-7), "radius is .* more than the"),
    ("two-class", scaled("lambda", 1.001), "lambda is .* sqrt"),
    ("plain", scaled("sigma", 1.01), "sigma is .* fixed sigma|was drawn at"),
    ("plan", scaled("sigma", 1.01), "was drawn at sigma"),
    ("plain", both(tv=0.0), "tv is"),
    ("plain", inside(1, scaled("tv", 0.5)), "different tv"),
    ("plain", lambda row: [scaled("tv", 0.5)(one) for one in row["measurements"]], "tv implies inputs of 392 numbers"),
    ("plain", put(noise="float"), "expected 0 for float noise"),
    ("plain", inside(1, one_more("votes")), "the wins do not fit the votes|the last look"),
    ("plain", inside(1, one_more("wins")), "the wins do not fit the votes|the last look is not the counts"),
    ("plain", inside(1, put(wins=[0] * 10)), "the wins do not fit the votes"),
    ("plain", inside(1, put(anchor=7)), "wins are those of class 7|the wins do not fit"),
    ("plain", inside(1, without("wins")), "wins belong to a pairwise vote"),
    ("plain", inside(0, without("least")), "does not count what a pairwise vote asks for"),
    ("plain", inside(0, put(least=[0] * 10)), "won less often than it was given"),
    (
        "plain",
        inside(0, lambda one: one["votes"].append(one["votes"].pop(0))),
        "won less often|wins are those of class",
    ),
    ("plurality", inside(1, one_more("votes")), "the last look is not the counts"),
    ("plurality", inside(1, lambda one: one["looks"][-1][1].__setitem__(0, 200)), "the last look is not the counts"),
    ("plurality", inside(0, lambda one: one["votes"].append(one["votes"].pop(0))), "prediction|the last look"),
    ("plain", inside(1, lambda one: one["looks"][-1].__setitem__(2, 0.01)), "spend more than alpha"),
    ("plain", inside(1, put(n=201)), "the votes of the certify sum to 200, n is 201"),
    ("plain", inside(1, put(sigma=0.5)), "was drawn at sigma 0.5"),
    ("plain", inside(1, put(slot=1)), "was drawn at sigma"),
    ("plain", inside(1, put(role="search")), "not a pilot and what certifies"),
    ("plain", lambda row: row["measurements"].pop(), "does not say why|stopped as if"),
    ("plain", lambda row: row["measurements"].pop(0), "not a pilot and what certifies"),
    ("plan", lambda row: row["measurements"].pop(), "does not say why|draws"),
    ("plain", put(prediction=7), "prediction is 7, the counts give"),
    ("plain", other_label, "correct is"),
    ("plain", put(label=10), "label is 10"),
    ("plain", put(correct=None), "correct is"),
    ("plain", put(reason="abstained"), "reason is 'abstained'"),
    ("plain", put(samples=221), "samples is 221"),
    ("plain", put(id=51), "does not belong to the run's subset"),
    ("plain", put(id=100), "its id is already on line|already"),
    ("plain", put(id="50"), "not usable"),
    ("plain", put(input_sha256="0" * 63), "input_sha256"),
    ("plain", inside(1, put(coin=0.5)), "the coin is 0.5, the run's seed gives None"),
    ("coin", inside(1, put(coin=1e-6)), "the coin is 1e-06, the run's seed gives"),
    ("coin", scaled("p_lower", 1 + 1e-8), "p_lower is .* more than the counts allow"),
    ("target", inside(1, lambda one: one["looks"][-1].__setitem__(2, 0.001)), "more than its share|spend more"),
    ("target", inside(1, lambda one: one["looks"].append(one["looks"][0])), "look"),
    ("target", inside(1, lambda one: one["looks"].pop(0)), "looks are not those of|last look"),
    ("plan", put(choice=None), "record of the sigma search"),
    ("plain", inside(1, without("votes")), "the field 'votes' is missing"),
    ("plain", without("noise"), "the field 'noise' is missing"),
    ("plain", put(radius=None), "not usable"),
    ("plain", inside(1, put(votes=[200.0] + [0] * 9)), "are not 10 whole numbers"),
    ("plain", inside(1, put(votes=[10**18] + [0] * 9)), "are not 10 whole numbers"),
    ("plain", lambda row: (put(sigma=1e6)(row), both(sigma=1e6)(row)), "not usable: sigma is 1000000.0"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"), TAMPERED, ids=[f"{i}-{t[2][:20]}" for i, t in enumerate(TAMPERED)]
)
def test_a_tampered_row_is_named(
    name: str, change: Change, message: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    target = tampered(runs[name], tmp_path / "run", change)
    found = verify_run(target)
    assert not found.ok
    texts = [finding.message for finding in found.findings]
    assert any(re.search(message, text) for text in texts), texts
    lines = {finding.line for finding in found.findings}
    assert lines <= {2, 3}
    assert 2 in lines or "already" in message
    row = json.loads((target / "results.jsonl").read_text().splitlines()[1])
    assert {finding.id for finding in found.findings if finding.line == 2} <= {row["id"] if row["id"] != "50" else None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(schema_version=3), "schema_version"),
        (put(norm="linf"), "norm is 'linf'"),
        (put(level="certain"), "level is 'certain'"),
        (put(level="stateless"), "belongs to a rule over several sigmas"),
        (put(level="memory"), "not usable"),
        (lambda h: h["rule"].update(vote="plurality"), "does not count what a plurality vote asks for"),
        (lambda h: h["rule"].update(bound="two-class"), "a vote and a bound that go together"),
        (lambda h: h["subset"].update(shard=[1, 2], size=3), "does not belong to shard 1 of 2"),
        (put(alpha=0.0), "alpha is 0.0"),
        (put(sigma=None), "sigma must be a number"),
        (without("alpha"), "the field 'alpha' is missing"),
        (lambda h: h["subset"].update(size=7), "subset's size is 7"),
        (lambda h: h["subset"].update(skip=0), "not usable"),
        (lambda h: h["model"].update(sha256="x"), r"model\.sha256"),
        (put(sampler_options={"n0": 20, "n": 100}), "the header says"),
        (put(shape=[1, 14, 14]), "tv implies inputs of 784 numbers, the header's shape 196"),
        (put(shape=[1, -784]), "expected whole numbers from 1 on"),
        (put(shape="784"), "expected whole numbers from 1 on"),
    ],
)
def test_a_tampered_header_is_found(change: Change, message: str, runs: dict[str, Path], tmp_path: Path) -> None:
    found = verify_run(tampered(runs["plain"], tmp_path / "run", change, file="header.json"))
    assert any(re.search(message, str(finding)) for finding in found.findings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object but list"),
        (b'{"id": 1, "id": 2}', "a field is there twice"),
        (b'{"radius": NaN}', "NaN is not a number"),
        (b'{"radius": 1' + b"0" * 5000 + b"}", "not|digits"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"{}", "is missing"),
    ],
    ids=["torn", "list", "twice", "nan", "long", "deep", "bytes", "empty"],
)
def test_a_damaged_line_is_named(line: bytes, message: str, runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["plain"], tmp_path / "run")
    with (tmp_path / "run" / "results.jsonl").open("ab") as file:
        file.write(line + b"\n")
    (finding, *_) = verify_run(tmp_path / "run").findings
    assert finding.line == 7
    assert re.search(message, finding.message)


@pytest.fixture(scope="module")
def remembered(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of level memory, one row of which a region answered."""
    root = tmp_path_factory.mktemp("memory")
    told = ("--data", "fashion-mnist-sample", "--store", root / "a.memory")
    for name in ("first", "second"):  # the second time every certified input is answered
        assert main([str(part) for part in ("memory", "apply", runs["plain"], *told, "--out", root / name)]) == 0
    return root


def test_runs_of_level_memory_are_recomputed(remembered: Path) -> None:
    for name in ("first", "second"):
        assert [str(finding) for finding in verify_run(remembered / name).findings] == []


def noted(**values: Any) -> Change:
    return lambda row: row["memory"].update(values)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("first", scaled("radius", 1.01), "more than the .* that was certified"),
        ("first", noted(certified=9.0), "certified is 9.0, more than the counts give"),
        ("first", noted(kind="found"), "kind is 'found'"),
        ("first", noted(prediction=7), "class is 7, which the counts do not give"),
        ("first", put(prediction=7), "prediction is 7, that of its certificate|correct"),
        ("first", put(correct=None), "correct is None"),
        ("first", noted(alpha=1e-12), "more than the counts give at alpha 1e-12"),
        ("first", noted(kind="abstained"), "an abstained row has a class"),
        ("first", put(memory=None), "not usable"),
        ("second", noted(by=None), "names no region"),
        ("first", scaled("p_lower", 1 + 1e-9), "more than the counts allow"),
    ],
)
def test_a_tampered_row_of_level_memory_is_named(
    name: str, change: Change, message: str, remembered: Path, tmp_path: Path
) -> None:
    found = verify_run(tampered(remembered / name, tmp_path / "run", change))
    assert any(re.search(message, finding.message) for finding in found.findings), found.findings
    assert {finding.line for finding in found.findings} == {2}


def test_what_a_snapped_input_moved_is_subtracted(runs: dict[str, Path], tmp_path: Path) -> None:
    def snapped(row: dict[str, Any]) -> None:
        row.update(moved=0.01, radius=row["radius"] - 0.01 - 1e-12)

    assert verify_run(tampered(runs["plain"], tmp_path / "moved", snapped)).ok
    for change in (put(moved=0.01), put(moved=-0.1)):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert not verify_run(tampered(runs["plain"], tmp_path / "run", change)).ok


def test_too_many_rows_and_none(runs: dict[str, Path], tmp_path: Path) -> None:
    target = tampered(runs["plain"], tmp_path / "many", lambda h: h["subset"].update(max=4, size=4), file="header.json")
    assert any("does not belong" in f.message for f in verify_run(target).findings)
    shutil.copytree(runs["plain"], tmp_path / "none")
    (tmp_path / "none" / "results.jsonl").write_text("")
    assert [f.message for f in verify_run(tmp_path / "none").findings] == ["there are no results"]


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        verify_run(tmp_path)
    (tmp_path / "header.json").write_text("[]")
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(RunError, match="not a JSON object"):
        verify_run(tmp_path)


# drawing again


@pytest.mark.parametrize("name", ["plain", "plan", "target", "wrong-stopped"])
def test_drawing_again_gives_the_same_counts(
    name: str, runs: dict[str, Path], smoothed: dds.SmoothedClassifier, data: dds.Dataset
) -> None:
    run = load_run(runs[name])
    same = smoothed.with_block_size(run.header.block_size)
    found = resample_run(run, same, data, 4)
    assert len({one.id for one in found}) == 4
    assert [one.message for one in found] == [None] * 4


def forge(row: dict[str, Any]) -> None:
    """Counts that hang together and were never drawn."""
    fresh = row["measurements"][1]
    top, fresh["votes"] = fresh["anchor"], [0] * 10
    fresh["votes"][top], fresh["wins"] = 200, [200] * 10
    fresh["looks"][-1][1] = [200] * 10
    lower = math.nextafter(clopper_pearson_lower(200, 200, 0.001) - fresh["tv"], 0)
    row.update(p_lower=lower, p_upper=math.nextafter(1 - lower, 2), reason="certified", prediction=top)
    row.update(correct=row["prediction"] == row["label"], radius=float(row["sigma"] * normal_quantile_below(lower)))
    row["radius"] = math.nextafter(row["radius"], 0) * (1 - 1e-12)


def test_forged_counts_pass_the_arithmetic_but_not_the_draw(
    runs: dict[str, Path], smoothed: dds.SmoothedClassifier, data: dds.Dataset, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (runs["plain"] / "results.jsonl").read_text().splitlines()]
    line = 1 + min(range(6), key=lambda i: max(rows[i]["measurements"][1]["votes"]))
    target = tampered(runs["plain"], tmp_path / "run", forge, line)
    assert verify_run(target).ok
    run = load_run(target)
    found = resample_run(run, smoothed.with_block_size(run.header.block_size), data, 6)
    bad = [one for one in found if one.message]
    assert [one.id for one in bad] == [rows[line - 1]["id"]]
    assert "give other answers than the run says" in str(bad[0].message)


def test_another_input_is_named(
    runs: dict[str, Path], smoothed: dds.SmoothedClassifier, data: dds.Dataset, tmp_path: Path
) -> None:
    target = tampered(runs["plain"], tmp_path / "run", put(input_sha256="0" * 64))
    found = resample_run(load_run(target), smoothed, data, 6)
    assert sum("SHA-256 differs" in str(one.message) for one in found) == 1


def test_another_model_or_data_set_is_refused(
    runs: dict[str, Path], smoothed: dds.SmoothedClassifier, data: dds.Dataset, half: Any
) -> None:
    run = load_run(runs["plain"])
    with pytest.raises(InputError, match="another model"):
        resample_run(run, dds.SmoothedClassifier(half, dds.L2Certificate(), num_classes=10), data, 1)
    other = dds.Dataset(name="other", split="test", x=data.x[:100], y=None)
    with pytest.raises(InputError, match="another data set"):
        resample_run(run, smoothed, other, 1)
    with pytest.raises(InputError, match="was made for l2"):
        resample_run(run, dds.SmoothedClassifier(smoothed.model, dds.L1Certificate(), num_classes=10), data, 1)


# the command


def test_command(cli: Callable[..., Answer], runs: dict[str, Path], tmp_path: Path) -> None:
    answer = cli("verify", runs["plain"], "--resample", 2)
    assert answer.code == 0, answer.err
    assert "6 rows: every bound, class and radius follows from its counts." in answer.out
    assert "2 of 2 inputs drawn again have the same counts." in answer.out
    target = tampered(runs["plain"], tmp_path / "run", scaled("radius", 1.5))
    answer = cli("verify", target)
    assert answer.code == 1
    assert "line 2, input 50: radius is" in answer.out
    assert "6 rows, 1 with findings" in answer.out
    value = json.loads(cli("verify", target, "--json").out)
    assert (value["ok"], value["rows"], value["inputs_of"]) == (False, 6, 784)
    assert (value["findings"][0]["line"], value["findings"][0]["id"]) == (2, 50)
    assert cli("verify", tmp_path / "nothing").code == 1


def test_many_findings_are_cut_short(cli: Callable[..., Answer], runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["plain"], tmp_path / "run")
    with (tmp_path / "run" / "results.jsonl").open("a") as file:
        file.write("{}\n" * 30)
    assert ".. and 10 more" in cli("verify", tmp_path / "run").out


# a run of level memory beside its memory


def test_rows_that_a_memory_answered_want_its_file(
    cli: Callable[..., Answer], remembered: Path, tmp_path: Path
) -> None:
    second, store = remembered / "second", remembered / "a.memory"
    alone = cli("verify", second)
    assert alone.code == 0
    assert "rows not checked: a memory's file answered them" in alone.out
    assert cli("card", second, "--out", tmp_path / "card.json").code == 1
    for name in ("first", "second"):
        both = cli("verify", remembered / name, "--store", store)
        assert (both.code, "not checked" in both.out) == (0, False), both.out


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("second", put(radius=9.0), "radius is 9.0, more than the .* that region 1|2 leaves"),
        ("second", lambda row: row.update(prediction=7, correct=row["label"] == 7), "its class is 7, that of region"),
        ("second", noted(by=99), "region 99 is not in the memory"),
        ("first", noted(region=99), "region 99 is not in the memory"),
        ("first", noted(region=1, attempt=1), "another certification|round another input|$^"),
        ("first", noted(attempt=5), "another certification"),
    ],
)
def test_a_row_that_its_memory_does_not_bear_out_is_named(
    name: str, change: Change, message: str, remembered: Path, tmp_path: Path
) -> None:
    target = tampered(remembered / name, tmp_path / "run", change, line=1 if name == "second" else 2)
    data = dds.load_data("fashion-mnist-sample")
    found = verify_run(target, store=remembered / "a.memory", point=lambda i: data.x[i].ravel())
    assert any(re.search(message, finding.message) for finding in found.findings), found.findings


def test_a_region_larger_than_its_counts_is_named(remembered: Path, tmp_path: Path) -> None:
    """A memory whose chain was made anew after a region grew: only its counts tell."""
    import sqlite3

    shutil.copy(remembered / "a.memory", tmp_path / "b.memory")
    with sqlite3.connect(tmp_path / "b.memory") as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute("UPDATE regions SET radius = 3 * radius, certified = 3 * certified")
    found = verify_run(remembered / "second", store=tmp_path / "b.memory")
    assert any("more than the counts give at alpha" in finding.message for finding in found.findings)


def test_labels_are_those_of_the_data_set(
    runs: dict[str, Path], smoothed: dds.SmoothedClassifier, data: dds.Dataset, tmp_path: Path
) -> None:
    """Labels set to the predictions hang together with every count; the data set tells."""

    def flatter(row: dict[str, Any]) -> None:
        row.update(label=(row["label"] + 1) % 10, correct=row["prediction"] == (row["label"] + 1) % 10)

    target = tampered(runs["plain"], tmp_path / "run", flatter)
    assert verify_run(target).ok
    found = resample_run(load_run(target), smoothed.with_block_size(64), data, 6)
    assert sum("its label is" in str(one.message) for one in found) == 1


def test_many_fine_laws_are_not_all_worked_out() -> None:
    """2^20 levels and many sigmas would take minutes: some are worked out, the others counted."""
    from ddsmoothing.verify.budget import MOST_STEPS, Tables

    tables, header = Tables(), {"levels": 2**20}
    taken = [tables.take({"sigma": 0.004 + i / 1000}, header) for i in range(20)]
    assert taken[0]
    assert MOST_STEPS > 0.004 * 2**20
    assert tables.left_out == taken.count(False) >= 15
    assert tables.take({"sigma": 0.004}, header)
