"""Points as figures and pages take them, and explorations with models to ask."""

from dataclasses import asdict
from typing import Any

import pytest

from tests.conftest import measured


def make_points(
    method: str, phis: list[float], dices: list[float], *, is_grid: bool = False
) -> list[dict[str, Any]]:
    return [
        {
            "conditioning": {"phi": phi},
            "metrics": {"dice": dice, "dice/nucleus": dice + 0.01},
            "standard_errors": {},
            "seed_sd": {"dice": 0.01},
            "num_seeds": 3,
            "costs": {"macs": 1e9 * (1 + phi), "flops": 2e9 * (1 + phi)},
            "test_metrics": {"dice": dice - 0.02},
            "method": method,
            "trial_ids": [f"{method}-{phi if is_grid else ''}-{seed}" for seed in range(3)],
        }
        for phi, dice in zip(phis, dices, strict=True)
    ]


@pytest.fixture
def points() -> list[dict[str, Any]]:
    return [
        *make_points("fixed", [0.0, 0.25, 0.5], [0.80, 0.88, 0.87], is_grid=True),
        *make_points("sshn", [0.5, 0.0, 0.1, 0.2, 0.3], [0.90, 0.81, 0.88, 0.87, 0.91]),
    ]


@pytest.fixture
def points_of_modes() -> list[dict[str, Any]]:
    """Two lines of one method and two networks, by a category."""
    linear = make_points("sshn", [0.0, 0.2, 0.4], [0.80, 0.85, 0.90])
    nearest = make_points("sshn", [0.0, 0.2, 0.4], [0.70, 0.86, 0.88])
    fixed = make_points("fixed", [0.1, 0.3], [0.8, 0.87], is_grid=True)
    for group, mode in ((linear, "linear"), (nearest, "nearest"), (fixed, "nearest")):
        for point in group:
            point["conditioning"] = {"interpolation": mode, **point["conditioning"]}
    return [*linear, *nearest, *fixed]


SMALL_REGISTRATION = (
    "dataset.size=[24, 24]",
    "dataset.options={num_images: 30, num_domains: 1, num_labels: 3}",
    "registration.encoder_widths=[8, 12]",
    "registration.decoder_widths=[12, 12]",
    "registration.final_widths=[8]",
    "registration.num_pairs=12",
    "train.epochs=6",
    "train.learning_rate=3.0e-3",
    "model.hidden_sizes=[16, 16]",
    "baselines=[]",
)
SMALL_SEGMENTATION = (
    "dataset.size=[16, 16]",
    "dataset.options={num_images: 30}",
    "model.width=4",
    "model.stages=3",
    "train.epochs=1",
    "baselines=[]",
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Explorations with trained models and one measurement of each, made in this process."""
    # what takes seconds to import is not loaded for figures and pages
    from explorer.exploration import open_exploration
    from explorer.measurements import measurements_table
    from explorer.session import check_spec
    from explorer.specs import load_spec
    from explorer.splits import load_data, samples_of
    from explorer.store import measurements_store, write_json, write_text
    from explorer.training import keep_record, train_trial, trials_of
    from trainables.train_loop import PlainContext

    made: dict[tuple[str, ...], Any] = {}

    def make(preset: str, *changes: str) -> Any:
        if (preset, *changes) in made:
            return made[preset, *changes]
        small = SMALL_SEGMENTATION if preset == "demo" else SMALL_REGISTRATION
        spec = load_spec(preset, [*small, "train.num_threads=1", *changes])
        objectives, dataset = check_spec(spec), load_data(spec)
        folder = tmp_path_factory.mktemp("runs") / "asked-1"
        data = {name: own.arrays for name, own in samples_of(spec, dataset).items()}
        write_text(folder / "spec.yaml", spec.to_yaml())
        state = {"status": "finished", "data_digest": dataset.digest}
        state["objectives"] = [asdict(one) for one in objectives]
        write_json(folder / "state.json", state)
        setting = {name: low for name, (low, _) in spec.train.prior.items()}
        rows = []
        rates = {spec.method: spec.train.learning_rates}
        for trial in trials_of(spec, seeds=spec.train.seeds, rates=rates):
            trial_dir = folder / "trials" / trial.trial_id
            context = PlainContext(trial_dir, device="cpu")
            result = train_trial(spec, trial, data, context, trial_dir.parent)
            keep_record(trial, result, trial_dir)
            of_trial = {"trial_id": trial.trial_id, "method": spec.method, "seed": trial.seed}
            metrics = {"dice": 0.5, "folded_share": 0.0}
            rows.append(measured(0, 0.5, **of_trial, conditioning=setting, metrics=metrics))
        measurements_store(folder).append(measurements_table(rows))
        return made.setdefault((preset, *changes), open_exploration("asked-1", folder.parent))

    return make


@pytest.fixture
def registered(trained: Any) -> Any:
    """An exploration of a registration over lambda."""
    return trained("hypermorph-demo")
