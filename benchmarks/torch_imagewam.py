"""ImageWAM on FLUX.2 in plain PyTorch, which the benchmarks compare with.

The same mathematics as `imagewam_jax.models.imagewam` (docs/spec/imagewam_flux2.md, 1, 4, 5 and
6), written as the official code is: modules under the official names with fused projections, one
joint attention under a boolean mask in training, a cached prefix and a loop of Euler steps in
acting. What PyTorch has a kernel for is done by that kernel. Tokens stand in the official order
`[text | reference | target | action]`. One reference image, float32.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from imagewam_jax.models.backbones.flux2 import ACTION_TIME, REFERENCE_TIME, TARGET_TIME
from imagewam_jax.models.flow_matching import TIMESTEPS
from imagewam_jax.models.imagewam import ImageWAMConfig

EPSILON = 1e-6  # in all norms

Modulation = tuple[Tensor, Tensor, Tensor]  # shift, scale, gate: [b, 1, d]


class Context(NamedTuple):
    """As `imagewam_jax.models.imagewam.Context`, with one reference."""

    text: Float[Tensor, "b t text_dim"]
    text_length: Int[Tensor, " b"]
    reference: Float[Tensor, "b h w c"]
    proprio: Float[Tensor, "b p"]


class Sample(NamedTuple):
    """As `imagewam_jax.models.imagewam.Sample`, always with masks."""

    context: Context
    target: Float[Tensor, "b h w c"]
    actions: Float[Tensor, "b s a"]
    action_is_pad: Bool[Tensor, "b s"]
    action_dim_is_pad: Bool[Tensor, "b a"]


class Draws(NamedTuple):
    """As `imagewam_jax.models.imagewam.Draws`."""

    target_noise: Float[Tensor, "b h w c"]
    target_u: Float[Tensor, " b"]
    action_noise: Float[Tensor, "b s a"]
    action_u: Float[Tensor, " b"]


class Cache(NamedTuple):
    """Keys and values of the prefix in every layer, and which keys are valid."""

    layers: list[tuple[Tensor, Tensor]]
    valid: Bool[Tensor, "b 1 1 t"]


class RMSNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale, EPSILON)


class QKNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.norm = QKNorm(head_dim)
        self.proj = nn.Linear(heads * head_dim, dim, bias=False)


class SequentialBlock(nn.Module):
    """One stream of a double block: attention, then MLP (docs/spec/imagewam_flux2.md, 1.8)."""

    def __init__(self, dim: int, heads: int, head_dim: int, mlp_dim: int):
        super().__init__()
        self.heads = heads
        self.attn = Attention(dim, heads, head_dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 2 * mlp_dim, bias=False), Gate(), nn.Linear(mlp_dim, dim, bias=False)
        )

    def project(self, x: Tensor, on: Sequence[Modulation]) -> tuple[Tensor, Tensor, Tensor, None]:
        """Queries, keys and values `[b, s, heads, head_dim]`, before rotation."""
        z = modulate(x, on[0])
        q, k, v = split_heads(self.attn.qkv(z), self.heads)
        return *self.attn.norm(q, k), v, None

    def finish(self, x: Tensor, attended: Tensor, _: None, on: Sequence[Modulation]) -> Tensor:
        (_, _, gate), mlp = on
        x = x + gate * self.attn.proj(attended)
        return x + mlp[2] * self.mlp(modulate(x, mlp))


class ParallelBlock(nn.Module):
    """Attention and MLP side by side, in two projections (docs/spec/imagewam_flux2.md, 1.9)."""

    def __init__(self, dim: int, heads: int, head_dim: int, mlp_dim: int):
        super().__init__()
        self.heads, width = heads, heads * head_dim
        self.widths = (3 * width, 2 * mlp_dim)
        self.linear1 = nn.Linear(dim, sum(self.widths), bias=False)
        self.linear2 = nn.Linear(width + mlp_dim, dim, bias=False)
        self.norm = QKNorm(head_dim)
        self.gate = Gate()

    def project(self, x: Tensor, on: Sequence[Modulation]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `SequentialBlock.project`, with the input of the MLP's gate."""
        qkv, mlp = self.linear1(modulate(x, on[0])).split(self.widths, -1)
        q, k, v = split_heads(qkv, self.heads)
        return *self.norm(q, k), v, mlp

    def finish(self, x: Tensor, attended: Tensor, mlp: Tensor, on: Sequence[Modulation]) -> Tensor:
        return x + on[0][2] * self.linear2(torch.cat([attended, self.gate(mlp)], -1))


class DoubleBlock(nn.Module):
    def __init__(self, *sizes: int):
        super().__init__()
        self.img = SequentialBlock(*sizes)
        self.txt = SequentialBlock(*sizes)


class ActionDoubleBlock(nn.Module):
    """The expert's double blocks have only an image stream, which holds the actions."""

    def __init__(self, *sizes: int):
        super().__init__()
        self.img = SequentialBlock(*sizes)


class TimeEmbedding(nn.Module):
    width = 256

    def __init__(self, dim: int):
        super().__init__()
        self.in_layer = nn.Linear(self.width, dim, bias=False)
        self.out_layer = nn.Linear(dim, dim, bias=False)
        half = self.width // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, time: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        angles = (1000 * time)[:, None] * self.frequencies
        sinusoids = torch.cat([angles.cos(), angles.sin()], -1)
        return self.out_layer(F.silu(self.in_layer(sinusoids)))


class ModulationHead(nn.Module):
    def __init__(self, dim: int, branches: int):
        super().__init__()
        self.branches = branches
        self.lin = nn.Linear(dim, 3 * branches * dim, bias=False)

    def forward(self, time: Float[Tensor, "b d"]) -> list[Modulation]:
        parts = self.lin(F.silu(time))[:, None].chunk(3 * self.branches, -1)
        return [parts[3 * i : 3 * i + 3] for i in range(self.branches)]


class OutputHead(nn.Module):
    def __init__(self, dim: int, out: int):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim, bias=False))
        self.linear = nn.Linear(dim, out, bias=False)

    def forward(self, x: Tensor, on: tuple[Tensor, Tensor]) -> Tensor:
        return self.linear(modulate(x, on))

    def condition(self, time: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        return self.adaLN_modulation(time)[:, None].chunk(2, -1)


class Video(nn.Module):
    """The FLUX.2 transformer (docs/spec/imagewam_flux2.md, 1)."""

    def __init__(self, config: ImageWAMConfig):
        super().__init__()
        c = config.backbone
        sizes = (c.dim, c.heads, c.head_dim, int(c.dim * c.mlp_ratio))
        self.img_in = nn.Linear(c.in_channels, c.dim, bias=False)
        self.txt_in = nn.Linear(c.text_dim, c.dim, bias=False)
        self.time_in = TimeEmbedding(c.dim)
        self.double_stream_modulation_img = ModulationHead(c.dim, 2)
        self.double_stream_modulation_txt = ModulationHead(c.dim, 2)
        self.single_stream_modulation = ModulationHead(c.dim, 1)
        self.double_blocks = nn.ModuleList(DoubleBlock(*sizes) for _ in range(c.double_layers))
        self.single_blocks = nn.ModuleList(ParallelBlock(*sizes) for _ in range(c.single_layers))
        self.final_layer = OutputHead(c.dim, c.in_channels)


class Action(nn.Module):
    """The action expert (docs/spec/imagewam_flux2.md, 4)."""

    def __init__(self, config: ImageWAMConfig):
        super().__init__()
        b, c = config.backbone, config.expert
        sizes = (c.dim, b.heads, b.head_dim, int(c.dim * c.mlp_ratio))
        self.action_encoder = nn.Linear(c.action_dim, c.dim)
        self.time_in = TimeEmbedding(c.dim)
        self.double_stream_modulation_img = ModulationHead(c.dim, 2)
        self.single_stream_modulation = ModulationHead(c.dim, 1)
        self.double_blocks = nn.ModuleList(
            ActionDoubleBlock(*sizes) for _ in range(b.double_layers)
        )
        self.single_blocks = nn.ModuleList(ParallelBlock(*sizes) for _ in range(b.single_layers))
        self.head = OutputHead(c.dim, c.action_dim)


class TorchImageWAM(nn.Module):
    """The policy, for one latent grid and one padded text length."""

    def __init__(self, config: ImageWAMConfig, grid: tuple[int, int], text_tokens: int):
        super().__init__()
        self.config = config
        self.n_text = text_tokens + 1  # and the robot state
        self.n_image = grid[0] * grid[1]
        self.video = Video(config)
        self.action = Action(config)
        self.proprio_encoder = nn.Linear(config.proprio_dim, config.backbone.text_dim)
        rope = rope_table(config, grid, self.n_text)
        self.register_buffer("rope", rope, persistent=False)
        self.mean_target_bell = mean_bell(config.target_flow.train_shift)
        self.mean_action_bell = mean_bell(config.action_flow.train_shift)
        groups = ["text"] * self.n_text + ["reference"] * self.n_image
        groups += ["target"] * self.n_image + ["action"] * config.horizon
        seen = {
            "text": {"text", "reference"},
            "reference": {"text", "reference"},
            "target": {"text", "reference", "target"},
            "action": {"text", "reference", "action"},
        }
        mask = torch.tensor([[key in seen[query] for key in groups] for query in groups])
        self.register_buffer("mask", mask, persistent=False)

    def training_loss(self, sample: Sample, draws: Draws) -> Float[Tensor, ""]:
        """The weighted sum of both losses (docs/spec/imagewam_flux2.md, 6)."""
        config = self.config
        target_time = shift_time(draws.target_u, config.target_flow.train_shift)
        action_time = shift_time(draws.action_u, config.action_flow.train_shift)
        target, actions = self.velocities(
            sample.context,
            noised(sample.target, draws.target_noise, target_time).flatten(1, 2),
            target_time,
            noised(sample.actions, draws.action_noise, action_time),
            action_time,
        )
        velocity = (draws.target_noise - sample.target).flatten(1, 2)
        target_loss = (target - velocity).square().mean((1, 2))
        error = (actions - (draws.action_noise - sample.actions)).square()
        action_loss = masked_mean(
            masked_mean(error, ~sample.action_dim_is_pad[:, None]), ~sample.action_is_pad
        )
        target_weight = bell(target_time) / self.mean_target_bell
        action_weight = bell(action_time) / self.mean_action_bell
        return (
            config.target_loss_weight * (target_weight * target_loss).mean()
            + config.action_loss_weight * (action_weight * action_loss).mean()
        )

    def velocities(
        self, context: Context, target: Tensor, target_time: Tensor, a: Tensor, action_time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities of target tokens and actions, with one joint attention in every layer."""
        video, action = self.video, self.action
        text, valid = self.text(context)
        text = video.txt_in(text)
        image = video.img_in(torch.cat([context.reference.flatten(1, 2), target], 1))
        a = action.action_encoder(a)
        t, t_a = video.time_in(target_time), action.time_in(action_time)
        mask = self.mask & F.pad(valid, (0, self.mask.shape[0] - self.n_text), value=True)[:, None]

        on_image = video.double_stream_modulation_img(t)
        on_text = video.double_stream_modulation_txt(t)
        on_a = action.double_stream_modulation_img(t_a)
        for block, a_block in zip(video.double_blocks, action.double_blocks, strict=True):
            text, image, a = joint_layer(
                [block.txt, block.img, a_block.img],
                [text, image, a],
                [on_text, on_image, on_a],
                self.rope,
                mask[:, None],
            )
        x = torch.cat([text, image], 1)
        on, on_a = video.single_stream_modulation(t), action.single_stream_modulation(t_a)
        for block, a_block in zip(video.single_blocks, action.single_blocks, strict=True):
            x, a = joint_layer([block, a_block], [x, a], [on, on_a], self.rope, mask[:, None])
        target = x[:, self.n_text + self.n_image :]
        return (
            video.final_layer(target, video.final_layer.condition(t)),
            action.head(a, action.head.condition(t_a)),
        )

    def prefill(self, context: Context) -> Cache:
        """Text and reference through all layers at time 0 (docs/spec/imagewam_flux2.md, 5.5)."""
        video = self.video
        text, valid = self.text(context)
        mask = F.pad(valid, (0, self.n_image), value=True)[:, None, None]
        text, image = video.txt_in(text), video.img_in(context.reference.flatten(1, 2))
        t = video.time_in(text.new_zeros(text.shape[0]))
        rope = self.rope[: self.n_text + self.n_image]
        layers: list[tuple[Tensor, Tensor]] = []
        on = [video.double_stream_modulation_txt(t), video.double_stream_modulation_img(t)]
        for block in video.double_blocks:
            text, image = joint_layer(
                [block.txt, block.img], [text, image], on, rope, mask, keep=layers
            )
        x, on = torch.cat([text, image], 1), [video.single_stream_modulation(t)]
        for block in video.single_blocks:
            (x,) = joint_layer([block], [x], on, rope, mask, keep=layers)
        return Cache(layers, mask)

    def act(self, context: Context, noise: Float[Tensor, "b s a"], steps: int) -> Tensor:
        """Normalized actions: one prefill, then Euler steps of the expert against its cache."""
        action, cache = self.action, self.prefill(context)
        times = shift_time(torch.linspace(1, 0, steps + 1), self.config.action_flow.sample_shift)
        t = action.time_in(times[:-1])
        # All steps' modulations at once: their weights are read once, not at every step.
        double, single = action.double_stream_modulation_img(t), action.single_stream_modulation(t)
        head = action.head.condition(t)
        deltas = times.diff()
        rope = self.rope[-noise.shape[1] :]
        mask = F.pad(cache.valid, (0, noise.shape[1]), value=True)
        blocks = [block.img for block in action.double_blocks] + list(action.single_blocks)
        actions = noise
        for i in range(steps):
            a = action.action_encoder(actions)
            on_double = [tuple(part[i : i + 1] for part in branch) for branch in double]
            on_single = [tuple(part[i : i + 1] for part in branch) for branch in single]
            for number, (block, prefix) in enumerate(zip(blocks, cache.layers, strict=True)):
                on = on_double if number < len(action.double_blocks) else on_single
                (a,) = joint_layer([block], [a], [on], rope, mask, prefix=prefix)
            predicted = action.head(a, tuple(part[i : i + 1] for part in head))
            actions = actions + predicted * deltas[i]
        return actions

    def text(self, context: Context) -> tuple[Tensor, Bool[Tensor, "b t"]]:
        """Text with the robot state's token behind it, and what is valid of it.

        See docs/spec/imagewam_flux2.md, 5.3.
        """
        index = torch.arange(self.n_text)
        is_proprio = index == context.text_length[:, None]
        proprio = self.proprio_encoder(context.proprio)[:, None]
        text = torch.where(is_proprio[..., None], proprio, F.pad(context.text, (0, 0, 0, 1)))
        return text, index <= context.text_length[:, None]


def joint_layer(
    blocks: Sequence[nn.Module],
    streams: Sequence[Tensor],
    on: Sequence[Sequence[Modulation]],
    rope: Tensor,
    mask: Tensor,
    *,
    prefix: tuple[Tensor, Tensor] | None = None,
    keep: list[tuple[Tensor, Tensor]] | None = None,
) -> list[Tensor]:
    """Run one layer of several streams under one attention.

    `prefix` are cached keys and values in front of those of the streams; `keep` collects the keys
    and values of the streams for such a cache.
    """
    projected = [block.project(x, o) for block, x, o in zip(blocks, streams, on, strict=True)]
    q, k, v = (joined([p[i] for p in projected], 1) for i in range(3))
    q, k, v = rotate(q, rope).transpose(1, 2), rotate(k, rope).transpose(1, 2), v.transpose(1, 2)
    if keep is not None:
        keep.append((k, v))
    if prefix is not None:
        k, v = torch.cat([prefix[0], k], 2), torch.cat([prefix[1], v], 2)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    parts = attended.transpose(1, 2).flatten(2).split([x.shape[1] for x in streams], 1)
    return [
        block.finish(x, part, p[3], o)
        for block, x, part, p, o in zip(blocks, streams, parts, projected, on, strict=True)
    ]


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    return qkv.unflatten(-1, (3, heads, -1)).unbind(2)


def modulate(x: Tensor, on: Sequence[Tensor]) -> Tensor:
    return (1 + on[1]) * F.layer_norm(x, x.shape[-1:], eps=EPSILON) + on[0]


def rope_table(config: ImageWAMConfig, grid: tuple[int, int], n_text: int) -> Tensor:
    """`[tokens, 1, pairs, (cos, sin)]` of all tokens (docs/spec/imagewam_flux2.md, 1.4 and 1.5)."""
    rows, columns = grid
    positions = [(0, 0, 0, n) for n in range(n_text)]
    for time in (REFERENCE_TIME, TARGET_TIME):
        positions += [(time, i, j, 0) for i in range(rows) for j in range(columns)]
    positions += [(ACTION_TIME, step, 0, 0) for step in range(config.horizon)]
    angles = []
    for axis, dim in enumerate(config.backbone.rope_axes):
        exponents = torch.arange(0, dim, 2) / dim
        frequencies = 1 / config.backbone.rope_theta**exponents
        angles.append(torch.tensor([p[axis] for p in positions])[:, None] * frequencies)
    angles = torch.cat(angles, -1)[:, None]
    return torch.stack([angles.cos(), angles.sin()], -1)


def rotate(x: Float[Tensor, "b s n h"], rope: Tensor) -> Float[Tensor, "b s n h"]:
    """Rotate adjacent channel pairs."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope.unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


def shift_time(u: Tensor, shift: float) -> Tensor:
    return shift * u / (1 + (shift - 1) * u)


def noised(clean: Tensor, noise: Tensor, time: Float[Tensor, " b"]) -> Tensor:
    t = time.view(-1, *[1] * (clean.ndim - 1))
    return (1 - t) * clean + t * noise


def bell(time: Tensor) -> Tensor:
    return torch.exp(-2 * (time - 0.5).square()) - math.exp(-0.5)


def mean_bell(shift: float) -> float:
    grid = torch.arange(TIMESTEPS, 0, -1, dtype=torch.float64) / TIMESTEPS
    return bell(shift_time(grid, shift)).mean().item()


def masked_mean(x: Tensor, valid: Bool[Tensor, "..."]) -> Tensor:
    """The mean over the valid entries of the last axis; 0 where there are none."""
    valid = valid.expand(x.shape).to(x.dtype)
    return (x * valid).sum(-1) / valid.sum(-1).clamp(min=1)
