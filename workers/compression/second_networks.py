"""Networks in integers whose layers have precisions of their own, made quickly: every layer is quantized once at each precision.

All variants of a layer are rounded for the inputs that it has in the network at the first precision. quantize_fixed_point later
rounds each layer for the inputs that it really has, so its network is usually a little better than the one tried here.
"""

from collections.abc import Mapping

from jobs.recipe import QuantizeFixedPoint
from workers.compression.finetune import OnProgress
from workers.compression.fixed_point_codings import Calibration, Preparations
from workers.compression.fixed_point_emission import Emission, layer_of
from workers.compression.fixed_point_simulation import dequantized_weight, simulate
from workers.compression.fixed_point_walk import Walk
from workers.fixed_point.entropy import entropy_bits
from workers.fixed_point.network import Convolution, IntegerNetwork
from workers.models.graph import ModelGraph


class SecondNetworks:
    """All that can be made of one network with layers at `bits`, the first of which is for layers that aren't named.

    Layers that `quantization` names in `layer_bits` have those bits; nobody is to name them again.

    Raises `RecipeRefused` for what integers can't do.
    """

    def __init__(
        self,
        graph: ModelGraph,
        quantization: QuantizeFixedPoint,
        bits: tuple[int, ...],
        calibration: Calibration,
        on_progress: OnProgress,
        preparations: Preparations | None = None,
    ) -> None:
        self._first, *lower = bits
        on_progress(0.0, "Measuring distributions, choosing fractional lengths", {})
        prepared = (preparations or Preparations()).of(graph, quantization, calibration)
        self._plan, self._codings, self._bias_bits = prepared.plan, prepared.codings, quantization.bias_bits
        whole = quantization.model_copy(update={"weight_bits": self._first})
        walk = Walk(self._plan, whole, self._codings, prepared.batches, precision=whole.layer_bits, alternatives=lower)
        for number, planned in enumerate(self._plan.operations):
            message = f"Quantizing {planned.output} at {', '.join(map(str, bits))} bits"
            on_progress(0.3 + 0.7 * number / len(self._plan.operations), message, {})
            walk.take(planned)
        convolutions = walk.emission.network().convolutions
        # Every layer at every precision: in a network of 25 million weights a gigabyte, were they not put away.
        self._layers = {(each.output, self._first): each.put_away() for each in convolutions} | walk.alternatives

    def network(self, precision: Mapping[str, int]) -> IntegerNetwork:
        """Layers named in `precision` have so many bits, the others the first ones."""
        emission = Emission(self._plan, self._codings, self._bias_bits)
        for planned in self._plan.operations:
            if planned.kind in ("convolution", "linear"):
                bits = precision.get(layer_of(planned.main), self._first)
                emission.add_convolution(planned, self._layers[planned.output, bits].taken_out())
            else:
                emission.emit(planned)
        return emission.network()

    def simulated(self, precision: Mapping[str, int]) -> ModelGraph:
        """The float simulation of the same network."""
        return simulate(self._plan, self.network(precision))

    def relative_errors(self, bits: int) -> dict[str, float]:
        """By layer: the squared error of its weights at so many bits, relative to their square."""
        network = self.network({})
        found: dict[str, float] = {}
        for exact in network.convolutions:
            source = network.values[exact.source].coding
            reference, rounded = (
                dequantized_weight(self._variant(exact, width), source) for width in (self._first, bits)
            )
            found[exact.layer] = float((rounded - reference).square().sum() / reference.square().sum().clamp_min(1e-30))
        return found

    def entropies(self, bits: int) -> dict[str, float]:
        """By layer: what its weights take at so many bits where a file is deflated, in bits."""
        return {
            exact.layer: entropy_bits(self._variant(exact, bits).aligned_weight)
            for exact in self.network({}).convolutions
        }

    def _variant(self, layer: Convolution, bits: int) -> Convolution:
        return self._layers[layer.output, bits].taken_out()
