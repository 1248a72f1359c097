"""Which layers are computed in the Winograd domain and with which tile, and why the others are left alone (W-1)."""

from jobs.eligibility import why_not_grouped
from jobs.errors import RecipeRefused
from jobs.recipe import PruneWinograd
from jobs.tiles import best_tile
from workers.compression.eligibility import why_not
from workers.compression.winograd_layers import output_sides
from workers.compression.winograd_times import Load, ModelledTimes
from workers.models.graph import Layer, ModelGraph, layers, parameter

DIRECT_IS_FASTER = "direct convolution is faster here by winograd's table"


def choose_tiles(graph: ModelGraph, step: PruneWinograd, load: Load) -> tuple[dict[str, int], dict[str, str]]:
    """The tile of every layer that W works on, and the reason against each of the others."""
    found = layers(graph)
    unknown = sorted(({*step.exclude} | step.rates.keys()) - {layer.name for layer in found})
    if unknown:
        raise RecipeRefused(
            f"There is no layer called {unknown[0]!r}.",
            hint=f"Its layers are: {', '.join(layer.name for layer in found)}.",
            layers=unknown,
        )
    sides = output_sides(graph)
    tiles: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for layer in found:
        reason = "the recipe excludes it" if layer.name in step.exclude else None
        reason = reason or why_not("prune_winograd", layer, parameter(graph, layer.weight))
        reason = reason or why_not_grouped(layer, step)
        tile = None if reason else _tile(layer, sides[layer.name], step, load)
        if tile is None:
            skipped[layer.name] = reason or DIRECT_IS_FASTER
        else:
            tiles[layer.name] = tile
    if not tiles:
        raise _nothing_to_do(skipped)
    return tiles, skipped


def _tile(layer: Layer, sides: tuple[int, int], step: PruneWinograd, load: Load) -> int | None:
    """What the recipe asks for; None where it asks for the fastest, and direct convolution is faster than any tile."""
    match step.tile:
        case "auto":
            return best_tile(sides)
        case "fastest":
            return ModelledTimes.of(layer, sides, load).fastest_tile()
        case tile:
            return tile


def _nothing_to_do(skipped: dict[str, str]) -> RecipeRefused:
    if DIRECT_IS_FASTER in skipped.values():
        return RecipeRefused(
            "No layer of this model would be faster in the Winograd domain, by winograd's table.",
            hint='"tile": "auto" takes the tiles with the fewest multiplications nevertheless.',
            layers=skipped,
        )
    return RecipeRefused("No layer of this model can be computed in the Winograd domain.", layers=skipped)
