"""The FLOPs of the policy's useful work, counted from its sizes rather than from a program.

Only matrix products count, 2 FLOPs for each multiplication and addition. A product with parameters
costs 2 x the kernel's size for every row that passes it; a module's table `ROWS` says which rows
pass which kernels, so that another backbone needs no change here. An attention costs 4 x queries x
keys x heads x head_dim in each layer, for no more keys than `blocks` lets a stream see.

These are the "model FLOPs" that model FLOPs utilization (MFU) is defined by: a training step is
three forward passes, and what a compiler recomputes, pads or computes for nothing does not count.
The text has as many rows as its bucket. All layers count in full, although nothing reads the
context's tokens after the last. The autoencoder is not part of the policy.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
from flax import nnx

from imagewam_jax.models.imagewam import ImageWAM, ImageWAMConfig
from imagewam_jax.models.layers import is_read

OFFICIAL_TEXT_TOKENS = 512  # what the official code pads every text to
CONTEXT = ("text", "reference")  # the kinds of rows that are the context
BACKWARD = 2  # forward passes that a backward pass costs: by inputs and by kernels

Path = tuple[str, ...]


class Sizes(NamedTuple):
    """The sizes of a batch; the others are the policy's own.

    `text_tokens` is the length of the bucket, without the robot state's token. Grids are rows and
    columns of latent cells.
    """

    batch: int
    text_tokens: int
    target_grid: tuple[int, int]
    reference_grid: tuple[int, int]
    references: int = 1


@dataclass(frozen=True)
class Flops:
    """FLOPs by (stream, kind).

    Streams are context, target and action; kinds are projections (to queries, keys and values, and
    from attended values), attention, mlp, modulation, embeddings (with the heads) and lora.
    """

    parts: Mapping[tuple[str, str], float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def by_stream(self) -> dict[str, float]:
        return self._summed(0)

    def by_kind(self) -> dict[str, float]:
        return self._summed(1)

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(_add(self.parts, other.parts))

    def __mul__(self, factor: float) -> "Flops":
        return Flops({part: factor * flops for part, flops in self.parts.items()})

    def _summed(self, index: int) -> dict[str, float]:
        sums: Counter[str] = Counter()
        for part, flops in self.parts.items():
            sums[part[index]] += flops
        return dict(sums)


class Kernel(NamedTuple):
    """One matrix of a policy, or a stack of one matrix per layer."""

    path: Path
    size: int  # entries, in all layers of a stack
    kind: str
    rows: tuple[str, ...]  # the kinds of rows that pass it


def forward(config: ImageWAMConfig, sizes: Sizes) -> Flops:
    """One pass of all three streams: `ImageWAM.velocities`."""
    rows = _rows(config, sizes)
    return _products(rows, kernels(config)) + _attention(config, sizes, rows)


def training_step(
    config: ImageWAMConfig, sizes: Sizes, is_trained: Callable[[Path], bool] = lambda path: True
) -> Flops:
    """A forward and a backward pass, without the optimizer's elementwise work.

    Kernels that are not trained take half of a backward pass: gradients go through them.
    """
    rows = _rows(config, sizes)
    return _both_passes(config, rows, _attention(config, sizes, rows), is_trained)


def dense_training_step(
    config: ImageWAMConfig,
    sizes: Sizes,
    is_trained: Callable[[Path], bool] = lambda path: True,
    text_tokens: int = OFFICIAL_TEXT_TOKENS,
) -> Flops:
    """A training step as the official code does it: with text padded to `text_tokens`, and one
    attention over all rows of all streams, most of it masked."""
    rows = _rows(config, sizes._replace(text_tokens=text_tokens))
    joint = sum(rows[name] for name in (*CONTEXT, "target", "action"))
    queries = {"context": sum(rows[name] for name in CONTEXT)}
    queries |= {name: rows[name] for name in ("target", "action")}
    attention = {
        (stream, "attention"): _pairs(config) * count * joint / sizes.batch
        for stream, count in queries.items()
    }
    extra = _extra_attention(config, sizes, rows, tuple(queries))
    return _both_passes(config, rows, Flops(attention) + extra, is_trained)


def _both_passes(
    config: ImageWAMConfig,
    rows: Mapping[str, int],
    attention: Flops,
    is_trained: Callable[[Path], bool],
) -> Flops:
    found = kernels(config)
    trained = [kernel for kernel in found if is_trained(kernel.path)]
    frozen = [kernel for kernel in found if not is_trained(kernel.path)]
    whole = _products(rows, trained) + attention
    return whole * (1 + BACKWARD) + _products(rows, frozen) * (1 + BACKWARD / 2)


def prefill(config: ImageWAMConfig, sizes: Sizes) -> Flops:
    """The context alone: `ImageWAM.prefill`. The target's grid plays no part."""
    rows = _rows(config, sizes) | {"target": 0, "action": 0}
    found = [k for k in kernels(config) if k.path[0] != "expert" and "head" not in k.path]
    return _products(rows, found) + _attention(config, sizes, rows)


def euler_steps(config: ImageWAMConfig, sizes: Sizes, steps: int) -> Flops:
    """The action's steps against the context's keys and values: `ImageWAM.act`."""
    every = _rows(config, sizes)
    found = [k for k in kernels(config) if k.path[0] == "expert"]
    # Times are the same for all samples of a batch, so their modulations are made once.
    once = every | {"sample": 1}
    work = _products(once, found) + _attention(config, sizes, every, ("action",))
    return work * steps


def acting(config: ImageWAMConfig, sizes: Sizes, steps: int = 10) -> Flops:
    """One decision: prefill and Euler steps."""
    return prefill(config, sizes) + euler_steps(config, sizes, steps)


def kernels(config: ImageWAMConfig) -> tuple[Kernel, ...]:
    """Every matrix of a policy that something reads. ValueError: a module's `ROWS` lacks one."""
    model = jax.eval_shape(lambda: ImageWAM(config, rngs=nnx.Rngs(0)))
    tables = {
        "backbone": model.backbone.ROWS,
        "expert": model.expert.ROWS,
        "proprio_in": {"": ("sample",)},
    }
    found = []
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        axes = variable.get_metadata("axes")
        # Norms have a vector in each layer, and a bias may be kept with several axes.
        matrix = path[-1] != "bias" and sum(axis != "layer" for axis in axes) > 1
        if not (matrix and is_read(variable)):
            continue
        path = tuple(map(str, path))
        rows = _rows_of(path, tables[path[0]])
        found.append(Kernel(path, math.prod(variable.shape), _kind(axes), rows))
    return tuple(found)


def _rows_of(path: Path, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The entry of the longest name in `table` that the path, without its module, begins with."""
    inner = ".".join(path[1:]) + "."
    names = [name for name in table if not name or inner.startswith(f"{name}.")]
    if not names:
        raise ValueError(f"no rows are known to pass {'.'.join(path)}; ROWS has {sorted(table)}")
    return table[max(names, key=len)]


# The kind of a kernel, by the name of an axis; the first that the kernel has counts.
_KINDS = {
    "rank": "lora",
    "mlp": "mlp",
    "modulation": "modulation",
    "time": "modulation",
    "heads": "projections",
}


def _kind(axes: tuple[str, ...]) -> str:
    return next((kind for axis, kind in _KINDS.items() if axis in axes), "embeddings")


def _rows(config: ImageWAMConfig, sizes: Sizes) -> dict[str, int]:
    """Rows of each kind in the whole batch."""
    references = sizes.references * math.prod(sizes.reference_grid)
    counts = {
        "text": sizes.text_tokens + (config.proprio_dim is not None),
        "reference": references,
        "target": math.prod(sizes.target_grid),
        "action": config.horizon,
        "sample": 1,
    }
    return {name: sizes.batch * count for name, count in counts.items()}


def _products(rows: Mapping[str, int], found: Iterable[Kernel]) -> Flops:
    """Matrix products of rows and kernels."""
    parts: Counter[tuple[str, str]] = Counter()
    for kernel in found:
        for name in kernel.rows:
            parts[_stream(name, kernel), kernel.kind] += 2 * kernel.size * rows[name]
    return Flops(parts)


def _stream(rows: str, kernel: Kernel) -> str:
    """The stream that a row belongs to; a row per sample belongs to the stream of its module."""
    if rows in CONTEXT:
        return "context"
    if rows == "sample":
        return "action" if kernel.path[0] == "expert" else "context"
    return rows


def _attention(
    config: ImageWAMConfig,
    sizes: Sizes,
    rows: Mapping[str, int],
    streams: tuple[str, ...] = ("context", "target", "action"),
) -> Flops:
    context = sum(rows[name] for name in CONTEXT)
    queries = {"context": context, "target": rows["target"], "action": rows["action"]}
    keys = {name: context + (0 if name == "context" else queries[name]) for name in streams}
    joint = {
        (name, "attention"): _pairs(config) * queries[name] * keys[name] / sizes.batch
        for name in streams
    }
    return Flops(joint) + _extra_attention(config, sizes, rows, streams)


def _extra_attention(
    config: ImageWAMConfig, sizes: Sizes, rows: Mapping[str, int], streams: tuple[str, ...]
) -> Flops:
    """FLOPs of a backbone's `extra_attentions`, of which the action has those that images have."""
    text, reference, target, action = (
        rows[name] for name in ("text", "reference", "target", "action")
    )
    pairs = {  # of queries and keys, by stream
        "text": {"context": text**2},
        "reference": {"context": reference**2 / sizes.references},
        "target": {"target": target**2},
        "image": {
            "context": reference**2,
            "target": target * (target + reference),
            "action": action * (action + reference),
        },
    }
    parts: Counter[tuple[str, str]] = Counter()
    for name, count in config.backbone.extra_attentions.items():
        for stream, number in pairs[name].items():
            if stream in streams:
                parts[stream, "attention"] += _per_layer(config) * count * number / sizes.batch
    return Flops(parts)


def _pairs(config: ImageWAMConfig) -> int:
    """FLOPs for each pair of a query and a key, in all layers."""
    return _per_layer(config) * sum(config.backbone.group_sizes)


def _per_layer(config: ImageWAMConfig) -> int:
    """FLOPs for each pair of a query and a key, in one layer."""
    return 4 * config.backbone.heads * config.backbone.head_dim


def _add(a: Mapping, b: Mapping) -> dict:
    return {key: a.get(key, 0) + b.get(key, 0) for key in {**a, **b}}
