"""What a compiled program does on each chip, counted in its text: FLOPs of matrix products, bytes of collectives, and
bytes that go to and from the chip's main memory.

`Compiled.cost_analysis()` counts the body of a loop once, whatever its number of turns, and nothing inside of a kernel;
layers are a loop here, and attention is a kernel.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_ELEMENT_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2}  # of others, the bits are in the name
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\](\{[^}]*\})?")
# Of the TPU compiler's layouts: an array that lies in vector memory, not in the chip's main memory.
_IN_VECTOR_MEMORY = "S(1)"
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Products of [T, D] with [D, T], or the like, that a kernel does for each head (of queries).
_KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}

Shape = tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one chip, in one run of the program.

    Attributes:
      flops: of matrix products and of attention kernels, half of whose products are masked.
      sent_bytes: kind of collective -> bytes that a chip sends on a ring: of an array of S bytes over n chips,
        S (n-1)/n for a gather, a scatter or an exchange, twice that for an all-reduce, S for a permutation.
      memory_bytes: read from the chip's main memory and written to it (of programs for TPUs). Of an array that is
        sliced or updated where it lies, the slice alone counts; of conditionals all branches do.
    """

    flops: float
    sent_bytes: dict[str, float]
    memory_bytes: float = 0


class _Instruction(NamedTuple):
    name: str
    shapes: list[Shape]  # of the result; a tuple has several
    in_memory: list[bool]  # whether each of them lies in the chip's main memory
    operation: str
    operands: list[str]
    attributes: str  # what follows the bracket, operands included


def count(text: str, turns_of_others: int | None = None) -> Work:
    """Counts in the text of an optimised module (`Compiled.as_text()`).

    Args:
      turns_of_others: of loops whose number of turns is not a constant.

    Raises: ValueError for such a loop if that is None.
    """
    computations, entry = _parse(text)
    flops, moved, sent = 0.0, 0.0, Counter()
    for name, turns, in_fusion in _reached(computations, entry, 1, False, turns_of_others):
        body = computations[name]
        shapes = {instruction.name: instruction.shapes for instruction in body}
        by_name = {instruction.name: instruction for instruction in body}
        # One that runs beside other work stands in several fusions, and begins in one of them.
        counted = not in_fusion or any('"AsyncCollectiveStart"' in instruction.attributes for instruction in body)
        for instruction in body:
            kind = instruction.operation.removesuffix("-start")
            if not in_fusion:
                moved += turns * _memory_bytes(instruction, by_name, computations)
            if instruction.operation in ("convolution", "dot"):
                flops += turns * _product_flops(instruction, shapes)
            elif instruction.operation == "custom-call":
                flops += turns * _kernel_flops(instruction, shapes)
            elif kind in _COLLECTIVES and counted:
                sent[kind] += turns * _sent_bytes(kind, instruction)
    return Work(flops, dict(sent), moved)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            name = begins[2]
            computations[name] = []
            entry = name if begins[1] else entry
        elif name and (found := _INSTRUCTION.match(line)):
            operands = re.findall(r"%([\w.-]+)", found[4].partition("), ")[0])
            layouts = [layout for _, _, layout in _SHAPE.findall(found[2])]
            in_memory = [_IN_VECTOR_MEMORY not in layout for layout in layouts]
            computations[name].append(
                _Instruction(found[1], _shapes(found[2]), in_memory, found[3], operands, found[4])
            )
    return computations, entry


def _reached(
    computations: Mapping[str, list[_Instruction]], name: str, turns: int, in_fusion: bool, of_others: int | None
) -> Iterator[tuple[str, int, bool]]:
    """(computation, how often it runs, whether it is a fusion) for each call of each computation that holds work."""
    yield name, turns, in_fusion
    for instruction in computations[name]:
        operation, text = instruction.operation, instruction.attributes
        called, times, fused = [], turns, in_fusion or operation == "fusion"
        if operation == "while":
            body, condition = (re.search(rf"{part}=%?([\w.-]+)", text)[1] for part in ("body", "condition"))
            called, times = [body], turns * _turns(computations[condition], computations[body], of_others)
        elif operation in ("fusion", "call", "async-start"):
            called = re.findall(r"(?:calls|to_apply)=%?([\w.-]+)", text)
        elif operation == "conditional" and (branches := re.search(r"branch_computations=\{([^}]*)\}", text)):
            called = re.findall(r"[\w.-]+", branches[1])
        for computation in called:
            yield from _reached(computations, computation, times, fused, of_others)


def _turns(condition: list[_Instruction], body: list[_Instruction], of_others: int | None) -> int:
    """Of a loop that counts from 0 up to a constant; what it adds is not 1 where the compiler unrolled it."""
    ends = [_constant(instruction) for instruction in condition if instruction.operation == "constant"]
    counters = [instruction for instruction in condition if instruction.operation == "get-tuple-element"]
    if len(ends) != 1 and of_others is not None:
        return of_others
    if len(ends) != 1 or len(counters) != 1:
        raise ValueError(f"a loop ends by {[instruction.operation for instruction in condition]}")
    by_name = {instruction.name: instruction for instruction in body}
    index = int(re.search(r"index=(\d+)", counters[0].attributes)[1])
    operands = [by_name[name] for name in by_name[body[-1].operands[index]].operands]
    [step] = [_constant(operand) for operand in operands if operand.operation == "constant"] or [1]
    return math.ceil(ends[0] / step)


def _constant(instruction: _Instruction) -> int:
    return int(re.match(r"(\d+)\)", instruction.attributes)[1])


def _shapes(text: str) -> list[Shape]:
    return [(kind, tuple(map(int, sizes.split(","))) if sizes else ()) for kind, sizes, _ in _SHAPE.findall(text)]


def _bytes(shape: Shape) -> float:
    kind, sizes = shape
    return math.prod(sizes) * (_ELEMENT_BYTES.get(kind) or int(re.sub(r"\D", "", kind)) / 8)


# These name arrays, and move nothing; what a loop or a branch does is counted in it.
_NAMES = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "copy-done",
    "partition-id", "after-all",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")


def _memory_bytes(
    instruction: _Instruction,
    by_name: Mapping[str, _Instruction],
    computations: Mapping[str, list[_Instruction]],
) -> float:
    if instruction.operation in _NAMES or instruction.operation.endswith("-done"):
        return 0.0
    body = _fused(instruction, computations)
    read = 0.0
    for place, name in enumerate(instruction.operands):
        operand = by_name.get(name)
        if operand is None or len(operand.shapes) != 1 or not operand.in_memory[0]:
            continue
        whole = _bytes(operand.shapes[0])
        if body:
            read += min(whole, _used_bytes(place, body, computations))
        elif instruction.operation in _SLICES and not place:
            read += min(whole, sum(map(_bytes, instruction.shapes)))
        elif instruction.operation != "dynamic-update-slice" or place:
            read += whole
    if body:
        root, parts = body[-1], {part.name: part for part in body}
        results = [parts.get(name) for name in root.operands] if root.operation == "tuple" else [root]
        written = [_written_bytes(result, parts) for result in results]
    elif instruction.operation == "dynamic-update-slice":
        written = [_bytes(by_name[instruction.operands[1]].shapes[0])]
    else:
        written = [_bytes(shape) for shape in instruction.shapes]
    if instruction.operation.endswith("-start"):
        written = written[:1]  # the others are the operand, and a context
    return read + sum(
        size for size, in_memory in zip(written, instruction.in_memory, strict=False) if in_memory and size is not None
    )


def _fused(instruction: _Instruction, computations: Mapping[str, list[_Instruction]]) -> list[_Instruction]:
    """What a fusion consists of; nothing for other instructions."""
    called = re.search(r"calls=%?([\w.-]+)", instruction.attributes) if instruction.operation == "fusion" else None
    return computations.get(called[1], []) if called else []


def _used_bytes(place: int, body: list[_Instruction], computations: Mapping[str, list[_Instruction]]) -> float:
    """How much of a parameter a fusion reads."""
    found = [part.name for part in body if part.operation == "parameter" and part.attributes.startswith(f"{place})")]
    total, names = 0.0, set(found)
    for user in body:
        if not names & set(user.operands):
            continue
        first = user.operands[0] in names
        if user.operation == "bitcast":
            names.add(user.name)
        elif user.operation in _SLICES and first:
            total += sum(map(_bytes, user.shapes))
        elif inner := _fused(user, computations):
            places = [number for number, name in enumerate(user.operands) if name in names]
            total += sum(_used_bytes(number, inner, computations) for number in places)
        elif user.operation != "dynamic-update-slice" or not first:
            return math.inf
    return total


def _written_bytes(result: _Instruction | None, parts: Mapping[str, _Instruction]) -> float | None:
    """How much of a fusion's result is written: of an array that is updated where it lies, the update."""
    while result is not None and result.operation == "bitcast":
        result = parts.get(result.operands[0])
    if result is None:
        return None
    if result.operation == "dynamic-update-slice":
        return _bytes(parts[result.operands[1]].shapes[0])
    return sum(map(_bytes, result.shapes))


def _product_flops(instruction: _Instruction, shapes: Mapping[str, list[Shape]]) -> float:
    """Twice the elements of the result, times the sizes that are summed over."""
    [(_, result)] = instruction.shapes
    left = shapes[instruction.operands[0]][0][1]
    if instruction.operation == "dot":
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
        return 2.0 * math.prod(result) * math.prod(left[int(axis)] for axis in summed.split(",") if axis)
    labels, kernel_labels, result_labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    kernel = shapes[instruction.operands[1]][0][1]
    products = float(left[labels.index("f")])
    for label in filter(str.isdigit, labels):
        sizes = (left[labels.index(label)], kernel[kernel_labels.index(label)], result[result_labels.index(label)])
        products *= _window_products(instruction.attributes, int(label), *sizes) / sizes[2]
    return 2.0 * math.prod(result) * products


def _window_products(attributes: str, axis: int, left: int, kernel: int, result: int) -> int:
    """Pairs of an element and a weight that meet along a spatial axis, as which the compiler writes parts and batches
    of a matrix product."""
    window = re.search(r"window=\{([^}]*)\}", attributes)
    given = dict(part.split("=") for part in window[1].split()) if window else {}

    def of_axis(name: str, default: str) -> str:
        return given[name].split("x")[axis] if name in given else default

    stride, dilation, spread = (int(of_axis(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate"))
    before = int(of_axis("pad", "0_0").split("_")[0])
    places = (o * stride - before + k * dilation for o in range(result) for k in range(kernel))
    return sum(place % spread == 0 and 0 <= place // spread < left for place in places)


def _kernel_flops(instruction: _Instruction, shapes: Mapping[str, list[Shape]]) -> float:
    products = next((n for name, n in _KERNEL_PRODUCTS.items() if instruction.name.startswith(name)), 0)
    # Queries, keys and values are the only arrays of rank 3 ([heads, tokens, size]) or 4 (rows of those); queries have
    # the most heads.
    given = [sizes for name in instruction.operands for _, sizes in shapes.get(name, ()) if len(sizes) >= 3]
    queries = max(given, key=math.prod, default=(0, 0))
    return products * 2.0 * math.prod(queries) * queries[-2] / 2


def _sent_bytes(kind: str, instruction: _Instruction) -> float:
    n = _group_size(instruction.attributes)
    results = instruction.shapes
    if instruction.operation.endswith("-start") and kind != "all-reduce":
        arrays = [shape for shape in results if shape != ("u32", ())]  # of (operands, results, contexts)
        results = arrays[len(arrays) // 2 :]
    size = sum(map(_bytes, results))
    if kind == "collective-permute":
        return size
    return {"reduce-scatter": n, "all-reduce": 2}.get(kind, 1) * size * (n - 1) / n


def _group_size(attributes: str) -> int:
    """Chips that take part in one collective, of the three forms in which XLA writes them."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(counted[1])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    return len(listed[1].split(",")) if listed else 1
