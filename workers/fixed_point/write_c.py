"""An integer network as C99 without dependencies: a header, a source, a test program and an example, in a .zip."""

import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from workers.fixed_point.c_convolution import is_depthwise, write_convolution
from workers.fixed_point.c_files import EXPECTED, HEADER, HELPERS, MAIN, README, SOURCE
from workers.fixed_point.c_function import Written
from workers.fixed_point.c_memory import Buffer, MemoryPlan, live_bytes, plan_memory
from workers.fixed_point.c_operations import has_one_layout, is_alias, write_operation
from workers.fixed_point.c_patches import LEAST_PATCH_BYTES
from workers.fixed_point.c_types import (
    CType,
    code,
    indented,
    literal,
    name_in_c,
    type_of,
    words_in_comment,
)
from workers.fixed_point.c_winograd import Step, Winograd, steps_of, write_winograd
from workers.fixed_point.network import Convolution, IntegerNetwork, Reshape
from workers.fixed_point.run import IntegerRunner

_TAKEN_NAMES = ("main", "expected", "readme")
_DATE = (1980, 1, 1, 0, 0, 0)  # the same network gives the same bytes


@dataclass(frozen=True)
class CSource:
    """What was written, and what it needs on a device."""

    path: Path
    name: str  # of the header and the source, and before every public name
    flash_bytes: int  # of constants
    ram_bytes: int  # static: activations and scratch memory


def write_c(network: IntegerNetwork, path: Path, *, name: str, example: Tensor | None) -> CSource:
    """Write `network` to `path`.

    Args:
        name: what the files and functions are to be called; what isn't possible in C is left out.
        example: an input for the self test, integers [C, H, W] or numbers that become such; drawn at random if there is none.

    Raises:
        ValueError: if the network can't be computed with 64-bit integers, or its logits have several lengths.
    """
    name = _public_name(name)
    program = lay_out(network)
    text = _Text(program, name)
    files = text.files(_integers(network, example))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for filename, content in files.items():
            entry = zipfile.ZipInfo(filename, _DATE)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, content)
    return CSource(path, name, text.flash_bytes, program.memory.ram_bytes)


def _public_name(name: str) -> str:
    found = name_in_c(name) or "network"
    if found[0].isdigit() or found.lower() in _TAKEN_NAMES:
        found = f"network_{found}"
    return found[:24].rstrip("_")  # C99 compilers may look at the first 31 characters of a public name only


def _integers(network: IntegerNetwork, example: Tensor | None) -> Tensor:
    """The example's integers, [1, C, H, W]."""
    value = network.values[network.input]
    if example is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(value.coding.lowest, value.coding.highest + 1, (1, *value.shape), generator=generator)
    example = example.detach().reshape(1, *value.shape)
    if example.is_floating_point():
        return value.coding.quantize(example)
    return example.long().clamp(value.coding.lowest, value.coding.highest)


# ---- What runs, and where its memory lies ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A network as C functions, and the memory of its tensors and of each function's scratch."""

    network: IntegerNetwork
    steps: tuple[Step, ...]  # its operations, or several that are one function
    written: tuple[Written | None, ...]  # for each step; none for what is only another shape
    roots: dict[str, str]  # the tensor whose memory each tensor uses
    is_input_copied: bool
    memory: MemoryPlan


def lay_out(network: IntegerNetwork) -> Program:
    """Choose functions and memory.

    Raises:
        ValueError: if the network can't be computed with 64-bit integers, or has half a Winograd convolution.
    """
    steps = steps_of(network)
    roots = {network.input: network.input}
    for step in steps:
        roots[step.output] = roots[step.sources[0]] if is_alias(step, network) else step.output
    is_planar = _is_input_read_by_convolutions_only(network, steps)
    is_copied = not is_planar and not has_one_layout(network.values[network.input].shape)
    tensors = _tensor_buffers(network, steps, roots, is_copied)
    peak = max((live_bytes(tensors, number) for number in range(len(steps))), default=0)
    written = []
    for number, step in enumerate(steps):
        # Patches may use what the step that needs the most memory for tensors leaves over here.
        spare = max(LEAST_PATCH_BYTES, peak - live_bytes(tensors, number))
        written.append(_write(step, network, spare, is_planar=is_planar))
    scratch = [
        Buffer(scratch_name(number, each.argument), each.type, each.count, number, number)
        for number, function in enumerate(written)
        if function is not None
        for each in function.scratch
    ]
    return Program(network, steps, tuple(written), roots, is_copied, plan_memory([*tensors, *scratch]))


def scratch_name(number: int, argument: str) -> str:
    return f"{argument} of operation {number}"


def tensor_name(value: str) -> str:
    return f"tensor {value}"


def _is_input_read_by_convolutions_only(network: IntegerNetwork, steps: tuple[Step, ...]) -> bool:
    """Whether nothing needs a copy of the input with its channels last: convolutions copy what they read anyway."""
    readers = [step for step in steps if network.input in step.sources]
    return network.input != network.output and all(
        isinstance(reader, Winograd) or (isinstance(reader, Convolution) and not is_depthwise(reader))
        for reader in readers
    )


def _tensor_buffers(
    network: IntegerNetwork, steps: tuple[Step, ...], roots: dict[str, str], is_input_copied: bool
) -> list[Buffer]:
    first, last = {network.input: -1}, {network.input: -1}
    for number, step in enumerate(steps):
        first.setdefault(roots[step.output], number)
        for name in (*step.sources, step.output):
            last[roots[name]] = number
    last[roots[network.output]] = len(steps)  # they are copied to the caller then
    if not is_input_copied:
        del first[network.input]
    return [
        Buffer(tensor_name(name), type_of(value.coding), value.shape[0] * value.shape[1] * value.shape[2], begin, last[name])
        for name, begin in first.items()
        for value in [network.values[name]]
    ]  # fmt: skip


def _write(step: Step, network: IntegerNetwork, patch_bytes: int, *, is_planar: bool) -> Written | None:
    if is_alias(step, network):
        return None
    is_planar = is_planar and network.input in step.sources
    try:
        if isinstance(step, Convolution):
            source, output = network.values[step.source], network.values[step.output]
            return write_convolution(step, source, output, patch_bytes=patch_bytes, is_planar=is_planar)
        if isinstance(step, Winograd):
            return write_winograd(step, network, patch_bytes=patch_bytes, is_planar=is_planar)
        return write_operation(step, network)
    except ValueError as error:
        raise ValueError(f"{_name(step)!r} can't be written as C: {error}") from error


def _name(step: Step) -> str:
    return step.layer if isinstance(step, Convolution | Winograd) else step.output


# ---- Its text -------------------------------------------------------------------------------------------------------


@dataclass
class _Text:
    """The C source while it is written."""

    program: Program
    name: str
    constants: list[str] = field(default_factory=list)
    functions: dict[str, str] = field(default_factory=dict)  # their texts by what is between the name and the end
    function_names: dict[str, str] = field(default_factory=dict)
    taken: Counter[str] = field(default_factory=Counter)
    calls: list[str] = field(default_factory=list)
    flash_bytes: int = 0

    def __post_init__(self) -> None:
        network = self.program.network
        lengths = network.values[network.output].coding.lengths
        if len(set(lengths)) != 1:
            raise ValueError(
                f"logits must have one fractional length to be compared, and these have {sorted(set(lengths))}"
            )
        self.flash_bytes += network.values[network.input].shape[0]  # its lengths
        self.places = {value: f"t{number:02d}_{name_in_c(value)}" for number, value in enumerate(network.values)}
        for number, step in enumerate(self.program.steps):
            self._add_call(number, step)

    def files(self, example: Tensor) -> dict[str, str]:
        """The text of each file by its name."""
        network, memory = self.program.network, self.program.memory
        value, output = network.values[network.input], network.values[network.output]
        coding = value.coding
        parts = {
            "NAME": self.name,
            "UPPER": self.name.upper(),
            "CHANNELS": value.shape[0],
            "HEIGHT": value.shape[1],
            "WIDTH": value.shape[2],
            "INPUT_SIZE": _count(value.shape),
            "INPUT_TYPE": type_of(coding).name,
            "INPUT_BITS": coding.bits,
            "IS_SIGNED": int(coding.signed),
            "SIGNED": "with a sign" if coding.signed else "without a sign",
            "INPUT_LOWEST": coding.lowest,
            "INPUT_HIGHEST": coding.highest,
            "INPUT_LENGTHS": ", ".join(map(str, coding.lengths)),
            "OUTPUT_SIZE": _count(output.shape),
            "OUTPUT_LENGTH": output.coding.lengths[0],
            "FLASH_BYTES": self.flash_bytes,
            "RAM_BYTES": memory.ram_bytes,
        }
        run = self._run_body()
        functions = "\n".join(self.functions.values())
        source = code(
            SOURCE,
            ARENAS="\n".join(
                f"static {arena.name} {_arena_name(arena)}[{size // arena.size_bytes}];"
                for arena, size in memory.arena_bytes.items()
            ),
            CONSTANTS="\n".join(self.constants),
            FUNCTIONS=_helpers(functions) + functions,
            RUN=run,
            **parts,
        )
        logits = IntegerRunner(network).run(example)[0].tolist()
        expected = code(EXPECTED, INPUT=_numbers(example.flatten().tolist()), LOGITS=_numbers(logits), **parts)
        readme = code(README, ARENA_LINES=_arena_lines(memory), OPERATIONS="\n".join(self._operation_lines()), **parts)
        return {
            "README.txt": readme,
            f"{self.name}.h": code(HEADER, **parts),
            f"{self.name}.c": source,
            "main.c": code(MAIN, **parts),
            "expected.h": expected,
        }

    def _operation_lines(self) -> Iterable[str]:
        for number, (step, written) in enumerate(zip(self.program.steps, self.program.written, strict=True)):
            yield f"  {number + 1}: {_title(step, written)}"

    def _add_call(self, number: int, step: Step) -> None:
        written = self.program.written[number]
        self.calls.append(f"\n/* {number + 1}: {_title(step, written)} */")
        if written is None:
            return
        arguments = [self._pointer(value) for _, value in written.sources]
        for constant in written.constants:
            constant_name = f"c{number + 1:02d}_{name_in_c(_name(step))}_{constant.argument}"
            self.constants.append(constant.text(constant_name))
            self.flash_bytes += constant.size_bytes
            arguments.append(constant_name)
        arguments += [self._address(scratch_name(number, each.argument)) for each in written.scratch]
        arguments.append(self._pointer(step.output))
        self.calls.append(f"{self._function(written, step)}({', '.join(arguments)});")

    def _function(self, written: Written, step: Step) -> str:
        """The name of the function that does it, made unless one like it is there."""
        for helper in written.helpers:
            self.functions.setdefault(helper, helper)
        values = self.program.network.values
        parameters = [
            *(
                f"const {type_of(values[value].coding).name} *restrict {argument}"
                for argument, value in written.sources
            ),
            *(f"const {each.type.name} *restrict {each.argument}" for each in written.constants),
            *(f"{each.type.name} *restrict {each.argument}" for each in written.scratch),
            f"{type_of(values[step.output].coding).name} *restrict output",
        ]
        rest = "(\n    " + ",\n    ".join(parameters) + ")\n" + indented(f"{{\n{written.body}}}")
        if rest not in self.functions:
            self.taken[written.kind] += 1
            count = self.taken[written.kind]
            self.function_names[rest] = written.kind if count == 1 else f"{written.kind}_v{count}"
            self.functions[rest] = f"/* {written.purpose} */\nstatic void {self.function_names[rest]}{rest}"
        return self.function_names[rest]

    def _pointer(self, value: str) -> str:
        root = self.program.roots[value]
        is_given = root == self.program.network.input and not self.program.is_input_copied
        return "input" if is_given else self.places[root]

    def _address(self, buffer_name: str) -> str:
        memory = self.program.memory
        buffer = memory.buffers[buffer_name]
        arena = _arena_name(buffer.arena)
        cast = "" if buffer.type == buffer.arena and buffer.type.signed else f"({buffer.type.name} *)"
        return f"{cast}{arena} + {memory.offsets[buffer_name] // buffer.type.size_bytes}"

    def _run_body(self) -> str:
        network, values = self.program.network, self.program.network.values
        lines = []
        for value, root in self.program.roots.items():
            if value == root and self._pointer(value) != "input":
                tensor = values[value]
                shape, coding = "x".join(map(str, tensor.shape)), tensor.coding
                lines.append(
                    f"{type_of(coding).name} *const {self.places[value]} = {self._address(tensor_name(value))}; "
                    f"/* {shape}, {coding.bits} bits, {_lengths_text(coding.lengths)} */"
                )
        if self.program.is_input_copied:
            lines += ["", "/* The input with its channels last */", *_turned(values[network.input].shape, "input",
                      self.places[network.input], is_planar_source=True)]  # fmt: skip
        lines += [line for call in self.calls for line in call.split("\n")]
        lines += ["", "/* The logits */"]
        lines += _turned(values[network.output].shape, self._pointer(network.output), "logits", is_planar_source=False)
        return indented("\n".join(lines), depth=1).rstrip("\n")


def _turned(shape: tuple[int, int, int], source: str, target: str, *, is_planar_source: bool) -> list[str]:
    """C code that copies between channels first and channels last."""
    channels, pixels = shape[0], shape[1] * shape[2]
    planar, last = f"channel * {pixels} + pixel", f"pixel * {channels} + channel"
    from_place, to_place = (planar, last) if is_planar_source else (last, planar)
    return [
        f"for (int32_t channel = 0; channel < {channels}; channel++) {{",
        f"for (int32_t pixel = 0; pixel < {pixels}; pixel++) {{",
        f"{target}[{to_place}] = {source}[{from_place}];",
        "}",
        "}",
    ]


def _title(step: Step, written: Written | None) -> str:
    if written is None:
        assert isinstance(step, Reshape)
        return f"reshape to {words_in_comment(step.output)}: the same memory"
    return written.title


def _helpers(functions: str) -> str:
    """The small functions that these use."""
    texts = [
        text.format(bits=bits)
        for bits in (32, 64)
        for text in _used_helpers(functions, bits)
    ]  # fmt: skip
    return "".join(f"{text}\n" for text in texts)


def _used_helpers(functions: str, bits: int) -> list[str]:
    used: list[str] = []
    for sign, text in reversed(HELPERS.items()):
        if sign.format(bits=bits) in functions + "".join(used).format(bits=bits):
            used.insert(0, text)
    return used


def _arena_name(arena: CType) -> str:
    return f"arena{arena.bits}"


def _arena_lines(memory: MemoryPlan) -> str:
    return "\n".join(f"    {size} of them in {_arena_name(arena)}" for arena, size in memory.arena_bytes.items())


def _lengths_text(lengths: tuple[int, ...]) -> str:
    least, most = min(lengths), max(lengths)
    return f"length {least}" if least == most else f"lengths {least} to {most}"


def _numbers(numbers: list[int]) -> str:
    return re.sub(r"((?:[^,]+,){16}) ", r"\1\n", ", ".join(map(literal, numbers)))


def _count(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]
