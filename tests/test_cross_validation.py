"""Cross-validation by group: the gain by hand, no leak between folds, and the verdict."""

import numpy as np
import pytest

from bayesfuse.cross_validation import CrossValidation, cross_validate, static_learner, vb_learner
from bayesfuse.fusion import gram, sdr


def examples(seed=0, count=24, models=3, common=0.3):
    """Estimates with a common and an own error: fusion takes away of the own one only."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(count, 80))
    noise = common * rng.normal(size=(count, 80)) + rng.normal(size=(models, count, 80)) * rng.uniform(
        0.3, 1, (1, count, 1)
    )
    return gram(reference, reference + noise), np.repeat(np.arange(count // 4), 4)


class TestCrossValidation:
    def test_gain_by_hand_and_folds(self):
        g, groups = examples()
        seen = []

        def learn(train):
            seen.append(train)
            return lambda test: np.full((test.size, 3), 1 / 3)

        found = cross_validate(learn, g, groups, folds=3)
        assert len(seen) == 3
        for index, train in enumerate(seen):
            test = np.flatnonzero(found.fold == index)
            assert set(groups[train]).isdisjoint(groups[test]) and len(train) + len(test) == 24
            singles = [sdr(single, g)[train].mean() for single in np.eye(3)]
            assert found.best[index] == np.argmax(singles)
            np.testing.assert_allclose(found.single[test], sdr(np.eye(3)[found.best[index]], g)[test])
        np.testing.assert_allclose(found.fused, sdr(np.full(3, 1 / 3), g))
        np.testing.assert_allclose(found.gain, (found.fused - found.single).mean())
        assert found.low < found.gain < found.high

    def test_interval_of_single_examples_is_students(self):
        from scipy.stats import t

        g, _ = examples()
        found = cross_validate(lambda _: lambda test: np.full((test.size, 3), 1 / 3), g, np.arange(24))
        gains = found.fused - found.single
        low, high = t.interval(0.95, 23, gains.mean(), gains.std(ddof=1) / np.sqrt(24))
        np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-9)

    def test_verdicts(self):
        g, groups = examples()
        good = cross_validate(static_learner(g, loss="sdr"), g, groups)
        assert good.verdict == "fuse" and good.low > 0 and "fuse" in str(good)
        # Nothing but a common error: no weights can help.
        rng = np.random.default_rng(1)
        reference = rng.normal(size=(24, 80))
        estimate = reference + 0.5 * rng.normal(size=(24, 80))
        same = gram(reference, np.stack([estimate] * 3))
        none = cross_validate(static_learner(same), same, groups)
        assert none.verdict == "do not fuse" and abs(none.gain) < 1e-9
        # A gain that is sure and too small to be printed is none.
        sure = good._replace(gain=-0.001, low=0.004)
        assert sure.verdict == "do not fuse" and "model +0.00 dB" in str(sure)

    def test_learners_with_free_energies_and_frames(self):
        rng = np.random.default_rng(0)
        reference = rng.normal(size=(8, 10, 20))
        level = rng.uniform(0.1, 2.0, (2, 8, 10, 1))
        g = gram(reference, reference + level * rng.normal(size=(2, 8, 10, 20)))
        energy = -20 * np.moveaxis(level[..., 0], 0, 1)
        learner = vb_learner(g, energy, loss="mse", starts=2)
        found = cross_validate(learner, g, np.arange(8) % 4, folds=2)
        assert found.verdict == "fuse" and found.fused.shape == (8,)
        terms = vb_learner(g, np.stack([energy, energy]), loss="mse", per_term=True, starts=2)
        assert cross_validate(terms, g, np.arange(8) % 4, folds=2).gain > 0
        whole = g.sum(1)
        totals = vb_learner(whole, energy.sum(-1), num_frames=np.full(8, 10), starts=2)
        assert np.isfinite(cross_validate(totals, whole, np.arange(8) % 4, folds=2).gain)

    def test_silent_examples_are_left_out_and_counted(self):
        g, groups = examples()
        silent = gram(np.zeros((24, 80)), np.ones((3, 24, 80)))
        some = np.arange(24) == 5
        mixed = type(g)(
            np.where(some, silent.energy, g.energy),
            np.where(some[:, None], silent.cross, g.cross),
            np.where(some[:, None, None], silent.gram, g.gram),
        )
        found = cross_validate(static_learner(mixed), mixed, groups)
        assert np.isnan(found.fused[5]) and np.isfinite(found.gain) and "1 silent" in str(found)
        with pytest.raises(ValueError, match="silent"):
            cross_validate(lambda _: lambda test: np.ones((test.size, 3)) / 3, silent, groups)

    def test_bad_input(self):
        g, groups = examples()
        for labels, settings_ in [
            (groups[:-1], {}),
            (0 * groups, {}),
            (groups, {"folds": 1}),
            (groups, {"level": 1.0}),
        ]:
            with pytest.raises(ValueError, match="cross_validate got"):
                cross_validate(static_learner(g), g, labels, **settings_)
        assert CrossValidation(1.0, 0.5, 1.5, 0.95, np.ones(1), np.zeros(1), np.zeros(1, int), np.zeros(1, int)).verdict
