"""The roles of cameras, guessed from the names of their keys."""

import re
from collections.abc import Iterable

from imagewam_jax.data.dataset_spec import ROLES

_ON_THE_HAND = re.compile(r"wrist|hand|gripper|end_?effector|(^|[_/.])eef?([_/.]|$)")
# Names of pictures that are no view of the scene.
NO_VIEW = re.compile(
    r"depth|disparity|mask|segment|(^|[_/.])seg([_/.]|$)|flow|normal|heatmap|tactile"
)
# The view of the scene that is named first here becomes "primary".
_MAIN = re.compile(
    r"main|primary|static|agent_?view|front|head|high|ego|base|third|exterior|external|scene|over|top"
)


def camera_roles(keys: Iterable[str]) -> dict[str, str]:
    """{role: key} of the keys that get a role, in the order of `ROLES`.

    A name that says wrist, hand, gripper or end effector is a wrist camera, of several a left or a
    right one if it says so; of the others the first is "primary", the second "secondary". A name
    that stands for the main view, such as "front" or "agentview", or for none in particular
    ("image", "image_0"), comes before others. Keys that are left over get no role.
    """
    roles: dict[str, str] = {}
    keys = sorted(keys, key=_order)
    several = sum(bool(_ON_THE_HAND.search(_name(key))) for key in keys) > 1
    for key in keys:
        name = _name(key)
        if _ON_THE_HAND.search(name):
            # The left camera of the only hand is no camera of a left hand.
            side = next((side for side in ("left", "right") if several and side in name), "")
            wanted = (f"{side}_wrist",) if side else ("wrist",)
        else:
            wanted = ("primary", "secondary")
        role = next((role for role in wanted if role not in roles), None)
        if role is not None:
            roles[role] = key
    return {role: roles[role] for role in ROLES if role in roles}


def _order(key: str) -> tuple[bool, list]:
    name = _name(key)
    plain = re.fullmatch(r"(image|images|rgb|cam|camera|color)?[_/.]?0?", name)
    # Numbers by their size: image_2 before image_10.
    parts = [part.zfill(9) if part.isdigit() else part for part in re.split(r"(\d+)", key)]
    return not (plain or _MAIN.search(name)), parts


def _name(key: str) -> str:
    return key.removeprefix("observation/").lower()
