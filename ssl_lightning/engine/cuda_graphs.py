"""CUDA graphs of training steps: forward and backward passes, recorded once and replayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.core.errors import first_line
from ssl_lightning.core.seeding import RecordedStream

WARM_UP = 3  # passes before recording, while libraries choose kernels and allocate workspaces
PRECISIONS = ("bf16-mixed", "32-true")  # float16 scales the loss by a changing number


@dataclass(frozen=True)
class Round:
    """Outputs of one recorded backward pass.

    Args:
        loss: Name of the loss.
        names: Names of the scores, the loss among them.
        gradients: Each parameter with a gradient, and the tensor that the graph writes the gradient to.
    """

    loss: str
    names: tuple[str, ...]
    gradients: list[tuple[nn.Parameter, Tensor]]


class StepGraph:
    """Replay `PretextTask.rounds` and the backward passes of a batch without the cost of kernel launches.

    For a small network, launching kernels from Python takes longer than running them. The first batch is
    recorded; this batch and all later ones, which have equal size, are replayed. Results do not change,
    including corruptions, since each step draws from its own seed. Recording does not change batch-norm
    statistics.

    The graph owns the memory of the gradients, and each replay overwrites it. `hand_over`, which replaces the
    backward pass, sets it as the `.grad` of the parameters. Code that sets `.grad` to None or to zeros in
    between (Lightning before each validation, a callback) therefore has the same effect as without a graph.

    A replay reads the weights at their recorded addresses: call `forget` before they move. A batch is
    recorded again if a layer changed between training and evaluation mode, or a parameter began or ceased to
    require gradients.

    Args:
        task: A task on a GPU whose `recordable` is true.
    """

    def __init__(self, task: Any) -> None:
        self.task = task
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rounds: list[Round] = []
        self._due: list[tuple[nn.Parameter, Tensor]] = []  # of the last yielded round

    def rounds(self, images: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Replay a batch, then yield like `PretextTask.rounds`, with detached scores.

        The caller must call `hand_over` before it takes the next round.

        Args:
            images: Input of `PretextTask.step`, of the same size in every call.
            labels: Likewise.
            seed: Seed of the step's random stream.

        Raises:
            ValueError: An operation of the step cannot be recorded.
        """
        if self._graph is None or self._state != self._current_state():
            self._record(images, labels)
        assert self._graph is not None
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._stream.manual_seed(seed)
        for parameter in self._parameters:
            parameter.grad = None  # else changes of a callback to the last gradients would persist
        self._graph.replay()
        values = iter(self._values.clone().unbind())
        for each in self._rounds:
            self._due = each.gradients
            yield each.loss, {name: next(values) for name in each.names}

    def hand_over(self) -> None:
        """Set the gradients of the last yielded round as `.grad` of the parameters."""
        for parameter, gradient in self._due:
            parameter.grad = gradient

    def forget(self) -> None:
        """Record again at the next batch."""
        self._graph = None

    def _current_state(self) -> list[bool]:
        """Return what learns and what is in training mode: it decides which operations a step runs."""
        return [*(p.requires_grad for p in self._parameters), *(m.training for m in self._modules)]

    def _record(self, images: Tensor, labels: Tensor) -> None:
        self._graph = None  # frees its memory for the next one
        self._images, self._labels = images.clone(), labels.clone()  # clones keep the memory format
        self._stream = RecordedStream(images.device)
        self._parameters = list(self.task.parameters())
        self._modules = list(self.task.modules())
        self._state = self._current_state()
        before = [(buffer, buffer.clone()) for buffer in self.task.buffers()]
        self._graph = self._capture()
        for buffer, value in before:
            buffer.copy_(value)

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # dropout draws from the global stream; recording must not advance it
        with torch.random.fork_rng([self._images.device]):
            self._warm_up()
            for stream in (self._stream, *self._stream.twins.values()):
                graph.register_generator_state(stream)
            try:
                # thread_local: other threads keep pinning batches during the capture
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._values = self._compute()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ValueError(
                    f"cuda_graphs cannot record the step of {type(self.task).__name__} "
                    f"({first_line(error)}); set it to false"
                ) from error
        return graph

    def _warm_up(self) -> None:
        """Compute on a side stream, as recording does."""
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._compute()
        current.wait_stream(side)

    def _compute(self) -> Tensor:
        """Return the scores of the batch `(S,)`, and store the gradients in `_rounds`."""
        self._rounds, self._due, values = [], [], []
        for loss, found in self.task.rounds(self._images, self._labels, self._stream):
            self.task.zero_grad()  # to None, else gradients would accumulate
            with torch.autocast(self._images.device.type, enabled=False):  # as Lightning does
                found[loss].backward()
            gradients = [(p, p.grad) for p in self._parameters if p.grad is not None]
            self._rounds.append(Round(loss, tuple(found), gradients))
            values += [value.detach().float() for value in found.values()]
        return torch.stack(values)


def use_graphs(
    wanted: bool | str,
    *,
    device: torch.device,
    processes: int,
    precision: str,
    accumulated: int,
    recordable: bool,
) -> bool:
    """Whether to record steps as CUDA graphs.

    Args:
        wanted: `cuda_graphs` of the config: true, false, or auto to record if possible.
        device: Device of the training.
        processes: Number of processes of the run.
        precision: Lightning's name.
        accumulated: Number of batches per optimizer step.
        recordable: Whether the task declares its steps recordable.

    Raises:
        ValueError: `wanted` is true, but steps cannot be recorded.
    """
    if not wanted:
        return False
    allowed = " or ".join(PRECISIONS)
    reasons = [
        (device.type != "cuda", f"this run is on {device.type}, and it needs a GPU"),
        (processes > 1, f"there are {processes} processes, and it takes one"),
        (precision not in PRECISIONS, f"trainer.precision is {precision}, and it takes {allowed}"),
        (accumulated > 1, f"trainer.accumulate_grad_batches is {accumulated}, and it takes 1"),
        (not recordable, "this task does not declare its steps recordable"),
    ]
    against = [reason for refused, reason in reasons if refused]
    if against and wanted != "auto":
        raise ValueError(f"cuda_graphs is true, but {against[0]}; leave it at auto")
    return not against
