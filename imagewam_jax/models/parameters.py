"""Parameters as nested dictionaries, which checkpoints and optimizers want, and back."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Int

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.imagewam import ImageWAM, ImageWAMConfig
from imagewam_jax.models.layers import is_read


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths to leaves of a nested dictionary.

    ConversionError: two leaves have the same path, so that one of them would be lost.
    """
    flat: dict[str, Any] = {}
    for path, value in _leaves(tree, ""):
        if path in flat:
            raise ConversionError(f"two things are called {path}")
        flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


M = TypeVar("M", bound=nnx.Module)

Params = dict[str, Any]  # nested dictionaries of arrays


def module_tree(module: nnx.Module) -> Params:
    """All arrays of a module, frozen ones too, under names that are strings everywhere."""
    return _tree(nnx.state(module))


def _tree(state: nnx.State) -> Params:
    def named(tree):
        return {str(k): named(v) if isinstance(v, dict) else v for k, v in tree.items()}

    return named(nnx.to_pure_dict(state))


def initial_params(config: ImageWAMConfig, seed: int | Int[Array, ""]) -> Params:
    """Random parameters of a policy."""
    return module_tree(ImageWAM(config, rngs=nnx.Rngs(jax.random.key(seed))))


def abstract_params(config: ImageWAMConfig) -> Params:
    """Shapes and dtypes of a policy's parameters."""
    return _tree(_abstract_policy(config)[1])


def parameter_axes(config: ImageWAMConfig) -> Params:
    """The logical names of each parameter's axes, in a tree like that of the parameters."""
    return _of_variables(config, lambda variable: variable.get_metadata("axes"))


def parameter_reads(config: ImageWAMConfig) -> dict[str, bool]:
    """Whether something reads a parameter (`layers.is_read`), by the dotted paths of all."""
    return flatten(_of_variables(config, is_read))


def _of_variables(config: ImageWAMConfig, tell: Callable[[nnx.Variable], Any]) -> dict[str, Any]:
    """What `tell` says of each parameter, in a tree like that of the parameters."""

    def told(node):
        if isinstance(node, nnx.Variable):
            return tell(node)
        return {str(key): told(value) for key, value in node.items()}

    return told(_abstract_policy(config)[1])


def policy_builder(config: ImageWAMConfig) -> Callable[[Params], ImageWAM]:
    """A function from parameters to the policy that computes with them."""
    return _builder(*_abstract_policy(config))


def _abstract_policy(config: ImageWAMConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure of a policy and its variables without numbers, which nobody changes."""
    return _split_policy(config, jax.sharding.get_abstract_mesh())


@functools.lru_cache(maxsize=16)
def _split_policy(
    config: ImageWAMConfig, mesh: jax.sharding.AbstractMesh
) -> tuple[nnx.GraphDef, nnx.State]:
    """Kept, since it takes a second and is asked for ten times before a run begins; for each mesh,
    since shapes can name the mesh that they were made under."""
    return nnx.split(jax.eval_shape(lambda: ImageWAM(config, rngs=nnx.Rngs(0))))


def module_builder(make: Callable[[], M]) -> Callable[[Params], M]:
    """A function from parameters to the module that `make` would build, but with these.

    `make` is never run with real arrays, and its module is split once.
    """
    return _builder(*nnx.split(jax.eval_shape(make)))


def _builder(graph: nnx.GraphDef, abstract: nnx.State) -> Callable[[Params], Any]:
    def build(params: Params) -> Any:
        state = jax.tree.map(lambda x: x, abstract)  # containers of its own, which are filled
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)

    return build
