"""A plan as JSON and as a page, with invented figures."""

import dataclasses
import json

import pytest

from imagewam_jax.errors import PlanError
from imagewam_jax.tpu_plans.assumed import Kernel
from imagewam_jax.tpu_plans.collectives import Volume
from imagewam_jax.tpu_plans.compile import Compiled
from imagewam_jax.tpu_plans.cost import Operation
from imagewam_jax.tpu_plans.estimate import Cost
from imagewam_jax.tpu_plans.floor import Stage
from imagewam_jax.tpu_plans.programs import Counts
from imagewam_jax.tpu_plans.report import Plan, index_rows, plan_from_json

GIB = 2**30
COST = Cost(
    kinds={"products": 0.120, "attention": 0.050, "slices": 0.025},
    assumed={"attention": 0.040, "slices": 0.025},
    kernels=(Kernel("splash", 50, 0.040 * 197e12 / 2, 3_000_000_000),),
    memory_wait=0.005,
    exposed={"all-gather": 0.010},
    operations=(
        Operation("products", "dot", "bf16[8,8]", "models/layers.py:66", False, 50, 0.120),
        Operation("slices", "slice", "bf16[8,4]", "", True, 25, 0.025),
    ),
)
COMPILED = Compiled(
    arguments=5 * GIB,
    temporaries=3 * GIB,
    outputs=5 * GIB,
    aliased=4 * GIB,
    code=GIB // 4,
    flops=19_700_000_000_000,
    cost=COST,
    collectives={"all-gather": Volume(50, 12e9, 4e9, {16: 40, 4: 10})},
    unknown_loops=(),
    seconds=123.4,
)
PLAN = Plan(
    title="4B on v5e-16",
    command="imagewam aot --config=configs/libero.py:4b --topology=v5e:4x4",
    note="Why it is so.",
    topology="v5e:4x4",
    chip="v5e",
    chips=16,
    setup={"mesh": "fsdp 16", "samples": "64, 4 a chip"},
    samples=64,
    memory={"parameters": 3 * GIB, "moving average": 0, "batch": GIB},
    counts=Counts(
        useful=200e12, dense=400e12, autoencoder=10e12, computed=290e12, recomputed=80e12
    ),
    stages=(Stage("all of it", 0.150 * 197e12),),
    compiled=COMPILED,
    shortage="",
    versions={"jax": "0.10.2", "libtpu": "0.0.42"},
)
TIGHT = dataclasses.replace(PLAN, compiled=None, shortage="36 GiB exceed 15.75 GiB")


def test_peak_and_spare():
    assert COMPILED.peak == (5 + 3 + 1 + 0.25) * GIB
    assert PLAN.spare == pytest.approx(1 - 9.25 / 15.75)
    assert TIGHT.peak is None and TIGHT.spare is None and TIGHT.estimate is None
    # The chip holds 2 GiB that the program does not use.
    held = dataclasses.replace(PLAN, memory={"parameters": 3 * GIB, "autoencoder": 4 * GIB})
    assert held.peak == PLAN.peak + 2 * GIB


def test_estimate():
    """A chip of v5e receives 50 GB/s over each of two links, and 200 TFLOP are useful."""
    estimate = PLAN.estimate
    assert estimate.compute_seconds == pytest.approx(0.200)
    assert estimate.seconds == pytest.approx(0.210)
    assert estimate.mfu == pytest.approx(200 / 16 / 197 / 0.210)
    assert estimate.products_share == pytest.approx(0.6)
    assert estimate.floor_seconds == pytest.approx(0.150)
    assert estimate.collectives["all-gather"].seconds == pytest.approx(0.040)


def test_json_and_back():
    for plan in (PLAN, TIGHT):
        assert plan_from_json(plan.to_json()) == plan
    found = json.loads(PLAN.to_json())
    kept = {
        "seconds",
        "compute_seconds",
        "exposed_communication_seconds",
        "mfu",
        "products_share",
        "floor_seconds",
    }
    assert {name: found["estimate"][name] for name in kept} == {
        name: getattr(PLAN.estimate, name) for name in kept
    }
    assert found["estimate"]["collectives"]["all-gather"]["hidden"] == pytest.approx(0.030)
    assert found["compiled"]["cost"]["operations"][0]["source"] == "models/layers.py:66"
    assert found["spare"] == PLAN.spare and json.loads(TIGHT.to_json())["estimate"] is None


def test_a_plan_of_an_earlier_version_is_told():
    found = json.loads(PLAN.to_json())
    del found["estimate"]
    with pytest.raises(PlanError, match=r"'4B on v5e-16' has no estimate.*make it again"):
        plan_from_json(json.dumps(found))


def cells(page: str, first: str) -> list[str]:
    """The cells of the table row that begins with `first`, without that one."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_page():
    page = PLAN.markdown()
    assert page.startswith("# 4B on v5e-16\n\nWhy it is so.\n\n```\nimagewam aot ")
    assert cells(page, "temporaries") == ["3.00"]
    assert cells(page, "padding of their layouts") == ["1.00"]
    assert cells(page, "**peak**") == ["**9.25**"]
    assert "moving average" not in page  # there is none
    assert "41% of the memory is spare" in page
    assert cells(page, "computed by the policy, without recomputation") == [
        "200.00",
        "1.000 of useful",
    ]
    assert cells(page, "with 512 rows of text and a joint mask it would be") == [
        "400.00",
        "useful is 0.50 of it",
    ]
    assert "jax 0.10.2, libtpu 0.0.42; compiled in 123 s" in page
    unknown = dataclasses.replace(COMPILED, unknown_loops=("while.3",))
    assert "while.3" in dataclasses.replace(PLAN, compiled=unknown).markdown()


def test_page_of_the_time():
    page = PLAN.markdown()
    assert "**Estimated: a step takes 210.00 ms, 30.2% MFU**, 304.8 samples a second;" in page
    # The kernel takes 20 ms at the peak and 80 at a quarter; 4 GB along one side take 80 ms.
    assert "the range is 180.00 to 320.00 ms, and the floor is 150.00 ms." in page
    assert cells(page, "products") == ["120.00", "57.1%", ""]
    assert cells(page, "attention") == ["50.00", "23.8%", "40.00"]
    assert cells(page, "waiting for memory") == ["5.00", "2.4%", ""]
    assert cells(page, "**computing**") == ["200.00", "95.2%", "65.00"]
    assert cells(page, "splash") == ["50", "3.94", "3.00", "40.00"]
    assert "Operations of 25.00 ms" in page
    assert cells(page, "slices (assumed)") == ["slice", "bf16[8,4]", "", "25", "25.00"]
    received = ["50", "4, 16", "12.00", "4.00", "40.00", "30.00", "10.00"]
    assert cells(page, "all-gather") == received


def test_page_of_what_does_not_fit():
    page = TIGHT.markdown()
    assert "**It does not fit.** The compiler: 36 GiB exceed 15.75 GiB." in page
    assert cells(page, "arguments together") == ["4.00"] and "Time of a step" not in page


def test_index():
    rows = index_rows({"a": PLAN, "b": TIGHT}).splitlines()
    assert len({len(row) for row in rows}) == 1
    assert "[4B on v5e-16](a.md)" in rows[2] and "9.2 of 15.8" in rows[2]
    shown = [cell.strip() for cell in rows[2].strip("|").split("|")]
    assert shown[5:] == ["210.0", "150.0", "60%", "5%", "30%"]
    assert "does not fit" in rows[3]
