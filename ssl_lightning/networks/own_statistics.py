"""Batch-norm statistics for one kind of input, beside the statistics of the network itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class OwnStatistics(nn.Module):
    """Running statistics that a network uses and updates in place of its own.

    A network that sees two kinds of images, such as whole images and tiles, needs statistics of each (Xie et
    al. 2020, AdvProp). Weights and biases of the batch norms stay shared.

    Args:
        network: Its statistics are copied as initial values.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for number, norm in enumerate(_norms(network)):
            for name, value in norm.named_buffers(recurse=False):
                self.register_buffer(f"{number}_{name}", value.clone())

    def copy_from(self, network: nn.Module) -> None:
        """Take the statistics of the network that was given to the constructor."""
        for number, norm in enumerate(_norms(network)):
            for name, value in norm.named_buffers(recurse=False):
                self.get_buffer(f"{number}_{name}").copy_(value)

    @contextmanager
    def used_by(self, network: nn.Module) -> Iterator[None]:
        """Let the network use and update these statistics.

        Args:
            network: The network that was given to the constructor, perhaps with synchronised batch norms.
        """
        kept = [dict(norm._buffers) for norm in _norms(network)]
        for number, norm in enumerate(_norms(network)):
            norm._buffers.update({name: self._buffers[f"{number}_{name}"] for name in norm._buffers})
        try:
            yield
        finally:
            for norm, buffers in zip(_norms(network), kept, strict=True):
                norm._buffers.update(buffers)


def _norms(network: nn.Module) -> list[nn.Module]:
    return [norm for norm in network.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
