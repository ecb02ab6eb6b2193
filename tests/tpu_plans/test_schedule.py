"""What a schedule hides: small programs in text, whose operations and transfers take round times.

At the invented speeds a microsecond is 1,000 cycles, 1 MB between chips, and 1 MB of main memory.
"""

import pytest

from imagewam_jax.tpu_plans.cost import Time, cycles
from imagewam_jax.tpu_plans.hlo import computed_instructions, count_runs, parse_module
from imagewam_jax.tpu_plans.schedule import MEMORY, Speeds, waiting_seconds

MB, US = 1e6, 1e-6

HEAD = """\
HloModule jit_f, is_scheduled=true, num_partitions=4

%gather_part (q: bf16[250000]) -> bf16[1000000] {
  %q = bf16[250000]{0} parameter(0)
  ROOT %gathered = bf16[1000000]{0} all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4]
}
"""
ENTRY = """
ENTRY %main (x: bf16[1000000], part: bf16[500000]) -> bf16[1000000] {
  %x = bf16[1000000]{0} parameter(0)
  %part = bf16[500000]{0} parameter(1)
"""


def work(name: str, microseconds: int) -> str:
    estimated = f'"estimated_cycles":"{1000 * microseconds}"'
    return f"  %{name} = f32[8]{{0}} tanh(%x), backend_config={{{estimated}}}\n"


# Half a million numbers of two bytes go to a neighbour: 1 MB, so 1 us.
START = (
    "  %sent = (bf16[500000]{0}, bf16[500000]{0}, u32[]) collective-permute-start(%part), "
    "channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}\n"
)
DONE = "  %arrived = bf16[500000]{0} collective-permute-done(%sent)\n"
# Three chips' quarters of 2 MB are received: 1.5 us.
QUARTER = "  %quarter = bf16[250000]{0} constant({...})\n"
GATHER = (
    "  %whole = bf16[1000000]{0} all-gather(%quarter), channel_id=2, replica_groups=[1,4]<=[4]\n"
)
END = "  ROOT %end = bf16[1000000]{0} bitcast(%x)\n}\n"


def waits(*lines: str, before: str = "") -> dict[str, float]:
    """Microseconds of waiting by kind, what is not waited for left out."""
    module = parse_module(HEAD + before + ENTRY + "".join(lines) + END)
    times = {
        (computation.name, instruction.name): Time(cycles(instruction) * US / 1000, False)
        for computation, instruction in computed_instructions(module)
    }
    found = waiting_seconds(module, count_runs(module), Speeds(times, MB / US, MB / US))
    return {kind: pytest.approx(time / US) for kind, time in found.items() if time > 1e-12}


@pytest.mark.parametrize(("between", "exposed"), [(0, 1.0), (1, 0.0), (3, 0.0)])
def test_what_lies_between_start_and_end_hides_a_transfer(between, exposed):
    lines = [START, *([work("busy", between)] if between else []), DONE, work("later", 5)]
    assert waits(*lines) == ({"collective-permute": exposed} if exposed else {})


def test_a_part_is_hidden():
    half = '  %half = f32[8]{0} tanh(%x), backend_config={"estimated_cycles":"500"}\n'
    assert waits(START, half, DONE) == {"collective-permute": 0.5}


def test_what_has_no_start_is_waited_for():
    assert waits(work("before", 9), QUARTER, GATHER, work("after", 9)) == {"all-gather": 1.5}


def test_two_transfers_are_not_hidden_by_the_same_work():
    second = START.replace("%sent", "%sent.2").replace("channel_id=1", "channel_id=3")
    end = DONE.replace("%sent", "%sent.2").replace("%arrived", "%arrived.2")
    assert waits(START, second, work("busy", 1), DONE, end) == {"collective-permute": 1.0}
    assert waits(START, second, work("busy", 2), DONE, end) == {}


def test_a_collective_in_fusions_is_hidden_by_these_alone():
    """It takes 1.5 us: 1 us of one of its fusions hides as much, other work nothing."""
    start = "  %begin = bf16[250000]{0} fusion(%quarter), calls=%gather_part\n"
    middle = (
        "  %meanwhile = bf16[250000]{0} fusion(%quarter), calls=%gather_part, "
        'backend_config={"estimated_cycles":"1000"}\n'
    )
    end = "  %finish = bf16[1000000]{0} fusion(%quarter), calls=%gather_part\n"
    assert waits(QUARTER, start, middle, work("other", 9), end) == {"all-gather": 0.5}
    assert waits(QUARTER, start, work("other", 9), end) == {"all-gather": 1.5}


LOOP = """
%body (state: (s32[], bf16[500000])) -> (s32[], bf16[500000]) {
  %state = (s32[], bf16[500000]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = bf16[500000]{0} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
%LINES%
  ROOT %out = (s32[], bf16[500000]{0}) tuple(%next, %x)
}

%condition (state.1: (s32[], bf16[500000])) -> pred[] {
  %state.1 = (s32[], bf16[500000]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %stop = s32[] constant(4)
  ROOT %less = pred[] compare(%i.1, %stop), direction=LT
}
"""
CALL = """\
  %zero = s32[] constant(0)
  %initial = (s32[], bf16[500000]{0}) tuple(%zero, %part)
  %while = (s32[], bf16[500000]{0}) while(%initial), condition=%condition, body=%body
"""


def test_a_loop_waits_as_often_as_it_runs():
    inside = START.replace("(%part)", "(%x)") + DONE
    assert waits(CALL, before=LOOP.replace("%LINES%", inside)) == {"collective-permute": 4.0}


def test_a_loop_hides_a_transfer_of_its_caller():
    """Four times 0.2 us of work are in the loop, which the transfer of 1 us lies around."""
    inside = '  %busy = f32[8]{0} tanh(%x), backend_config={"estimated_cycles":"200"}\n'
    loop = LOOP.replace("%LINES%", inside)
    assert waits(START, CALL, DONE, before=loop) == {"collective-permute": 0.2}


def test_copies_between_memories_go_beside_the_links():
    """2 MB into the vector memory take 2 us; the permute of 1 us lies within them."""
    copy = (
        "  %load = (bf16[1000000]{0:S(1)}, bf16[1000000]{0}, u32[]) copy-start(%x)\n"
        "%WORK%  %loaded = bf16[1000000]{0:S(1)} copy-done(%load)\n"
    )
    assert waits(copy.replace("%WORK%", "")) == {MEMORY: 2.0}
    assert waits(copy.replace("%WORK%", work("busy", 2))) == {}
    assert waits(copy.replace("%WORK%", START + work("busy", 1) + DONE)) == {MEMORY: 1.0}
    # Waiting for other chips is time for a copy as well.
    assert waits(copy.replace("%WORK%", START + DONE)) == {
        MEMORY: 1.0,
        "collective-permute": 1.0,
    }


def test_a_copy_to_the_host_is_not_waited_for():
    copy = (
        "  %store = (bf16[1000000]{0:S(5)}, bf16[1000000]{0}, u32[]) copy-start(%x)\n"
        "  %stored = bf16[1000000]{0:S(5)} copy-done(%store)\n"
    )
    assert waits(copy) == {}
