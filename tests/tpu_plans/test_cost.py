"""What operations cost: in a program as the TPU compiler writes it, with invented cycles."""

import pytest

from imagewam_jax.errors import PlanError
from imagewam_jax.tpu_plans.assumed import KERNEL_SHARE, Kernel, find_kernels
from imagewam_jax.tpu_plans.cost import Operation, operation_times, operations, seconds_by_kind
from imagewam_jax.tpu_plans.hlo import count_runs, parse_module
from imagewam_jax.tpu_plans.sources import parse_stacks
from imagewam_jax.training.chips import chip_named

V5E = chip_named("v5e")
FLOPS = {"splash_forward": 3e12}


def estimated(cycles: int) -> str:
    return f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'


# A loop of 3 in which a product with an activation, a norm and a kernel run; before it the program
# takes every other column of an array, which the compiler does not estimate.
PROGRAM = f"""\
HloModule jit_f, is_scheduled=true

FileNames
1 "/home/u/imagewam_jax/models/layers.py"
2 "/home/u/imagewam_jax/models/blocks.py"
3 "/usr/lib/site-packages/flax/nnx/normalization.py"
4 "/home/u/imagewam_jax/models/attention/splash.py"

FunctionNames
1 "Linear.__call__"
2 "Block.__call__"
3 "RMSNorm.__call__"
4 "attend"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=66 end_line=66 column=1 end_column=2}}
2 {{file_name_id=2 function_name_id=2 line=49 end_line=49 column=1 end_column=2}}
3 {{file_name_id=3 function_name_id=3 line=12 end_line=12 column=1 end_column=2}}
4 {{file_name_id=4 function_name_id=4 line=81 end_line=81 column=1 end_column=2}}

StackFrames
1 {{file_location_id=2 parent_frame_id=1}}
2 {{file_location_id=1 parent_frame_id=2}}
3 {{file_location_id=3 parent_frame_id=2}}
4 {{file_location_id=4 parent_frame_id=2}}

%fused_product (p0: bf16[512,1024], p1: bf16[1024,1024]) -> bf16[512,1024] {{
  %p0 = bf16[512,1024]{{1,0}} parameter(0)
  %p1 = bf16[1024,1024]{{1,0}} parameter(1)
  %product = bf16[512,1024]{{1,0}} convolution(%p0, %p1), dim_labels=bf_io->bf, \
metadata={{op_name="jit(f)/while/body/dot_general" stack_frame_id=2}}
  ROOT %tanh = bf16[512,1024]{{1,0}} tanh(%product), metadata={{op_name="jit(f)/tanh"}}
}}

%fused_norm (p2: bf16[512,1024]) -> f32[512] {{
  %p2 = bf16[512,1024]{{1,0}} parameter(0)
  ROOT %sum = f32[512]{{0}} reduce(%p2), dimensions={{1}}, to_apply=%add
}}

%body (state: (s32[], bf16[512,1024], bf16[1024,1024])) -> (s32[], bf16[512,1024]) {{
  %state = (s32[], bf16[512,1024]{{1,0}}, bf16[1024,1024]{{1,0}}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %x = bf16[512,1024]{{1,0}} get-tuple-element(%state), index=1
  %w = bf16[1024,1024]{{1,0}} get-tuple-element(%state), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%step, %one)
  %product_fusion = bf16[512,1024]{{1,0}} fusion(%x, %w), kind=kOutput, calls=%fused_product, \
metadata={{op_name="jit(f)/while/body/dot_general" stack_frame_id=2}}, {estimated(15000)}
  %norm_fusion = f32[512]{{0}} fusion(%product_fusion), kind=kLoop, calls=%fused_norm, \
metadata={{op_name="jit(f)/while/body/transpose(jvp(f))/mul" stack_frame_id=3}}, {estimated(3000)}
  %kernel.2 = bf16[512,1024]{{1,0}} custom-call(%product_fusion), \
custom_call_target="tpu_custom_call", \
metadata={{op_name="jit(f)/splash_forward/pallas_call" stack_frame_id=4}}
  ROOT %out = (s32[], bf16[512,1024]{{1,0}}, bf16[1024,1024]{{1,0}}) tuple(%next, %kernel.2, %w)
}}

%condition (state.1: (s32[], bf16[512,1024], bf16[1024,1024])) -> pred[] {{
  %state.1 = (s32[], bf16[512,1024]{{1,0}}, bf16[1024,1024]{{1,0}}) parameter(0)
  %step.1 = s32[] get-tuple-element(%state.1), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%step.1, %three), direction=LT
}}

ENTRY %main (all: bf16[512,2048], weights: bf16[1024,1024]) -> bf16[512,1024] {{
  %all = bf16[512,2048]{{1,0}} parameter(0)
  %weights = bf16[1024,1024]{{1,0}} parameter(1)
  %buffer = bf16[512,1024]{{1,0}} custom-call(), custom_call_target="AllocateBuffer"
  %columns = bf16[512,1024]{{1,0}} slice(%all), slice={{[0:512], [0:2048:2]}}, \
metadata={{op_name="jit(f)/slice" stack_frame_id=1}}
  %inside = bf16[512,1024]{{1,0:T(8,128)S(1)}} reshape(%columns)
  %copied = bf16[1024,1024]{{0,1}} copy(%weights), {estimated(6000)}
  %zero = s32[] constant(0)
  %start = (s32[], bf16[512,1024]{{1,0}}, bf16[1024,1024]{{1,0}}) tuple(%zero, %inside, %copied)
  %while = (s32[], bf16[512,1024]{{1,0}}, bf16[1024,1024]{{1,0}}) while(%start), \
condition=%condition, body=%body
  ROOT %result = bf16[512,1024]{{1,0}} get-tuple-element(%while), index=1
}}
"""


def found(chip=V5E, flops=FLOPS):
    module = parse_module(PROGRAM)
    runs = count_runs(module)
    kernels = find_kernels(module, runs, flops)
    return operations(module, runs, parse_stacks(PROGRAM), operation_times(module, chip, kernels))


def test_operations_by_kind_with_runs_and_lines():
    """v5e makes 1.5e9 cycles a second; a loop's operations count as often as it runs."""
    moved = 2 * 512 * 1024 * 2 / 819e9
    expected = {
        # Half of 197 TFLOP/s.
        ("attention", "splash_forward/pallas_call", True, 3, "models/attention/splash.py:81"): (
            2 * 3e12 / 197e12
        ),
        ("products", "f/dot_general", False, 3, "models/layers.py:66"): 3 * 15000 / 1.5e9,
        # What a library's norm computes is called where this package calls it.
        ("norms", "backward f/mul", False, 3, "models/blocks.py:49"): 3 * 3000 / 1.5e9,
        ("copies and pads", "copy", False, 1, ""): 6000 / 1.5e9,
        ("slices", "f/slice", True, 1, "models/blocks.py:49"): moved,
    }
    rows = {}
    for row in found():
        source = row.source.partition(", from")[0]
        rows[row.kind, row.name, row.is_assumed, row.runs, source] = row.seconds
    assert rows == pytest.approx(expected)
    assert list(rows) == list(expected)  # the dearest first
    assert found()[1].source == "models/layers.py:66, from models/blocks.py:49"
    assert found()[1].result == "bf16[512,1024]"


def test_kinds_are_summed():
    sums = seconds_by_kind(found())
    assert list(sums) == ["attention", "products", "norms", "copies and pads", "slices"]
    assert sum(sums.values()) == pytest.approx(sum(row.seconds for row in found()))


def test_another_clock_is_another_time():
    v5p, v5e = ({row.name: row.seconds for row in found(chip)} for chip in (chip_named("v5p"), V5E))
    assert v5e["f/dot_general"] / v5p["f/dot_general"] == pytest.approx(1.75 / 1.50)
    with pytest.raises(PlanError, match="the clock of v4 is not known"):
        found(chip_named("v4"))


def test_a_kernel_takes_its_products_or_its_bytes():
    module = parse_module(PROGRAM)
    (kernel,) = find_kernels(module, count_runs(module), FLOPS).values()
    moved = 3 * 2 * 512 * 1024 * 2  # an operand and a result
    assert kernel == Kernel("splash_forward", 3, 3e12, moved)
    assert kernel.seconds(V5E, 1.0) == pytest.approx(3e12 / 197e12)
    # A kernel without products, or one that was not traced, is still not free.
    (copying,) = find_kernels(module, count_runs(module), {}).values()
    assert copying.seconds(V5E, KERNEL_SHARE) == pytest.approx(moved / 819e9)
    rows: list[Operation] = [row for row in found(flops={}) if row.kind == "attention"]
    assert [row.seconds for row in rows] == [pytest.approx(moved / 819e9)]


def test_a_collective_in_a_fusion_is_not_assumed_to_move_its_result():
    scatter = """\
%all-reduce-scatter.1 (p3: bf16[1024,1024]) -> bf16[512,1024] {
  %p3 = bf16[1024,1024]{1,0} parameter(0)
  %sum.1 = bf16[1024,1024]{1,0} all-reduce(%p3), channel_id=9, replica_groups={{0,1}}
  ROOT %part = bf16[512,1024]{1,0} dynamic-slice(%sum.1)
}

ENTRY"""
    changed = PROGRAM.replace("ENTRY", scatter).replace(
        "  %zero = ",
        "  %scattered = bf16[512,1024]{1,0} fusion(%weights), calls=%all-reduce-scatter.1\n"
        "  %zero = ",
    )
    module = parse_module(changed)
    kernels = find_kernels(module, count_runs(module), {})
    times = operation_times(module, V5E, kernels)
    assert ("main", "columns") in times and ("main", "scattered") not in times
