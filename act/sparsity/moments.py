"""Streamed second moments of a layer's inputs and wanted outputs, and the dense weight that fits them best."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def input_rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The layer's input as the rows `[positions, K]` of its GEMM, patches for a convolution, in `gemm_rows`' order."""
    if isinstance(layer, nn.Conv2d):
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise ValueError("a convolution needs numeric zero padding to be pruned from calibration data")
        patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        images, k, positions = patches.shape
        by_channel = patches.reshape(images, layer.in_channels, -1, positions)
        return by_channel.permute(0, 3, 2, 1).reshape(-1, k)
    return inputs.reshape(-1, inputs.shape[-1])


def output_rows(layer: nn.Module, outputs: Tensor) -> Tensor:
    """A tensor of the shape of the layer's output as rows `[positions, out]`, in the order of `input_rows`."""
    if isinstance(layer, nn.Conv2d):
        outputs = outputs.movedim(1, -1)
    return outputs.reshape(-1, outputs.shape[-1])


class Moments:
    """Sums over positions of `x x^T` `[K, K]`, `y x^T` `[out, K]`, `x` and `y`, in float64.

    `x` are the inputs the pruned model gives the layer, `y` the outputs wanted from it.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.count = 0
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.yx = torch.zeros(outputs, inputs, dtype=torch.float64, device=device)
        self.x = torch.zeros(inputs, dtype=torch.float64, device=device)
        self.y = torch.zeros(outputs, dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the rows of one batch, `x` `[positions, K]` and `y` `[positions, out]`."""
        # One batch is summed in the model's precision (the GEMM costs as much as a layer); batches add up in float64.
        self.xx += x.T @ x
        self.yx += y.T @ x
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.count += len(x)

    def hessian(self, centred: bool) -> Tensor:
        """Mean of `x x^T`, or its covariance: what is left of the error once the bias is free to follow."""
        hessian = self.xx / self.count
        return hessian - torch.outer(self.x, self.x) / self.count**2 if centred else hessian

    def target(self, weight: Tensor, bias: Tensor | None, damping: float) -> Tensor:
        """Dense weight `[out, K]` whose outputs on `x` come closest to `y`, with a ridge of `damping` towards `weight`.

        `W' = (E[y x^T] + l W) (E[x x^T] + l I)^-1` with l = damping * mean of the diagonal, on centred moments when
        there is a bias: the asymmetric calibration of GPTAQ (arXiv 2504.02692) in closed form.
        """
        hessian = self.hessian(centred=bias is not None)
        cross = self.yx / self.count
        if bias is not None:
            cross = cross - torch.outer(self.y, self.x) / self.count**2
        ridge = damping * hessian.diagonal().mean()
        if not ridge > 0:
            return weight.double()
        eye = torch.eye(len(hessian), dtype=torch.float64, device=hessian.device)
        factor = torch.linalg.cholesky(hessian + ridge * eye)
        return torch.cholesky_solve((cross + ridge * weight.double()).T, factor).T

    def bias(self, weight: Tensor) -> Tensor:
        """Bias `[out]` that gives outputs of `weight` on `x` the mean of `y`."""
        return (self.y - weight.double() @ self.x) / self.count
