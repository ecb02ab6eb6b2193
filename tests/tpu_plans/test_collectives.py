"""Collectives and FLOPs of compiled programs: of small ones whose volumes are known, on four
virtual devices, and of lines as the TPU compiler writes them."""

import functools
import json
import os
import subprocess
import sys

import pytest

from imagewam_jax.tpu_plans.collectives import collective_volumes
from imagewam_jax.tpu_plans.flops import module_flops
from imagewam_jax.tpu_plans.hlo import count_runs, parse_module
from tests.tpu_plans.sharded_programs import FLAGS, ROWS, STEPS, WIDTH

WHOLE = 4 * ROWS * WIDTH  # bytes of the array in the small programs
SHARD = WHOLE // 4


@functools.cache
def programs() -> dict:
    command = [sys.executable, "-m", "tests.tpu_plans.sharded_programs"]
    environment = {**os.environ, **FLAGS}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("program", "kind", "count", "payload", "wire"),
    [
        ("gather", "all-gather", 1, WHOLE, 3 * SHARD),
        ("scatter", "reduce-scatter", 1, WHOLE, 3 * SHARD),
        ("reduce", "all-reduce", 1, SHARD, 2 * SHARD * 3 / 4),
        # Between two chips with a quarter each.
        ("reduce_in_pairs", "all-reduce", 1, SHARD, SHARD),
        ("exchange", "all-to-all", 1, SHARD, SHARD * 3 / 4),
        ("permute", "collective-permute", 1, SHARD, SHARD),
        ("loop", "all-reduce", STEPS, STEPS * SHARD, STEPS * 2 * SHARD * 3 / 4),
        ("nested", "all-reduce", 3 * STEPS, 3 * STEPS * SHARD, 3 * STEPS * 2 * SHARD * 3 / 4),
        ("partitioned", "all-reduce", 1, WHOLE, 2 * WHOLE * 3 / 4),
    ],
)
def test_known_volumes(program, kind, count, payload, wire):
    found = programs()[program]
    assert set(found["volumes"]) == {kind} and not found["unknown"]
    volume = found["volumes"][kind]
    assert (volume["count"], volume["payload"], volume["wire"]) == (count, payload, wire)


def test_flops_of_one_device_and_all_iterations():
    rows = ROWS // 4
    assert programs()["products"]["flops"] == STEPS * 2 * 2 * rows * rows * WIDTH
    assert programs()["partitioned"]["flops"] == 2 * ROWS * WIDTH * WIDTH // 4


# Shortened from what libtpu writes: a loop of 6 whose trip count is in its condition alone, a
# gather in three fusions that run beside other work, and a scatter written as a reduction.
TPU = """\
HloModule jit_train, is_scheduled=true, num_partitions=16, replica_count=1

%start_fusion (p0: bf16[256,1024]) -> (bf16[256,1024], bf16[1024,1024]) {
  %p0 = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather(%p0), channel_id=24, \
replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}
  ROOT %tuple.1 = (bf16[256,1024]{1,0}, bf16[1024,1024]{1,0}) tuple(%p0, %all-gather.1)
}

%done_fusion (p1: bf16[256,1024]) -> bf16[1024,1024] {
  %p1 = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-gather(%p1), channel_id=24, \
replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}
}

%all-reduce-scatter.clone.1 (input.5: bf16[1024,4096]) -> bf16[512,4096] {
  %input.5 = bf16[1024,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.11 = bf16[1024,4096]{1,0:T(8,128)(2,1)} all-reduce(%input.5), channel_id=9, \
replica_groups={{0,1},{2,3}}, use_global_device_ids=true, to_apply=%add.clone
  ROOT %dynamic-slice.39 = bf16[512,4096]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.11)
}

%body (wide: (s32[], bf16[256,1024], /*index=2*/bf16[1024,4096])) -> (s32[], bf16[256,1024]) {
  %wide = (s32[]{:T(128)}, bf16[256,1024]{1,0}, /*index=2*/bf16[1024,4096]{1,0}) parameter(0)
  %gte.0 = s32[]{:T(128)} get-tuple-element(%wide), index=0
  %gte.1 = bf16[256,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%wide), index=1
  %gte.2 = bf16[1024,4096]{1,0:T(8,128)(2,1)} get-tuple-element(%wide), index=2
  %constant.1 = s32[]{:T(128)} constant(1)
  %add.1 = s32[]{:T(128)} add(%gte.0, %constant.1)
  %start = (bf16[256,1024]{1,0:S(1)}, bf16[1024,1024]{1,0:S(1)}) fusion(%gte.1), kind=kCustom, \
calls=%start_fusion
  %done = bf16[1024,1024]{1,0:T(8,128)S(1)} fusion(%gte.1), kind=kCustom, calls=%done_fusion
  %scattered = bf16[512,4096]{1,0:T(8,128)(2,1)} fusion(%gte.2), kind=kCustom, \
calls=%all-reduce-scatter.clone.1
  %all-reduce.12 = bf16[512,4096]{1,0} all-reduce(%scattered), channel_id=10, \
replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_1'}, to_apply=%add.clone
  %permute = (bf16[256,1024]{1,0}, bf16[256,1024]{1,0}, u32[]{:S(2)}) \
collective-permute-start(%gte.1), channel_id=2, source_target_pairs={{0,4},{4,8},{8,12},{12,0}}
  %permuted = bf16[256,1024]{1,0} collective-permute-done(%permute)
  ROOT %tuple.2 = (s32[]{:T(128)}, bf16[256,1024]{1,0}, bf16[1024,4096]{1,0}) \
tuple(%add.1, %permuted, %gte.2)
}

%condition (wide.1: (s32[], bf16[256,1024], /*index=2*/bf16[1024,4096])) -> pred[] {
  %wide.1 = (s32[]{:T(128)}, bf16[256,1024]{1,0}, bf16[1024,4096]{1,0}) parameter(0)
  %gte.3 = s32[]{:T(128)} get-tuple-element(%wide.1), index=0
  %constant.6 = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[]{:T(512)} compare(%gte.3, %constant.6), direction=LT
}

ENTRY %main (param.0: bf16[256,1024], param.1: bf16[1024,4096]) -> bf16[256,1024] {
  %param.0 = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %param.1 = bf16[1024,4096]{1,0:T(8,128)(2,1)} parameter(1)
  %constant.0 = s32[]{:T(128)} constant(0)
  %copy.0 = s32[]{:T(128)} copy(%constant.0)
  %tuple.0 = (s32[], bf16[256,1024]{1,0}, bf16[1024,4096]{1,0}) tuple(%copy.0, %param.0, %param.1)
  %while = (s32[], bf16[256,1024]{1,0}, bf16[1024,4096]{1,0}) while(%tuple.0), \
condition=%condition, body=%body
  %gte.4 = bf16[256,1024]{1,0} get-tuple-element(%while), index=1
  %weights = bf16[1024,64]{1,0} parameter(2)
  ROOT %convolution = bf16[256,64]{1,0} convolution(%gte.4, %weights), dim_labels=bf_io->bf
}
"""


def test_lines_of_the_tpu_compiler():
    module = parse_module(TPU)
    runs = count_runs(module)
    assert module.partitions == 16 and not runs.unknown
    assert runs.counts["body"] == runs.counts["done_fusion"] == 6
    volumes = collective_volumes(module, runs)
    mib = 2**20
    assert {kind: (v.count, v.payload, v.wire, dict(v.groups)) for kind, v in volumes.items()} == {
        # 2 MiB whole, of which each chip has a quarter.
        "all-gather": (6, 6 * 2 * mib, 6 * 1.5 * mib, {4: 6}),
        "reduce-scatter": (6, 6 * 8 * mib, 6 * 4 * mib, {2: 6}),
        "all-reduce": (6, 6 * 4 * mib, 6 * 2 * 4 * mib * 7 / 8, {8: 6}),
        "collective-permute": (6, 6 * mib / 2, 6 * mib / 2, {16: 6}),
    }


def test_a_kernel_says_things_about_itself_on_lines_of_their_own():
    kernel = """  %kernel = bf16[8]{0} custom-call(%p), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block\\": 8}"
}}, backend_config={}
  %p"""
    module = parse_module(TPU.replace("  %p", kernel, 1))
    expected = parse_module(TPU)
    (name,) = [n for n, c in module.computations.items() if "kernel" in c.instructions]
    instructions = module.computations[name].instructions
    assert set(instructions) == {"kernel", *expected.computations[name].instructions}
    assert instructions["kernel"].attributes.endswith("backend_config={}")


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("[4,4]<=[16]", 4),
        ("[2,8]<=[4,4]T(1,0)", 8),
        ("{{0,1},{2,3}}", 2),
        ("mesh['axis_0'=2,'axis_1'=8] {'axis_0'}", 2),
        ("mesh['axis_0'=2,'axis_1'=8] {'axis_1':(2)4}", 4),
        ("mesh['axis_0'=8,'axis_1'=1,'axis_2'=2], device_ids=([2,8]T(1,0)) {'axis_0'}", 8),
        ("mesh['axis_0'=2,'axis_1'=4,'axis_2'=2], device_ids=([16]) {'axis_0','axis_2'}", 4),
    ],
)
def test_the_size_of_a_group_in_each_way_of_writing_it(groups, size):
    """A group of fewer chips than all is not taken for all of them."""
    text = TPU.replace("replica_groups={{0,1},{2,3}}", f"replica_groups={groups}")
    module = parse_module(text)
    (scatter,) = collective_volumes(module, count_runs(module))["reduce-scatter"].groups
    assert scatter == size


def test_a_loop_that_nobody_knows_runs_once_and_is_named():
    module = parse_module(TPU.replace("constant(6)", "parameter(1)"))
    runs = count_runs(module)
    assert runs.unknown == ("while",) and runs.counts["body"] == 1


def test_a_noted_trip_count_is_taken():
    noted = 'body=%body, backend_config={"known_trip_count":{"n":"9"}}'
    assert count_runs(parse_module(TPU.replace("body=%body", noted))).counts["body"] == 9


def test_flops_of_a_product_written_as_a_convolution():
    module = parse_module(TPU)
    assert module_flops(module, count_runs(module)) == 2 * 256 * 64 * 1024
    # One of several fusions does a part of the work: its window meets padding half the time.
    line = "%gte.4, %weights), dim_labels=bf_io->bf"
    parts = TPU.replace("bf16[1024,64]", "bf16[1024,2,64,16]").replace(
        "%weights = ", "%rows = bf16[16,128,1024,1]{3,2,1,0} parameter(3)\n  %weights = "
    )
    parts = parts.replace(
        "ROOT %convolution = bf16[256,64]", "ROOT %convolution = bf16[1,128,2,64]"
    )
    windows = "window={size=2x16 pad=1_1x0_0 rhs_reversal=1x0}, dim_labels=1bf0_i0o1->1b0f"
    module = parse_module(parts.replace(line, f"%rows, %weights), {windows}"))
    assert module_flops(module, count_runs(module)) == 2 * (128 * 64 * 1024) * 2 * 16


def test_text_that_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="ENTRY"):
        parse_module("module @jit_f {\n}\n")
