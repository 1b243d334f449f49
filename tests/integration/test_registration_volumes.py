"""Brain volumes: a few training steps and a registration, in this process."""

import numpy as np
import pytest

from explorer.models import build_trainable
from explorer.specs import load_spec
from explorer.splits import load_data, samples_of
from explorer.training import Trial, train_config
from trainables.train_loop import PlainContext, evaluate_setting, load_tensors, train


@pytest.mark.slow
def test_a_few_steps_on_brain_volumes(data_dir, tmp_path):
    root = data_dir / "oasis_malf35"
    spec = load_spec(
        "hypermorph-oasis3d",
        [
            f"dataset.root={root}",
            "registration.num_pairs=1",
            "train.epochs=2",
            "train.steps_per_epoch=3",
            "train.batch_size=1",
            "train.validate_every=2",
        ],
    )
    samples = samples_of(spec, load_data(spec))
    data = {name: own.arrays for name, own in samples.items()}
    assert data["train"].images.shape[2:] == (80, 96, 112)
    trainable = build_trainable(spec)
    trial = Trial("hypermorph-s0", "hypermorph", 0, 1e-3)
    config = train_config(spec, trainable, trial)
    result = train(trainable, data, config, PlainContext(tmp_path, device="cpu"))
    assert np.isfinite(result.history[-1]["train_loss"])
    module = trainable.build(0)
    before = evaluate_setting(trainable, module, data["val"], {"lambda": 1.0})["dice"]
    load_tensors(module, result.best, "best")
    values = evaluate_setting(trainable, module, data["val"], {"lambda": 0.2})
    still = evaluate_setting(trainable, module, data["val"], {"lambda": 1.0})
    assert values["folded_share"][0] < 0.01
    assert values["displacement"][0] > 0
    assert still["dice"] == pytest.approx(before, abs=1e-6)
    assert still["velocity_gradient"][0] == 0
