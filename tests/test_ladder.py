"""The ladder: each rung is the SDR of what its rule does to the waveforms, and no oracle is below a coarser one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesfuse import ladder as ladder_module
from bayesfuse import masks, metrics
from bayesfuse.fusion import Bands, Gram, fuse, gram, oracle_weights
from bayesfuse.ladder import BEST_SINGLE, Ladder, best_single, ladder, ladder_of_blocks
from bayesfuse.transforms import STFT

TRANSFORM = STFT(64, 32)
BANDS = Bands(16000, 4, 64)


def example(seed=0, models=3, sources=2, channels=2, length=600):
    rng = np.random.default_rng(seed)
    references = rng.normal(size=(sources, channels, length))
    # Separators that are good at different times.
    sizes = rng.gamma(0.5, 1.0, (models, sources, channels, length // 50)).repeat(50, axis=-1)
    return references, references + sizes * rng.normal(size=(models, *references.shape))


def value(found, name, source=0, file=0):
    return found.sdr[file, source, found.rungs.index(name)]


def test_rungs_are_of_the_waveforms():
    references, estimates = example()
    mixture = references.sum(axis=0)
    found = ladder(
        mixture, references, estimates, transform=TRANSFORM, bands=BANDS, single=[2, 0], models=["a", "b", "c"]
    )
    assert found.rungs[:3] == ("a", "b", "c")
    measured = {
        "b": estimates[1],
        "mean": estimates.mean(axis=0),
        BEST_SINGLE: np.stack([estimates[2, 0], estimates[0, 1]]),
        "ideal ratio mask": masks.ideal_estimates(masks.ratio_mask, mixture, references, transform=TRANSFORM),
    }
    weights = oracle_weights(gram(references, estimates).sum(1))
    measured["oracle fusion"] = fuse(weights, estimates, per_source=True)
    g = gram(references, estimates, transform=TRANSFORM, bands=BANDS).sum(1)
    weights = np.moveaxis(oracle_weights(g), -1, 1)
    measured["oracle fusion per frame and band"] = fuse(
        weights, estimates, transform=TRANSFORM, bands=BANDS, per_source=True
    )
    for name, waveforms in measured.items():
        expected = metrics.sdr(references, waveforms, axis=(-2, -1))
        np.testing.assert_allclose(found.sdr[0, :, found.rungs.index(name)], expected, atol=1e-8)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 4), st.booleans())
def test_each_oracle_is_at_least_as_good(seed, models, shared):
    references, estimates = example(seed, models, length=300)
    found = ladder(None, references, estimates, transform=TRANSFORM, bands=BANDS, shared=shared)
    error = 10 ** (-found.sdr[0] / 10)
    # Shared weights are chosen for the sum of the errors.
    energy = (references**2).sum(axis=(-2, -1))
    total = dict(zip(found.rungs, energy @ error if shared else error.T, strict=True))
    singles = np.min([total[name] for name in found.rungs[:models]], axis=0)
    slack = 1 + 1e-9
    np.testing.assert_allclose(total["oracle selection"], singles, rtol=1e-9)
    assert (total["oracle fusion"] <= singles * slack).all()
    assert (total["oracle fusion"] <= total["mean"] * slack).all()
    assert (total["oracle selection per frame"] <= singles * slack).all()
    assert (total["oracle fusion per frame"] <= total["oracle fusion"] * slack).all()
    assert (total["oracle fusion per frame and band"] <= total["oracle fusion"] * slack).all()


def test_shared_weights_of_one_source_are_its_own():
    references, estimates = example(sources=1)
    own = ladder(None, references, estimates, transform=TRANSFORM)
    np.testing.assert_allclose(
        ladder(None, references, estimates, transform=TRANSFORM, shared=True).sdr, own.sdr, atol=1e-9
    )


def test_in_pieces(monkeypatch):
    references, estimates = example()
    expected = ladder(None, references, estimates, transform=TRANSFORM, bands=BANDS)
    monkeypatch.setattr(ladder_module, "_BLOCK", 1500)
    found = ladder(None, references, estimates, transform=TRANSFORM, bands=BANDS)
    np.testing.assert_allclose(found.sdr, expected.sdr, atol=1e-9)


@settings(max_examples=5)
@given(st.integers(0, 10**6), st.lists(st.integers(30, 400), max_size=6))
def test_blocks_of_any_lengths_are_the_whole(seed, lengths):
    references, estimates = example(seed % 5)
    expected = ladder(None, references, estimates, transform=TRANSFORM, bands=BANDS, single=1)
    edges = [0, *(edge for edge in np.cumsum(lengths) if edge < 600), 600]
    blocks = (
        (references[..., a:b].sum(axis=0), references[..., a:b], estimates[..., a:b])
        for a, b in itertools.pairwise(edges)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder_module, "_BLOCK", 3000)
        found = ladder_of_blocks(blocks, transform=TRANSFORM, bands=BANDS, single=1)
    assert found.rungs == expected.rungs
    np.testing.assert_allclose(found.sdr, expected.sdr, atol=1e-9)


def test_pieces_do_not_grow_with_the_length(monkeypatch):
    monkeypatch.setattr(ladder_module, "_BLOCK", 1)
    sizes, whole = [], ladder_module.gram
    monkeypatch.setattr(
        ladder_module, "gram", lambda s, *rest, **more: (sizes.append(s.size), whole(s, *rest, **more))[1]
    )
    references, estimates = example(channels=1, length=900)
    blocks = (
        (references[0, :, i : i + 100], references[..., i : i + 100], estimates[..., i : i + 100])
        for i in range(0, 900, 100)
    )
    ladder_of_blocks(blocks, transform=TRANSFORM)
    # Two sources in one segment of their own with one of context on either side, or in a block.
    assert max(sizes) == 2 * 100 and len(sizes) > 2 * (900 // 32)


def test_extremes():
    references, estimates = example(models=2)
    # One estimate, equal to the reference; a silent source; duplicates.
    exact = ladder(None, references, references[None], transform=TRANSFORM)
    assert value(exact, "model 0") == value(exact, "oracle fusion") == np.inf
    assert value(exact, "oracle fusion per frame") > 250
    references[1] = 0.0
    silent = ladder(None, references, estimates, transform=TRANSFORM, bands=BANDS)
    assert np.isnan(silent.sdr[0, 1]).all()
    assert np.isfinite(silent.sdr[0, 0]).all()
    twice = ladder(None, references, np.concatenate([estimates, estimates]), transform=TRANSFORM)
    np.testing.assert_allclose(value(twice, "oracle fusion"), value(silent, "oracle fusion"), atol=1e-9)
    np.testing.assert_allclose(
        value(twice, "oracle fusion per frame"), value(silent, "oracle fusion per frame"), atol=1e-6
    )


def test_several_files():
    first, second = (
        ladder(None, *example(seed), transform=TRANSFORM, sources=["speech", "noise"], file=name)
        for seed, name in enumerate(["one.wav", "two.wav"])
    )
    both = Ladder.concatenate([first, second])
    assert both.files == ("one.wav", "two.wav")
    np.testing.assert_allclose(both.mean(), (first.sdr[0] + second.sdr[0]) / 2)
    holed = Ladder(np.stack([first.sdr[0], np.full_like(first.sdr[0], np.nan)]), both.rungs, both.sources, both.files)
    np.testing.assert_array_equal(holed.mean(), first.sdr[0])
    assert "2 silent source(s)" in holed.summary()
    text = str(both)
    for word in ("one.wav", "two.wav", "mean of 2 files", "speech", "oracle fusion per frame"):
        assert word in text
    assert f"{value(both, 'mean'):.2f}" in text
    assert len({len(line) for line in first.summary().splitlines()}) == 1
    with pytest.raises(ValueError, match="no ladder"):
        Ladder.concatenate([])
    with pytest.raises(ValueError, match="must have the same"):
        Ladder.concatenate([first, ladder(None, *example(), transform=TRANSFORM)])


def test_best_single_on_training_data():
    grams = [gram(*example(seed)).sum(1) for seed in range(5)]
    g = Gram.stack(grams)
    measured = np.zeros((3, 2))
    for seed in range(5):
        references, estimates = example(seed)
        measured += metrics.sdr(references, estimates, axis=(-2, -1))
    np.testing.assert_array_equal(best_single(g), measured.argmax(axis=0))
    np.testing.assert_array_equal(best_single(g.take(0, axis=1)), measured.argmax(axis=0)[0])
    # Silent examples say nothing, an exact estimate wins.
    references, estimates = example(7)
    estimates[1] = references
    more = Gram.stack([*grams, gram(references, estimates).sum(1), gram(0 * references, estimates).sum(1)])
    np.testing.assert_array_equal(best_single(more), [1, 1])
    with pytest.raises(ValueError, match="silent in all"):
        best_single(Gram.stack([gram(0 * references, estimates).sum(1)]))
    with pytest.raises(ValueError, match="or with sources"):
        best_single(gram(references[0, 0], estimates[:, 0, 0]))


def test_bad_input():
    references, estimates = example()
    with pytest.raises(ValueError, match="from 0 to 2"):
        ladder(None, references, estimates, transform=TRANSFORM, single=3)
    with pytest.raises(ValueError, match="3 different names"):
        ladder(None, references, estimates, transform=TRANSFORM, models=["a", "a", "b"])
    with pytest.raises(ValueError, match="other than those of the rungs"):
        ladder(None, references, estimates, transform=TRANSFORM, models=["a", "mean", "b"])
    with pytest.raises(ValueError, match="common length"):
        ladder(None, references, estimates[..., 1:], transform=TRANSFORM)
    with pytest.raises(ValueError, match=r"\[source, channel, sample\]"):
        ladder(None, references[0], estimates[:, 0], transform=TRANSFORM)
    with pytest.raises(ValueError, match="mixture of shape"):
        ladder(references[0, :1], references, estimates, transform=TRANSFORM)
    with pytest.raises(ValueError, match="no samples"):
        ladder_of_blocks([])
    with pytest.raises(ValueError, match="33 bins"):
        ladder(None, references, estimates, bands=BANDS)
