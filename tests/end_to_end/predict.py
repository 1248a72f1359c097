"""What a user does with a delivered file: nothing of Winnow but the library
`winograd`, a fresh process, plain ONNX Runtime, plain PyTorch or a C compiler.

    python -I predict.py MODEL IMAGES SCALE MEAN STD

prints how many images it classifies correctly, as JSON. MEAN and STD are JSON lists, one value a channel.
"""

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np


def main() -> None:
    model, images, scale, mean, std = sys.argv[1:]
    stored = np.load(images)
    per_channel = (1, -1, 1, 1)
    x = stored["x"].astype(np.float32) * np.float32(scale)
    x = (x - np.float32(json.loads(mean)).reshape(per_channel)) / np.float32(json.loads(std)).reshape(per_channel)
    run = run_onnx if model.endswith(".onnx") else run_c if model.endswith(".c.zip") else run_pt2
    scores = run(model, x)
    forbidden = {"winnow", "workers", "jobs", "service"} & set(sys.modules)
    assert not forbidden, forbidden
    print(json.dumps({"images": len(x), "correct": int((scores.argmax(axis=1) == stored["y"]).sum())}))


def run_onnx(path: str, x: np.ndarray) -> np.ndarray:  # float32
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(scores)


def run_pt2(path: str, x: np.ndarray) -> np.ndarray:  # float32
    import torch

    import winograd  # noqa: F401  # for files that hold its operators

    with torch.no_grad():
        scores = torch.export.load(path).module()(torch.from_numpy(x))
    return np.asarray(scores)


def run_c(path: str, x: np.ndarray) -> np.ndarray:  # logits, int32
    """Compile the archive with whatever C compiler there is, and feed its test program with the header's integers."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        header = (Path(folder) / "model.h").read_text()
        source = (Path(folder) / "model.c").read_text()
        subprocess.run(
            ["cc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-o", "model", "model.c", "main.c"],
            cwd=folder, check=True,
        )  # fmt: skip
        subprocess.run(["./model"], cwd=folder, check=True, stdout=subprocess.DEVNULL)  # its own test
        (lengths,) = re.findall(r"model_input_lengths\[\w+\] = \{([^}]*)\}", source)
        (dtype,) = re.findall(r"typedef (u?int\d+)_t model_input_t;", header)
        scale = np.exp2(np.array([int(length) for length in lengths.split(",")], np.float64)).reshape(1, -1, 1, 1)
        limits = np.iinfo(dtype)
        integers = np.clip(np.floor(x * scale + 0.5), limits.min, limits.max).astype(dtype)
        integers.tofile(Path(folder) / "inputs.bin")
        answer = subprocess.run(["./model", "inputs.bin"], cwd=folder, check=True, stdout=subprocess.PIPE)
        return np.frombuffer(answer.stdout, np.int32).reshape(len(x), -1)


if __name__ == "__main__":
    main()
