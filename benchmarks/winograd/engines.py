"""One engine in a process of its own: `python -m benchmarks.winograd.engines ENGINE THREADS`, told by lines of JSON what to do.

    {"prepare": FOLDER, "variants": [...]}   builds the problem in FOLDER; answers the deviation from float64 of each variant
    {"time": VARIANT, "seconds": S}          answers the milliseconds of single runs, S seconds of them; with "sweep": BYTES,
                                             so many bytes of something else are read before each run

Peers need only numpy and themselves, so they may live in another virtual environment than torch. A run starts with the images
in memory as the engine likes them (NCHW or channels last) and ends with the result there; what the engine does to layouts
in between is counted.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.winograd.problems import Deviation, Material, deviation, read_problem

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Runnable:
    """`run` is what is timed; `answer` runs once more and gives the result as N K H W."""

    run: Callable[[], object]
    answer: Callable[[], NDArray[np.float32]]
    exact: NDArray[np.float64] | None = None  # where it is not the plain convolution: a pruned one


Build = Callable[[Material, int, str], Runnable]


def torch_channels_last(material: Material, threads: int, variant: str) -> Runnable:
    """What a user of torch gets who asks for channels_last."""
    torch, images, weights, biases = _in_torch(material, threads)
    weights = [weight.contiguous(memory_format=torch.channels_last) for weight in weights]

    def run() -> Any:
        flow = images
        for weight, bias in zip(weights, biases, strict=True):
            flow = torch.conv2d(flow, weight, bias, padding=1)
        return flow

    return _torch_runnable(torch, run)


def onednn(material: Material, threads: int, variant: str) -> Runnable:
    """oneDNN at its best: channels last, weights reordered before."""
    torch, images, weights, biases = _in_torch(material, threads)
    run = prepacked_onednn(torch, images, weights, biases)
    return _torch_runnable(torch, run)


def prepacked_onednn(torch: Any, images: Any, weights: Iterable[Any], biases: Iterable[Any]) -> Callable[[], Any]:
    ones = [1, 1]
    size = list(images.shape)
    packed = [torch.ops.mkldnn._reorder_convolution_weight(w, ones, ones, ones, 1, size) for w in weights]
    layers = list(zip(packed, biases, strict=True))
    convolve = torch.ops.mkldnn._convolution_pointwise

    def run() -> Any:
        flow = images
        for weight, bias in layers:
            flow = convolve(flow, weight, bias, ones, ones, ones, 1, "none", [], "")
        return flow

    return run


def onnx_runtime(material: Material, threads: int, variant: str) -> Runnable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(_onnx(material, variant), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, material.images)
    binding.bind_output(session.get_outputs()[0].name, "cpu")

    def run() -> None:
        session.run_with_iobinding(binding)

    def answer() -> NDArray[np.float32]:
        run()
        result: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return result

    return Runnable(run, answer)


def openvino(material: Material, threads: int, variant: str) -> Runnable:
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(str(_onnx(material, variant)), "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(material.images, shared_memory=True))

    def answer() -> NDArray[np.float32]:
        request.infer()
        result: NDArray[np.float32] = request.get_output_tensor(0).data.copy()
        return result

    return Runnable(request.infer, answer)


def ncnn(material: Material, threads: int, variant: str) -> Runnable:
    """ncnn, whole batches as it takes them (`batched`) or image after image; with all its Winograd variants or F(2, 3) only."""
    import ncnn as engine

    net = engine.Net()
    net.opt.num_threads = threads
    for reduced in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
        if hasattr(net.opt, f"use_{reduced}"):
            setattr(net.opt, f"use_{reduced}", False)
    if "f2" in variant:
        net.opt.use_winograd43_convolution = net.opt.use_winograd63_convolution = False
    with tempfile.TemporaryDirectory() as folder:
        _write_ncnn(material, Path(folder))
        net.load_param(f"{folder}/model.param")
        net.load_model(f"{folder}/model.bin")
    batched = "batched" in variant
    inputs = [engine.Mat(material.images, 0)] if batched else [engine.Mat(image) for image in material.images]

    def run() -> list[Any]:
        outputs = []
        for one in inputs:
            extractor = net.create_extractor()
            extractor.input("flow0", one)
            code, output = extractor.extract(f"flow{material.problem.chain}")
            assert code == 0, code
            outputs.append(output)
        return outputs

    def answer() -> NDArray[np.float32]:
        if batched:
            (output,) = run()
            return np.stack([_image_of_ncnn(output, image) for image in range(output.n)])
        return np.stack([np.array(output) for output in run()])

    return Runnable(run, answer)


def mnn(material: Material, threads: int, variant: str) -> Runnable:
    """MNN with `precision: high`, from the ONNX file.

    The converter is called inside its library: its command line tool installs packages and reports its use, and a
    convolution that is built through `MNN.expr` has its weights as an input, which rules Winograd out.
    """
    import _tools
    from MNN import expr, nn

    runtime = nn.create_runtime_manager(({"backend": 0, "precision": "high", "numThread": threads},))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.mnn"
        _tools.mnnconvert(
            ["", "-f", "ONNX", "--modelFile", str(material.onnx), "--MNNModel", path, "--bizCode", "none"]
        )
        ends = "flow0", f"flow{material.problem.chain}"
        net = nn.load_module_from_file(path, [ends[0]], [ends[1]], runtime_manager=runtime, shape_mutable=False)
    images = expr.const(material.images.ravel(), list(material.images.shape), expr.NCHW)

    def answer() -> NDArray[np.float32]:
        result: NDArray[np.float32] = net.onForward([images])[0].read()
        return result

    return Runnable(lambda: net.onForward([images]), answer)


def winograd(material: Material, threads: int, variant: str) -> Runnable:
    from benchmarks.winograd.ours import build

    torch, images, weights, biases = _in_torch(material, threads)
    return build(torch, material, images, weights, biases, threads, variant)


def networks(material: Material, threads: int, variant: str) -> Runnable:
    from benchmarks.winograd.networks import build

    return build(material, threads, variant)


def integers(material: Material, threads: int, variant: str) -> Runnable:
    from benchmarks.integer_networks import build

    return build(material, threads, variant)


def files(material: Material, threads: int, variant: str) -> Runnable:
    from benchmarks.winograd_latency import build_torch

    return build_torch(material, threads, variant)


def files_onnxruntime(material: Material, threads: int, variant: str) -> Runnable:
    from benchmarks.winograd_latency import build_onnx

    return build_onnx(material, threads, variant)


ENGINES: dict[str, Build] = {
    "torch": torch_channels_last,
    "onednn": onednn,
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
    "ncnn": ncnn,
    "mnn": mnn,
    "winograd": winograd,
    "networks": networks,
    "integers": integers,
    "files": files,
    "files_onnxruntime": files_onnxruntime,
}


def main() -> None:
    """Answers requests until standard input ends. Whatever engines print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, threads = sys.argv[1], int(sys.argv[2])
    ctypes.CDLL(None).prctl(
        PR_SET_PDEATHSIG, signal.SIGKILL
    )  # a stopped process can't notice that nobody asks any more
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    built: dict[str, Runnable] = {}
    material: Material | None = None  # kept as long as what was built: some engines read its arrays without owning them
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if "prepare" in request:
            built.clear()
            material = read_problem(Path(request["prepare"]))
            built, answer = _prepare(ENGINES[name], threads, material, request["variants"])
        else:
            run, swept = built[request["time"]].run, np.ones(request.get("sweep", 0) // 8)
            answer = {"milliseconds": _time(run, request["seconds"], swept=swept)}
        print(json.dumps(answer), file=answers, flush=True)


def _prepare(
    build: Build, threads: int, material: Material, variants: list[str]
) -> tuple[dict[str, Runnable], dict[str, dict[str, Any]]]:
    built, answers = {}, {}
    for variant in variants:
        try:
            runnable = build(material, threads, variant)
            answers[variant] = asdict(_deviation(runnable, material))
            built[variant] = runnable
        except Exception as why:  # what one engine can't do must not end the measurement; it is reported
            answers[variant] = {"refused": f"{type(why).__name__}: {why}"[:300]}
    return built, answers


def _deviation(runnable: Runnable, material: Material) -> Deviation:
    exact = material.exact if runnable.exact is None else runnable.exact
    return deviation(runnable.answer()[material.problem.checked_images], exact)


# After a stop, threads begin on one processor; within some ticks the system spreads them again.
SETTLING_SECONDS = 0.04


def _time(run: Callable[[], object], seconds: float, fewest: int = 3, *, swept: NDArray[np.float64]) -> list[float]:
    """Milliseconds of single runs, without those that the system interrupted (all of them if it interrupted all).

    swept: read before each run, so that a run finds in the caches nothing that the one before has left there.
    """
    settled = time.perf_counter() + SETTLING_SECONDS
    run()
    while time.perf_counter() < settled:
        run()
    calm: list[float] = []
    interrupted: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(calm) + len(interrupted) < fewest:
        swept.sum()
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        began = time.perf_counter()
        run()
        milliseconds = 1e3 * (time.perf_counter() - began)
        was_calm = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == switches
        (calm if was_calm else interrupted).append(milliseconds)
    return calm or interrupted


def _onnx(material: Material, variant: str) -> Path:
    """The network that a folder has, or (integers) that in integers beside it."""
    return material.onnx.with_name(f"{variant}.onnx") if variant else material.onnx


def _in_torch(material: Material, threads: int) -> tuple[Any, Any, list[Any], list[Any]]:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    images = torch.from_numpy(material.images).contiguous(memory_format=torch.channels_last)
    return (
        torch,
        images,
        [torch.from_numpy(w) for w in material.weights],
        [torch.from_numpy(b) for b in material.biases],
    )


def _torch_runnable(torch: Any, run: Callable[[], Any]) -> Runnable:
    return Runnable(run, lambda: run().contiguous().numpy())


def _write_ncnn(material: Material, folder: Path) -> None:
    """The text and the weights of an ncnn network (https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure)."""
    given = material.problem
    lines = ["7767517", f"{given.chain + 1} {given.chain + 1}", "Input first 0 1 flow0"]
    with (folder / "model.bin").open("wb") as file:
        for number, (weight, bias) in enumerate(zip(material.weights, material.biases, strict=True)):
            sizes = f"0={given.filters} 1=3 4=1 5=1 6={weight.size}"
            lines.append(f"Convolution layer{number} 1 1 flow{number} flow{number + 1} {sizes}")
            file.write(bytes(4) + weight.tobytes() + bias.tobytes())  # four zeros: plain float32 follows
    (folder / "model.param").write_text("\n".join(lines) + "\n")


def _image_of_ncnn(batch: Any, image: int) -> NDArray[np.float32]:
    return np.array(batch.batch(image))


if __name__ == "__main__":
    main()
