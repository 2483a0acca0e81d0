"""Classifier of the attentive probe: one learned query attends to the cells of a stage map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentiveClassifier(nn.Module):
    """Multi-head cross-attention of one learned query to the cells of a map, then a linear layer.

    Args:
        channels: Channels of the map.
        cells: Rows and columns to which the map is average-pooled.
        heads: Attention heads; a divisor of the channels.
        num_classes: K.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, channels: int, cells: Sequence[int], heads: int, num_classes: int) -> None:
        super().__init__()
        self.cells = (cells[0], cells[1])
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.query = nn.Parameter(torch.randn(1, 1, channels) * 0.02)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(B, channels, H, W)` to logits `(B, K)`."""
        tokens = F.adaptive_avg_pool2d(maps, self.cells).flatten(2).mT  # (B, T, C)
        tokens = (tokens - self.shift) * self.scale
        query = self.query.expand(len(tokens), -1, -1)
        return self.linear(self.attention(query, tokens, tokens, need_weights=False)[0][:, 0])


def attend_all(classifiers: Sequence[AttentiveClassifier], tokens: Tensor) -> Tensor:
    """Return the logits of several classifiers of one shape on the same tokens, with gradients.

    With a single query, the scores of a head are products of the tokens with one vector, and its values can
    be projected after the average over tokens. No token is therefore projected, which makes one pass for all
    classifiers cheaper than a pass of `nn.MultiheadAttention` for one.

    Args:
        classifiers: R classifiers with the same number of heads; their `shift` and `scale` are not used.
        tokens: Standardised cells `(B, C, T)`.

    Returns:
        `(R, B, K)`.
    """
    heads = classifiers[0].attention.num_heads
    channels = tokens.shape[1]

    def stacked(name: str) -> Tensor:
        return torch.stack([each.get_parameter(name) for each in classifiers])

    weights, biases = stacked("attention.in_proj_weight"), stacked("attention.in_proj_bias")
    to_query, to_key, to_value = weights.unflatten(1, (3, heads, -1)).unbind(1)  # each (R, h, d, C)
    bias = biases.unflatten(1, (3, heads, -1))  # (R, 3, h, d); that of the keys changes no attention
    query = torch.einsum("rhdc,rc->rhd", to_query, stacked("query")[:, 0, 0]) + bias[:, 0]
    keys = torch.einsum("rhd,rhdc->rhc", query, to_key) / math.sqrt(channels // heads)
    attention = (keys.flatten(0, 1) @ tokens).softmax(2)  # (B, R * h, T)
    pooled = (attention @ tokens.mT).unflatten(1, keys.shape[:2])  # (B, R, h, C)
    values = torch.einsum("brhc,rhdc->rbhd", pooled, to_value) + bias[:, 2][:, None]  # (R, B, h, d)
    out = _linear(values.flatten(2), stacked("attention.out_proj.weight"), stacked("attention.out_proj.bias"))
    return _linear(out, stacked("linear.weight"), stacked("linear.bias"))


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply R linear layers `(R, out, in)` to `(R, B, in)`."""
    return torch.baddbmm(bias[:, None], x, weight.mT)
