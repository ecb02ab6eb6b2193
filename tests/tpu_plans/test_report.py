"""A plan as JSON and as a page, with invented figures."""

import dataclasses
import json

import pytest

from imagewam_jax.tpu_plans.collectives import Volume
from imagewam_jax.tpu_plans.compile import Compiled
from imagewam_jax.tpu_plans.programs import Counts
from imagewam_jax.tpu_plans.report import Plan, index_rows, plan_from_json

GIB = 2**30
COMPILED = Compiled(
    arguments=5 * GIB,
    temporaries=3 * GIB,
    outputs=5 * GIB,
    aliased=4 * GIB,
    code=GIB // 4,
    flops=19_700_000_000_000,
    traffic=81_900_000_000,
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
    compiled=COMPILED,
    shortage="",
    versions={"jax": "0.10.2", "libtpu": "0.0.42"},
)
TIGHT = dataclasses.replace(PLAN, compiled=None, shortage="36 GiB exceed 15.75 GiB")


def test_peak_and_spare():
    assert COMPILED.peak == (5 + 3 + 1 + 0.25) * GIB
    assert PLAN.spare == pytest.approx(1 - 9.25 / 15.75)
    assert TIGHT.peak is None and TIGHT.spare is None and TIGHT.bounds is None
    # The chip holds 2 GiB that the program does not use.
    held = dataclasses.replace(PLAN, memory={"parameters": 3 * GIB, "autoencoder": 4 * GIB})
    assert held.peak == PLAN.peak + 2 * GIB


def test_bounds():
    """A chip of v5e does 197 TFLOP/s, 819 GB/s and receives 200 GB/s over two axes."""
    bounds = PLAN.bounds
    assert bounds.computing == pytest.approx(0.1)
    assert bounds.reading == pytest.approx(0.1)
    assert bounds.sending == pytest.approx(0.02)
    assert bounds.fastest == pytest.approx(0.1)
    assert bounds.slow == pytest.approx(0.1 / 0.6 + 0.1 / 0.7 + 2 * 0.02 / 0.7)
    # A slice of v5p:2x2x1 has links along two of its sides.
    flat = dataclasses.replace(PLAN, topology="v5p:2x2x1", chip="v5p", chips=4).bounds
    assert flat.sending == pytest.approx(4e9 / (600e9 * 2 / 3))
    # What kernels compute is not in the compiled text; then the traced count is taken.
    hidden = dataclasses.replace(PLAN, compiled=dataclasses.replace(COMPILED, flops=0))
    assert hidden.bounds.computing == pytest.approx(290e12 / 16 / 197e12)


def test_json_and_back():
    for plan in (PLAN, TIGHT):
        assert plan_from_json(plan.to_json()) == plan
    derived = json.loads(PLAN.to_json())["derived"]
    assert derived["spare"] == PLAN.spare and derived["bounds"]["fastest"] == PLAN.bounds.fastest


def cells(page: str, first: str) -> list[str]:
    """The cells of the table row that begins with `first`, without that one."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {first} ")]
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
    assert cells(page, "all-gather") == ["50", "4, 16", "12.00", "4.00"]
    assert "81.9 GB at most" in page and "jax 0.10.2, libtpu 0.0.42; compiled in 123 s" in page
    unknown = dataclasses.replace(COMPILED, unknown_loops=("while.3",))
    assert "while.3" in dataclasses.replace(PLAN, compiled=unknown).markdown()


def test_page_of_what_does_not_fit():
    page = TIGHT.markdown()
    assert "**It does not fit.** The compiler: 36 GiB exceed 15.75 GiB." in page
    assert cells(page, "arguments together") == ["4.00"] and "Time of a step" not in page


def test_index():
    rows = index_rows({"a": PLAN, "b": TIGHT}).splitlines()
    assert len({len(row) for row in rows}) == 1
    assert "[4B on v5e-16](a.md)" in rows[2] and "9.2 of 15.8" in rows[2]
    assert "does not fit" in rows[3]
