"""What a user does with a delivered file: nothing of Winnow but the library
`winograd`, a fresh process, plain ONNX Runtime or plain PyTorch.

    python -I predict.py MODEL IMAGES SCALE MEAN STD

prints how many images it classifies correctly, as JSON. MEAN and STD are JSON lists, one value a channel.
"""

import json
import sys

import numpy as np


def main() -> None:
    model, images, scale, mean, std = sys.argv[1:]
    stored = np.load(images)
    per_channel = (1, -1, 1, 1)
    x = stored["x"].astype(np.float32) * np.float32(scale)
    x = (x - np.float32(json.loads(mean)).reshape(per_channel)) / np.float32(json.loads(std)).reshape(per_channel)
    scores = run_onnx(model, x) if model.endswith(".onnx") else run_pt2(model, x)
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


if __name__ == "__main__":
    main()
