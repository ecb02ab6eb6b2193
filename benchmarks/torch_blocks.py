"""Blocks, embeddings and heads of ImageWAM in plain PyTorch (docs/spec/imagewam_flux2.md, 1)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

EPSILON = 1e-6  # in all norms

Modulation = tuple[Tensor, Tensor, Tensor]  # shift, scale, gate: [b, 1, d]


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


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    return qkv.unflatten(-1, (3, heads, -1)).unbind(2)


def modulate(x: Tensor, on: Sequence[Tensor]) -> Tensor:
    return (1 + on[1]) * F.layer_norm(x, x.shape[-1:], eps=EPSILON) + on[0]
