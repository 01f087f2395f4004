"""What calibration images say about units: second moments of what is read from them, and what each is worth.

One forward of every batch sums the moments; with `gradients` one backward, of the cross-entropy with a class drawn
from the model's own prediction. The square of a unit's gate derivative under such classes is its Fisher information,
so that saliencies of all layers have one unit, nats of KL divergence (Taylor expansion as in arXiv 1801.05787 and, per
batch, arXiv 2110.04869; the drawn classes need no labels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from act.models import logits
from act.structure.axes import HEADS, HIDDEN, Q, V
from act.structure.units import AttentionUnits, Group, MlpUnits

_MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


@dataclass
class GroupStatistics:
    """Sums over `count` positions (`images` for the saliencies) of one group.

    `xx` [units, units] and `x` [units] of the reader's input; `qq`, `kk` [heads, d, d] and `k` [heads, d] of queries
    and keys; `saliency` by segment: [units] for HIDDEN and V, [heads * d] for Q, [heads] for HEADS; `output` [out]: the
    mean square of the derivative of each of the reader's outputs.
    """

    count: int = 0
    tokens: int = 0
    images: int = 0
    xx: Tensor | None = None
    x: Tensor | None = None
    qq: Tensor | None = None
    kk: Tensor | None = None
    k: Tensor | None = None
    saliency: dict[str, Tensor] = field(default_factory=dict)
    output: Tensor | None = None

    def covariance(self, centred: bool) -> Tensor:
        """Second moments of the reader's input, less those of its mean where a bias can follow."""
        assert self.xx is not None and self.x is not None
        moments = self.xx / self.count
        return moments - torch.outer(self.x, self.x) / self.count**2 if centred else moments

    def mean(self) -> Tensor:
        """Mean of the reader's input [units]."""
        assert self.x is not None
        return self.x / self.count

    def keys(self) -> Tensor:
        """Covariance of the keys [heads, d, d]: a constant added to every key changes no attention."""
        assert self.kk is not None and self.k is not None
        mean = self.k / self.tokens
        return self.kk / self.tokens - mean.unsqueeze(2) * mean.unsqueeze(1)


Statistics = dict[str, GroupStatistics]


def gather(
    model: nn.Module, groups: Iterable[Group], batches: Iterable[Tensor], gradients: bool, seed: int = 0
) -> Statistics:
    """Statistics of `groups` from `batches` [B, C, H, W]; the model is left as it is, its parameters frozen or not."""
    watch = _Watch({group.name: GroupStatistics() for group in groups}, gradients)
    draw = torch.Generator().manual_seed(seed)
    training = model.training
    model.eval()
    try:
        with watch.hooked(model, list(groups)), torch.set_grad_enabled(gradients):
            for images in batches:
                watch.batch = len(images)
                # The pixels' gradient passes everything that is watched, whichever parameters are frozen.
                pixels = images.clone().requires_grad_(gradients)
                scores = logits(model(pixels))
                if gradients:
                    drawn = torch.multinomial(scores.detach().softmax(1).cpu(), 1, generator=draw).squeeze(1)
                    loss = F.cross_entropy(scores, drawn.to(scores.device), reduction="sum")
                    torch.autograd.grad(loss, pixels)
    finally:
        model.train(training)
    return watch.found


class _Watch:
    def __init__(self, found: Statistics, gradients: bool) -> None:
        self.found, self.gradients, self.batch = found, gradients, 0

    @contextmanager
    def hooked(self, model: nn.Module, groups: list[Group]) -> Iterator[None]:
        handles: list[Any] = []
        wrapped: list[nn.Module] = []
        for group in groups:
            reader = model.get_submodule(group.reader)
            handles.append(reader.register_forward_pre_hook(self._input(group, reader)))
            handles.append(reader.register_forward_hook(self._output(group, reader)))
            if isinstance(group, AttentionUnits) and group.qk_reason is None:
                module = model.get_submodule(group.name)
                _wrap(module, self._scores(group))
                wrapped.append(module)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in wrapped:
                del module.forward

    def _input(self, group: Group, reader: nn.Module) -> Callable[..., None]:
        stats = self.found[group.name]

        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].movedim(1, -1) if isinstance(reader, nn.Conv2d) else args[0]
            rows = x.detach().reshape(-1, x.shape[-1])
            stats.xx = _plus(stats.xx, rows.T @ rows)
            stats.x = _plus(stats.x, rows.sum(0))
            stats.count += len(rows)
            stats.images += self.batch
            if self.gradients:
                args[0].register_hook(lambda grad: self._gates(group, stats, x.detach(), _last(grad, reader)))  # type: ignore[no-untyped-call]

        return see

    def _gates(self, group: Group, stats: GroupStatistics, x: Tensor, grad: Tensor) -> None:
        gates = (x * grad).reshape(self.batch, -1, x.shape[-1]).sum(1)
        if isinstance(group, MlpUnits):
            stats.saliency[HIDDEN] = _plus(stats.saliency.get(HIDDEN), gates.square().sum(0))
            return
        heads = gates.unflatten(1, (group.heads, group.v_dim)).sum(2)  # type: ignore[no-untyped-call]
        stats.saliency[V] = _plus(stats.saliency.get(V), gates.square().sum(0))
        stats.saliency[HEADS] = _plus(stats.saliency.get(HEADS), heads.square().sum(0))

    def _output(self, group: Group, reader: nn.Module) -> Callable[..., None]:
        stats = self.found[group.name]

        def see(_: nn.Module, __: Any, output: Tensor) -> None:
            def square(grad: Tensor) -> None:
                rows = _last(grad, reader).reshape(-1, stats_out(reader))
                stats.output = _plus(stats.output, rows.square().sum(0))

            if self.gradients:
                output.register_hook(square)  # type: ignore[no-untyped-call]

        return see

    def _scores(self, group: AttentionUnits) -> Callable[[Tensor, Tensor], None]:
        stats = self.found[group.name]

        def see(q: Tensor, k: Tensor) -> None:
            own_q, own_k = q.detach(), k.detach()
            stats.qq = _plus(stats.qq, torch.einsum("bhnd,bhne->hde", own_q, own_q))
            stats.kk = _plus(stats.kk, torch.einsum("bhnd,bhne->hde", own_k, own_k))
            stats.k = _plus(stats.k, own_k.sum((0, 2)))
            stats.tokens += len(k) * k.shape[2]
            if self.gradients and q.requires_grad:
                q.register_hook(lambda grad: self._query_gates(stats, own_q, grad))  # type: ignore[no-untyped-call]

        return see

    def _query_gates(self, stats: GroupStatistics, q: Tensor, grad: Tensor) -> None:
        windows = (q * grad).sum(2).flatten(1)  # [B (x windows), heads * d]
        gates = windows.reshape(self.batch, -1, windows.shape[1]).sum(1)
        stats.saliency[Q] = _plus(stats.saliency.get(Q), gates.square().sum(0))


def stats_out(reader: nn.Module) -> int:
    """Outputs of a linear or 1x1 convolution layer."""
    weight = reader.weight
    assert isinstance(weight, Tensor)
    return len(weight)


def _last(x: Tensor, reader: nn.Module) -> Tensor:
    return x.movedim(1, -1) if isinstance(reader, nn.Conv2d) else x


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part.double() if total is None else total + part


def _wrap(module: nn.Module, see: Callable[[Tensor, Tensor], None]) -> None:
    """Run the module's own forward, and show `see` the queries and keys [B, heads, N, d] of its first product."""
    own = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _FirstProduct(see):
            return own(*args, **kwargs)

    module.forward = forward


class _FirstProduct(TorchFunctionMode):
    def __init__(self, see: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.see: Callable[[Tensor, Tensor], None] | None = see

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.see is not None and func is F.scaled_dot_product_attention:
            see, self.see = self.see, None
            see(args[0], args[1])
        elif self.see is not None and func in _MATMULS and args[0].dim() == 4:
            see, self.see = self.see, None
            see(args[0], args[1].transpose(-2, -1))
        return func(*args, **(kwargs or {}))
