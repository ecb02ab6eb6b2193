"""Lines of code of operations, in both ways of writing them."""

import pytest

from imagewam_jax.tpu_plans.hlo import Instruction
from imagewam_jax.tpu_plans.sources import Frame, op_name, parse_stacks, shown, stack_of

# The outermost frame, 1, seems to be its own parent where numbers are written after the parent's.
TABLES = """\
HloModule jit_f

FileNames
1 "/home/u/imagewam_jax/models/blocks.py"
2 "/usr/lib/site-packages/jax/numpy.py"

FunctionNames
1 "Block.__call__"
2 "tanh"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=49 end_line=49 column=12 end_column=26}}
2 {{file_name_id=2 function_name_id=2 line=7 end_line=7 column=12 end_column=26}}

StackFrames
1 {{file_location_id=1 parent_frame_id={outermost}}}
2 {{file_location_id=2 parent_frame_id={inner}}}

%main () -> f32[] {{
"""
BLOCK = Frame("/home/u/imagewam_jax/models/blocks.py", "Block.__call__", 49)
NUMPY = Frame("/usr/lib/site-packages/jax/numpy.py", "tanh", 7)


def instruction(attributes: str) -> Instruction:
    return Instruction("tanh.1", "tanh", (), "", attributes)


@pytest.mark.parametrize(("outermost", "inner"), [(0, 1), (1, 2)])
def test_a_stack_is_the_line_and_its_callers(outermost, inner):
    stacks = parse_stacks(TABLES.format(outermost=outermost, inner=inner))
    assert stacks == {1: (BLOCK,), 2: (NUMPY, BLOCK)}
    assert stack_of(instruction('metadata={op_name="tanh" stack_frame_id=2}'), stacks) == (
        NUMPY,
        BLOCK,
    )
    assert shown((NUMPY, BLOCK)) == "models/blocks.py:49"
    assert shown((NUMPY,)) == "jax/numpy.py:7"


def test_a_line_without_callers():
    noted = instruction('metadata={source_file="/home/u/imagewam_jax/a.py" source_line=3}')
    assert stack_of(noted, parse_stacks("HloModule jit_f\n\n%main ()")) == (
        Frame("/home/u/imagewam_jax/a.py", "", 3),
    )
    assert stack_of(instruction("dimensions={1}"), {}) == () and shown(()) == ""


def test_who_calls_the_file():
    layers = Frame("/home/u/imagewam_jax/models/layers.py", "Linear.__call__", 66)
    helper = Frame("/home/u/imagewam_jax/models/layers.py", "apply", 70)
    assert shown((layers, helper, BLOCK)) == "models/layers.py:66, from models/blocks.py:49"


def test_the_name_of_a_parameter_is_readable():
    quoted = r"""metadata={op_name="params[\'backbone\']"}"""
    assert op_name(instruction(quoted)) == "params['backbone']"
