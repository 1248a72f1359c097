"""Runs every benchmark, one after the other, as benchmarks/README.md reports them: `make bench`."""

import subprocess
import sys
from pathlib import Path

COMMANDS = (
    ("benchmarks.prune_weights", "accuracy"),
    ("benchmarks.prune_weights", "cost"),
    ("benchmarks.quantize_fixed_point", "widths"),
    ("benchmarks.quantize_fixed_point", "rules"),
    ("benchmarks.quantize_fixed_point", "rivals"),
    ("benchmarks.quantize_fixed_point", "spread"),
    ("benchmarks.quantize_fixed_point", "training"),
    ("benchmarks.depthwise_networks", "train", "build/depthwise"),
    ("benchmarks.depthwise_networks", "quantize", "build/depthwise"),
    ("benchmarks.integer_winograd", "accuracy"),
    ("benchmarks.integer_winograd", "source"),
    ("benchmarks.assign_precision", "curves"),
    ("benchmarks.assign_precision", "budgets"),
    ("benchmarks.goals", "bytes", "--svg", "build/accuracy-bytes.svg"),
    ("benchmarks.goals", "latency", "--svg", "build/accuracy-latency-onnxruntime.svg"),
    ("benchmarks.goals", "latency", "--runtime", "torch", "--svg", "build/accuracy-latency-torch.svg"),
    ("benchmarks.c_source",),
    ("benchmarks.qdq",),
    ("benchmarks.integer_networks",),
    ("benchmarks.overhead",),
    ("benchmarks.polling",),
    ("benchmarks.upload",),
    ("benchmarks.faults", "20"),
    ("benchmarks.winograd.numerics",),
    ("benchmarks.winograd", "layers"),
    ("benchmarks.winograd", "small"),
    ("benchmarks.training_step", "layers"),
    ("benchmarks.training_step", "network"),
    ("benchmarks.winograd", "chain", "--batch", "1"),
    ("benchmarks.winograd", "networks"),
    ("benchmarks.winograd_latency", "--network", "resnet20", "--compile"),
    ("benchmarks.winograd_latency", "--network", "resnet18", "--batch", "1", "--compile"),
)


def main() -> None:
    Path("build").mkdir(exist_ok=True)
    for module, *arguments in COMMANDS:
        print(f"\n# python -m {' '.join((module, *arguments))}\n", flush=True)
        subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
