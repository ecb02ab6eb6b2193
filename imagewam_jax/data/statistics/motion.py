"""How actions relate to the motion of the state: shifts in time, and displacements or targets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

MOST_LAG = 8
# A correlation below this says nothing; among few steps chance alone makes larger ones.
LEAST_CORRELATION = 0.5
LEAST_STEPS = 50
ROBOT_DELAY = 0.4  # seconds that a robot may take to follow; the rate is often a guess
EXACT = 0.98  # a correlation from which on no robot was between action and motion


class Episode(NamedTuple):
    """The actions and the states of one episode, in the order of its steps."""

    actions: Num[np.ndarray, "t a"]
    states: Num[np.ndarray, "t p"]


class LaggedCorrelations(NamedTuple):
    """Correlations of actions with motions of the state that are some steps away.

    lags: numbers of steps k.
    values: [lag, action dim, state dim], of the action at step t and the change of the state from
      step t + k to t + k + 1; 0 where one of the two does not vary.
    least: correlations below this say nothing.
    """

    lags: Int[np.ndarray, " lags"]
    values: Float[np.ndarray, "lags a p"]
    least: float


def lagged_correlations(
    episodes: Sequence[Episode], relative: Sequence[bool]
) -> LaggedCorrelations | None:
    """Correlates actions with changes of the state, up to `MOST_LAG` steps before and after.

    Of an action dimension that is relative, a displacement, its value counts; of one that is a
    target its change, because a target changes when the state does. An action that causes the
    motion of its own step correlates best at lag 0. Lags of which short episodes have too few pairs
    are left out. None: there are too few steps.
    """
    is_relative = np.asarray(relative, bool)
    lags, values, fewest = [], [], LEAST_STEPS
    for lag in range(-MOST_LAG, MOST_LAG + 1):
        moves, changes = [], []
        for actions, states in episodes:
            steps = len(actions)
            move = np.where(is_relative, actions[1:], np.diff(actions, axis=0))  # of steps 1, ...
            change = np.diff(states, axis=0)  # from steps 0, ...
            first, last = max(1, -lag), min(steps - 1, steps - 1 - lag)
            if first < last:
                moves.append(move[first - 1 : last - 1])
                changes.append(change[first + lag : last + lag])
        pairs = sum(map(len, moves))
        if pairs >= LEAST_STEPS:
            lags.append(lag)
            values.append(_correlations(np.concatenate(moves), np.concatenate(changes)))
            fewest = pairs if len(lags) == 1 else min(fewest, pairs)
    if 0 not in lags:
        return None
    least = max(LEAST_CORRELATION, 6 / fewest**0.5)
    return LaggedCorrelations(np.array(lags), np.stack(values), least)


def _correlations(
    left: Num[np.ndarray, "n a"], right: Num[np.ndarray, "n p"]
) -> Float[np.ndarray, "a p"]:
    """The correlation of each pair of columns over the finite rows; 0 if one does not vary."""
    finite = np.isfinite(left).all(1) & np.isfinite(right).all(1)
    scaled = []
    for values in (left[finite].astype(np.float64), right[finite].astype(np.float64)):
        centred = values - values.mean(0) if len(values) else values
        norm = np.linalg.norm(centred, axis=0)
        # Rounding alone makes the mean of a constant differ from it.
        varies = norm > 1e-6 * np.linalg.norm(values, axis=0)
        scaled.append(np.where(varies, centred / np.where(varies, norm, 1), 0))
    return scaled[0].T @ scaled[1]


class Shift(NamedTuple):
    """Actions that stand some steps away from the motion that they belong to.

    lag: above 0 the state moves that many steps after the action's own step, below 0 before it.
    dims: the numbers of the action dimensions that show it. best, own: the median of their
      correlations at that lag and at lag 0.
    """

    lag: int
    dims: tuple[int, ...]
    best: float
    own: float


def find_shift(
    episodes: Sequence[Episode],
    relative: Sequence[bool],
    pairs: Sequence[int | None],
    control_hz: float,
) -> Shift | None:
    """Whether actions lag the state, or lead it by more than a robot's own delay.

    pairs: the state dimension that belongs to each action dimension; None: whichever correlates
      best.
    A robot that follows its commands late is no fault of the data: a lead counts from `ROBOT_DELAY`
    on, or if action and motion agree so exactly that no robot was between them. None: no shift, or
    nothing comparable.
    """
    found = lagged_correlations(episodes, relative)
    if found is None or not found.values.size:
        return None
    sizes, compared = np.abs(found.values), []
    for dim, pair in enumerate(pairs):
        state = int(sizes[:, dim].max(0).argmax()) if pair is None else pair
        of_lag = sizes[:, dim, state]
        best = int(of_lag.argmax())
        if of_lag[best] >= found.least:
            own = float(of_lag[found.lags == 0][0])
            compared.append(Shift(int(found.lags[best]), (dim,), float(of_lag[best]), own))
    off = [shift for shift in compared if _is_off(shift, control_hz)]
    for group in ([s for s in off if s.lag < 0], [s for s in off if s.lag > 0]):
        # One dimension alone may be a gripper, which takes its time to close.
        alone = len(group) == 1 < len(pairs) and group[0].lag > 0 and group[0].best < EXACT
        if 2 * len(group) > len(compared) and not alone:
            lag, best, own = (
                float(np.median([getattr(s, name) for s in group]))
                for name in ("lag", "best", "own")
            )
            return Shift(round(lag), tuple(dim for s in group for dim in s.dims), best, own)
    return None


def _is_off(shift: Shift, control_hz: float) -> bool:
    """Whether the best lag of a dimension is clearly not 0, and no robot's delay."""
    # What the action leaves unexplained of the motion, at lag 0 and at the best lag.
    unexplained, least = 1 - shift.own**2, 1 - shift.best**2
    clearly = shift.best - shift.own >= 0.05 and unexplained >= 1.5 * least
    late_robot = shift.lag > 0 and shift.lag / control_hz < ROBOT_DELAY and shift.best < EXACT
    return shift.lag != 0 and clearly and not late_robot


def action_kinds(episodes: Sequence[Episode]) -> list[tuple[str, str]]:
    """For each action dimension "relative", "absolute" or "", and what was measured.

    Absolute: it equals a dimension of the next state, or moves with it. Relative: it moves with the
    change of a dimension. "": there is nothing to compare with.
    """
    width = episodes[0].actions.shape[1] if episodes else 0
    together = [e for e in episodes if len(e.actions) > 1]
    if sum(len(e.actions) - 1 for e in together) < LEAST_STEPS or not episodes[0].states.shape[1]:
        return [("", "")] * width
    actions = np.concatenate([e.actions[:-1] for e in together]).astype(np.float64)
    nexts = np.concatenate([e.states[1:] for e in together]).astype(np.float64)
    level = _correlations(actions, nexts)
    lagged = lagged_correlations(together, [True] * width)
    motion = np.zeros_like(level)
    if lagged:  # a robot may follow late
        late = (lagged.lags >= 0) & (lagged.lags < 4)
        motion = np.abs(lagged.values[late]).max(0)
    kinds = []
    for dim in range(width):
        s, d = int(level[dim].argmax()), int(motion[dim].argmax())
        spread = np.nanstd(nexts[:, s])
        away = np.nanmean(np.abs(actions[:, dim] - nexts[:, s])) / spread if spread else np.inf
        if level[dim, s] > 0.9 and away < 0.5:
            measured = f"it is state {s} of the next step to within {away:.0%} of its spread"
            kinds.append(("absolute", measured))
        elif motion[dim, d] >= LEAST_CORRELATION and motion[dim, d] > level[dim, s]:
            size = motion[dim, d]
            kinds.append(("relative", f"it goes with the change of state {d}, r = {size:.2f}"))
        elif level[dim, s] > 0.9:
            size = level[dim, s]
            kinds.append(("absolute", f"it goes with state {s} of the next step, r = {size:.2f}"))
        else:
            kinds.append(("", ""))
    return kinds
