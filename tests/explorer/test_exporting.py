"""The hand-over: of a registration, at any setting, and with its card.

That of a segmentation is in the tests of the command line, programs have tests of their own.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from explorer.exporting import load_network, materialize
from explorer.points import Point
from explorer.splits import load_data, samples_of
from search_spaces.errors import InputError
from trainables.datasets.sources import DATASETS
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
        ("architecture", "transformer", "unknown model.network 'transformer'; known: fpn, pspnet"),
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


def test_setting_that_was_not_measured_is_exported_without_metrics(
    trained: Any, tmp_path: Path
) -> None:
    exploration = trained("demo")
    point = exploration.at({"phi": 0.31})
    assert (point.metrics, point.test_metrics) == ({}, {})
    assert 0 < point.costs["macs"] < exploration.at({"phi": 0.5}).costs["macs"]
    exploration.export(point, tmp_path / "out")
    text = json.loads((tmp_path / "out" / "network.json").read_text())
    assert (text["conditioning"], text["metrics"]) == ({"phi": 0.31}, {})
    assert text["factors"] == [0.31, 0.31]
    assert "**Not measured**" in (tmp_path / "out" / "README.md").read_text()


def test_setting_that_was_measured_is_the_point_of_the_table(trained: Any) -> None:
    exploration = trained("demo")
    assert exploration.at({"phi": 0}) == exploration.points().point(0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"phi": 0.7}, r"phi must be in \[0, 0\.5\], got 0\.7"),
        ({"lambda": 0.1}, "expected values for phi, got lambda"),
        ({"phi": "much"}, "phi must be a number, got 'much'"),
    ],
)
def test_setting_outside_what_was_explored_is_refused(
    trained: Any, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trained("demo").at(setting)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("preset", "setting"), [("demo", {"phi": 0}), ("hypermorph-demo", {"lambda": 0.5})]
)
def test_code_of_the_card_runs_in_the_folder_of_the_card(
    trained: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    setting: dict[str, float],
) -> None:
    exploration = trained(preset)
    exported = exploration.export(
        exploration.at(setting), tmp_path / "out", formats=["pt2", "onnx"]
    )
    monkeypatch.chdir(exported.folder)
    card = Path("README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 3
    made = []
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        made.append(torch.as_tensor(names.get("logits", names.get("displacement"))))
    for own in made[1:]:
        torch.testing.assert_close(own.detach(), made[0], rtol=0, atol=1e-5)
    assert {"labels", "moved"} & set(re.findall(r"^    (\w+) =", card, flags=re.MULTILINE))


def test_card_tells_data_metrics_costs_and_limits(trained: Any, tmp_path: Path) -> None:
    exploration = trained("demo")
    point = exploration.points().point(0)
    exploration.export(point, tmp_path / "out")
    _, front, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    (model,) = yaml.safe_load(front)["model-index"]
    told = {
        metric["type"]: metric["value"]
        for result in model["results"]
        for metric in result["metrics"]
    }
    assert told == dict(point.metrics)
    assert "| dice | 0.5000" in text
    assert "none needed: generated" in text
    assert "Not a medical device" in text
    assert "(batch, 1, 16 × 16)" in text
    training = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[0])
    assert training["train"]["epochs"] == 1
    assert training["model"]["width"] == 4


def test_every_data_set_states_its_licence() -> None:
    for source in DATASETS.values():
        assert source.licence
        assert source.citation or not source.needs_root
