"""FCN head: sums of scores and their sizes."""

import torch
import torch.nn.functional as F

from ssl_lightning.networks.fcn import FCNHead


def test_at_first_all_classes_are_alike() -> None:
    head = FCNHead([4, 8], 5, hidden=6, dilation=2)
    logits = head([torch.randn(2, 4, 8, 10), torch.randn(2, 8, 4, 5)], (16, 20))
    assert logits.shape == (2, 5, 16, 20)
    assert not logits.any()


def test_scores_are_added_from_the_deepest_on() -> None:
    head = FCNHead([4, 8], 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    shallow, deep = torch.randn(2, 4, 8, 10), torch.randn(2, 8, 4, 5)

    def enlarged(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    def scored(x: torch.Tensor, place: int) -> torch.Tensor:
        last = head.scores[place][-1]
        return torch.einsum("bchw,kc->bkhw", x, last.weight[:, :, 0, 0]) + last.bias[:, None, None]

    expected = enlarged(scored(shallow, 0) + enlarged(scored(deep, 1), (8, 10)), (17, 23))
    torch.testing.assert_close(head([shallow, deep], (17, 23)), expected, rtol=1e-4, atol=1e-4)


def test_dilation_widens_what_a_pixel_sees() -> None:
    for dilation in (1, 3):
        head = FCNHead([1], 2, hidden=4, dilation=dilation).eval()
        torch.nn.init.ones_(head.scores[0][-1].weight)
        x = torch.zeros(1, 1, 15, 15, requires_grad=True)
        head([x + 1], (15, 15))[0, 0, 7, 7].backward()
        assert x.grad is not None
        rows = x.grad[0, 0].any(1).nonzero().flatten()
        assert set(rows.tolist()) <= {7 - dilation, 7, 7 + dilation}
        assert x.grad.shape == (1, 1, 15, 15)
