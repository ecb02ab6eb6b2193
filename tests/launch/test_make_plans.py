"""The plans in launch/plans: they fit where they should, and their pages are up to date."""

import functools
import shlex

import pytest

from imagewam_jax.config.loading import load_config
from imagewam_jax.config.schema import policy_config
from imagewam_jax.tpu_plans.report import Plan, index_rows, plan_from_json
from launch.make_plans import INDEX, PLANS, ROOT, WANTED, command

KEPT = [path.stem for path in sorted(PLANS.glob("*.json"))]


@functools.cache
def kept(name: str) -> Plan:
    return plan_from_json((PLANS / f"{name}.json").read_text())


def test_all_are_wanted():
    assert KEPT and set(KEPT) <= set(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_a_plan_can_be_made(name):
    """The config of a plan loads with the fields that the plan changes."""
    words = command(name, WANTED[name])
    (config,) = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    fields = [word for word in words if word.startswith("--config.")]
    found = load_config(str(ROOT / config), fields).to_dict()
    policy_config(found["model"])
    assert len(fields) == len(WANTED[name].fields)


@pytest.mark.parametrize("name", KEPT)
def test_page_and_command_are_those_of_the_plan(name):
    plan, wanted = kept(name), WANTED[name]
    assert (PLANS / f"{name}.md").read_text() == plan.markdown()
    assert (plan.title, plan.note, plan.topology) == (wanted.title, wanted.why, wanted.topology)
    fields = {f"--config.{field}={value}" for field, value in wanted.fields.items()}
    words = shlex.split(plan.command.replace("\\\n", " "))
    assert fields == {word for word in words if word.startswith("--config.")}


def test_the_index_is_of_what_is_there():
    assert (PLANS / "README.md").read_text() == INDEX.format(
        table=index_rows({name: kept(name) for name in KEPT})
    )


@pytest.mark.parametrize("name", [name for name in KEPT if "-full-" in name])
def test_full_fine_tuning_fits_with_room_to_spare(name):
    assert kept(name).spare > 0.1


@pytest.mark.parametrize("name", [name for name in KEPT if "-act-" not in name])
def test_padded_text_and_other_streams_are_not_computed(name):
    """Within 5 % of the useful work, which is at most 0.70 of what the official code computes."""
    counts = kept(name).counts
    once = counts.computed - counts.recomputed - counts.autoencoder
    assert once / counts.useful == pytest.approx(1, abs=0.05)
    assert once / counts.dense < 0.70
    # The compiler adds nothing to the traced work.
    compiled = kept(name).compiled.flops * kept(name).chips
    assert compiled / counts.computed == pytest.approx(1, abs=0.05)
