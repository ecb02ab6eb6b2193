"""Counts the bytes that a compiled program reads from and writes to a chip's main memory.

XLA's `cost_analysis` counts the body of a loop once; here loops are multiplied out. Arrays that the
compiler placed in a chip's inner memory do not count; where a fusion reads or writes a slice of an
array, only the slice counts.
"""

from imagewam_jax.tpu_plans.hlo import (
    Computation,
    Instruction,
    Module,
    Runs,
    called,
    fused_computations,
)

# Operations that move nothing: views, constants, and calls of other computations.
_FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "iota",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_SLICES = ("dynamic-slice", "slice", "gather")


def module_bytes(module: Module, runs: Runs) -> int:
    """Bytes read and written in one call on each chip."""
    fused = fused_computations(module)
    return sum(
        count * _computation_bytes(module, module.computations[name])
        for name, count in runs.counts.items()
        if name not in fused
    )


def _computation_bytes(module: Module, computation: Computation) -> int:
    return sum(
        _reads(module, computation, instruction) + _writes(module, computation, instruction)
        for instruction in computation.instructions.values()
        if instruction.opcode not in _FREE
    )


def _reads(module: Module, computation: Computation, instruction: Instruction) -> int:
    operands = instruction.operands
    if instruction.opcode.endswith(("-done", "-update")):  # the start of the operation has read
        return 0
    if instruction.opcode == "fusion":
        inner = module.computations[next(called(module, instruction))]
        parameters = _parameters(inner)
        return sum(
            min(_bytes(computation, name), _used(inner, parameters[place]))
            for place, name in enumerate(operands)
        )
    if instruction.opcode in _SLICES:
        return sum(array.bytes for array in instruction.types if _is_main(computation, operands[0]))
    if instruction.opcode == "dynamic-update-slice":
        return _bytes(computation, operands[1])
    return sum(_bytes(computation, name) for name in operands)


def _writes(module: Module, computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode.endswith(("-start", "-update")):  # the end of the operation writes
        return 0
    whole = sum(array.bytes for array in instruction.types if array.space == 0)
    if instruction.opcode == "dynamic-update-slice":
        return min(whole, computation.instructions[instruction.operands[1]].types[0].bytes)
    if instruction.opcode == "fusion":
        inner = module.computations[next(called(module, instruction))]
        return min(whole, _updated(inner))
    return whole


def _bytes(computation: Computation, name: str) -> int:
    found = computation.instructions.get(name)
    return sum(array.bytes for array in found.types if array.space == 0) if found else 0


def _is_main(computation: Computation, name: str) -> bool:
    found = computation.instructions.get(name)
    return found is not None and found.types[0].space == 0


def _parameters(fused: Computation) -> dict[int, str]:
    return {
        int(instruction.inputs): instruction.name
        for instruction in fused.instructions.values()
        if instruction.opcode == "parameter"
    }


def _used(fused: Computation, name: str) -> int:
    """Bytes of a parameter that a fusion reads."""
    used = 0
    for instruction in fused.instructions.values():
        operands = instruction.operands
        if name not in operands:
            continue
        if instruction.opcode == "bitcast":
            used += _used(fused, instruction.name)
        elif instruction.opcode in _SLICES and operands[0] == name and name not in operands[1:]:
            used += sum(array.bytes for array in instruction.types)
        elif instruction.opcode != "dynamic-update-slice" or name in operands[1:]:
            return sum(array.bytes for array in fused.instructions[name].types)
    return used


def _updated(fused: Computation) -> int:
    """Bytes of its result that a fusion writes."""
    root = fused.instructions[fused.root]
    results = root.operands if root.opcode == "tuple" else [root.name]
    written = 0
    for name in results:
        result = fused.instructions[name]
        while result.opcode == "bitcast":
            result = fused.instructions[result.operands[0]]
        if result.opcode == "dynamic-update-slice":
            result = fused.instructions[result.operands[1]]
        written += sum(array.bytes for array in result.types)
    return written
