"""The mini-batch descent: one step and the learning-rate rule by hand, every example once, and reversions."""

import jax
import numpy as np
import pytest

from bayesfuse import _training
from bayesfuse._training import RateRule, Training

KEY = jax.random.key(3)


def test_rate_rule_follows_a_trace_computed_by_hand():
    rule = RateRule(increase=2.0, decrease=0.5, failures=3, patience=1)
    state = rule.start(1.0, 10.0)
    trace = [
        # score, rate, best, failures, reversions, event
        (8.0, 2.0, 8.0, 0, 0, "best"),
        (9.0, 1.0, 8.0, 1, 0, "worse"),
        (8.5, 2.0, 8.0, 2, 0, "worse"),  # better than the epoch before, though not the best
        (7.0, 4.0, 7.0, 0, 0, "best"),
        (7.0, 2.0, 7.0, 1, 0, "worse"),  # equal is not better
        (7.5, 1.0, 7.0, 2, 0, "worse"),
        (7.6, 0.5, 7.0, 0, 1, "reverted"),
        (7.2, 0.25, 7.0, 1, 1, "worse"),  # compared with the score gone back to
        (6.0, 0.5, 6.0, 0, 1, "best"),
        (np.nan, 0.25, 6.0, 1, 1, "stopped"),  # would be the second reversion
    ]
    for score, *expected in trace:
        state = rule.update(state, score)
        assert [state.rate, state.best, state.failures, state.reversions, state.event] == expected
    assert rule.update(rule.start(1.0, 5.0), np.nan).event == "reverted"
    assert rule.start(1.0, np.nan).best == np.inf


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_nesterov_steps_are_those_of_the_formula(decay):
    """v = mu v + g, p = p - rate (g + mu v), two epochs of one mini-batch each."""
    target = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)
    settings = Training(
        batch_size=4, max_epochs=2, rate=0.1, momentum=0.8, weight_decay=decay, rule=RateRule(increase=1, decrease=1)
    )

    def loss(p, batch, mask, key):
        return (((p - target) ** 2).sum(axis=(-2, -1)) * mask).sum() / mask.sum() + 0 * batch.sum()

    scores = iter([3.0, 2.0, 1.0])
    found, history, best = _training.minimise(
        KEY, np.zeros((2, 2), np.float32), np.zeros((3, 1), np.float32), loss, lambda p: next(scores), settings
    )
    p, v = np.zeros((2, 2)), np.zeros((2, 2))
    for _ in range(2):
        g = 2 * (p - target) + decay * p
        v = 0.8 * v + g
        p = p - 0.1 * (g + 0.8 * v)
    np.testing.assert_allclose(found, p, rtol=1e-6)
    assert best == 1.0 and history.cost[0] == pytest.approx(np.sum(target**2))


def test_every_example_counts_once_an_epoch():
    seen = []

    def loss(p, batch, mask, key):
        jax.debug.callback(lambda b, m: seen.extend(b[m > 0].tolist()), batch, mask, ordered=True)
        return (p * batch * mask).sum() / mask.sum()

    settings = Training(batch_size=4, max_epochs=2, rate=0.1)
    _, history, _ = _training.minimise(
        KEY, np.float32(0.0), np.arange(10, dtype=np.float32), loss, lambda p: float(p), settings
    )
    jax.effects_barrier()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10)) and seen[:10] != seen[10:]
    assert len(history.rate) == 2


def test_a_reversion_goes_back_to_the_best_parameters():
    scores = iter([5.0, 1.0, 2.0, 3.0, 0.5])
    starts = []

    def score(p):
        starts.append(float(p))
        return next(scores)

    settings = Training(batch_size=1, max_epochs=4, rate=1.0, momentum=0.0, rule=RateRule(1.0, 1.0, 2, 3))
    _, history, _ = _training.minimise(
        KEY, np.float32(0.0), np.zeros(1, np.float32), lambda p, b, m, k: p, score, settings
    )
    # Each epoch goes down by one; after the third, back to where the first had ended, and on from there.
    assert starts == [0.0, -1.0, -2.0, -3.0, -2.0]
    assert [_training.EVENTS[e] for e in history.event] == ["best", "worse", "reverted", "best"]


def test_a_descent_that_never_has_a_finite_score_says_so():
    with pytest.raises(ValueError, match="never finite"):
        _training.minimise(
            KEY,
            np.float32(0.0),
            np.zeros(1, np.float32),
            lambda p, b, m, k: p,
            lambda p: np.nan,
            Training(max_epochs=9),
        )
