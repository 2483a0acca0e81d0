"""The bare loop as a CUDA graph: what a GPU does when nobody keeps it waiting."""

from __future__ import annotations

import torch

from ssl_lightning.bench.bare import BareLoop
from ssl_lightning.bench.build import wait
from ssl_lightning.core.seeding import stream_seed

WARM_UP = 3  # steps before recording


class GraphedLoop(BareLoop):
    """Whole steps, optimizer included, recorded once and launched as one; batches are copied on the device.

    It takes what `BareLoop` takes, on a GPU, and ends with the same weights. The first steps, which warm up,
    are steps like the others.
    """

    def step(self) -> None:
        """Train on the next batch."""
        images, labels = self.batches[self.done % len(self.batches)]
        if self.done == 0:
            self._stream = torch.Generator(images.device)
            self._images, self._labels = images.clone(), labels.clone()
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    if "capturable" in group:  # Adam, which else counts its steps on the host
                        group["capturable"] = True
        if self.done == WARM_UP:
            self._record()
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._stream.manual_seed(stream_seed("bench", self.done))
        if self.done < WARM_UP:
            self._warm_up()
        else:
            self._graph.replay()
        self.done += 1

    def _warm_up(self) -> None:
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self.train_on(self._images, self._labels, self._stream)
        current.wait_stream(side)

    def _record(self) -> None:
        wait()
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(self._stream)
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self.train_on(self._images, self._labels, self._stream)
