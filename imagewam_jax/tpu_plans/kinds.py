"""Tells what kind of work an operation of a compiled program is.

The TPU compiler writes products of matrices as convolutions, fuses them with what surrounds them,
and calls a fusion by one of its parts. So the kind is read from what an operation contains, from
what JAX calls its main part, and from the function of this package that it comes from.
"""

from collections.abc import Iterator

from imagewam_jax.tpu_plans.hlo import Instruction, Module
from imagewam_jax.tpu_plans.sources import Stacks, op_name, stack_of

PRODUCTS, ATTENTION, CONVOLUTIONS = "products", "attention", "convolutions"
COPIES, NORMS, SLICES = "copies and pads", "norms", "slices"
ELEMENTWISE, OTHER = "elementwise", "other"
KINDS = (PRODUCTS, ATTENTION, CONVOLUTIONS, COPIES, NORMS, SLICES, ELEMENTWISE, OTHER)

# The module of this package whose products and softmax are attention, and what its products are
# called in a program that does not say which functions called them.
_ATTENTION_MODULE = "imagewam_jax/models/attention"
_ATTENTION_NAMES = ("bsnh,btnh->bnst", "bnst,btnh->bsnh")
_MOVES = {"copy", "pad", "transpose", "reshape", "concatenate", "reverse", "broadcast"}
_TAKES = {"slice", "dynamic-slice", "dynamic-update-slice", "gather", "scatter"}
_TAKE_NAMES = {"dynamic_slice", "dynamic_update_slice", "gather", "slice", "squeeze", "scatter"}
# What a fusion that only moves data has beside that.
_NEUTRAL = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "iota", "fusion"}

_OTHER = {"custom-call", "sort", "rng", "rng-bit-generator", "fft", "cholesky", "triangular-solve"}


def kind_of(module: Module, instruction: Instruction, stacks: Stacks) -> str:
    """One of `KINDS`: that of an instruction that is in no fusion.

    products: of matrices, outside attention, whatever is fused with them. attention: products,
    softmax and masks of `models.attention`, forward and backward. convolutions: those of the
    autoencoder. copies and pads: what changes nothing but places, in attention as well. norms:
    what comes from a function or class with "norm" in its name, or else reductions. slices: parts
    taken out of arrays or put into them. elementwise: the rest, but for other: kernels and
    algorithms such as sorting.
    """
    parts = list(_parts(module, instruction))
    products = [part for part in parts if _is_product(part)]
    if any("conv_general_dilated" in op_name(part) for part in products):
        return CONVOLUTIONS
    if products:
        # A projection that is fused with attention outweighs it.
        in_attention = all(_is_attention(part, stacks) for part in products)
        return ATTENTION if in_attention else PRODUCTS
    named = main_part(module, instruction)
    last = _last(op_name(named))
    if moves := _moves(parts, last):
        return moves
    if _is_attention(named, stacks):
        return ATTENTION
    if last == "dot_general":  # of a vector, written as a sum
        return PRODUCTS
    if last in _TAKE_NAMES:
        return SLICES
    if _is_norm(named, last, stacks):
        return NORMS
    return OTHER if instruction.opcode in _OTHER else ELEMENTWISE


def main_part(module: Module, instruction: Instruction) -> Instruction:
    """What names an instruction: itself, or the last part with a name of a fusion that has none."""
    if op_name(instruction) or instruction.opcode != "fusion":
        return instruction
    named = [part for part in _parts(module, instruction) if op_name(part)]
    return named[-1] if named else instruction


def _parts(module: Module, instruction: Instruction) -> Iterator[Instruction]:
    """The instruction itself, or what a fusion consists of, with fusions in it."""
    if instruction.opcode != "fusion":
        yield instruction
        return
    for inner in module.computations[instruction.attribute("calls")].instructions.values():
        yield from _parts(module, inner)


def _is_product(part: Instruction) -> bool:
    """Whether a part is a product or convolution of the program, and not a sum written as one."""
    if part.opcode not in ("dot", "convolution"):
        return False
    return not _last(op_name(part)).startswith("reduce")


def _moves(parts: list[Instruction], last: str) -> str | None:
    """The kind of an operation that computes nothing but places; None: it computes something."""
    arrays = [part for part in parts if _is_array(part) and part.opcode not in _NEUTRAL]
    opcodes = {part.opcode for part in arrays}
    if last == "concatenate" and "pad" in opcodes:
        opcodes -= {"maximum", "select", "or"}  # the parts are padded and laid over each other
    if not opcodes or not opcodes <= _MOVES | _TAKES:
        return None
    return SLICES if opcodes & _TAKES else COPIES


def _is_array(part: Instruction) -> bool:
    """Whether a part makes more than one number; positions are computed from single ones."""
    return any(array.shape for array in part.types)


def _is_attention(instruction: Instruction, stacks: Stacks) -> bool:
    if any(f"/{_ATTENTION_MODULE}" in f"/{f.file}" for f in stack_of(instruction, stacks)):
        return True
    return any(name in op_name(instruction) for name in _ATTENTION_NAMES)


def _is_norm(instruction: Instruction, last: str, stacks: Stacks) -> bool:
    stack = stack_of(instruction, stacks)
    first = next((place for place, frame in enumerate(stack) if frame.is_ours), len(stack))
    inner = stack[: first + 1]  # a library's functions, up to their caller in this package
    if any(frame.function for frame in inner):
        names = [f"{frame.file.rpartition('/')[2]} {frame.function}" for frame in inner]
        return any("norm" in name.lower() for name in names)
    return last.startswith("reduce")


def _last(name: str) -> str:
    return name.rpartition("/")[2]
