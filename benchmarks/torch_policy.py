"""The PyTorch policy around its network: our parameters, raw data, the optimizer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.torch_imagewam import Context, Draws, Sample, TorchImageWAM
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import flatten
from imagewam_jax.preprocess.normalization import CLAMP
from imagewam_jax.training.optimizer import learning_rate
from imagewam_jax.weights.layouts.imagewam import BACKBONE, EXPERT, imagewam_rules
from imagewam_jax.weights.layouts.mapping import to_foreign

Tensors = dict[str, Tensor]


def load_params(model: TorchImageWAM, params: Mapping[str, Any]) -> None:
    """Give the model our parameters. KeyError, RuntimeError: they do not fit."""
    model.load_state_dict(torch_tensors(model.config, params))


def torch_tensors(config: ImageWAMConfig, params: Mapping[str, Any]) -> Tensors:
    """Convert our tree of parameters or gradients to tensors under `TorchImageWAM`'s names."""
    official = to_foreign(imagewam_rules(config), params)
    return {_name(name): torch.from_numpy(np.array(array)) for name, array in official.items()}


def _name(official: str) -> str:
    for ours, theirs in (
        ("video.", BACKBONE),
        ("action.", EXPERT),
        (".img.attn.", ".img_attn."),
        (".img.mlp.", ".img_mlp."),
        (".txt.attn.", ".txt_attn."),
        (".txt.mlp.", ".txt_mlp."),
    ):
        official = official.replace(theirs, ours)
    return official


class PolicyAssets(nn.Module):
    """The parts that training does not change: patch autoencoder, text features, normalization."""

    def __init__(self, tree: Mapping[str, Any], factor: int):
        """`tree` is `imagewam_jax.checkpoints.assets.asset_trees`."""
        super().__init__()
        self.factor = factor
        for path, array in flatten(tree).items():
            self.register_buffer(path.replace(".", "_"), torch.from_numpy(np.array(array)))

    def encode(self, images: Tensor) -> Float[Tensor, "b h w c"]:
        """Encode uint8 images `[b, height, width, 3]`."""
        x = (images.float() / 255 - 0.5) / 0.5
        x = x.unflatten(2, (-1, self.factor)).unflatten(1, (-1, self.factor))
        patches = x.transpose(2, 3).flatten(3)
        centered = patches - self.autoencoder_mean
        return centered @ self.autoencoder_basis / self.autoencoder_scale

    def context(self, reference: Tensor, text_id: Tensor, state: Tensor) -> Context:
        proprio = ((state - self.normalizers_state_center) * self.normalizers_state_scale).clamp(
            -CLAMP, CLAMP
        )
        return Context(self.text_features[text_id], self.text_length[text_id], reference, proprio)

    def sample(self, batch: Tensors) -> Sample:
        """Make the sample of a loader's batch with one camera."""
        images = batch["images"][:, 0]
        latents = self.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        actions = (
            (batch["actions"] - self.normalizers_actions_center) * self.normalizers_actions_scale
        ).clamp(-CLAMP, CLAMP)
        absent = ~batch["action_dim_mask"]
        return Sample(
            self.context(latents[:, 0], batch["text_id"], batch["proprio"]),
            latents[:, 1],
            actions.masked_fill(absent[:, None], 0),
            batch["action_is_pad"],
            absent,
        )

    def raw_actions(self, normalized: Float[Tensor, "b s a"]) -> Float[Tensor, "b s a"]:
        """Actions in the units of the world."""
        return normalized / self.normalizers_actions_scale + self.normalizers_actions_center


def sample_draws(sample: Sample) -> Draws:
    batch = len(sample.actions)
    return Draws(
        torch.randn_like(sample.target),
        torch.rand(batch),
        torch.randn_like(sample.actions),
        torch.rand(batch),
    )


class TorchTrainer:
    """Trains with AdamW, warm-up, cosine decay, clipping and a moving average, as ours does."""

    def __init__(self, model: TorchImageWAM, assets: PolicyAssets, config: Mapping[str, Any]):
        self.model, self.assets, self.section = model, assets, config["optimizer"]
        self.params = list(model.parameters())
        self.has_ema = self.section["ema_decay"] > 0
        self.ema = [p.detach().clone() for p in self.params] if self.has_ema else []
        self.optimizer = torch.optim.AdamW(
            self.params,
            lr=1.0,  # replaced by the schedule at every step
            betas=(self.section["b1"], self.section["b2"]),
            eps=self.section["eps"],
            weight_decay=self.section["weight_decay"],
            fused=True,
        )
        steps = config["train"]["steps"]
        rate = learning_rate(self.section, steps)
        self.rates = [float(rate(step)) for step in range(steps)]
        self.steps = 0
        self.loss = model.training_loss

    def step(self, batch: Tensors) -> Float[Tensor, ""]:
        """Do one update; returns the loss before it."""
        sample = self.assets.sample(batch)
        return self.update(sample, sample_draws(sample))

    def update(self, sample: Sample, draws: Draws) -> Float[Tensor, ""]:
        self.optimizer.zero_grad()
        loss = self.loss(sample, draws)
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, self.section["clip_norm"])
        self.optimizer.param_groups[0]["lr"] = self.rates[self.steps]
        self.optimizer.step()
        if self.has_ema:
            decay = min(self.section["ema_decay"], (1 + self.steps) / (10 + self.steps))
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, self.params, 1 - decay)
        self.steps += 1
        return loss.detach()
