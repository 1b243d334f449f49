"""Data in a real data set's layout."""

import pytest

from tests.trainables.datasets.test_wbc import write_release


@pytest.fixture
def wbc_root(tmp_path):
    """Six images per stain in the official layout."""
    root = tmp_path / "wbc"
    write_release(root, num_images=6)
    return root
