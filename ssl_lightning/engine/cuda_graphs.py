"""CUDA graphs: the forward and backward passes of a step, recorded once and then launched as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 3  # passes before recording, in which libraries choose their kernels and take their workspaces
PRECISIONS = ("bf16-mixed", "32-true")  # in float16 the loss is scaled by a number that changes


@dataclass(frozen=True)
class Round:
    """What one recorded backward pass leaves.

    Args:
        loss: Name of the loss.
        names: Names of the scores, the loss among them.
        gradients: Each parameter that got a gradient, and the tensor that the graph writes it to.
    """

    loss: str
    names: tuple[str, ...]
    gradients: list[tuple[nn.Parameter, Tensor]]


class StepGraph:
    """`PretextTask.rounds` and the backward passes of a batch, without the time that launching kernels takes.

    A small network keeps a GPU busy for less time than Python takes to ask for it. The first batch is
    recorded; it and all others, which are of its size, are replayed. What is computed is the same, corruption
    included: each step's draws come from its own seed. Recording leaves no trace in batch-norm statistics.

    The graph owns the memory of the gradients. A replay overwrites it, and `hand_over`, which stands where
    the backward pass would, makes it the `.grad` of the parameters. Whoever sets `.grad` to None or to zeros
    in between (Lightning before each validation, a callback) therefore does what it does without a graph.

    A replay reads the weights where they were when it was recorded: call `forget` before they move.

    Args:
        task: On a GPU; it says that it is `recordable`.
    """

    def __init__(self, task: Any) -> None:
        self.task = task
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rounds: list[Round] = []
        self._due: list[tuple[nn.Parameter, Tensor]] = []  # of the round that was yielded last

    def rounds(self, images: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Replay a batch, then yield as `PretextTask.rounds` does, scores without their graph.

        Whoever takes them calls `hand_over` before asking for the next.

        Args:
            images: As `PretextTask.step` takes them, of the same size in every call.
            labels: Likewise.
            seed: Of the stream from which the step draws.

        Raises:
            ValueError: The step does something that cannot be recorded.
        """
        if self._graph is None or self._learning != [p.requires_grad for p in self._parameters]:
            self._record(images, labels)
        assert self._graph is not None
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._stream.manual_seed(seed)
        for parameter in self._parameters:
            parameter.grad = None  # or what a callback does to the last gradients would be done to these
        self._graph.replay()
        values = iter(self._values.clone().unbind())
        for each in self._rounds:
            self._due = each.gradients
            yield each.loss, {name: next(values) for name in each.names}

    def hand_over(self) -> None:
        """Give the parameters the gradients of the round that was yielded last."""
        for parameter, gradient in self._due:
            parameter.grad = gradient

    def forget(self) -> None:
        """Record again at the next batch."""
        self._graph = None

    def _record(self, images: Tensor, labels: Tensor) -> None:
        self._graph = None  # its memory is free for the next one
        self._images, self._labels = images.clone(), labels.clone()  # clones keep the memory format
        self._stream = torch.Generator(images.device)
        self._parameters = list(self.task.parameters())
        self._learning = [p.requires_grad for p in self._parameters]
        before = [(buffer, buffer.clone()) for buffer in self.task.buffers()]
        self._graph = self._capture()
        for buffer, value in before:
            buffer.copy_(value)

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._stream)
        # dropout draws from the global stream, in the first step as in all
        with torch.random.fork_rng([self._images.device]):
            self._warm_up()
            try:
                # thread_local: other threads, which lock batches in memory, go on meanwhile
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._values = self._compute()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                why = str(error).strip().partition("\n")[0]
                raise ValueError(
                    f"with cuda_graphs a step is recorded, and that of {type(self.task).__name__} cannot be "
                    f"({why}); set it to false"
                ) from error
        return graph

    def _warm_up(self) -> None:
        """Compute on a stream that is not the default one, as recording does."""
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._compute()
        current.wait_stream(side)

    def _compute(self) -> Tensor:
        """The scores of the batch `(S,)`; the gradients are left to `_rounds`."""
        self._rounds, self._due, values = [], [], []
        for loss, found in self.task.rounds(self._images, self._labels, self._stream):
            self.task.zero_grad()  # to None, or they would be added up
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
    """Whether steps are to be recorded.

    Args:
        wanted: `cuda_graphs` of the config: true, false, or auto for wherever it is possible.
        device: Where is trained.
        processes: Of the run.
        precision: Lightning's name.
        accumulated: Batches whose gradients make one step.
        recordable: Whether the task says so of itself.

    Raises:
        ValueError: They are to be, and cannot be.
    """
    if not wanted:
        return False
    allowed = " or ".join(PRECISIONS)
    reasons = [
        (device.type != "cuda", f"this run is on {device.type}, and it needs a GPU"),
        (processes > 1, f"there are {processes} processes, and it takes one"),
        (precision not in PRECISIONS, f"trainer.precision is {precision}, and it takes {allowed}"),
        (accumulated > 1, f"trainer.accumulate_grad_batches is {accumulated}, and it takes 1"),
        (not recordable, "the steps of this task are not said to be alike"),
    ]
    against = [reason for refused, reason in reasons if refused]
    if against and wanted != "auto":
        raise ValueError(f"cuda_graphs is true, but {against[0]}; leave it at auto")
    return not against
