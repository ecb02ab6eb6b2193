"""Parameters as nested dictionaries, which checkpoints and optimizers want, and back."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Int

from imagewam_jax.models.imagewam import ImageWAM, ImageWAMConfig

Params = dict[str, Any]  # nested dictionaries of arrays


def module_tree(module: nnx.Module) -> Params:
    """All arrays of a module, frozen ones too, under names that are strings everywhere."""

    def named(tree):
        return {str(k): named(v) if isinstance(v, dict) else v for k, v in tree.items()}

    return named(nnx.to_pure_dict(nnx.state(module)))


def initial_params(config: ImageWAMConfig, seed: int | Int[Array, ""]) -> Params:
    """Random parameters of a policy."""
    return module_tree(ImageWAM(config, rngs=nnx.Rngs(jax.random.key(seed))))


def abstract_params(config: ImageWAMConfig) -> Params:
    """Their shapes and dtypes."""
    return jax.eval_shape(lambda: initial_params(config, 0))


def parameter_axes(config: ImageWAMConfig) -> Params:
    """The logical names of the axes of each parameter, in their places."""

    def named(node):
        if isinstance(node, nnx.Variable):
            return node.get_metadata("axes")
        return {str(key): named(value) for key, value in node.items()}

    return named(nnx.state(jax.eval_shape(lambda: ImageWAM(config, rngs=nnx.Rngs(0)))))


def policy_builder(config: ImageWAMConfig) -> Callable[[Params], ImageWAM]:
    """A function from parameters to the module that computes with them."""
    graph, abstract = nnx.split(jax.eval_shape(lambda: ImageWAM(config, rngs=nnx.Rngs(0))))

    def rebuild(params: Params) -> ImageWAM:
        state = jax.tree.map(lambda x: x, abstract)  # its own containers, to be filled
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return rebuild
