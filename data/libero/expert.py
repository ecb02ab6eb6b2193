"""Scripted experts for LIBERO tasks, from way-points (docs/spec/simulators.md, 2).

A plan is a sequence of way-points of the hand. Between them a proportional controller speaks as a
policy does: an action is a displacement (1: 5 cm), a rotation vector (1: 0.5 rad) and a gripper
(1: open, 0: closed). Plans look at the scene again before every action, so that they recover from
noise on what is executed.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64
from scene import Box, Scene

from imagewam_jax.evaluation.simulators.libero import Libero

# Suite -> the numbers of the tasks that the plans solve from all but a few starts.
TASKS = {
    "libero_goal": (0, 1, 2, 4, 6, 8, 9),
    "libero_object": tuple(range(10)),
    "libero_spatial": (0, 3, 5),
}
OPEN, CLOSED = 1.0, 0.0

_POSITION_STEP_M, _ROTATION_STEP_RAD = 0.05, 0.5  # of an action of 1
_POSITION_GAIN, _ROTATION_GAIN = 2.0, 1.5
# The axes of the grip site, as columns, when the hand points down and the fingers open along y.
_DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
# The hand from above, with the fingers along its length, and how far its body is above the site.
_HAND_LENGTH_M, _HAND_WIDTH_M, _HAND_ABOVE_SITE_M = 0.22, 0.08, 0.03
_WIDEST_GRASP_M = 0.072  # the fingers open to 0.08
_YAWS_DEG = (0, 15, -15, 30, -30, 45, -45, 60, -60, 75, -75, 90)
_ENOUGH_GAP_M = 0.015
_RIM_INSET_M, _RIM_DEPTH_M = 0.008, 0.026  # a bowl's wall leans inwards
_TRIES = 3  # of a grasp
_HOLD_STEPS = 4
_DRAWER_TILT_DEG, _DRAWER_PULL_M = -75.0, 0.22
_DRAWER_OPEN_M = 0.15

_Point = Float64[np.ndarray, "xyz=3"]
_Rotation = Float64[np.ndarray, "3 3"]
_Actions = Iterator[Float32[np.ndarray, "a=7"]]


def chosen_tasks(suite: str, numbers: Sequence[int]) -> tuple[int, ...]:
    """The numbers, or all of the suite's tasks that have a plan where none are given.

    SystemExit: one of them has no plan.
    """
    if unknown := sorted(set(numbers) - set(TASKS[suite])):
        known = ", ".join(map(str, TASKS[suite]))
        raise SystemExit(f"no plan for the tasks {unknown} of {suite}; there are plans for {known}")
    return tuple(numbers) or TASKS[suite]


def expert_actions(simulator: Libero) -> _Actions:
    """The actions of an expert, without end: when a plan is over, it idles.

    The simulator has been reset to one of TASKS, and executes every action (with or without noise)
    before it takes the next.
    ValueError: the task's goal is none that a plan is for.
    """
    return _Expert(Scene(simulator)).play()


class _Expert:
    """The plans for one episode."""

    def __init__(self, scene: Scene):
        self._scene = scene

    def play(self) -> _Actions:
        match self._scene.goal:
            case [["open", drawer]]:
                yield from self._open_drawer(drawer.split("_")[-2])
            case [["in" | "on", name, target]]:
                yield from self._place(name, target)
            case other:
                raise ValueError(f"no plan for the goal {other}")
        while True:  # An object may come to rest before the goal holds.
            yield np.float32([0, 0, 0, 0, 0, 0, OPEN])

    def _place(self, name: str, target: str) -> _Actions:
        """Puts an object on or into a target.

        Heights of the surface are where the object's underside comes to stand.
        """
        scene = self._scene
        if scene.is_region(target) and "basket" not in target:
            yield from self._pick_and_place(name, scene.region(target), drop=0.01, clear=0.13)
            return
        box = scene.box("basket_1" if "basket" in target else target)
        x, y, _ = box.center
        if "basket" in target:
            surface, drop, clear = box.high[2] - 0.03, 0.0, 0.10
        elif "plate" in target:
            surface, drop, clear = box.low[2] + 0.012, 0.008, 0.10
        else:
            surface, drop, clear = box.low[2] + 0.02, 0.02, 0.14
        yield from self._pick_and_place(name, np.array([x, y, surface]), drop=drop, clear=clear)

    def _pick_and_place(self, name: str, place: _Point, *, drop: float, clear: float) -> _Actions:
        """Grasps from above, lifts, carries, lowers, lets go and retreats.

        place: where the middle of the object's underside comes to stand.
        drop, clear: metres above it when the hand lets go, and while it carries.
        """
        scene, hanging = self._scene, place[2] + clear / 3  # lower, it has slipped
        for _ in range(_TRIES):
            point, rotation = self._grasp(name)
            yield from self._go(_above(point, 0.10), rotation, OPEN, within=0.02, steps=120)
            yield from self._go(point, rotation, OPEN, within=0.006)
            yield from self._close(point, rotation)
            hand, _ = scene.hand()
            lifted = _above(hand, place[2] + clear - scene.box(name).low[2])
            yield from self._go(lifted, rotation, CLOSED, within=0.03)
            if scene.box(name).low[2] > hanging:
                hand, _ = scene.hand()
                x, y, _ = place - scene.box(name).center
                over = hand + np.array([x, y, 0.0])
                yield from self._go(over, rotation, CLOSED, within=0.012, steps=150)
            if scene.box(name).low[2] > hanging:
                break
        # Measured again, since the object swings in the fingers on its way.
        hand, _ = scene.hand()
        box = scene.box(name)
        x, y, _ = place - box.center
        down = hand + np.array([x, y, place[2] + drop - box.low[2]])
        yield from self._go(down, rotation, CLOSED, within=0.008)
        hand, _ = scene.hand()
        for _ in range(8):
            yield self._towards(hand, rotation, OPEN)
        hand, _ = scene.hand()
        yield from self._go(_above(hand, 0.12), rotation, OPEN, within=0.02, steps=40)

    def _open_drawer(self, drawer: str) -> _Actions:
        """Takes the bar between a finger above and one below it, and pulls along y."""
        scene = self._scene
        half, rotation = (
            _about_x(np.deg2rad(_DRAWER_TILT_DEG * part)) @ _DOWN for part in (0.5, 1.0)
        )
        turned = {"turned_within": 0.15}
        shut = scene.handle(drawer).center[1]
        for _ in range(_TRIES):
            bar = scene.handle(drawer).center
            before = bar - 0.10 * rotation[:, 2]
            aside = np.array([before[0] - 0.05, before[1] + 0.08, max(before[2], 1.1)])
            yield from self._go(aside, half, OPEN, within=0.03, steps=60, **turned)
            yield from self._go(before, rotation, OPEN, within=0.012, **turned)
            at_bar = bar - np.array([0.0, 0.004, 0.0])
            yield from self._go(at_bar, rotation, OPEN, within=0.006, steps=60, **turned)
            hand, _ = scene.hand()
            yield from self._close(hand, rotation)
            hand, _ = scene.hand()
            pulled = hand + np.array([0.0, _DRAWER_PULL_M, 0.0])
            yield from self._go(pulled, rotation, CLOSED, within=0.01, turned_within=np.inf)
            if scene.handle(drawer).center[1] > shut + _DRAWER_OPEN_M:
                break

    def _grasp(self, name: str) -> tuple[_Point, _Rotation]:
        """Where the hand closes on an object, and how it is turned.

        At the middle of the object, at most 3 cm below its top and at least 12 mm above its
        underside; a bowl by its rim.
        """
        box = self._scene.box(name)
        point = box.center
        if "bowl" in name:
            side = 1.0 if point[1] < 0.1 else -1.0
            point[1] += side * (box.size[:2].mean() / 2 - _RIM_INSET_M)
            point[2] = box.high[2] - _RIM_DEPTH_M
            return point, _DOWN
        point[2] = max(box.high[2] - min(0.03, box.size[2] / 2), box.low[2] + 0.012)
        others = (self._scene.box(other) for other in self._scene.obstacles if other != name)
        tall = [other for other in others if other.high[2] > point[2] + _HAND_ABOVE_SITE_M]
        return point, _about_z(_yaw(box, tall)) @ _DOWN

    def _go(
        self,
        position: _Point,
        rotation: _Rotation,
        gripper: float,
        *,
        within: float,
        turned_within: float = 0.06,
        steps: int = 80,
    ) -> _Actions:
        """Moves the hand to a way-point.

        within, turned_within: metres and radians from it where it counts as reached.
        steps: goes on to the next way-point after so many.
        """
        for _ in range(steps):
            hand, turned = self._scene.hand()
            near = np.linalg.norm(position - hand) < within
            if near and np.linalg.norm(_rotation_vector(rotation @ turned.T)) < turned_within:
                return
            yield self._towards(position, rotation, gripper)

    def _close(self, position: _Point, rotation: _Rotation) -> _Actions:
        """Closes until the fingers have stood still for _HOLD_STEPS, at a thin rim later than at a
        box: their force grows while they do, and a bowl that is lifted at once may slip."""
        fingers, still = self._scene.fingers(), 0
        for step in range(25):
            yield self._towards(position, rotation, CLOSED)
            before, fingers = fingers, self._scene.fingers()
            still += step > 4 and np.abs(fingers - before).max() < 3e-4
            if still > _HOLD_STEPS:
                return

    def _towards(
        self, position: _Point, rotation: _Rotation, gripper: float
    ) -> Float32[np.ndarray, "a=7"]:
        """The action of the proportional controller."""
        hand, turned = self._scene.hand()
        move = (position - hand) * _POSITION_GAIN / _POSITION_STEP_M
        turn = _rotation_vector(rotation @ turned.T) * _ROTATION_GAIN / _ROTATION_STEP_RAD
        # Scaled as a whole, and not clipped, so that they keep their direction.
        move /= max(1.0, np.abs(move).max())
        turn /= max(1.0, np.abs(turn).max())
        return np.float32([*move, *turn, gripper])


def _yaw(box: Box, tall: Sequence[Box]) -> float:
    """The smallest turn, in radians, at which the object fits between the fingers and the hand is
    clear of tall neighbours; otherwise the one that is farthest from them."""
    center, size = box.center[:2], box.size[:2]
    round_ = abs(size[0] - size[1]) <= 0.008
    best = (-np.inf, 0.0)
    for degrees in _YAWS_DEG:
        yaw = np.deg2rad(degrees)
        along = np.array([-np.sin(yaw), np.cos(yaw)])
        across = np.array([np.cos(yaw), np.sin(yaw)])
        width = size.max() if round_ else (size / np.maximum(np.abs(along), 1e-3)).min()
        if width > _WIDEST_GRASP_M:
            continue
        spots = [
            center + a * _HAND_LENGTH_M / 2 * along + b * _HAND_WIDTH_M / 2 * across
            for a in np.linspace(-1, 1, 12)
            for b in (-1, 0, 1)
        ]
        gap = min((_distance(spot, other) for other in tall for spot in spots), default=1.0)
        best = max(best, (min(gap, _ENOUGH_GAP_M) - 5e-5 * abs(degrees), yaw))
    return best[1]


def _distance(spot: Float[np.ndarray, "xy=2"], box: Box) -> float:
    """Metres from a point to a box, both seen from above."""
    outside = np.maximum(box.low[:2] - spot, spot - box.high[:2])
    return float(np.linalg.norm(np.maximum(outside, 0)))


def _above(point: _Point, height: float) -> _Point:
    return point + np.array([0.0, 0.0, height])


def _about_x(angle: float) -> _Rotation:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])


def _about_z(angle: float) -> _Rotation:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _rotation_vector(rotation: _Rotation) -> Float64[np.ndarray, "3"]:
    """Axis times angle, in radians."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1.0, 1.0))
    skew = rotation - rotation.T
    axis = np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
    length = np.linalg.norm(axis)
    return np.zeros(3) if length < 1e-9 else angle * axis / length
