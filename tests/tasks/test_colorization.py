"""Colorization: closed forms, a loop over pixels, the backbone's input, learning, the panel."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from skimage.color import lab2rgb, rgb2lab
from skimage.metrics import peak_signal_noise_ratio

import ssl_lightning
from ssl_lightning.artifacts.weights import load_weights
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.ops.ab_bins import smooth_prior
from ssl_lightning.ops.ab_prior import AbStatistics, measure, pixels, shrink
from ssl_lightning.ops.lab import lab_to_rgb, rgb_to_lab
from ssl_lightning.run.execute import execute
from ssl_lightning.run.parts import build_parts
from ssl_lightning.run.writer import RunWriter
from ssl_lightning.tasks.colorization import Colorization
from tests.tasks._learning import learn, needs_cifar10

ROOT = Path(__file__).parent.parent.parent
SPEC = ImageSpec(3, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
LABELS = torch.full((8,), -1)
STEPS = 120


def make(spec: ImageSpec = SPEC, **options) -> Colorization:
    torch.manual_seed(0)
    return Colorization(ConvNet(in_channels=1, widths=(16, 32), strides=(2, 2)), spec, **options)


def textured(count: int, seed: int = 0) -> torch.Tensor:
    """Draw grey textures `(count, 3, 32, 32)`, floats in [0, 1], with one colour for each kind.

    Horizontal stripes are reddish, vertical ones bluish, noise is green, so texture determines colour.
    """
    draw = generator("textured", seed)
    phase = torch.rand(count, 1, 1, generator=draw) * 8
    place = torch.arange(32.0)
    across = (place.view(1, 32, 1) + phase).mul(math.pi / 4).sin().expand(count, 32, 32)
    noise = torch.rand(count, 32, 32, generator=draw) * 2 - 1
    kind = torch.arange(count) % 3
    texture = torch.stack([across, across.transpose(1, 2), noise])[kind, torch.arange(count)]
    ab = torch.tensor([[43.0, 26.0], [14.0, -43.0], [-38.0, 33.0]])[kind]
    lightness = 55 + 12 * texture[:, None]
    return lab_to_rgb(torch.cat([lightness, ab[:, :, None, None].expand(-1, -1, 32, 32)], 1))


def taught(task: Colorization, images: torch.Tensor) -> AbStatistics:
    found = measure((images * 255).round().byte(), task.bins, task.candidates, task.reduction)
    task.use_statistics(found)
    return found


@pytest.mark.parametrize("grid", [10, 20])
def test_zero_logits_give_log_of_the_number_of_bins(grid: int) -> None:
    task = make(grid=grid)  # without data: a uniform prior, all weights 1
    torch.nn.init.zeros_(task.decoder.last.weight)
    torch.nn.init.zeros_(task.decoder.last.bias)
    scores = task.step(textured(8), LABELS, generator(0))
    assert scores["loss"].item() == pytest.approx(math.log({10: 313, 20: 101}[grid]), rel=1e-5)
    assert scores["constant_loss"].item() == pytest.approx(scores["loss"].item(), rel=1e-5)


def test_the_loss_of_bins_is_that_of_a_loop_over_pixels() -> None:
    task = make(neighbours=3, sigma=8.0, rebalance=0.3, reduction=2)
    images = textured(4)
    found = taught(task, images)
    logits = torch.randn(4 * 16 * 16, 313, generator=torch.Generator().manual_seed(1))
    ab = pixels(shrink(rgb_to_lab(images)[:, 1:], 2))
    scores = task.score_bins(logits, ab)
    prior = smooth_prior(found.counts, task.bins, 8.0).tolist()
    weights = [1 / (0.7 * p + 0.3 / 313) for p in prior]
    expected = sum(p * w for p, w in zip(prior, weights, strict=True))
    total = constant = 0.0
    for colour, row in zip(ab.tolist(), logits.double().log_softmax(1).tolist(), strict=True):
        far = sorted((math.dist(colour, to), q) for q, to in enumerate(task.bins.tolist()))[:3]
        share = [math.exp(-(d**2) / (2 * 8.0**2)) for d, _ in far]
        weight = weights[far[0][1]] / expected
        for value, (_, q) in zip(share, far, strict=True):
            total -= weight * value / sum(share) * row[q]
            constant -= weight * value / sum(share) * math.log(prior[q] * weights[q] / expected)
    assert scores["loss"].item() == pytest.approx(total / len(ab), rel=1e-4)
    assert scores["constant_loss"].item() == pytest.approx(constant / len(ab), rel=1e-4)


def test_no_constant_prediction_beats_the_rebalanced_prior() -> None:
    """The best constant distribution over pixels costs `constant_loss`, up to the smoothing."""
    task = make(sigma=1.0, neighbours=1)
    images = textured(30)
    taught(task, images)
    ab = pixels(shrink(rgb_to_lab(images)[:, 1:], task.reduction))
    constant = task.score_bins(torch.zeros(len(ab), 313), ab)["constant_loss"].item()
    logits = (task.prior * task.weights).log().clamp(min=-30).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        task.score_bins(logits.expand(len(ab), -1), ab)["loss"].backward()
        optimizer.step()
    best = task.score_bins(logits.expand(len(ab), -1), ab)["loss"].item()
    assert constant == pytest.approx(best, rel=1e-2)


def test_the_mean_colour_costs_the_regression_about_1() -> None:
    task = make(target="l2", reduction=1)
    images = textured(30)
    found = taught(task, images)
    ab = rgb2lab(images.permute(0, 2, 3, 1).numpy()).reshape(-1, 3)[:, 1:]
    scores = task.score_ab(torch.zeros(len(ab), 2), pixels(rgb_to_lab(images)[:, 1:]))
    assert scores["loss"].item() == pytest.approx(1, abs=0.02)  # images are rounded to 8 bits
    assert scores["constant_loss"].item() == scores["loss"].item()
    assert found.std == pytest.approx(np.sqrt(ab.var(0).mean()), rel=0.01)
    said = task.colour(torch.ones(len(ab), 2), images.shape)  # one deviation above the mean
    np.testing.assert_allclose(said[0, :, 0, 0].numpy(), ab.mean(0) + found.std, atol=0.3)


def test_the_figures_are_those_of_numpy_and_scikit_image() -> None:
    task = make(target="l2", reduction=1).eval()
    images = textured(6)
    taught(task, images)
    lab = rgb_to_lab(images)
    predicted = torch.randn(6 * 32 * 32, 2, generator=torch.Generator().manual_seed(0))
    scores = task.quality(predicted, images, lab)
    said = task.colour(predicted, images.shape)
    truth = rgb2lab(images.permute(0, 2, 3, 1).numpy())
    for prefix, ab in (("", said), ("mean_ab_", task.ab_mean.view(1, 2, 1, 1).expand_as(said))):
        ab = ab.permute(0, 2, 3, 1).numpy()
        rgb = lab2rgb(np.concatenate([truth[..., :1], ab], 3))
        psnr = [
            peak_signal_noise_ratio(image.permute(1, 2, 0).numpy(), other, data_range=1)
            for image, other in zip(images, rgb, strict=True)
        ]
        mse = ((ab - truth[..., 1:]) ** 2).mean()
        distance = np.linalg.norm(ab - truth[..., 1:], axis=-1)
        within = [(distance <= threshold).mean() for threshold in range(151)]
        assert scores[f"{prefix or 'ab_'}mse"].item() == pytest.approx(mse, rel=1e-3)
        assert scores[f"{prefix}psnr"].item() == pytest.approx(np.mean(psnr), rel=1e-3)
        assert scores[f"{prefix}auc"].item() == pytest.approx(np.trapezoid(within, dx=1 / 150), abs=2e-3)
    exact = (pixels(lab[:, 1:]) - task.ab_mean) / task.ab_std
    best = task.quality(exact, images, lab)
    assert best["ab_mse"].item() < 1e-6
    assert best["auc"].item() == pytest.approx(1, abs=1e-4)
    assert best["psnr"].item() > 60


def test_figures_are_for_validation_only() -> None:
    task = make()
    assert task.step(textured(2), LABELS, generator(0)).keys() == {"loss", "constant_loss"}
    assert "ab_mse" in task.eval().step(textured(2), LABELS, generator(0))


def test_the_backbone_sees_lightness_alone() -> None:
    task = make()
    seen: list[torch.Tensor] = []
    task.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    images = textured(4)
    lab = rgb_to_lab(images)
    faded = lab_to_rgb(torch.cat([lab[:, :1], lab[:, 1:] * 0.3], 1))  # the same lightness
    for given in (images, faded):
        task.step(given, LABELS, generator(0))
    expected = rgb2lab(images.permute(0, 2, 3, 1).numpy())[..., 0] / 50 - 1
    assert seen[0].shape == (4, 1, 32, 32)
    np.testing.assert_allclose(seen[0][:, 0].numpy(), expected, atol=1e-3)
    torch.testing.assert_close(seen[1], seen[0], atol=1e-3, rtol=0)
    assert torch.equal(task.probe_input(images), seen[0])


@pytest.mark.parametrize(("skips", "seen"), [(False, [False, True]), (True, [True, True])])
def test_without_skips_the_decoder_sees_only_the_deepest_stage(skips: bool, seen: list[bool]) -> None:
    task = make(skips=skips, reduction=1)
    maps: list[torch.Tensor] = []

    def cut(module: torch.nn.Module, inputs: object, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        maps.extend(stage.detach().requires_grad_() for stage in outputs)
        return maps

    task.backbone.register_forward_hook(cut)
    task.step(textured(2), LABELS, generator(0))["loss"].backward()
    assert [stage.grad is not None for stage in maps] == seen


@pytest.mark.parametrize(
    ("strides", "reduction", "expected"),
    [((2, 2), None, 4), ((2, 1), None, 2), ((4, 4), None, 4), ((2, 2), 1, 1)],
)
def test_the_size_of_the_prediction(strides: tuple[int, int], reduction: int | None, expected: int) -> None:
    backbone = ConvNet(in_channels=1, widths=(4, 4), strides=strides)
    task = Colorization(backbone, SPEC, reduction=reduction)
    assert task.reduction == expected
    assert task.predict(torch.rand(2, 1, 32, 32)).shape == (2 * (32 // expected) ** 2, 313)
    odd = task.eval().step(torch.rand(2, 3, 30, 33), LABELS, generator(0))
    assert all(value.isfinite() for value in odd.values())


def test_autocast_reaches_the_network_but_not_the_colours() -> None:
    images = textured(8)
    for target in ("bins", "l2"):
        task = make(target=target).eval()
        taught(task, images)
        full = task.step(images, LABELS, generator(0))
        with torch.autocast("cpu", torch.bfloat16):
            half = task.step(images, LABELS, generator(0))
        for name, value in full.items():
            assert half[name].dtype == torch.float32, name
            torch.testing.assert_close(half[name], value, rtol=2e-2, atol=1e-3, msg=name)
        for name in ("constant_loss", "mean_ab_mse", "mean_ab_psnr"):
            assert torch.equal(half[name], full[name]), name


def test_the_colours_of_the_data_are_in_the_checkpoint() -> None:
    task, other = make(), make()
    taught(task, textured(6))
    assert not torch.equal(other.weights, task.weights)
    assert not torch.equal(other.ab_mean, task.ab_mean)
    other.load_state_dict(task.state_dict())
    for name in ("prior", "weights", "ab_mean", "ab_std"):
        assert torch.equal(getattr(other, name), getattr(task, name))
    assert (task.prior * task.weights).sum().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("target", ["bins", "l2"])
def test_a_few_textures_are_coloured(target: str) -> None:
    task, images = make(target=target), textured(24)
    taught(task, images)
    scores = learn(task, images, torch.optim.AdamW(task.parameters(), lr=1e-2), STEPS)
    assert scores["ab_mse"] < 0.25 * scores["mean_ab_mse"]
    assert scores["loss"] < 0.5 * scores["constant_loss"]
    assert scores["psnr"] > scores["mean_ab_psnr"] + 3


@pytest.mark.slow
@needs_cifar10
@pytest.mark.parametrize("target", ["bins", "l2"])
def test_a_few_real_images_are_coloured(target: str) -> None:
    from ssl_lightning.data.cifar10 import CIFAR10

    data = CIFAR10(seed=0)
    data.setup()
    images = data.train_sample(48).float() / 255
    torch.manual_seed(0)
    task = Colorization(ConvNet(in_channels=1), SPEC, target=target, reduction=2)
    taught(task, images)
    scores = learn(task, images, torch.optim.AdamW(task.parameters(), lr=5e-3), 150)
    assert scores["ab_mse"] < 0.5 * scores["mean_ab_mse"]


def test_the_panel_shows_grey_coloured_and_original() -> None:
    task = make(target="l2").eval()
    images = textured(3)
    taught(task, images)
    panel = task.panel(images)
    assert panel.images.shape == (3, 3, 3, 32, 32)
    assert panel.columns == ["grey", "coloured", "original"]
    assert panel.watched == 1
    grey, coloured, original = panel.images.unbind(1)
    assert torch.equal(original, images)
    assert (grey.amax(1) - grey.amin(1)).max() < 1e-3
    torch.testing.assert_close(rgb_to_lab(grey)[:, 0], rgb_to_lab(images)[:, 0], atol=0.05, rtol=0)
    truth = rgb2lab(images.permute(0, 2, 3, 1).numpy())[..., 1:]
    said = task.colour(task.predict(rgb_to_lab(images)[:, :1]), images.shape)
    lab = torch.cat([rgb_to_lab(images)[:, :1], said], 1)
    torch.testing.assert_close(coloured, lab_to_rgb(lab))
    for row in range(3):
        errors = (
            (truth[row] ** 2).mean(),
            ((said[row].permute(1, 2, 0).detach().numpy() - truth[row]) ** 2).mean(),
        )
        for text, error in zip(panel.captions[row], errors, strict=False):
            assert float(text.removeprefix("ab mse ")) == pytest.approx(error, abs=0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "l1"}, "task.target is 'l1'; allowed are bins and l2"),
        ({"rebalance": 1.5}, "task.rebalance is 1.5; allowed are above 0, to 1"),
        ({"rebalance": 0.0}, "task.rebalance is 0.0; allowed are above 0, to 1"),
        ({"sigma": 0.0}, "task.sigma is 0.0"),
        ({"temperature": 0.0}, "task.temperature 0.0; both must be > 0"),
        ({"prior_images": 0}, "task.prior_images is 0"),
        ({"neighbours": 0}, "task.neighbours is 0; allowed are 1 to 313"),
        ({"neighbours": 314}, "task.neighbours is 314; allowed are 1 to 313"),
        ({"grid": 3}, "grid is 3; allowed are 5 to 60"),
        ({"reduction": 8}, "reduction 8; allowed are 1 to 4"),
        ({"width": 0}, "width 0"),
        ({"spec": ImageSpec(1, 28, (0.5,), (0.2,))}, "needs images with colours, and data.channels is 1"),
    ],
)
def test_bad_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_run_measures_the_data_and_exports_a_backbone_for_lightness(tmp_path: Path) -> None:
    overrides = [
        "task=colorization", "data=fake", "trainer=debug", "optimizer=adamw", "probe=[]", "logger=[]",
        f"task.cache_dir={tmp_path / 'cache'}", "callbacks=[panel]", f"callbacks.panel.folder={tmp_path}",
    ]  # fmt: skip
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        composed = compose("train", overrides)
    cfg = OmegaConf.masked_copy(
        composed, [key for key in composed if key not in ("choices", "folder", "run_dir")]
    )
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True) | {"overrides": overrides})
    cfg.choices = {"task": "colorization", "data": "fake", "backbone": "convnet"}
    job = build_parts(cfg, tmp_path)
    writer = RunWriter(job, began=0.0)
    execute(job, writer)
    writer.write("finished")
    task = job.task
    sample = job.data.train_sample(256)
    again = make()
    again.use_statistics(measure(sample, task.bins, task.candidates, task.reduction))
    for name in ("prior", "weights", "ab_mean", "ab_std"):
        assert torch.equal(getattr(task, name), getattr(again, name)), name
    assert len(list((tmp_path / "cache/ab_priors").iterdir())) == 1
    assert job.metrics.validation.keys() >= {"val/loss", "val/constant_loss", "val/ab_mse", "val/mean_ab_mse"}
    export = json.loads((tmp_path / "backbone.json").read_text())
    assert export["backbone"]["in_channels"] == 1
    assert export["input"] == {
        "image_size": 32, "colour": "L", "mean": [50.0], "std": [50.0], "crop_ratio": 1.0,
    }  # fmt: skip
    assert "the lightness L of CIE Lab" in (tmp_path / "MODEL_CARD.md").read_text()
    backbone = ssl_lightning.load_backbone(tmp_path)
    lightness = (rgb_to_lab(sample[:4].float() / 255)[:, :1] - 50) / 50  # as backbone.json describes
    for got, expected in zip(backbone(lightness), task.eval().backbone(lightness), strict=True):
        torch.testing.assert_close(got, expected)
    with pytest.raises(ValueError, match="trained on images with 1 channels, this backbone takes 3"):
        load_weights(ConvNet(), tmp_path)
    for name in ("panel.png", "strip.png", "panels/epoch_0001.png"):
        assert (tmp_path / name).stat().st_size > 0
