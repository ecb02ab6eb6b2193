"""What a foreign layout is: the names that others give the tensors of one kind of model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imagewam_jax.weights.io.tensors import TensorSource
from imagewam_jax.weights.layouts.mapping import Rule
from imagewam_jax.weights.layouts.metadata import Metadata, Specs


@dataclass(frozen=True)
class Layout:
    """How others store one kind of model.

    component: what it is of a policy, one of `weights.components.COMPONENTS`.
    signature: tensors that every file of this layout has and that no other layout has together.
    lacks: tensors of which a file of this layout has none, but those of a similar one do.
    config: makes the sizes from shapes and metadata.
    rules: makes the mapping from the sizes.
    source: makes the tensors that the rules map, from those of the file, the metadata, and the base
        weights (for files that store differences from them).
    modules: what the names begin with, and a pattern of what comes next. Files of one module alone
        have names without the first of these; a wrapped module has another word behind its own.
    contains: prefixes below which the tensors are those of another layout.
    carried: tensors that no model of ours has; their values are kept, to write the layout again.
    original: the layout that the official recipes are about, if this is another one of that model.
    state: says in a few words what the tensors of a file are, such as LoRA factors.
    """

    name: str
    component: str
    signature: tuple[str, ...]
    config: Callable[[Specs, Metadata], Any]
    rules: Callable[[Any], list[Rule]]
    source: Callable[[TensorSource, Metadata, TensorSource | None], TensorSource] = (
        lambda source, metadata, base: source
    )
    lacks: tuple[str, ...] = ()
    modules: tuple[tuple[str, str], ...] = ()
    contains: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    original: "Layout | None" = None
    state: Callable[[Specs], str] = lambda specs: ""
