"""Operations that take integers from one place to another: what they cut, pad and mix, and where each channel comes from."""

import math

from torch import fx

from workers.compression.fixed_point_plan import Kind, Plan, Planned, as_list
from workers.fixed_point.interpolation import Sampling
from workers.fixed_point.network import Shape

Channel = tuple[str, int]  # of a tensor

_SAME_CHANNELS: frozenset[Kind] = frozenset({"max_pool", "upsample", "resize"})


def slice_of(node: fx.Node, shape: Shape) -> tuple[Shape, Shape, Shape]:
    """Start, stop and step of a slice of an image of `shape`."""
    dimension, start, stop, step = (int(str(number)) for number in node.args[1:5])
    place = (dimension % 4 if dimension >= 0 else dimension + 4) - 1
    begin, end, stride = slice(start, stop, step).indices(shape[place])
    starts, stops, steps = [0, 0, 0], list(shape), [1, 1, 1]
    starts[place], stops[place], steps[place] = begin, end, stride
    return _shape(starts), _shape(stops), _shape(steps)


def padding_of(node: fx.Node, shape: Shape) -> tuple[Shape, Shape]:
    """The zeros before and after each dimension of an image of `shape`."""
    amounts = [int(str(number)) for number in as_list(node.args[1])]
    amounts += [0] * (2 * len(shape) - len(amounts))
    return _shape(amounts[0::2][::-1]), _shape(amounts[1::2][::-1])


def sampling_of(node: fx.Node, before: Shape, after: Shape) -> tuple[Sampling, Sampling]:
    """Downwards and sideways, where a bilinear resizing of an image of shape `before` takes its numbers from."""
    align_corners, scales = bool(node.args[2]), node.args[3]
    asked = (None, None) if scales is None else [float(str(scale)) for scale in as_list(scales)]
    rows, columns = (
        Sampling.of(*sizes, align_corners=align_corners, scale=scale)
        for *sizes, scale in zip(before[1:], after[1:], asked, strict=True)
    )
    return rows, columns


def channels_of(plan: Plan, name: str) -> list[Channel | None]:
    """For each channel of a tensor, the channel that it was moved from and has its length of; None where it is padded zeros.

    A tensor that was put together of others, or turned, is taken as it is.
    """
    planned = plan.by_output().get(name)
    if planned is None:
        return _own(plan, name)
    match planned.kind:
        case kind if kind in _SAME_CHANNELS:
            return channels_of(plan, planned.sources[0])
        case "reshape" if _keeps_channels(plan, planned):
            return channels_of(plan, planned.sources[0])
        case "slice":
            start, stop, step = slice_of(planned.main, plan.shapes[planned.sources[0]])
            return channels_of(plan, planned.sources[0])[start[0] : stop[0] : step[0]]
        case "pad":
            before, after = padding_of(planned.main, plan.shapes[planned.sources[0]])
            return [*[None] * before[0], *channels_of(plan, planned.sources[0]), *[None] * after[0]]
        case _:
            return _own(plan, name)


def _own(plan: Plan, name: str) -> list[Channel | None]:
    return [(name, channel) for channel in range(plan.shapes[name][0])]


def _keeps_channels(plan: Plan, planned: Planned) -> bool:
    before, after = plan.shapes[planned.sources[0]], plan.shapes[planned.output]
    return before[0] == after[0] and math.prod(before) == math.prod(after)


def _shape(sizes: list[int]) -> Shape:
    return (sizes[0], sizes[1], sizes[2])
