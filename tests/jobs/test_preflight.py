"""What can be told to be wrong with a job from inspections alone, and where in the request it stands."""

from typing import Any

import pytest

from jobs.data_roles import Role, may_learn, roles_played
from jobs.eligibility import searched_layers, why_not_in_integers
from jobs.estimates import estimate, estimate_goal
from jobs.inspection import DatasetInspection, Eligibility, LayerInfo, ModelInspection, TensorInfo
from jobs.preflight import Problem, check_recipe, check_request, fitted_shape, is_channels_last
from jobs.recipe import (
    AssignPrecision,
    Finetune,
    LayerChange,
    LearningStatistics,
    PruneWeights,
    PruneWinograd,
    QuantizeFixedPoint,
    RecoveryTraining,
    Step,
    TrainingOptions,
)
from jobs.request import Constraints, Goal, JobRequest, Preprocess

TO_UNIT = Preprocess(scale=1 / 255)


def layer(name: str, reason: str | None = None) -> LayerInfo:
    return LayerInfo(
        name=name,
        kind="conv2d",
        weight_shape=(16, 3, 3, 3),
        output_shape=(16, 32, 32),
        parameters=432,
        macs=442_368,
        steps={"prune_weights": Eligibility(eligible=reason is None, reason=reason)},
    )


def model(**changes: Any) -> ModelInspection:
    values: dict[str, Any] = {
        "format": "onnx",
        "inputs": (TensorInfo(name="image", dtype="float32", shape=("N", 3, 32, 32)),),
        "outputs": (TensorInfo(name="logits", dtype="float32", shape=("N", 10)),),
        "batch_size": None,
        "classes": 10,
        "parameters": 1000,
        "macs": 500_000,
        "layers": (layer("layer1.conv1"), layer("layer1.conv2"), layer("fc", "it has only 4 weights")),
        "operators": {},
    }
    return ModelInspection(**(values | changes))


def data(**changes: Any) -> DatasetInspection:
    values: dict[str, Any] = {
        "format": "npz",
        "images": 100,
        "shape": (3, 32, 32),
        "dtype": "uint8",
        "labelled": True,
        "class_counts": {str(label): 10 for label in range(10)},
    }
    return DatasetInspection(**(values | changes))


def prune(**options: Any) -> PruneWeights:
    return PruneWeights(kind="prune_weights", **options)


def finetune(**options: Any) -> Finetune:
    return Finetune(kind="finetune", **options)


def check(
    recipe: tuple[Step, ...] = (prune(),),
    given: dict[Role, DatasetInspection] | None = None,
    network: ModelInspection | None = None,
    preprocess: Preprocess | None = TO_UNIT,
) -> list[Problem]:
    return check_recipe(recipe, {"selection": data()} if given is None else given, network or model(), preprocess)


def test_a_job_that_can_run_has_no_problem() -> None:
    assert check() == []
    assert check((prune(), finetune())) == []
    assert check((finetune(),), {"train": data(), "test": data()}) == []


def fixed_point(**options: Any) -> QuantizeFixedPoint:
    return QuantizeFixedPoint(kind="quantize_fixed_point", **options)


def test_integers_are_the_end_of_a_recipe() -> None:
    assert check((prune(), fixed_point())) == []
    (problem,) = check((fixed_point(), prune()))
    assert problem.pointer == "/recipe/0"
    assert "prune_weights can't work" in problem.message


def test_integers_take_winograd_convolutions_of_small_tiles_that_all_filters_share() -> None:
    def problems_of(**options: Any) -> list[Problem]:
        return check((PruneWinograd.model_validate({"kind": "prune_winograd", **options}), fixed_point()))

    assert problems_of(tile=2) == []
    assert problems_of(tile=2, groups=3, group_by="input_channels") == []
    for tile in ("auto", "fastest", 4, 6):
        (problem,) = problems_of(tile=tile)
        assert problem.pointer == "/recipe/0/tile"
        assert f"tile {tile} may make larger ones" in problem.message
        assert problem.hint == 'Ask for "tile": 2.'
    (problem,) = problems_of(tile=2, groups=2)
    assert problem.pointer == "/recipe/0/groups"
    assert problem.hint is not None
    assert "input_channels" in problem.hint
    learning = fixed_point(statistics="training", pretraining={"epochs": 1})
    recipe = (PruneWinograd(kind="prune_winograd", tile=2), learning)
    assert check(recipe, {"train": data(), "selection": data()}) == []


def test_c_source_is_written_of_integers_only() -> None:
    assert check_recipe((fixed_point(),), {"selection": data()}, model(), TO_UNIT, ("onnx", "c")) == []
    (problem,) = check_recipe((prune(),), {"selection": data()}, model(), TO_UNIT, ("onnx", "c"))
    assert problem.pointer == "/outputs/1"
    assert problem.hint is not None
    assert "quantize_fixed_point" in problem.hint


@pytest.mark.parametrize(
    ("recipe", "pointer", "words"),
    [
        ((prune(),), "/outputs/1", "the recipe doesn't end in one"),
        ((fixed_point(activation_bits=9),), "/recipe/0/activation_bits", "asks for 9"),
        ((fixed_point(weight_bits=10),), "/recipe/0/weight_bits", "asks for 10"),
        ((fixed_point(layer_bits={"layer1.conv1": 12}),), "/recipe/0/layer_bits", "asks for 12"),
        ((fixed_point(align="shift"),), "/recipe/0/align", "shifted to where partial sums meet"),
    ],
    ids=str,
)
def test_one_operator_is_written_of_8_bit_integers(recipe: tuple[Step, ...], pointer: str, words: str) -> None:
    (problem,) = check_recipe(recipe, {"selection": data()}, model(), TO_UNIT, ("onnx", "pt2_integers"))
    assert problem.pointer == pointer
    assert words in problem.message
    assert problem.hint is not None


@pytest.mark.parametrize(
    "options", [{}, {"weight_bits": 4, "align": "shift"}, {"align": "shift", "activation_lengths": "per_layer"}]
)
def test_one_operator_is_written_of_what_may_have_8_bits(options: dict[str, Any]) -> None:
    for before in ((), (PruneWinograd(kind="prune_winograd", tile=2),)):
        recipe = (*before, fixed_point(**options))
        assert check_recipe(recipe, {"selection": data()}, model(), TO_UNIT, ("pt2_integers",)) == []


def precision(**options: Any) -> AssignPrecision:
    return AssignPrecision.model_validate({"kind": "assign_precision", **options})


def recording(*names: str) -> LearningStatistics:
    change = LayerChange(cycle_start=1.0, initial=1.0)
    return LearningStatistics(cycles=(dict.fromkeys(names, change),), variances=dict.fromkeys(names, 1.0))


def test_bits_of_layers_that_are_not_there_are_refused_with_the_closest_name() -> None:
    (problem,) = check((fixed_point(layer_bits={"layer1.cnv2": 4, "fc": 8}),))
    assert problem.pointer == "/recipe/0/layer_bits"
    assert problem.hint == "Did you mean 'layer1.conv2'?"


def test_assigned_bits_are_for_a_network_of_integers() -> None:
    assert check((precision(), fixed_point())) == []
    assert check((prune(), finetune(), precision(), finetune(), fixed_point())) == []
    (problem,) = check((precision(), finetune()))
    assert problem.pointer == "/recipe/0"
    assert "doesn't end in quantize_fixed_point" in problem.message
    (problem,) = check((precision(bits=(6, 3)), fixed_point()))
    assert problem.pointer == "/recipe/1/weight_bits"
    assert "keep 8 here, but the first precision of assign_precision is 6" in problem.message
    assert check((precision(bits=(6, 3)), fixed_point(weight_bits=6))) == []
    (problem,) = check((precision(), precision(), fixed_point()))
    assert problem.pointer == "/recipe/1"


def test_recorded_statistics_take_the_place_of_training_images() -> None:
    given: dict[Role, DatasetInspection] = {"selection": data(), "test": data()}
    (problem,) = check((precision(), fixed_point()), given)
    assert problem.pointer == "/data/train"
    assert "Step 0 (assign_precision) trains on training images" in problem.message
    names = [layer.name for layer in model().layers]
    assert check((precision(statistics=recording(*names)), fixed_point()), given) == []


def test_statistics_of_other_layers_are_refused_with_their_names() -> None:
    lacking, unknown = check((precision(statistics=recording("layer1.conv1", "stem")), fixed_point()))
    assert lacking.pointer == unknown.pointer == "/recipe/0/statistics"
    assert "lack 2 of the model's 3 layers: 'layer1.conv2', 'fc'" in lacking.message
    assert "no layers called 'stem'" in unknown.message


def test_fixed_point_needs_training_images_only_where_it_trains() -> None:
    before = TrainingOptions(epochs=1)
    for step in (fixed_point(training=RecoveryTraining()), fixed_point(statistics="training", pretraining=before)):
        (problem,) = check((step,), {"selection": data(), "test": data()})
        assert problem.pointer == "/data/train"
    assert check((fixed_point(),), {"selection": data(), "test": data()}) == []
    labels = fixed_point(training=RecoveryTraining(loss="labels"))
    (problem,) = check((labels,), {"train": data(labelled=False, class_counts={}), "selection": data()})
    assert problem.pointer == "/recipe/0/training/loss"
    cost = estimate((fixed_point(calibration_images=50),), {"selection": data()}, model())
    assert cost["steps"][0]["images"] == 50


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"groups": 3}, "its 16 output channels can't be divided into 3 groups"),
        ({"groups": 2, "group_by": "input_channels"}, "its 3 input channels can't be divided into 2 groups"),
        ({"groups": 4}, None),
        ({"groups": 3, "group_by": "input_channels"}, None),
    ],
)
def test_groups_of_kernels_that_fit_no_layer_are_refused_at_submission(
    options: dict[str, Any], why: str | None
) -> None:
    problems = check((PruneWinograd.model_validate({"kind": "prune_winograd", **options}),), {"selection": data()})
    assert [problem.pointer for problem in problems] == (["/recipe/0"] if why else [])
    assert all(why is not None and why in problem.message for problem in problems)


@pytest.mark.parametrize("tile", ["auto", "fastest", 4])
def test_only_fastest_tiles_are_left_for_a_worker_to_look_up(tile: str | int) -> None:
    step = PruneWinograd.model_validate({"kind": "prune_winograd", "tile": tile})
    (cost,) = estimate((step,), {"selection": data()}, model())["steps"]
    assert [layer["tile"] for layer in cost["layers"]] == [4, 4, 4]
    assert ("a worker looks up" in cost.get("note", "")) == (tile == "fastest")


KINDS = ("prune_weights", "prune_winograd", "assign_precision", "quantize_fixed_point")


def layer_that_nothing_can_work_on(name: str, reason: str) -> LayerInfo:
    unable = Eligibility(eligible=False, reason=reason)
    return layer(name).model_copy(
        update={"steps": {**dict.fromkeys(KINDS, unable), "finetune": Eligibility(eligible=True)}}
    )


def model_without_integers() -> ModelInspection:
    layers = [
        one.model_copy(
            update={"steps": {**one.steps, "quantize_fixed_point": Eligibility(eligible=False, reason="gelu.")}}
        )
        for one in model().layers
    ]
    return model(layers=tuple(layers))


def ask(goal: dict[str, Any] | None = None, **changes: Any) -> JobRequest:
    """A job with a goal."""
    preprocess = {"scale": 1 / 255}
    return JobRequest.model_validate(
        {"model": f"mdl_{'0' * 26}", "preprocess": preprocess, "goal": goal or {}, **changes}
    )


def check_asked(
    request: JobRequest, given: dict[Role, DatasetInspection] | None = None, network: ModelInspection | None = None
) -> list[Problem]:
    return check_request(request, {"selection": data()} if given is None else given, network or model())


def test_goals_and_recipes_are_checked_in_one_place() -> None:
    assert check_asked(ask()) == []
    recipe = [{"kind": "prune_weights", "exclude": ["stem"]}]
    (problem,) = check_asked(JobRequest.model_validate({**ask().model_dump(), "goal": None, "recipe": recipe}))
    assert problem.pointer == "/recipe/0/exclude/0"


@pytest.mark.parametrize("roles", [("selection",), ("train",), ("selection", "test"), ("train", "selection", "test")])
def test_goal_needs_selection_images_and_takes_training_images(roles: tuple[Role, ...]) -> None:
    assert check_asked(ask(), {role: data() for role in roles}) == []


@pytest.mark.parametrize(
    ("roles", "given", "hint"),
    [
        ((), "none", 'Give a dataset: {"data": {"selection": "dst_…"}}.'),
        (("test",), "test", 'Add "selection" to "data".'),
        (("train", "test"), "train, test", 'Add "selection" to "data".'),
    ],
)
def test_goal_without_selection_images_is_refused(roles: tuple[Role, ...], given: str, hint: str) -> None:
    message = f"The search decides on selection images, but no dataset plays the role selection (given: {given})."
    assert check_asked(ask(), {role: data() for role in roles}) == [Problem("/data/selection", message, hint)]


def test_search_may_learn_so_that_a_lone_dataset_gives_training_images_too() -> None:
    assert may_learn(ask())
    assert estimate_goal(Goal(), {"selection": data()}, model())["images"] == {
        "train": 60,
        "selection": 20,
        "test": 20,
    }


def test_goal_on_images_that_do_not_fit_is_refused_like_a_recipe() -> None:
    (shape,) = check_asked(ask(), {"selection": data(shape=(1, 28, 28))})
    assert shape.pointer == "/data/selection"
    (unsaid,) = check_asked(ask(preprocess=None))
    assert unsaid.pointer == "/preprocess"
    (classless,) = check_asked(ask(), network=model(classes=None))
    assert classless.pointer == "/model"


@pytest.mark.parametrize(
    ("runtime", "outputs", "hint"),
    [
        ("onnxruntime", ["pt2"], 'Add "onnx" to "outputs", or say "target": {"runtime": "torch"}.'),
        ("torch", ["onnx", "c"], 'Add "pt2" to "outputs", or say "target": {"runtime": "onnxruntime"}.'),
        ("onnxruntime", ["c"], 'Add "onnx" to "outputs".'),
    ],
)
def test_goal_needs_the_file_that_its_target_opens(runtime: str, outputs: list[str], hint: str) -> None:
    (problem,) = check_asked(ask(target={"runtime": runtime}, outputs=outputs))
    assert (problem.pointer, problem.hint) == ("/outputs", hint)
    assert f"measured on the file that {runtime} opens" in problem.message
    for output in ("pt2", "pt2_integers"):
        assert check_asked(ask(target={"runtime": "torch"}, outputs=[output])) == []


def test_goal_has_files_of_integers_only_of_networks_that_can_be_made_of_integers() -> None:
    request = ask(outputs=["onnx", "c", "pt2_integers"])
    assert check_asked(request) == []
    problems = check_asked(request, network=model_without_integers())
    assert [problem.pointer for problem in problems] == ["/outputs/1", "/outputs/2"]
    assert all(problem.message.endswith("this one can't be made of integers: gelu.") for problem in problems)
    assert check_asked(ask(outputs=["onnx"]), network=model_without_integers()) == []


def test_network_can_be_made_of_integers_unless_every_layer_speaks_against_it() -> None:
    assert why_not_in_integers(model()) is None
    assert why_not_in_integers(model_without_integers()) == "gelu."
    assert why_not_in_integers(model(layers=())) == "it has no layers"


def test_goal_without_any_layer_to_work_on_is_refused_with_the_reasons() -> None:
    layers = (
        layer_that_nothing_can_work_on("conv", "its weights are int8"),
        layer_that_nothing_can_work_on("fc", "tied"),
    )
    (problem,) = check_asked(ask(), network=model(layers=layers))
    assert problem.pointer == "/model"
    assert problem.message.startswith(
        "No step can work on any layer of the model (prune_weights: its weights are int8, tied; "
    )
    (empty,) = check_asked(ask(), network=model(layers=()))
    assert "it has no layers" in empty.message


def test_search_ends_before_its_job_is_ended() -> None:
    (problem,) = check_asked(ask({"deadline_seconds": 600}, limits={"deadline_seconds": 600}))
    assert problem.pointer == "/goal/deadline_seconds"
    assert check_asked(ask({"deadline_seconds": 599}, limits={"deadline_seconds": 600})) == []


def test_searched_layers_are_those_that_a_kind_can_work_on() -> None:
    searched = searched_layers(model_without_integers())
    assert searched["prune_weights"] == ["layer1.conv1", "layer1.conv2"]
    assert "quantize_fixed_point" not in searched
    assert "finetune" not in searched


def test_missing_role_is_named_with_the_step_that_needs_it() -> None:
    (problem,) = check(given={})
    assert problem.pointer == "/data/selection"
    assert problem.message == (
        "Step 0 (prune_weights) decides on selection images, but no dataset plays the role selection (given: none)."
    )
    (problem,) = check((prune(), finetune(), finetune()), {"selection": data(), "test": data()})
    assert problem.pointer == "/data/train"
    assert "Step 1 (finetune) learns from training images" in problem.message


def test_test_data_alone_are_not_for_decisions() -> None:
    (problem,) = check(given={"test": data()})
    assert (problem.pointer, problem.hint) == ("/data/selection", 'Add "selection" to "data".')


def test_one_dataset_alone_plays_every_role_that_the_recipe_needs() -> None:
    assert roles_played({"selection"}, learns=False) == {"selection", "test"}
    assert roles_played({"train"}, learns=True) == {"train", "selection", "test"}
    assert roles_played({"test"}, learns=True) == {"test"}
    assert roles_played({"train", "test"}, learns=True) == {"train", "test"}


def test_images_of_another_size_are_refused_with_both_shapes() -> None:
    (problem,) = check(given={"selection": data(shape=(1, 28, 28))})
    assert problem == Problem(
        "/data/selection",
        "The images are 1 x 28 x 28 (channels first), but the model's input 'image' takes 3 x 32 x 32.",
    )


def test_open_sizes_of_the_model_take_any_image() -> None:
    network = model(inputs=(TensorInfo(name="image", dtype="float32", shape=("N", 3, "H", "W")),))
    assert check(given={"selection": data(shape=(3, 17, 40))}, network=network) == []


def test_models_that_take_channels_last_are_served() -> None:
    network = model(inputs=(TensorInfo(name="image", dtype="float32", shape=("N", 32, 32, 3)),))
    assert check(network=network) == []
    assert is_channels_last((3, 32, 32), (32, 32, 3))
    assert not is_channels_last((3, 32, 32), (3, 32, 32))


def test_image_files_fit_once_they_are_resized_and_cropped() -> None:
    folder = data(format="image_folder", shape=(3, "height", "width"))
    (problem,) = check(given={"selection": folder})
    assert problem.pointer == "/data/selection"
    assert "3 x height x width" in problem.message
    assert "resize" in (problem.hint or "")
    assert check(given={"selection": folder}, preprocess=Preprocess(scale=1 / 255, resize=36, crop=32)) == []
    square = data(format="image_folder", shape=(3, 64, 96))
    assert fitted_shape(square, Preprocess(resize=32)) == (3, 32, 48)


def test_uint8_without_preprocess_is_refused_unless_the_model_takes_it() -> None:
    (problem,) = check(preprocess=None)
    assert problem.pointer == "/preprocess"
    assert "stored as uint8, but the model's input 'image' is float32" in problem.message
    assert check(given={"selection": data(dtype="float32")}, preprocess=None) == []
    takes_bytes = model(inputs=(TensorInfo(name="image", dtype="uint8", shape=("N", 3, 32, 32)),))
    assert check(network=takes_bytes, preprocess=None) == []


def test_preprocess_that_does_not_fit_the_data_is_refused() -> None:
    problems = check(preprocess=Preprocess(scale=1 / 255, mean=(0.5, 0.5), std=(0.5, 0.5, 0.5, 0.5), resize=32))
    assert [problem.pointer for problem in problems] == ["/preprocess/mean", "/preprocess/std", "/preprocess/resize"]
    assert problems[0].message == "mean has 2 values, but the images have 3 channels."


def test_more_classes_than_scores_are_refused() -> None:
    (problem,) = check(given={"selection": data(class_counts={"0": 5, "12": 5})})
    assert problem.message == "The data have 13 classes, but the model gives scores for 10."
    folder = data(format="image_folder", class_counts={f"class {number}": 2 for number in range(11)})
    (problem,) = check(given={"selection": folder})
    assert "have 11 classes" in problem.message


def test_excluded_layer_that_does_not_exist_is_refused_with_the_closest_name() -> None:
    (problem,) = check((finetune(), prune(exclude=("layer1.conv2", "layer1.cnv1"))))
    assert problem == Problem(
        "/recipe/1/exclude/1", "The model has no layer called 'layer1.cnv1'.", "Did you mean 'layer1.conv1'?"
    )


def test_recipe_without_any_layer_to_work_on_is_refused_with_the_reasons() -> None:
    (problem,) = check((prune(exclude=("layer1.conv1", "layer1.conv2")),))
    assert problem.pointer == "/recipe/0"
    assert "layer1.conv1: excluded; layer1.conv2: excluded; fc: it has only 4 weights" in problem.message


def test_more_images_per_class_than_the_smallest_class_has_are_refused() -> None:
    given: dict[Role, DatasetInspection] = {"selection": data(class_counts={"0": 90, "1": 8}), "test": data()}
    assert check((prune(images_per_class=8),), given) == []
    (problem,) = check((prune(images_per_class=9),), given)
    assert problem.pointer == "/recipe/0/images_per_class"
    assert "class '1' has 8" in problem.message
    # Alone it is halved first.
    (problem,) = check((prune(images_per_class=8),), {"selection": given["selection"]})
    assert "class '1' has 4 in the 50% of the data that are for selection" in problem.message


def test_loss_from_labels_needs_labels() -> None:
    unlabelled = data(labelled=False, class_counts={})
    given: dict[Role, DatasetInspection] = {"train": unlabelled, "selection": data()}
    (problem,) = check((finetune(loss="labels"),), given)
    assert problem.pointer == "/recipe/0/loss"
    assert check((finetune(loss="auto"),), given) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": None}, "first output is not one score a class"),
        (
            {"inputs": (*model().inputs, TensorInfo(name="mask", dtype="float32", shape=("N", 1)))},
            r"has 2 inputs \(image, mask\)",
        ),
        (
            {"inputs": (TensorInfo(name="image", dtype="bfloat16", shape=("N", 3, 32, 32)),)},
            "images can be fed as float16, float32, float64, uint8",
        ),
    ],
)
def test_models_that_are_no_image_classifiers_are_refused(changes: dict[str, Any], message: str) -> None:
    (problem,) = check(network=model(**changes))
    assert problem.pointer == "/model"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem.message)


def test_estimate_of_precision_counts_every_network_of_the_search() -> None:
    cost = estimate((precision(controls=0), fixed_point()), {"selection": data()}, model())
    assigned = cost["steps"][0]
    # Of 20 selection images: log2(4) + 2 neighbours + the network at the first precision; 60 images learn 3 times, 3 passes each.
    assert assigned["layer_evaluations_at_most"] == 5 * 3
    assert assigned["macs"] == ((5 + 8) * 20 + 3 * 3 * 60) * model().macs


def test_estimate_bounds_the_work_from_above() -> None:
    step = prune(first_rate=0.1, max_rate=0.9, rate_step=0.1, rounds=1)
    cost = estimate((step, finetune(epochs=2)), {"selection": data()}, model())
    assert cost["images"] == {"train": 60, "selection": 20, "test": 20}
    # Two eligible layers: 2 + 1 sensitivities, and nine rates for each.
    assert cost["layer_evaluations_at_most"] == 3 + 2 * 9
    assert cost["steps"][0]["macs"] == 21 * 20 * 500_000
    assert cost["steps"][1]["macs"] == 3 * 2 * 60 * 500_000
    assert cost["seconds_at_most"] > 0


def test_estimate_counts_the_sensitivities_of_every_round() -> None:
    step = prune(first_rate=0.1, max_rate=0.9, rate_step=0.1, rounds=3)
    # Nine rates in steps of two a round: up to four extra rounds. In all but the first a layer may try again what failed before.
    assert estimate((step,), {"selection": data()}, model())["layer_evaluations_at_most"] == 7 * 3 + 2 * 9 + 6 * 2


def test_goal_is_estimated_between_eight_and_two_bits() -> None:
    cost = estimate_goal(Goal(), {"selection": data()}, model())
    weights, graph = 3 * 432, 3 * (80 + 4 * 16)
    assert cost["bytes"] == {"at_least": weights // 4 + graph, "at_most": weights + graph}
    assert cost["bit_operations"] == {"at_least": 500_000 * 2 * 8, "at_most": 500_000 * 8 * 8}
    assert (cost["reachable"], cost["why_not_reachable"]) == (True, None)
    assert "Rough" in cost["note"]


def test_goal_of_a_file_that_is_deflated_may_come_to_less_than_two_bits_a_weight() -> None:
    cost = estimate_goal(Goal(), {"selection": data()}, model(), runtime="torch")
    weights, graph = 3 * 432, 3 * (80 + 4 * 16)
    assert cost["bytes"] == {"at_least": weights // 8 + graph, "at_most": weights + graph}


def test_goal_smaller_than_the_smallest_file_does_not_look_reachable() -> None:
    smallest = estimate_goal(Goal(), {"selection": data()}, model())["bytes"]["at_least"]
    just = Goal(constraints=Constraints(max_bytes=smallest))
    assert estimate_goal(just, {"selection": data()}, model())["reachable"]
    cost = estimate_goal(Goal(constraints=Constraints(max_bytes=smallest - 1)), {"selection": data()}, model())
    assert not cost["reachable"]
    assert cost["why_not_reachable"] == "max_bytes is 755, but even with 2-bit weights the file has about 756 bytes."


def test_goal_of_a_network_without_integers_falls_by_pruning_only() -> None:
    cost = estimate_goal(Goal(constraints=Constraints(max_bytes=100)), {"selection": data()}, model_without_integers())
    assert cost["bytes"]["at_most"] == 4 * 3 * 432 + 3 * (80 + 4 * 16)
    assert "can't be made of integers (gelu.), so its bytes only fall by pruning" in cost["note"]
    assert "even with 99% of all weights pruned" in cost["why_not_reachable"]


def test_goal_says_how_many_images_confirm_the_choice_or_that_they_are_too_few() -> None:
    few = estimate_goal(Goal(), {"selection": data(), "test": data()}, model())
    assert few["confirming_images"] == 0
    assert "The 100 selection images are too few to keep some back that confirm the choice" in few["note"]
    enough = estimate_goal(Goal(max_accuracy_drop_pp=3.0), {"selection": data(images=600), "test": data()}, model())
    assert enough["confirming_images"] == 200
    assert enough["images"]["selection"] == 600
    assert "About 200 of the 600 selection images have no part in the search, but confirm its choice." in enough["note"]


def test_search_is_estimated_from_what_it_measures_and_learns_but_ends_at_its_deadline() -> None:
    given: dict[Role, DatasetInspection] = {"selection": data(), "test": data()}
    cost = estimate_goal(Goal(), given, model())
    # Thirty networks on 100 selection images, each calibrated on them in eight passes.
    assert cost["macs_at_most"] == 30 * (100 + 8 * 100) * 500_000
    assert "Nothing learns without training images" in cost["note"]
    learning = estimate_goal(Goal(), {**given, "train": data()}, model())
    assert learning["macs_at_most"] == cost["macs_at_most"] + 3 * 3 * 100 * 500_000
    large = model(macs=10**12)
    assert estimate_goal(Goal(deadline_seconds=60), given, large)["search_seconds_at_most"] == 60
    assert estimate_goal(Goal(deadline_seconds=60), given, large)["seconds_at_most"] > 60
