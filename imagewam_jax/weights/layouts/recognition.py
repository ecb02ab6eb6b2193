"""The foreign layouts, and how one is told from its tensors. A new one is a file and an entry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.tensors import Renamed, TensorSource
from imagewam_jax.weights.layouts import (
    action_init,
    flux2,
    flux2_autoencoder,
    flux2_autoencoder_diffusers,
    flux2_diffusers,
    imagewam,
    lora,
    qwen3,
)
from imagewam_jax.weights.layouts.mapping import Rule
from imagewam_jax.weights.layouts.metadata import Facts, Specs

PREFIX = "model.diffusion_model."  # of all names in some single-file exports of FLUX.2


@dataclass(frozen=True)
class Layout:
    """How one kind of model is stored by others.

    `part` is what it is of a policy: "policy", "backbone", "autoencoder" or "text_encoder".
    `signature` are tensors that every file of it has and no other layout has together. `config`
    makes the sizes from shapes and facts, `rules` the mapping from sizes. `source` gives the
    tensors that the mapping speaks of, from those of the file, facts, and a base (for what is
    stored as a difference from it). `carried` are tensors that no model of ours has; their values
    are kept for writing the layout again. `original` is the layout that the recipes of the
    official code are about, where this is another one of the same model; `initial_expert` is the
    recipe for an action expert's first weights. `state` says in a few words what the tensors of a
    file are besides, such as LoRA factors.
    """

    name: str
    part: str
    signature: tuple[str, ...]
    config: Callable[[Specs, Facts], Any]
    rules: Callable[[Any], list[Rule]]
    source: Callable[[TensorSource, Facts, TensorSource | None], TensorSource] = (
        lambda source, facts, base: source
    )
    carried: tuple[str, ...] = ()
    original: "Layout | None" = None
    initial_expert: Callable[..., action_init.Initial] | None = None
    state: Callable[[Specs], str] = lambda specs: ""


FLUX2 = Layout(
    name="FLUX.2 transformer, original layout",
    part="backbone",
    signature=("img_in.weight", "double_blocks.0.img_attn.norm.query_norm.scale"),
    config=flux2.flux2_config,
    rules=flux2.flux2_rules,
    source=lambda source, facts, base: lora.merged(source, facts),
    state=lora.state,
    initial_expert=action_init.initial_expert,
)
FLUX2_DIFFUSERS = Layout(
    name="FLUX.2 transformer, diffusers layout",
    part="backbone",
    signature=("x_embedder.weight", "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"),
    config=flux2_diffusers.flux2_diffusers_config,
    rules=flux2_diffusers.flux2_diffusers_rules,
    original=FLUX2,
)
FLUX2_AUTOENCODER = Layout(
    name="FLUX.2 autoencoder, original layout",
    part="autoencoder",
    signature=("bn.running_mean", "encoder.down.0.block.0.conv1.weight"),
    config=flux2_autoencoder.flux2_autoencoder_config,
    rules=flux2_autoencoder.flux2_autoencoder_rules,
    carried=(flux2_autoencoder.COUNTER,),
)
FLUX2_AUTOENCODER_DIFFUSERS = Layout(
    name="FLUX.2 autoencoder, diffusers layout",
    part="autoencoder",
    signature=("bn.running_mean", "encoder.down_blocks.0.resnets.0.conv1.weight"),
    config=flux2_autoencoder_diffusers.flux2_autoencoder_diffusers_config,
    rules=flux2_autoencoder_diffusers.flux2_autoencoder_diffusers_rules,
    carried=(flux2_autoencoder.COUNTER,),
    original=FLUX2_AUTOENCODER,
)
QWEN3 = Layout(
    name="Qwen3, Hugging Face layout",
    part="text_encoder",
    signature=("model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight"),
    config=qwen3.qwen3_config,
    rules=qwen3.qwen3_rules,
    source=lambda source, facts, base: qwen3.used(source, facts),
)
IMAGEWAM_FLUX2 = Layout(
    name="ImageWAM on FLUX.2, official checkpoint",
    part="policy",
    signature=(f"{imagewam.EXPERT}action_encoder.weight", f"{imagewam.EXPERT}head.linear.weight"),
    config=imagewam.imagewam_config,
    rules=imagewam.imagewam_rules,
    source=imagewam.imagewam_source,
    state=imagewam.state,
)

LAYOUTS = (
    FLUX2,
    FLUX2_DIFFUSERS,
    FLUX2_AUTOENCODER,
    FLUX2_AUTOENCODER_DIFFUSERS,
    QWEN3,
    IMAGEWAM_FLUX2,
)


def recognise(source: TensorSource, where: str) -> tuple[Layout, TensorSource]:
    """The layout of some tensors, and the tensors under its names.

    ConversionError: they are of no known layout.
    """
    for prefix in ("", PREFIX):
        renamed = Renamed(source, lambda n, p=prefix: n.removeprefix(p) if n.startswith(p) else n)
        for layout in LAYOUTS:
            if all(name in renamed.specs for name in layout.signature):
                return layout, renamed if prefix else source
    known = "; ".join(layout.name for layout in LAYOUTS)
    some = ", ".join(sorted(source.specs)[:4])
    raise ConversionError(
        f"{where}: {len(source.specs)} tensors ({some}, ...) of no known layout; known are: {known}"
    )
