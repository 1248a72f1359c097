"""Resize and Upsample: ONNX has many ways to map places, ATen few.

Rather than compare the options by name, the places that ONNX samples are computed and compared with those of ATen: equal
places are an equal operator, whatever it is called.
"""

import math
from collections.abc import Callable

from torch import fx

from workers.models.graph import aten
from workers.models.graph_builder import Size, Value
from workers.models.onnx_node import OnnxNode, Result

PLACE_TOLERANCE = 1e-4  # of a pixel


def upsample(node: OnnxNode) -> Result:
    """The operator of opset 7 to 9: scales, and places counted from the corner."""
    scales = node.attributes.get("scales") if node.opset < 9 else _stored_scales(node, 1)
    if not isinstance(scales, list):
        raise node.builder.refuse("it has no scales")
    return _resized(node, scales=_of_image(node, scales), sizes=None, transform="asymmetric", rounding="floor")


def resize(node: OnnxNode) -> Result:
    """The operator from opset 10 on."""
    if node.opset == 10:
        scales = _of_image(node, _stored_scales(node, 1))
        return _resized(node, scales=scales, sizes=None, transform="asymmetric", rounding="floor")
    for attribute in ("antialias", "exclude_outside"):
        if node.integer(attribute, 0):
            raise node.builder.refuse(f"{attribute} is not supported")
    if "axes" in node.attributes:
        raise node.builder.refuse("resizing chosen axes is not supported")
    transform = node.word("coordinate_transformation_mode", "half_pixel")
    rounding = node.word("nearest_mode", "round_prefer_floor")
    has_scales = node.has(2) and node.constant(2, "scales").tensor.numel() > 0
    if has_scales:
        scales = _of_image(node, _stored_scales(node, 2))
        return _resized(node, scales=scales, sizes=None, transform=transform, rounding=rounding)
    wanted = node.sizes(3, "sizes")
    shape = node.builder.shape(node.value(0))
    # The batch of `wanted` may be a number or a size that varies; either way it can only be the batch that there is.
    if len(wanted) != 4 or len(shape) != 4 or wanted[1] != shape[1]:
        raise node.builder.refuse("only height and width of images can change")
    return _resized(node, scales=None, sizes=(wanted[2], wanted[3]), transform=transform, rounding=rounding)


def _stored_scales(node: OnnxNode, place: int) -> list[float]:
    tensor = node.constant(place, "scales").tensor
    if tensor.numel() > 8:
        raise node.builder.refuse(f"{tensor.numel()} scales are too many")
    return [float(scale) for scale in tensor.reshape(-1).tolist()]


def _of_image(node: OnnxNode, scales: list[float]) -> tuple[float, float]:
    if len(scales) != 4 or list(scales[:2]) != [1, 1] or not all(0 < scale < 1e4 for scale in scales):
        raise node.builder.refuse(f"scales {scales[:8]} are not supported; only height and width of images can change")
    return (float(scales[2]), float(scales[3]))


def _resized(
    node: OnnxNode,
    *,
    scales: tuple[float, float] | None,
    sizes: tuple[Size, Size] | None,
    transform: str,
    rounding: str,
) -> Value:
    b, image, mode = node.builder, node.value(0), node.word("mode", "nearest")
    if b.rank(image) != 4 or transform not in _TRANSFORMS:
        raise b.refuse(f"coordinate_transformation_mode {transform!r} is not supported")
    before = [tuple(probe.shape[2:]) for probe in b.probes(image)]
    if sizes is None:
        assert scales is not None
        after = [tuple(math.floor(size * scale) for size, scale in zip(shape, scales, strict=True)) for shape in before]
    else:
        after = [tuple(_in_probe(size, index) for size in sizes) for index in range(2)]
    target_size = None if sizes is None else list(sizes)
    target_scales = None if scales is None else list(scales)
    ways = [
        (given, new, scales[axis] if scales else new / given)
        for old_shape, new_shape in zip(before, after, strict=True)
        for axis, (given, new) in enumerate(zip(old_shape, new_shape, strict=True))
    ]
    if min(size for given, new, _ in ways for size in (given, new)) < 1 or max(new for _, new, _ in ways) > 2**16:
        raise b.refuse("the image would have an impossible size")
    if mode == "nearest":
        if all(_samples_alike(*way, _TRANSFORMS[transform], _ROUNDINGS.get(rounding), _from_corner) for way in ways):
            return b.call(aten.upsample_nearest2d.vec, image, target_size, target_scales)
    elif mode in ("linear", "bilinear"):
        for align_corners, places in ((False, _half_pixel), (True, _align_corners)):
            if all(_interpolates_alike(*way, _TRANSFORMS[transform], places) for way in ways):
                return b.call(aten.upsample_bilinear2d.vec, image, target_size, align_corners, target_scales)
    raise b.refuse(f"mode {mode!r} with coordinate_transformation_mode {transform!r} and {rounding!r} is not supported")


def _in_probe(size: Size, index: int) -> int:
    return int(size.meta["probes"][index]) if isinstance(size, fx.Node) else size


# A place in the input for place `x` of the output: f(x, scale, old size, new size).
Transform = Callable[[int, float, int, int], float]


def _half_pixel(x: int, scale: float, _old: int, _new: int) -> float:
    return (x + 0.5) / scale - 0.5


def _pytorch_half_pixel(x: int, scale: float, _old: int, new: int) -> float:
    return (x + 0.5) / scale - 0.5 if new > 1 else 0.0


def _align_corners(x: int, _scale: float, old: int, new: int) -> float:
    return x * (old - 1) / (new - 1) if new > 1 else 0.0


def _from_corner(x: int, scale: float, _old: int, _new: int) -> float:
    return x / scale


_TRANSFORMS: dict[str, Transform] = {
    "half_pixel": _half_pixel,
    "pytorch_half_pixel": _pytorch_half_pixel,
    "align_corners": _align_corners,
    "asymmetric": _from_corner,
}
_ROUNDINGS: dict[str, Callable[[float], float]] = {
    "round_prefer_floor": lambda place: math.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: math.floor(place + 0.5),
    "floor": math.floor,
    "ceil": math.ceil,
}


def _samples_alike(
    old: int, new: int, scale: float, onnx: Transform, rounding: Callable[[float], float] | None, aten_places: Transform
) -> bool:
    if rounding is None:
        return False
    for x in range(new):
        theirs = min(max(rounding(onnx(x, scale, old, new)), 0), old - 1)
        ours = min(max(math.floor(aten_places(x, scale, old, new) + 1e-9), 0), old - 1)
        if theirs != ours:
            return False
    return True


def _interpolates_alike(old: int, new: int, scale: float, onnx: Transform, aten_places: Transform) -> bool:
    def clamped(place: float) -> float:
        return min(max(place, 0.0), old - 1.0)

    return all(
        abs(clamped(onnx(x, scale, old, new)) - clamped(aten_places(x, scale, old, new))) < PLACE_TOLERANCE
        for x in range(new)
    )
