"""Where the tensors of a plan are seen in the network that it was made of, while that learns (F-2).

A plan has Winograd convolutions in standard operators, and the network that learns has them whole. So V is seen where the image
is that it is made of, by the same transform, which nothing learns; and an output behind the convolution itself.
"""

from functools import partial

from torch import Tensor

from workers.compression.fixed_point_emission import evaluate
from workers.compression.fixed_point_plan import Plan, Planned
from workers.compression.fixed_point_statistics import Place


def places_of(plan: Plan) -> list[Place]:
    """A place for each tensor that gets lengths of its own."""
    whole = {
        each.output: each.tiles.convolution
        for each in plan.operations
        if each.kind == "output_transform" and each.tiles is not None and each.output == each.tiles.after[-1]
    }
    planned = plan.by_output()
    places = []
    for name in plan.coded:
        made_by = planned.get(name)
        if made_by is not None and made_by.kind == "input_transform":
            (source,) = made_by.sources
            places.append(Place(whole.get(source, source), name, partial(_transformed, plan, made_by)))
        else:
            places.append(Place(whole.get(name, name), name))
    return places


def _transformed(plan: Plan, transform: Planned, image: Tensor) -> Tensor:
    return evaluate(plan.graph, transform, {transform.sources[0]: image})
