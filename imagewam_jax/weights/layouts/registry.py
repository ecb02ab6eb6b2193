"""The foreign layouts, each recognized by its tensors. A new one is a file and an entry here."""

from imagewam_jax.weights.io.tensors import TensorSource
from imagewam_jax.weights.layouts import (
    autoencoder_kl,
    flux2,
    flux2_autoencoder,
    flux2_autoencoder_diffusers,
    flux2_diffusers,
    imagewam,
    lora,
    omnigen2,
    ovis_u1,
    qwen3,
)
from imagewam_jax.weights.layouts.families import FAMILIES
from imagewam_jax.weights.layouts.family import Family
from imagewam_jax.weights.layouts.layout import Layout
from imagewam_jax.weights.layouts.sets import find_weights

FLUX2 = Layout(
    name="FLUX.2 transformer, original layout",
    component="backbone",
    signature=("img_in.weight", "double_blocks.0.img_attn.norm.query_norm.scale"),
    lacks=("txt_in.cls_token",),  # of Ovis-U1's
    config=flux2.flux2_config,
    rules=flux2.flux2_rules,
    source=lambda source, metadata, base: lora.merged(source, metadata),
    state=lora.state,
)
FLUX2_DIFFUSERS = Layout(
    name="FLUX.2 transformer, diffusers layout",
    component="backbone",
    signature=("x_embedder.weight", "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"),
    config=flux2_diffusers.flux2_diffusers_config,
    rules=flux2_diffusers.flux2_diffusers_rules,
    original=FLUX2,
)
FLUX2_AUTOENCODER = Layout(
    name="FLUX.2 autoencoder, original layout",
    component="autoencoder",
    signature=("bn.running_mean", "encoder.down.0.block.0.conv1.weight"),
    config=flux2_autoencoder.flux2_autoencoder_config,
    rules=flux2_autoencoder.flux2_autoencoder_rules,
    carried=(flux2_autoencoder.COUNTER,),
)
FLUX2_AUTOENCODER_DIFFUSERS = Layout(
    name="FLUX.2 autoencoder, diffusers layout",
    component="autoencoder",
    signature=("bn.running_mean", "encoder.down_blocks.0.resnets.0.conv1.weight"),
    config=flux2_autoencoder_diffusers.flux2_autoencoder_diffusers_config,
    rules=flux2_autoencoder_diffusers.flux2_autoencoder_diffusers_rules,
    carried=(flux2_autoencoder.COUNTER,),
    original=FLUX2_AUTOENCODER,
)
QWEN3 = Layout(
    name="Qwen3, Hugging Face layout",
    component="text_encoder",
    signature=("model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight"),
    config=qwen3.qwen3_config,
    rules=qwen3.qwen3_rules,
    source=lambda source, metadata, base: qwen3.used(source, metadata),
    modules=(("model.", r"(embed_tokens|layers|norm)\."), ("lm_head.", "weight$")),
)
OMNIGEN2 = Layout(
    name="OmniGen2 transformer, diffusers layout",
    component="backbone",
    signature=("ref_image_patch_embedder.weight", "time_caption_embed.caption_embedder.0.weight"),
    config=omnigen2.omnigen2_config,
    rules=omnigen2.omnigen2_rules,
)
OVIS_U1 = Layout(
    name="Ovis-U1 transformer, released layout",
    component="backbone",
    signature=("txt_in.cls_token", "double_blocks.0.img_self_attn.qkv.weight"),
    config=ovis_u1.ovis_u1_config,
    rules=ovis_u1.ovis_u1_rules,
)
AUTOENCODER_KL = Layout(
    name="AutoencoderKL, diffusers layout",
    component="autoencoder",
    signature=("decoder.conv_norm_out.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"),
    lacks=("bn.running_mean",),
    config=autoencoder_kl.autoencoder_kl_config,
    rules=autoencoder_kl.autoencoder_kl_rules,
)


def _policy(family: Family) -> Layout:
    """The official checkpoint of a policy of one family."""
    return Layout(
        name=f"ImageWAM on {family.title}, official checkpoint",
        component="policy",
        signature=(f"{imagewam.EXPERT}action_encoder.weight", imagewam.EXPERT + family.expert[0]),
        config=imagewam.imagewam_config,
        rules=imagewam.imagewam_rules,
        source=imagewam.imagewam_source,
        modules=((imagewam.MOT, r"mixtures\."), (imagewam.PROPRIO, "(weight|bias)$")),
        contains=(imagewam.BACKBONE,),
        state=imagewam.state,
    )


# The layout of an official checkpoint, by the type of the backbone's configuration.
POLICIES = {family.backbone: _policy(family) for family in FAMILIES}

LAYOUTS = (
    FLUX2,
    FLUX2_DIFFUSERS,
    FLUX2_AUTOENCODER,
    FLUX2_AUTOENCODER_DIFFUSERS,
    QWEN3,
    OMNIGEN2,
    OVIS_U1,
    AUTOENCODER_KL,
    *POLICIES.values(),
)


def recognize(source: TensorSource, where: str) -> tuple[Layout, TensorSource]:
    """Return the layout of some tensors, and the tensors under its names.

    ConversionError: the layout is not known, or the tensors are no whole weights of it.
    """
    found = find_weights(source, LAYOUTS, where)
    return found.layout, found.tensors
