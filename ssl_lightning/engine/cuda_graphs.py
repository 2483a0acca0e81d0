"""CUDA graphs: the forward and backward passes of a step, recorded once and then launched as one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WARM_UP = 3  # passes before recording, in which libraries choose their kernels and take their workspaces
PRECISIONS = ("bf16-mixed", "32-true")  # in float16 the loss is scaled by a number that changes


class StepGraph:
    """`PretextTask.rounds` and the backward passes of a batch, without the time that launching kernels takes.

    A small network keeps a GPU busy for less time than Python takes to ask for it. The first batch is
    recorded; it and all others, which are of its size, are replayed. What is computed is the same, corruption
    included: each step's draws come from its own seed. Recording leaves no trace in batch-norm statistics.

    The gradients lie in memory of the graph, where a replay overwrites them: they must not be set to None.

    Args:
        task: On a GPU; it says that it is `recordable`.
    """

    def __init__(self, task: Any) -> None:
        self.task = task
        self._graph: torch.cuda.CUDAGraph | None = None
        self._names: tuple[str, ...] = ()

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
        """Compute the scores of a batch, without their graph, and leave its gradients to the weights.

        Args:
            images: As `PretextTask.step` takes them, of the same size in every call.
            labels: Likewise.
            seed: Of the stream from which the step draws.

        Raises:
            ValueError: The step does something that cannot be recorded.
        """
        if self._graph is None:
            self._record(images, labels)
        assert self._graph is not None
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._stream.manual_seed(seed)
        self._graph.replay()
        return dict(zip(self._names, self._values.clone().unbind(), strict=True))

    def _record(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()  # clones keep the memory format
        self._stream = torch.Generator(images.device)
        before = [(buffer, buffer.clone()) for buffer in self.task.buffers()]
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._stream)
        # dropout draws from the global stream, in the first step as in all
        with torch.random.fork_rng([images.device]):
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
        self._graph = graph
        for buffer, value in before:
            buffer.copy_(value)

    def _warm_up(self) -> None:
        """Compute on a stream that is not the default one, as recording does."""
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._compute()
        current.wait_stream(side)

    def _compute(self) -> Tensor:
        """The scores of the batch `(S,)`; the gradients are left to the parameters."""
        self.task.zero_grad()  # to None, or they would be added up
        scores: dict[str, Tensor] = {}
        for name, found in self.task.rounds(self._images, self._labels, self._stream):
            with torch.autocast(self._images.device.type, enabled=False):  # as Lightning does
                found[name].backward()
            scores |= found
        self._names = tuple(scores)
        return torch.stack([value.detach().float() for value in scores.values()])


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
