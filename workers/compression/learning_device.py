"""Where a network learns: on a CUDA device if the process has one, else on the CPU.

The same request gives the same bytes on the same kind of device. So networks with operators whose gradients CUDA adds up in an
order that changes stay on the CPU.
"""

import torch

from workers.models.graph import OPERATORS, ModelGraph, aten

CPU = torch.device("cpu")

# torch.use_deterministic_algorithms refuses their gradients on CUDA devices.
_NOT_REPEATABLE = frozenset({aten.adaptive_avg_pool2d.default, aten.upsample_bilinear2d.vec})
_REPEATABLE = OPERATORS - _NOT_REPEATABLE


def learning_device(graph: ModelGraph) -> torch.device:
    """The device on which `graph` learns; CUDA_VISIBLE_DEVICES says which CUDA devices there are, as everywhere."""
    calls = [node.target for node in graph.module.graph.nodes if node.op == "call_function"]
    is_repeatable = all(target in _REPEATABLE for target in calls)
    return torch.device("cuda") if is_repeatable and torch.cuda.is_available() else CPU


def name_of(device: torch.device) -> str:
    """As reports call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
