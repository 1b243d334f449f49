"""Data in a real data set's layout."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def wbc_root(tmp_path):
    """Six images per stain in the official layout."""
    rng = np.random.default_rng(0)
    root = tmp_path / "wbc"
    for number in (1, 2):
        folder = root / f"Dataset {number}"
        folder.mkdir(parents=True)
        lines = ["image ID,class label"]
        for index in range(1, 7):
            image = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            mask = np.zeros((12, 10), np.uint8)
            mask[3:9, 2:8], mask[5:7, 4:6] = 128, 255
            Image.fromarray(image).save(folder / f"{index:03d}.bmp")
            Image.fromarray(mask).save(folder / f"{index:03d}.png")
            lines.append(f"{index},{index % 5 + 1}")
        (root / f"Class Labels of Dataset {number}.csv").write_text("\n".join(lines) + "\n")
    return root
