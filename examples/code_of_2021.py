"""Calling code written for ddsmoothing-python 1.0.0, unchanged: optimise a theta for each input, save, certify.

python examples/code_of_2021.py
"""

import torch
from torch.utils.data import DataLoader, Dataset

import ddsmoothing
from ddsmoothing import OptimizeIsotropicSmoothingParameters
from ddsmoothing.certificate import L2Certificate
from ddsmoothing.smooth import Smooth


class Indexed(Dataset):
    """Images with labels and their index, as the loaders of 2021 gave them."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        return self.images[index], self.labels[index], index


def main() -> None:
    """Optimise ten images in batches of four, the last of two, and certify three of them."""
    model = torch.nn.Sequential(ddsmoothing.load_model("fashion-mnist-cnn"), torch.nn.Softmax(1)).eval()
    images, labels = ddsmoothing.load_data("fashion-mnist-sample")[:10]
    loader = DataLoader(Indexed(images, labels), batch_size=4)
    certificate = L2Certificate(4, "cpu")
    optimizer = OptimizeIsotropicSmoothingParameters(model, loader, "cpu")
    optimizer.run_optimization(certificate, 0.04, torch.full((10,), 0.25), 10, 20, "thetas.pth")
    thetas = torch.load("thetas.pth", weights_only=True)
    for index in range(3):
        smooth = Smooth(model, 10, thetas[index], certificate)
        prediction, gap = smooth.certify(images[index], 100, 1000, 0.001, 128, torch.device("cpu"))
        print(f"image {index}: class {prediction}, radius {thetas[index].item() * gap:.3f}")


if __name__ == "__main__":
    main()
