import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported_packages(module: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after importing the module."""
    code = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["explorer", "explorer.queries", "explorer.cli"])
def test_import_loads_neither_torch_nor_ray(module: str) -> None:
    assert imported_packages(module).isdisjoint({"torch", "ray"})


def test_rebuilding_a_network_needs_torch_and_little_else() -> None:
    others = {"mlflow", "nibabel", "optuna", "pandas", "pyarrow", "pydantic", "ray"}
    packages = imported_packages("explorer.networks")
    assert "torch" in packages
    assert packages.isdisjoint(others)
