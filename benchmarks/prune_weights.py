"""Method P on a real network: what sparsity an accuracy budget buys, and what it costs to find out.

    python -m benchmarks.prune_weights accuracy    table 1: P in each reference mode against uniform and global magnitude
    python -m benchmarks.prune_weights cost        table 2: racing with a cache against whole passes

Needs the folder of models and images that WINNOW_DATA names. Figures go to standard output as Markdown, and with --json to a file.
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.material import CIFAR_PREPROCESS, cifar_selection, cifar_test, data_folder
from jobs.recipe import PruneWeights
from jobs.request import Preprocess
from workers.compression.examples import Examples
from workers.compression.prune_weights import prune_weights
from workers.compression.pruning_log import PruneResult
from workers.compression.suffix_evaluator import SuffixEvaluator
from workers.compression.thresholds import pruned
from workers.datasets.preprocess import InputTransform
from workers.measurement.accuracy import Right, accuracy_change
from workers.models.graph import ModelGraph, copy_graph, layers, parameter, set_parameter
from workers.models.read_pt2 import read_pt2

MODEL = "models/cifar10_resnet20.pt2"
REFERENCES = ("baseline", "layer_start", "progressive")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    records = accuracy_table(options) if options.table == "accuracy" else cost_table(options)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


def accuracy_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs are independent of each other, so as many go at once as --processes says."""
    runs = [(reference, budget) for budget in options.budgets for reference in options.references]
    given = [(options.images, options.seed, options.threads, *run, options.step) for run in runs]
    print(
        "| budget pp | reference | sparsity | P's drop pp: selection, test [95 %] | uniform's drop pp: selection, test "
        "| P above uniform, pp [95 %]: selection, test | global's drop pp: selection, test "
        "| P above global, pp [95 %]: selection, test |"
    )
    print("| --- " * 8 + "|")
    records = []
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for record in pool.map(_one_accuracy, *zip(*given, strict=True)):
            records.append(record)
            print(_accuracy_row(record), flush=True)
    return records


def cost_table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Alternating runs of racing with a cache and of whole passes; multiply-adds are counted, not estimated."""
    graph = read_pt2(data_folder() / MODEL)
    selection = _selection(graph, options.images, options.seed)
    print("| probing | cache MiB | wall s | probes | image evaluations | multiply-adds, 10^12 | of whole passes |")
    print("| --- " * 7 + "|")
    records = []
    for _ in range(options.repeats):
        for probing, cache_mib in options.probing:
            step = _step({"probing": probing, "cache_mib": cache_mib, **options.step})
            started = time.perf_counter()
            result = _prune(graph, selection, step)
            records.append(_cost_record(result, step, time.perf_counter() - started))
            print(_cost_row(records[-1]), flush=True)
    return records


def _one_accuracy(
    images: int, seed: int, threads: int, reference: str, budget: float, options: dict[str, Any]
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    graph = read_pt2(data_folder() / MODEL)
    selection = _selection(graph, images, seed)
    step = _step({"reference": reference, "max_drop_pp": budget, **options})
    started = time.perf_counter()
    result = _prune(graph, selection, step)
    seconds = time.perf_counter() - started
    prunable = {layer.layer for layer in result.layers}
    rivals = {
        "P": result.graph,
        "uniform": uniform_magnitude(graph, prunable, result.sparsity),
        "global": global_magnitude(graph, prunable, result.sparsity),
    }
    test = _test(graph)
    before = {"selection": _right(graph, selection), "test": _right(graph, test)}
    record: dict[str, Any] = {
        "reference": reference,
        "budget_pp": budget,
        "sparsity": result.sparsity,
        "seconds": seconds,
        "ended_because": result.ended_because,
        "test_percent_uploaded": 100 * float(before["test"].mean()),
        "selection_percent_uploaded": 100 * float(before["selection"].mean()),
        "layers": {layer.layer: layer.sparsity for layer in result.layers},
        "cost": {**result.cost.as_details(), "reused_probes": result.reused_probes},
        "predicted_change_pp": result.predicted_change_pp,
    }
    for role, examples in (("selection", selection), ("test", test)):
        right = {name: _right(rival, examples) for name, rival in rivals.items()}
        for name in rivals:
            record[f"{name} {role}"] = accuracy_change(before[role], right[name]).model_dump()
        for name in ("uniform", "global"):
            # On the same images, so that what both answer alike is no noise.
            record[f"P against {name} on {role}"] = accuracy_change(right[name], right["P"]).model_dump()
    return record


def uniform_magnitude(graph: ModelGraph, prunable: set[str], sparsity: float) -> ModelGraph:
    """The smallest weights of every layer set to zero, the same share in each."""
    result = copy_graph(graph)
    for name, weight in _weights(graph, prunable):
        set_parameter(result, name, pruned(weight, _smallest(weight.abs().flatten(), sparsity)))
    return result


def global_magnitude(graph: ModelGraph, prunable: set[str], sparsity: float) -> ModelGraph:
    """The smallest weights of all layers together set to zero."""
    result = copy_graph(graph)
    threshold = _smallest(torch.cat([weight.abs().flatten() for _, weight in _weights(graph, prunable)]), sparsity)
    for name, weight in _weights(graph, prunable):
        set_parameter(result, name, pruned(weight, threshold))
    return result


def _weights(graph: ModelGraph, prunable: set[str]) -> Iterator[tuple[str, Tensor]]:
    for layer in layers(graph):
        if layer.name in prunable:
            yield layer.weight, parameter(graph, layer.weight).detach()


def _smallest(magnitudes: Tensor, share: float) -> float:
    return float(magnitudes.sort().values[round(share * magnitudes.numel())])


def _prune(graph: ModelGraph, selection: Examples, step: PruneWeights) -> PruneResult:
    return prune_weights(
        graph,
        step,
        evaluator_of=lambda start: SuffixEvaluator(start, selection, cache_mib=step.cache_mib),
        on_progress=lambda *_: None,
    )


def _right(graph: ModelGraph, examples: Examples) -> Right:
    parts = []
    with torch.inference_mode():
        for start in range(0, len(examples), 50):
            indices = np.arange(start, min(start + 50, len(examples)))
            parts.append(graph(examples.inputs(indices))[0].argmax(dim=1).numpy() == examples.targets[indices])
    return np.concatenate(parts)


def _selection(graph: ModelGraph, images: int, seed: int) -> Examples:
    return _examples(graph, *cifar_selection(images, seed))


def _test(graph: ModelGraph) -> Examples:
    return _examples(graph, *cifar_test())


def _examples(graph: ModelGraph, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> Examples:
    transform = InputTransform(Preprocess.model_validate(CIFAR_PREPROCESS), graph.inputs[0])
    return Examples(lambda indices: pixels[indices], transform, labels)


def _step(options: dict[str, Any]) -> PruneWeights:
    return PruneWeights.model_validate({"kind": "prune_weights", **options})


def _accuracy_row(record: dict[str, Any]) -> str:
    cells = [f"{record['budget_pp']} | {record['reference']} | {100 * record['sparsity']:.1f} %"]
    cells.append(f"{_drop(record['P selection'])}, {_drop(record['P test'])} {_interval(record['P test'], sign=-1)}")
    for name in ("uniform", "global"):
        cells.append(f"{_drop(record[f'{name} selection'])}, {_drop(record[f'{name} test'])}")
        pairs = [record[f"P against {name} on {role}"] for role in ("selection", "test")]
        cells.append(", ".join(f"{pair['change_pp']:+.2f} {_interval(pair, sign=1)}" for pair in pairs))
    return f"| {' | '.join(cells)} |"


def _drop(change: dict[str, Any]) -> str:
    return f"{-change['change_pp']:.2f}"


def _interval(change: dict[str, Any], *, sign: int) -> str:
    low, high = sorted(sign * end for end in change["interval_pp"])
    return f"[{low:.2f}, {high:.2f}]"


def _cost_record(result: PruneResult, step: PruneWeights, seconds: float) -> dict[str, Any]:
    cost = result.cost
    done = cost.multiply_adds + cost.multiply_adds_before_probing
    return {
        "probing": step.probing,
        "cache_mib": step.cache_mib,
        "seconds": seconds,
        "images": result.images,
        "sparsity": result.sparsity,
        "reused_probes": result.reused_probes,
        **cost.as_details(),
        # What the method does when it is run as it is written: one whole pass for every evaluation it asks for.
        "share_of_whole_passes": done / ((cost.probes + result.reused_probes) * cost.multiply_adds_of_one_pass),
        "share_of_whole_passes_without_reuse": done / (cost.probes * cost.multiply_adds_of_one_pass),
    }


def _cost_row(record: dict[str, Any]) -> str:
    done = record["multiply_adds"] + record["multiply_adds_before_probing"]
    return (
        f"| {record['probing']} | {record['cache_mib']} | {record['seconds']:.0f} | {record['probes']} "
        f"| {record['image_evaluations']:,} | {done / 1e12:.2f} | 1/{1 / record['share_of_whole_passes']:.2f} |"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("accuracy", "cost"))
    parser.add_argument("--images", type=int, default=5000, help="selection images, the same number of each class")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="percentage points")
    parser.add_argument("--references", nargs="+", choices=REFERENCES, default=list(REFERENCES))
    parser.add_argument("--step", type=json.loads, default={}, help="further options of prune_weights, as JSON")
    parser.add_argument(
        "--probing",
        type=json.loads,
        default=[["race", 1024], ["full", 0]],
        help="pairs of probing and cache_mib, as JSON",
    )
    parser.add_argument("--repeats", type=int, default=1, help="of each probing, in alternation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="runs at once, for the table of accuracy")
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
