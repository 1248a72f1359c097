"""Times the winograd library beside other engines and checks all of them against float64. What follows is what it measures:

    layers    single 3x3 layers of VGG and ResNet           small     those of networks for CIFAR-10
    chain     four layers in a row with their own weights   scaling   from one thread to more
    networks  whole networks                                tune      writes the table of winograd.selection
    roofline  what this machine can do at most

    python -m benchmarks.winograd layers --threads 1 2 --batch 1 8 --json layers.json
    python -m benchmarks.winograd layers --layers 64@56 --candidates m4 m4p50 --peers none --reuse layers.json

Peers are measured where they are installed; PEERS_PYTHON (or --peers-python) names the interpreter of the virtual environment
that has openvino, ncnn and mnn (requirements-peers.txt).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import table
from benchmarks.winograd import networks, results, roofline, tuning
from benchmarks.winograd.ours import VARIANTS
from benchmarks.winograd.problems import LAYERS, SMALL_LAYERS, Problem, problem, write_problem
from benchmarks.winograd.results import Cell, Measurement, geometric_mean
from benchmarks.winograd.turns import Runner, processes, take_turns


@dataclass(frozen=True)
class Peer:
    """An engine that is measured where its distribution is installed; `elsewhere` in the peers' own environment."""

    distribution: str
    elsewhere: bool = False


PEERS = {
    "torch": Peer("torch"),
    "onednn": Peer("torch"),
    "onnxruntime": Peer("onnxruntime"),
    "openvino": Peer("openvino", elsewhere=True),
    "ncnn": Peer("ncnn", elsewhere=True),
    "mnn": Peer("mnn", elsewhere=True),
}
QUICK_LAYERS = {"small": ["16-16@32", "64-64@8"]}


def main() -> None:
    given = _parser().parse_args()
    if given.quick:
        given.layers = given.layers or QUICK_LAYERS.get(given.what, ["64@56", "256@14"])
        given.threads, given.batch = given.threads[:1], given.batch[:1]
        given.passes, given.seconds = 2, 0.03
    cores = len(os.sched_getaffinity(0))
    if max(given.threads) > cores:
        sys.exit(f"{max(given.threads)} threads need as many processors; this process may use {cores}")
    match given.what:
        case "roofline":
            _print_roofline(given)
        case "tune":
            tuning.tune(given.threads, given.batch, given.layers, given.seconds, given.table)
        case "networks":
            print(results.report_of_networks(_measured_networks(given)))
        case "scaling":
            print(_scaling(_measured(given)))
        case _:
            print(results.report(_measured(given)))


def _measured(given: argparse.Namespace) -> Measurement:
    """Measure every layer, batch and number of threads that was asked for."""
    known = SMALL_LAYERS if given.what == "small" else LAYERS
    chain = 4 if given.what == "chain" else 1
    problems = [problem(layer, batch, chain) for batch in given.batch for layer in given.layers or known]
    peers = _installed(given.peers, given.peers_python)
    ours = [Runner("winograd", variant) for variant in given.candidates]
    versions = _versions(given.peers_python)
    names = list(dict.fromkeys(r.name for p in problems for r in _peer_runners(peers, p)))
    measured = results.begin(names, given.candidates, versions)
    measured.peaks = [peak for threads in given.threads if (peak := roofline.measured_peak(threads))]
    pythons = {
        engine: given.peers_python if engine in PEERS and PEERS[engine].elsewhere else sys.executable
        for engine in peers
    }
    pythons["winograd"] = sys.executable
    for threads in given.threads:
        with processes([*peers, "winograd"], threads, pythons) as started, tempfile.TemporaryDirectory() as name:
            for one in problems:
                print(f"{one.layer}, batch {one.batch}, {threads} threads", file=sys.stderr, flush=True)
                runners = [*_peer_runners(peers, one), *ours]
                write_problem(one, Path(name), onnx=bool(peers))
                timings = take_turns(started, runners, Path(name), passes=given.passes, seconds=given.seconds)
                measured.cells.append(Cell(one, threads, timings))
                measured.load_after = results.load()
                if given.json:
                    measured.write(given.json)
    if given.reuse:
        results.with_stored_peers(measured, results.read(given.reuse))
        if given.json:
            measured.write(given.json)
    return measured


def _measured_networks(given: argparse.Namespace) -> Measurement:
    problems = [networks.network_problem(*one) for one in networks.PROBLEMS[: 1 if given.quick else None]]
    peers = [name for name in _installed(given.peers, given.peers_python) if name in ("onnxruntime", "openvino")]
    runners = networks.runners(quick=given.quick, peers=peers)
    ours = [runner.name for runner in runners if runner.variant in networks.OUR_VARIANTS]
    names = [runner.name for runner in runners if runner.name not in ours]
    measured = results.begin(names, ours, _versions(given.peers_python))
    pythons = {peer: given.peers_python if PEERS[peer].elsewhere else sys.executable for peer in peers}
    for threads in given.threads:
        with (
            processes([*peers, "networks"], threads, pythons | {"networks": sys.executable}) as started,
            tempfile.TemporaryDirectory() as name,
        ):
            for one in problems:
                networks.write_network(one, Path(name))
                timings = take_turns(started, runners, Path(name), passes=given.passes, seconds=given.seconds)
                measured.cells.append(Cell(one, threads, timings))
                measured.load_after = results.load()
                if given.json:
                    measured.write(given.json)
    return measured


def _peer_runners(peers: Sequence[str], one: Problem) -> list[Runner]:
    runners = [Runner(peer, "") for peer in peers]
    if "ncnn" in peers:
        runners += [Runner("ncnn", "f2"), *([Runner("ncnn", "batched")] if one.batch > 1 else [])]
    return runners


def _installed(wanted: Sequence[str], peers_python: str) -> list[str]:
    if list(wanted) == ["none"]:
        return []
    names = list(PEERS) if list(wanted) == ["all"] else list(wanted)
    here, there = _distributions(sys.executable), _distributions(peers_python)
    found = [name for name in names if PEERS[name].distribution in (there if PEERS[name].elsewhere else here)]
    for name in sorted(set(names) - set(found)):
        print(f"{name} is not installed and not measured", file=sys.stderr)
    return found


def _versions(peers_python: str) -> dict[str, str]:
    here, there = _distributions(sys.executable), _distributions(peers_python)
    return {
        peer.distribution: (there if peer.elsewhere else here)[peer.distribution]
        for peer in PEERS.values()
        if peer.distribution in (there if peer.elsewhere else here)
    }


def _distributions(python: str) -> dict[str, str]:
    code = "from importlib.metadata import distributions as d; [print(x.name.lower(), x.version) for x in d()]"
    listed = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    return dict(line.split() for line in listed.splitlines())


def _scaling(measured: Measurement) -> str:
    """How many times faster the most threads are than one: every engine and variant."""
    names = [*measured.peers, *measured.ours]
    few, many = min(cell.threads for cell in measured.cells), max(cell.threads for cell in measured.cells)
    by_problem = {(cell.problem, cell.threads): cell for cell in measured.cells}
    rows, ratios = [], {name: list[float]() for name in names}
    for one in dict.fromkeys(cell.problem for cell in measured.cells):
        slow, fast = by_problem[one, few], by_problem[one, many]
        row = [f"{one.layer} batch {one.batch}"]
        for name in names:
            pair = slow.best([name]), fast.best([name])
            if pair[0] and pair[1]:
                ratios[name].append(pair[0][1] / pair[1][1])
            row.append(f"{ratios[name][-1]:.2f}" if pair[0] and pair[1] else "–")
        rows.append(row)
    rows.append(["geometric mean", *(f"{geometric_mean(ratios[name]):.2f}" if ratios[name] else "–" for name in names)])
    head = f"`{measured.command}` ({measured.date} UTC). {measured.processor}. Times faster with {many} threads than with {few}:"
    return f"{head}\n\n{table(('layer', *names), rows)}"


def _print_roofline(given: argparse.Namespace) -> None:
    print(results.processor())
    for threads in given.threads:
        peak = roofline.measured_peak(threads)
        if peak is None:
            sys.exit("no C compiler `cc` here, so the peak can't be measured")
        print(
            f"\n{threads} thread(s): {peak.gflops:.0f} GFLOP/s, {peak.cache_gbs:.0f} and {peak.memory_gbs:.0f} GB/s\n"
        )
        rows = []
        for one in (problem(layer, batch) for batch in given.batch for layer in given.layers or LAYERS):
            dense = [roofline.winograd_ms(one, m, peak) for m in (2, 4, 6, 7)]
            pruned = roofline.winograd_ms(one, 4, peak, pruned=0.5)
            rows.append(
                (one.layer, one.batch, *(f"{ms:.3f}" for ms in (roofline.direct_ms(one, peak), *dense, pruned)))
            )
        print(table(("layer", "batch", "direct, ms", "m2", "m4", "m6", "m7", "m4p50"), rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.winograd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("layers", "small", "chain", "scaling", "networks", "tune", "roofline"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--layers", nargs="+", help="names as 64@56; all without it")
    parser.add_argument(
        "--candidates", nargs="+", default=list(VARIANTS), help="variants of ours: m4 f4 m4p50 m4@nchw …"
    )
    parser.add_argument("--peers", nargs="+", default=["all"], choices=["all", "none", *PEERS])
    parser.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON", sys.executable))
    parser.add_argument("--reuse", type=Path, help="take the peers' figures from this file, written by --json")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one turn")
    parser.add_argument("--quick", action="store_true", help="two layers, two short passes: does everything run?")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--table", type=Path, default=tuning.TABLE, help="where `tune` writes")
    return parser


if __name__ == "__main__":
    main()
