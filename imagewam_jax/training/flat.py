"""A train step that keeps its state as a list of arrays.

At every call of a compiled function JAX takes its arguments apart and puts its results together
again. For nested dictionaries, whose keys it sorts, that took a third of all the time that Python
needs for a step.
"""

from collections.abc import Mapping

import jax
from jaxtyping import Array

from imagewam_jax.preprocess.inputs import PolicyAssets
from imagewam_jax.training.state import TrainState
from imagewam_jax.training.step import Metrics, Trainer


class FlatStep:
    """The compiled step of a run; each call goes on from the state that the one before left."""

    def __init__(self, trainer: Trainer, state: TrainState, assets: PolicyAssets):
        """`state` is given away: its arrays become those of the next one."""
        self._leaves, tree = jax.tree.flatten(state)
        self._frozen, assets_tree = jax.tree.flatten(assets)
        self._tree = tree

        def step(leaves, batch, assets):
            state = jax.tree.unflatten(tree, leaves)
            state, metrics = trainer.step(state, batch, jax.tree.unflatten(assets_tree, assets))
            return jax.tree.leaves(state), metrics

        shardings = jax.tree.leaves(trainer.shardings)
        results = shardings, trainer.shardings.step  # metrics, like the step, everywhere
        self._step = jax.jit(
            step,
            donate_argnums=0,
            out_shardings=results,
            compiler_options=trainer.compiler_options,
        )

    def __call__(self, batch: Mapping[str, Array]) -> Metrics:
        self._leaves, metrics = self._step(self._leaves, batch, self._frozen)
        return metrics

    @property
    def state(self) -> TrainState:
        return jax.tree.unflatten(self._tree, self._leaves)
