"""Another quantizer in a process of its own: `python -m benchmarks.quantizers NAME FOLDER`.

FOLDER has the network as network.onnx and network.pt2, and the images as it takes them in calibration.npz and test.npz
(`x`). What comes of it is written there: answers.npy, the class of each test image. Needs numpy and what
requirements-quantizers.txt lists, nothing of Winnow, so that it may live in another virtual environment; nothing is pickled
in between.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 100

Images = NDArray[np.float32]
Network = Callable[[Images], Any]  # -> scores (n, classes)


def nncf(folder: Path, images: Images, *, preset: str, fast: bool = True) -> Network:
    """NNCF's post-training quantization of the ONNX file; ONNX Runtime answers."""
    os.environ["CI"] = "true"  # else it reports its use over the network
    library, onnx, runtime = (import_module(name) for name in ("nncf", "onnx", "onnxruntime"))
    model = onnx.load(folder / "network.onnx")
    name = model.graph.input[0].name
    quantized = library.quantize(
        model,
        library.Dataset([{name: images[place : place + 1]} for place in range(len(images))]),
        preset=library.QuantizationPreset(preset),
        subset_size=len(images),
        fast_bias_correction=fast,
    )
    _check("DequantizeLinear", [node.op_type for node in quantized.graph.node])
    options = runtime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = runtime.InferenceSession(quantized.SerializeToString(), options)
    return lambda x: session.run(None, {name: x})[0]


def torchao(folder: Path, images: Images, *, dynamic: bool) -> Network:
    """torchao's quantization of an exported program for x86; its simulation answers, not the kernels of torch.compile.

    Its other way, `quantize_` of modules, has nothing for convolutions.
    """
    torch, pt2e = import_module("torch"), import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86 = import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    wanted = x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    program = torch.export.load(folder / "network.pt2").module()
    prepared = pt2e.prepare_pt2e(program, x86.X86InductorQuantizer().set_global(wanted))

    def answers_of(module: Any) -> Network:
        def answer(x: Images) -> Any:
            with torch.no_grad():
                return module(torch.from_numpy(x)).numpy()

        return answer

    for start in range(0, len(images), BATCH):
        answers_of(prepared)(images[start : start + BATCH])
    converted = pt2e.convert_pt2e(prepared)
    _check("quantized_decomposed.dequantize_per_channel.default", [str(node.target) for node in converted.graph.nodes])
    return answers_of(converted)


def _check(wanted: str, found: list[str]) -> None:
    """There must be something that was quantized for each convolution."""
    convolutions = sum(name in ("Conv", "aten.conv2d.default") for name in found)
    if found.count(wanted) < convolutions:
        raise ValueError(
            f"{found.count(wanted)} times {wanted} for {convolutions} convolutions: it left layers as they were"
        )


QUANTIZERS: dict[str, Callable[[Path, Images], Network]] = {
    "NNCF, defaults (symmetric activations)": partial(nncf, preset="performance"),
    "NNCF, preset mixed (asymmetric activations)": partial(nncf, preset="mixed"),
    "NNCF, preset mixed, slow bias correction": partial(nncf, preset="mixed", fast=False),
    "torchao pt2e for x86, static": partial(torchao, dynamic=False),
    "torchao pt2e for x86, dynamic activations": partial(torchao, dynamic=True),
}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    network = QUANTIZERS[name](folder, _images(folder / "calibration.npz"))
    x = _images(folder / "test.npz")
    answers = [network(x[start : start + BATCH]).argmax(1) for start in range(0, len(x), BATCH)]
    np.save(folder / "answers.npy", np.concatenate(answers), allow_pickle=False)


def _images(path: Path) -> Images:
    with np.load(path, allow_pickle=False) as stored:
        images: Images = stored["x"]
        return images


if __name__ == "__main__":
    main()
