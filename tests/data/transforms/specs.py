"""Dataset specs to test transforms with."""

from imagewam_jax.data.dataset_spec import DatasetSpec, Encoding


def row(action_dims: int = 7, state_dims: int = 0, *, relative: bool = True, **fields):
    """A row whose action has so many dims, the last one absolute, and whose keys are a and s."""
    action = Encoding(
        "action",
        tuple(f"a{n}" for n in range(action_dims)),
        (relative,) * (action_dims - 1) + (False,),
    )
    state = Encoding("state", tuple(f"s{n}" for n in range(state_dims)), (False,) * state_dims)
    defaults = {
        "action_keys": ("a",),
        "state_keys": ("s",) if state_dims else (),
        "options": (),
    }
    options = tuple(fields.pop("options", {}).items())
    return DatasetSpec(
        name="row",
        cameras=(),
        action=action,
        state=state,
        control_hz=10.0,
        **(defaults | {"options": options} | fields),
    )
