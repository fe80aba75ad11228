"""``python -m benchmarks.pretrained.pictures PICTURES --data-root DATA``: test images of CIFAR-10 as files."""

import argparse
from pathlib import Path

from PIL import Image

from contrastive.data import cifar10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, help="folder to write; each class becomes a folder within")
    parser.add_argument("--data-root", type=Path, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--each", type=int, default=100, help="the first so many of every class")
    options = parser.parse_args()
    data = cifar10(options.data_root)
    for label, name in enumerate(data.classes):
        folder = options.pictures / name
        folder.mkdir(parents=True)
        rows = (data.test.labels == label).nonzero().squeeze(1)[: options.each]
        for row, image in zip(rows.tolist(), data.test.images[rows], strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{row:05}.png")


if __name__ == "__main__":
    main()
