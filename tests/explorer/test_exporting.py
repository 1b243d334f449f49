"""The hand-over of a registration; that of a segmentation is in the tests of the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from explorer.exporting import load_network, materialize
from explorer.points import Point
from explorer.session import load_data, samples_of
from search_spaces.errors import InputError
from trainables.deformations import warp

DAMPED = ("registration.shrinkage=0.5", "registration.num_integration_steps=5")


def exported(exploration: Any, output: Path) -> tuple[Point, torch.Tensor]:
    """The point that was exported, and pairs to ask its network about."""
    point = exploration.points().point(0)
    exploration.export(point, output)
    data = samples_of(exploration.spec, load_data(exploration.spec))["val"].arrays
    return point, torch.from_numpy(data.batch(slice(0, 4))[0])


@pytest.mark.parametrize("changes", [(), DAMPED])
def test_exported_registration_gives_the_same_displacement(
    trained: Any, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    exploration = trained("hypermorph-demo", *changes, "train.prior={lambda: [0.3, 1]}")
    point, pairs = exported(exploration, tmp_path / "out")
    network = load_network(tmp_path / "out")
    own = materialize(exploration.folder, exploration.spec, point.trial_ids[0], point.conditioning)
    with torch.inference_mode():
        displacement = network(pairs)
        torch.testing.assert_close(displacement, own(pairs), rtol=0, atol=0)
    assert displacement.shape == (4, 2, 24, 24)
    assert displacement.abs().max() > 0.05
    moved = warp(pairs[:, :1], displacement)
    assert (moved - pairs[:, 1:]).abs().mean() < (pairs[:, :1] - pairs[:, 1:]).abs().mean()


def test_description_of_a_registration_says_what_it_takes_and_gives(
    trained: Any, tmp_path: Path
) -> None:
    exploration = trained("hypermorph-demo", *DAMPED, "train.prior={lambda: [0.3, 1]}")
    exported(exploration, tmp_path / "out")
    text = json.loads((tmp_path / "out" / "network.json").read_text())
    assert text["arguments"] == {
        "in_channels": 2,
        "encoder_widths": [8, 12],
        "decoder_widths": [12, 12],
        "final_widths": [8],
        "num_dims": 2,
    }
    assert text["damping"] == pytest.approx(0.7 / 0.85)
    assert (text["task"], text["num_integration_steps"]) == ("registration", 5)
    assert text["input"]["order"] == "moving then fixed"
    assert text["conditioning"] == {"lambda": 0.3}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "translation", "unknown task 'translation'; known: registration, segmentation"),
        ("architecture", "transformer", "unknown network 'transformer'; known: voxelmorph"),
        ("damping", "much", "not a description of a network"),
        ("arguments", {"in_channels": 2}, "weights.safetensors: "),
    ],
)
def test_changed_description_of_a_registration_is_refused(
    registered: Any, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    exported(registered, tmp_path / "out")
    path = tmp_path / "out" / "network.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=message):
        load_network(tmp_path / "out")
