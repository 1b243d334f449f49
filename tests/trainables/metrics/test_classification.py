"""Numbers per image whose means are the metrics of scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from trainables.metrics.classification import auc_parts, mean_of_columns, recall_parts


@pytest.mark.parametrize("seed", range(5))
def test_mean_of_parts_is_the_area_under_the_curve_ties_included(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, 40) / 5
    truth = rng.integers(0, 2, 40).astype(float)
    parts = auc_parts(scores, truth)
    assert np.isnan(parts[truth == 0]).all()
    assert np.nanmean(parts) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_unknown_findings_count_for_neither_side():
    scores = np.array([0.9, 0.1, 0.5, 0.4])
    parts = auc_parts(scores, np.array([1, 0, np.nan, 1]))
    np.testing.assert_array_equal(parts, [1, np.nan, np.nan, 1])


@pytest.mark.parametrize("truth", [[1.0, 1.0], [0.0, 0.0], [np.nan, 1.0]])
def test_one_side_alone_has_no_area(truth):
    assert np.isnan(auc_parts(np.array([0.2, 0.7]), np.array(truth))).all()


def test_mean_of_columns_weighs_findings_alike_however_rare():
    rng = np.random.default_rng(0)
    scores, truth = rng.random((60, 3)), (rng.random((60, 3)) < [0.5, 0.1, 0.3]).astype(float)
    parts = np.stack([auc_parts(scores[:, k], truth[:, k]) for k in range(3)], axis=1)
    wanted = np.mean([roc_auc_score(truth[:, k], scores[:, k]) for k in range(3)])
    assert mean_of_columns(parts).mean() == pytest.approx(wanted, abs=1e-12)
    parts[:, 1] = np.nan
    assert mean_of_columns(parts).mean() == pytest.approx(
        np.nanmean(parts[:, [0, 2]], axis=0).mean()
    )
    assert np.isnan(mean_of_columns(np.full((4, 2), np.nan))).all()


def test_recalls_make_balanced_accuracy():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 4, 50), rng.integers(0, 5, 50)
    parts = recall_parts(predicted, truth, 5)  # nobody is of the fifth class
    wanted = balanced_accuracy_score(truth[predicted < 4], predicted[predicted < 4])
    some = recall_parts(predicted[predicted < 4], truth[predicted < 4], 5)
    assert mean_of_columns(some).mean() == pytest.approx(wanted)
    assert np.isnan(parts[:, 4]).all()
    assert np.isnan(recall_parts(np.array([0]), np.array([-1]), 3)).all()
