"""The head of DINO against lightly's."""

import copy

import pytest
import torch
from lightly.models.modules.heads import DINOProjectionHead

from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.prototype_head import PrototypeHead


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("batch_norm", [False, True])
def test_values_and_gradients_are_those_of_lightly(batch_norm: bool) -> None:
    torch.manual_seed(0)
    lightly = DINOProjectionHead(6, 16, 8, 12, batch_norm=batch_norm)
    head = PrototypeHead(6, 16, 8, 12, batch_norm)
    head.network.load_state_dict({n: v for n, v in lightly.state_dict().items() if n.startswith("layers.")})
    with torch.no_grad():
        head.prototypes.weight.copy_(3 * lightly.last_layer.weight_v)  # its length does not count
    x = torch.randn(10, 6, generator=generator("features"))
    found, expected = head(x), lightly(x)
    torch.testing.assert_close(found, expected)
    assert float(found.detach().abs().max()) <= 1 + 1e-6
    for each in (found, expected):
        each.square().sum().backward()
    for name, parameter in head.network.named_parameters():
        gradient = lightly.get_parameter(name).grad
        assert gradient is not None
        largest = float(gradient.abs().max())  # small entries are differences of large ones
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-5 * largest, msg=name)
    assert head.prototypes.weight.grad is not None
    torch.testing.assert_close(3 * head.prototypes.weight.grad, lightly.last_layer.weight_v.grad)


def test_a_head_is_copied_and_keeps_full_precision_under_autocast() -> None:
    head = PrototypeHead(6, 16, 8, 12, batch_norm=True)
    x = torch.randn(10, 6, generator=generator("features"))
    torch.testing.assert_close(copy.deepcopy(head)(x), head(x))
    with torch.autocast("cpu", torch.bfloat16):
        inner = head.network(x)
        cosines = head.prototypes(inner)
    assert (inner.dtype, cosines.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(cosines, head.prototypes(inner.float()))
