"""Bare loop as a CUDA graph, the upper bound for a GPU that never waits for Python."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_lightning.bench.bare import BareLoop
from ssl_lightning.bench.build import wait
from ssl_lightning.core.seeding import stream_seed

WARM_UP = 3  # steps before recording


class GraphedLoop(BareLoop):
    """Record a complete step with its optimizer once and replay it; batches are copied on the device.

    It takes the arguments of `BareLoop`, on a GPU, and ends with the same weights. Warm-up steps train too.
    """

    def step(self) -> None:
        """Train on the next batch."""
        if self.done < WARM_UP:
            return self._warm_up()
        images, labels = self.batches[self.done % len(self.batches)]
        if self.done == WARM_UP:
            self._record(images, labels)
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._stream.manual_seed(stream_seed("bench", self.done))
        self._graph.replay()
        self.done += 1

    def _warm_up(self) -> None:
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if "capturable" in group:  # Adam, which otherwise counts its steps on the host
                group["capturable"] = True
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            super().step()
        current.wait_stream(side)

    def _record(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        self._stream = torch.Generator(images.device)
        wait()
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(self._stream)
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.train_on(self._images, self._labels, self._stream)
