"""Probe a downloaded checkpoint, such as resnet50-11ad3fa6.pth of torchvision, on labelled folders.

python examples/checkpoint.py resnet50 resnet50-11ad3fa6.pth labelled/train labelled/test
"""

import sys

import torch
import torchvision

from ssl_lightning import probe


def main(architecture: str, weights: str, train: str, test: str, image_size: int = 224) -> None:
    network = torchvision.models.get_model(architecture)
    network.load_state_dict(torch.load(weights, weights_only=True))
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    table = probe(network, train, test, probes=["linear", "knn"], image_size=image_size, **imagenet)
    print(table)
    print(table.best("linear"))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
