"""One time from many: invented costs, joined by hand."""

import pytest

from imagewam_jax.tpu_plans.assumed import Kernel
from imagewam_jax.tpu_plans.collectives import Volume
from imagewam_jax.tpu_plans.estimate import Cost, Sent, slice_links, step_estimate
from imagewam_jax.tpu_plans.floor import Stage
from imagewam_jax.training.chips import chip_named

V5E, V5P = chip_named("v5e"), chip_named("v5p")
COST = Cost(
    kinds={"products": 0.060, "attention": 0.020, "copies and pads": 0.015},
    assumed={"attention": 0.010},
    kernels=(Kernel("splash", 50, 0.010 * V5E.flops / 2, 10**6),),
    memory_wait=0.005,
    exposed={"all-gather": 0.020},
    operations=(),
)
VOLUMES = {"all-gather": Volume(10, 6e9, 5e9, {16: 10}), "reduce-scatter": Volume(5, 2e9, 1e9, {})}
STAGES = (Stage("first", 0.030 * V5E.flops), Stage("second", 0.0, 0.020 * V5E.hbm_bandwidth))


def estimate(cost=COST, volumes=VOLUMES, sides=(4, 4)):
    return step_estimate(cost, volumes, STAGES, 0.6 * 16 * 0.1 * V5E.flops, V5E, sides, 16)


def test_a_step_is_what_is_computed_and_waited_for():
    found = estimate()
    assert found.compute_seconds == pytest.approx(0.100)
    assert found.exposed_communication_seconds == pytest.approx(0.020)
    assert found.seconds == pytest.approx(0.120)
    assert found.mfu == pytest.approx(0.6 * 0.1 / 0.12)
    assert found.products_share == pytest.approx(0.6)
    assert found.assumed_seconds == pytest.approx(0.010)
    assert found.floor == pytest.approx({"first": 0.030, "second": 0.020})
    assert found.floor_seconds == pytest.approx(0.050)


def test_the_range_follows_from_its_assumptions():
    """4 x 4 chips of v5e: 200 GB/s over 4 links, of which two are there, one along each side. A
    kernel of 10 ms at half the peak takes 5 ms at the peak and 20 ms at a quarter."""
    found = estimate()
    assert found.low_seconds == pytest.approx(0.095)
    assert found.high_seconds == pytest.approx(0.110 + 6e9 / 50e9)
    # Traffic that is longer than computing cannot be hidden.
    heavy = estimate(volumes={"all-gather": Volume(10, 6e9, 30e9, {16: 10})})
    assert heavy.low_seconds == pytest.approx(30e9 / 100e9)
    assert found.low_seconds <= found.seconds <= found.high_seconds


def test_what_is_hidden_is_what_is_not_waited_for():
    assert estimate().collectives == {
        "all-gather": Sent(5e9, pytest.approx(0.050), 0.020, pytest.approx(0.030)),
        "reduce-scatter": Sent(1e9, pytest.approx(0.010), 0.0, pytest.approx(0.010)),
    }


@pytest.mark.parametrize(
    ("chip", "sides", "all_links", "one_side"),
    [
        (V5E, (1, 1), 1, 1),  # no neighbours; the number is not used
        (V5E, (2, 4), 2, 1),  # ends are not linked to each other
        (V5E, (16, 16), 4, 2),  # they are in a whole pod
        (V5P, (2, 2, 1), 2, 1),
        (V5P, (4, 4, 4), 6, 2),  # a cube
        (V5P, (4, 4, 8), 6, 2),
        (V5P, (2, 2, 4), 3, 1),
    ],
)
def test_links_of_a_slice(chip, sides, all_links, one_side):
    """v5e has 4 links of 50 GB/s, v5p 6 of 100 GB/s."""
    link = {"v5e": 50e9, "v5p": 100e9}[chip.name]
    assert slice_links(chip, sides) == pytest.approx((all_links * link, one_side * link))
