"""Muon, the optimiser of the training: momentum whose update is orthogonalised, weight matrix by weight matrix.

After Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). Here the Newton-Schulz iteration runs on
the Gram matrix of the momentum, which has as many rows as the shorter side: a matrix product with the momentum itself, as long
as a convolution's kernel is, is needed twice in all instead of twice in each round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "is_hidden", "orthogonal"]

COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5  # the paper's


def is_hidden(weight: Tensor) -> bool:
    """Whether a parameter is a convolution's kernel between hidden layers: biases, linear layers and the network's ends are AdamW's.

    The linear layers carry timestep and style into every block. By Muon they took half of its time, as wide as they are, and a UNet of this size
    learnt less from as many pictures: 0.572 of v-loss instead of 0.567 after 12,000, 0.551 instead of 0.549 after 24,000.
    """
    return weight.ndim == 4 and min(weight.shape[:2]) >= 16


def orthogonal(update: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, roughly: all singular values between about 0.7 and 1.2."""
    matrix = update.flatten(1).float()
    tall = matrix.shape[0] > matrix.shape[1]
    matrix = matrix.T if tall else matrix
    matrix = matrix / (matrix.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    gram, factors = matrix @ matrix.T, []
    for left in reversed(range(ROUNDS)):
        factor = b * gram + c * (gram @ gram)
        factor.diagonal().add_(a)
        factors.append(factor)
        if left:
            gram = factor @ gram @ factor
    total = reduce(lambda done, factor: factor @ done, factors)
    result = total @ matrix
    return (result.T if tall else result).reshape(update.shape)


class Muon(torch.optim.Optimizer):
    """Args: `weights` for which `is_hidden` holds; `run` maps the update over them, side by side if it can."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01, run: Executor | None = None):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._map: Callable[..., Iterable[None]] = run.map if run else map

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]

            def update(weight: nn.Parameter, lr: float = lr, momentum: float = momentum, decay: float = decay) -> None:
                with torch.no_grad():  # it holds for one thread only
                    gradient, state = weight.grad, self.state[weight]
                    if gradient is None:
                        return
                    mean = state.setdefault("mean", torch.zeros_like(weight))
                    mean.lerp_(gradient, 1 - momentum)
                    rows, columns = len(weight), weight[0].numel()
                    change = orthogonal(gradient.lerp(mean, momentum))
                    weight.mul_(1 - lr * decay).add_(change, alpha=-lr * max(1.0, rows / columns) ** 0.5)

            list(self._map(update, group["params"]))
