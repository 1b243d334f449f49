"""Another package's data set, network, method and sampler, without touching ours."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from explorer import Extensions, open_exploration, resume, run
from explorer.exporting import load_network
from explorer.extensions import find, names_of
from explorer.specs import load_spec
from search_spaces.errors import InputError

PACKAGE = Path(__file__).parents[1] / "extension"
SPEC = """
name: discs
method: linear
dataset: {name: discs, options: {num_images: 40}}
model: {network: pyramid, width: 4, options: {kernel: 5}}
train: {epochs: 2, batch_size: 8, learning_rate: 1.0e-2, augment: [flip]}
explore: {sampler: halving, num_points: 5, batch_size: 2}
baselines: [{method: fixed, grid: {phi: [0.1, 0.4]}}, {method: sshn}]
tracking: false
"""


@pytest.fixture
def spec_path(tmp_path):
    path = tmp_path / "discs.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def brought():
    spec = importlib.util.spec_from_file_location("explorer_discs", PACKAGE / "explorer_discs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Extensions(
        methods={"linear": module.LINEAR},
        networks={"pyramid": module.Pyramid},
        datasets={"discs": module.DISCS},
        samplers={"halving": module.Halving},
    )


@pytest.mark.ray
def test_installed_package_is_found_trained_explored_and_queried(explorer, spec_path, tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PACKAGE, source)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    place = ["--no-build-isolation", "--target", str(site), str(source)]
    subprocess.run([*install, *place], check=True)
    elsewhere = {"PYTHONPATH": str(site), "EXPLORER_RUNS_DIR": str(tmp_path / "runs")}
    listed = explorer("datasets", "list", "--json", **elsewhere)
    assert "discs" in [row["name"] for row in json.loads(listed.stdout)]
    cost = explorer("cost", spec_path, "--at", "phi=0.5", "--json", **elsewhere)
    macs = 25 * 4 * 32**2 + 25 * 16 * 16**2 + 4 * 2 * 32**2
    assert json.loads(cost.stdout)["costs"]["macs"] == macs
    ended = explorer("run", spec_path, "--json", **elsewhere)
    assert ended.code == 0, ended.stderr
    answer = explorer("query", "discs-1", "--max", "macs=1G", "--json", **elsewhere)
    assert json.loads(answer.stdout)["feasible"]
    # without the package there is one line that says what is missing
    cost = explorer("cost", spec_path, "--at", "phi=0.5", EXPLORER_RUNS_DIR=str(tmp_path))
    assert cost.code == 2
    assert "unknown" in cost.error


@pytest.mark.ray
def test_plain_argument_is_trained_explored_exported_and_resumed(spec_path, brought, tmp_path):
    runs = tmp_path / "runs"
    exploration = run(load_spec(spec_path), runs_dir=runs, extensions=brought)
    table = exploration.table()
    rows = (table["method"] == "linear") & (table["split"] == "val")
    assert sorted(table["conditioning/phi"][rows]) == [0, 0.125, 0.25, 0.375, 0.5]
    exported = exploration.export(exploration.query().point, tmp_path / "out")
    network = load_network(exported.folder, extensions=brought)
    assert type(network.primary) is brought.networks["pyramid"]
    assert network.primary.kernel == 5
    again = resume("discs-1", runs_dir=runs, extensions=brought)
    assert again.query().point == exploration.query().point
    refined = open_exploration("discs-1", runs, extensions=brought).refine(2)
    assert refined.feasible
    with pytest.raises(InputError, match="unknown method 'linear'"):
        resume("discs-1", runs_dir=runs)


def test_name_that_two_places_give_is_refused():
    with pytest.raises(InputError, match=r"method 'sshn' is given by .* and the argument"):
        find("methods", "sshn", {"sshn": 1}, Extensions(methods={"sshn": 2}))


def test_known_names_include_what_is_brought():
    known = names_of("samplers", {"grid": 1}, Extensions(samplers={"mine": 2}))
    assert known == ["grid", "mine"]


def test_readme_shows_the_package_that_is_tested():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    module = (PACKAGE / "explorer_discs.py").read_text()
    (shown,) = [b for b in readme.split("```python\n") if b.startswith("class LinearNetwork")]
    assert shown.partition("```")[0].strip() in module
    for line in (PACKAGE / "pyproject.toml").read_text().splitlines():
        if "explorer_discs:" in line or "entry-points" in line:
            assert line in readme
