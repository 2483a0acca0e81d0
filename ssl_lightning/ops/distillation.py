"""Loss of a student that predicts the assignments of a teacher (DINO: Caron et al. 2021, eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def distillation(
    student: Tensor, teacher: Tensor, student_temperature: float, teacher_temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict the softmax of a teacher's view from every other view of the image, by cross-entropy.

    Lightly's DINOLoss moves its centre during validation too, and to a new tensor, which a CUDA graph does
    not see. Under autocast it multiplies in half precision. The values are the same.

    Args:
        student: Logits `(V, B, K)`; the teacher sees its first T views.
        teacher: Logits `(T, B, K)`, centred and without a graph; T is at least 1, and V at least 2.
        student_temperature: Divides the logits of the student.
        teacher_temperature: Divides the teacher's logits, `()`; a lower one makes them sharper.

    Returns:
        The mean cross-entropy over the images and the pairs of different views, and the mean entropy of the
        teacher's softmax. Both are computed in full precision, under autocast too.
    """
    views, batch, _ = student.shape
    with torch.autocast(student.device.type, enabled=False):
        wanted = (teacher / teacher_temperature).log_softmax(2)  # (T, B, K)
        predicted = (student / student_temperature).log_softmax(2)  # (V, B, K)
        share = wanted.exp()
        entropy = -(share * wanted).sum(2).mean()
        pairs = -torch.einsum("tbk,vbk->tv", share, predicted)  # sums over the images
        loss = (pairs.sum() - pairs.diagonal().sum()) / (len(teacher) * (views - 1) * batch)
    return loss, entropy
