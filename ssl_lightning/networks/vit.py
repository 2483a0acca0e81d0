"""Vision transformer for small images: ViT-Tiny with small patches and fewer blocks."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_lightning.networks.features import FeatureInfo, check_in_channels
from ssl_lightning.networks.recipes import recorded
from ssl_lightning.ops.positions import positions


class SmallViT(VisionTransformer):
    """timm's vision transformer as a backbone, for images of any size.

    It has no class token, and its positions are fixed waves (MAE: He et al. 2022, app. A.1), so that images
    and tiles of all sizes are read alike. A size that patches do not divide is padded with zeros at the right
    and at the bottom. A stage is the output of a block, normalised by the last layer norm, as a map of its
    tokens; all have the size ceil(H / patch_size).

    Args:
        in_channels: Channels of the images, at least 1.
        patch_size: Height and width of a patch in pixels.
        width: Size of a token; a multiple of 4 and of `heads`.
        depth: Number of blocks.
        heads: Attention heads of a block.
        stages: Number of evenly spaced blocks whose outputs are stages, with the last one; at most `depth`.
        drop_path: Largest probability that a training image skips a block, of the last one; 0 to below 1.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        stages: int,
        drop_path: float,
    ) -> None:
        check_in_channels(in_channels)
        if min(patch_size, width, depth, heads) < 1 or width % 4 or width % heads:
            raise ValueError(
                f"backbone has patch_size {patch_size}, width {width}, depth {depth} and heads {heads}; all "
                "must be at least 1, and the width a multiple of 4 and of the heads, such as 192 with 3 heads"
            )
        if not 1 <= stages <= depth:
            raise ValueError(f"backbone.stages is {stages}; allowed are 1 to {depth}, the number of blocks")
        if not 0 <= drop_path < 1:
            raise ValueError(f"backbone.drop_path is {drop_path}; allowed are 0 to below 1")
        super().__init__(
            patch_size=patch_size,
            in_chans=in_channels,
            num_classes=0,
            global_pool="avg",
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            class_token=False,
            pos_embed="none",
            fc_norm=False,
            dynamic_img_size=True,
            dynamic_img_pad=True,
            drop_path_rate=drop_path,
        )
        self.indices = [(number + 1) * depth // stages - 1 for number in range(stages)]
        names = [f"blocks.{index}" for index in self.indices]
        self.feature_info: Any = FeatureInfo([width] * stages, [patch_size] * stages, names)

    def forward(  # type: ignore[override]
        self, images: Tensor, keep: Tensor | None = None, together: int = 1
    ) -> list[Tensor]:
        """Map `(B, C, H, W)` floats to the stage maps, each `(B, width, rows, columns)`, shallow to deep.

        Args:
            images: The images.
            keep: Numbers of the tokens to encode, `(B, M)` int64; the others do not enter the blocks. The
                result is then the last stage alone, as tokens `(B, M, width)`.
            together: So many successive images, tiles of one picture, form one sequence of tokens. Their
                tokens attend to each other, and their positions are those within each image, so nothing tells
                the place of a tile. Above 1 the result is the last stage alone, and B a multiple of it.
        """
        if keep is None and together == 1:
            maps: Any = self.forward_intermediates(
                images, indices=self.indices, norm=True, intermediates_only=True
            )
            return maps
        patches = self.patch_embed(images)  # (B, rows, columns, width)
        tokens = self._pos_embed(patches)
        if keep is not None:
            return [self.norm(self.blocks(tokens.take_along_dim(keep[..., None], 1)))]
        joined = tokens.unflatten(0, (-1, together)).flatten(1, 2)  # (B / together, together * T, width)
        return [self.norm(self.blocks(joined)).reshape(patches.shape).permute(0, 3, 1, 2)]

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Add the positions to patches `(B, rows, columns, D)`: tokens `(B, rows * columns, D)`."""
        return (x + positions(x.shape[1], x.shape[2], x.shape[3], x.device)).flatten(1, 2)


@recorded
def create_small_vit(
    *,
    in_channels: int = 3,
    patch_size: int = 4,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
    stages: int = 3,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a `SmallViT`, by default half of ViT-Tiny, with patches of 4 px; the arguments are its own."""
    return SmallViT(
        in_channels=in_channels,
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        stages=stages,
        drop_path=drop_path,
    )
