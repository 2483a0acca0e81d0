"""A stand-in for CUDA graphs on any device."""

from __future__ import annotations

from typing import Any

import torch

from ssl_lightning.engine.cuda_graphs import StepGraph


class StandIn(StepGraph):
    """Behaves as a CUDA graph does: a replay writes into the tensors of the recording, and into nothing else.

    Args:
        task: On any device.
    """

    def __init__(self, task: Any) -> None:
        super().__init__(task)
        self.recordings = self.replays = 0

    def _capture(self) -> Any:
        self.recordings += 1
        with torch.random.fork_rng():
            self._values = self._compute()
        self.task.zero_grad()
        return self

    def replay(self) -> None:
        """Compute by autograd, copy the results into the recorded tensors, and leave `.grad` as it was."""
        self.replays += 1
        recorded, values = self._rounds, self._values
        attached = [parameter.grad for parameter in self._parameters]
        values.copy_(self._compute())
        for memory, computed in zip(recorded, self._rounds, strict=True):
            for (_, there), (_, gradient) in zip(memory.gradients, computed.gradients, strict=True):
                there.copy_(gradient)
        self._rounds = recorded
        for parameter, gradient in zip(self._parameters, attached, strict=True):
            parameter.grad = gradient
