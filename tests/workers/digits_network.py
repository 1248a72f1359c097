"""A small CNN trained on scikit-learn's digits, and the job folders that try it."""

import hashlib
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

PREPROCESS = {"scale": 1 / 16, "mean": [0.3], "std": [0.4]}


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 images (N, 1, 8, 8) of uint8 up to 16, and their labels."""
    bunch = load_digits()
    return bunch.images.astype(np.uint8)[:, None], bunch.target.astype(np.int64)


class DigitsNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 24, 3, padding=1)
        self.fc = nn.Linear(24 * 4 * 4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.bn1(self.conv1(image)))
        hidden = torch.nn.functional.max_pool2d(torch.relu(self.conv2(hidden)), 2)
        return self.fc(hidden.flatten(1))


@cache
def trained_network() -> DigitsNetwork:
    """About 95 % right on the images from 900 on, which it was not trained on."""
    torch.manual_seed(0)
    network = DigitsNetwork()
    x, y = digits()
    inputs, labels = to_input(x[:900]), torch.from_numpy(y[:900])
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(12):
        for batch in torch.randperm(900).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()
            optimiser.step()
    return network.eval()


def to_input(x: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(x).float() / 16 - 0.3) / 0.4


def save_pt2(path: Path) -> Path:
    """The network as stock torch exports it, for any batch size."""
    path.write_bytes(_exported())
    return path


@cache
def _exported() -> bytes:
    example = to_input(digits()[0][:4])
    exported = torch.export.export(
        trained_network(), (example,), dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=4096)}}
    )
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


def lay_out_job(folder: Path, model: Path, data: dict[str, dict[str, np.ndarray]], **changes: Any) -> Path:
    """A job folder with this model and these arrays by role."""
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    (inputs / model.name).write_bytes(model.read_bytes())
    files = {}
    for role, arrays in data.items():
        np.savez_compressed(inputs / f"{role}.npz", **arrays)
        files[role] = input_file(inputs / f"{role}.npz")
    assignment: dict[str, Any] = {
        "task": "compress",
        "model": input_file(inputs / model.name),
        "data": files,
        "preprocess": PREPROCESS,
        "recipe": [{"kind": "prune_weights", "max_drop_pp": 2.0, "rate_step": 0.2}],
        "limits": {},
        "seed": 0,
        "outputs": ["onnx", "pt2"],
        "target": {},
    }
    write_request(folder, assignment | changes)
    return folder


def write_request(folder: Path, assignment: dict[str, Any]) -> None:
    (folder / "request.json").write_text(json.dumps({"version": 1, "assignment": assignment}))


def input_file(path: Path) -> dict[str, str]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"path": f"inputs/{path.name}", "filename": path.name, "sha256": digest}


def held_out(*, labelled: bool = True) -> dict[str, dict[str, np.ndarray]]:
    """Selection and test images that the network was not trained on."""
    x, y = digits()
    parts = {"selection": slice(900, 1400), "test": slice(1400, 1797)}
    return {role: {"x": x[part], **({"y": y[part]} if labelled else {})} for role, part in parts.items()}
