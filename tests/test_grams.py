"""Scalar products per frame and band against the coefficients and the waveforms, and in blocks against the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bayesfuse
from bayesfuse import _streaming
from bayesfuse import grams as gram_module
from bayesfuse.fusion import (
    Bands,
    FrameTransform,
    Gram,
    best_weights,
    fuse,
    gram,
    gram_of_blocks,
    grams_of_blocks,
    oracle_weights,
    squared_error,
)
from bayesfuse.transforms import QERB, STFT

TRANSFORM = STFT(window=64, hop=16)
BANDS = Bands(16000, count=8, window=64)


def signals(seed=0, models=3, shape=(500,)):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=shape)
    return reference, reference + rng.normal(size=(models, *shape))


def assert_same(got, expected, rtol=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def cut(reference, estimates, lengths):
    start = 0
    for length in lengths:
        yield reference[..., start : start + length], estimates[..., start : start + length]
        start += length
    yield reference[..., start:], estimates[..., start:]


def test_the_function_is_not_hidden_by_a_module():
    assert callable(bayesfuse.gram)
    assert bayesfuse.gram is gram


class TestFramesAndBands:
    @pytest.mark.parametrize("transform", [TRANSFORM, STFT(63, 21), QERB(16000, 20, 64)], ids=lambda t: t.name)
    def test_products_of_the_coefficients(self, transform):
        assert isinstance(transform, FrameTransform)
        reference, estimates = signals()
        g = gram(reference, estimates, transform=transform)
        s, m = transform.analysis(reference), transform.analysis(estimates)
        counts = transform.multiplicity[:, None]
        np.testing.assert_allclose(g.energy, np.sum(counts * abs(s) ** 2, axis=0), rtol=1e-12)
        cross = np.sum(counts * (s.conj() * m).real, axis=1)
        np.testing.assert_allclose(g.cross, cross.T, atol=1e-11)
        both = np.einsum("f,mfn,kfn->nmk", counts[:, 0], m.conj(), m).real
        np.testing.assert_allclose(g.gram, both, atol=1e-11)

    def test_frames_and_bands_add_up(self):
        reference, estimates = signals(shape=(2, 300))
        whole = gram(reference, estimates)
        frames = gram(reference, estimates, transform=TRANSFORM)
        bands = gram(reference, estimates, transform=TRANSFORM, bands=BANDS)
        assert bands.gram.shape == (2, TRANSFORM.num_frames(300), 8, 3, 3)
        assert_same(frames.sum(1), whole)
        assert_same(bands.sum(2), frames)

    @settings(max_examples=25)
    @given(st.integers(0, 10**6), st.sampled_from([16, 32]), st.integers(1, 400))
    def test_error_of_waveforms_is_exact_or_bounded(self, seed, hop, length):
        transform = STFT(64, hop)
        reference, estimates = signals(seed, shape=(length,))
        rounding = 1e-10 * np.sum(reference**2)
        rng = np.random.default_rng(seed)
        whole = gram(reference, estimates)
        best_constant = squared_error(oracle_weights(whole), whole)
        for bands in (None, BANDS):
            g = gram(reference, estimates, transform=transform, bands=bands)
            constant = rng.dirichlet(np.ones(3))
            error = np.sum((reference - constant @ estimates) ** 2)
            np.testing.assert_allclose(squared_error(constant, g).sum(), error, rtol=0, atol=rounding)
            for weights in (rng.normal(size=g.cross.shape), oracle_weights(g)):
                fused = fuse(np.moveaxis(weights, -1, 0), estimates, transform=transform, bands=bands)
                measured = np.sum((reference - fused) ** 2)
                assert measured <= squared_error(weights, g).sum() + rounding
            # The oracle of each frame minimises the bound, so that it is at least as good as constant weights.
            assert measured <= best_constant + rounding

    def test_disjoint_changes_of_weights_are_exact(self):
        # Weights that change only where the signals are silent: no frame sees two kinds of weights.
        reference, estimates = signals(shape=(640,))
        reference[256:384] = estimates[:, 256:384] = 0.0
        g = gram(reference, estimates, transform=TRANSFORM)
        weights = np.where(np.arange(len(g.energy))[:, None] < 20, [1.0, 0.0, 0.0], [0.0, 0.5, 0.5])
        fused = fuse(weights.T, estimates, transform=TRANSFORM)
        np.testing.assert_allclose(squared_error(weights, g).sum(), np.sum((reference - fused) ** 2), rtol=1e-10)

    def test_jax(self, x64):
        reference, estimates = signals(shape=(2, 200))
        compiled = jax.jit(lambda r, e: gram(r, e, transform=TRANSFORM, bands=BANDS))
        got = compiled(jnp.asarray(reference), jnp.asarray(estimates))
        assert_same(got, gram(reference, estimates, transform=TRANSFORM, bands=BANDS))

    def test_float32_signals_give_float64_products(self):
        reference, estimates = (part.astype(np.float32) for part in signals())
        g = gram(reference, estimates, transform=TRANSFORM)
        assert_same(g, gram(reference.astype(float), estimates.astype(float), transform=TRANSFORM), 1e-14)


class TestBlocks:
    @settings(max_examples=40)
    @given(
        st.integers(1, 700),
        st.lists(st.integers(0, 200), max_size=6),
        st.sampled_from([None, TRANSFORM, STFT(32, 16)]),
        st.booleans(),
        st.sampled_from([1, 300, 5000]),
    )
    def test_blocks_are_the_whole(self, length, lengths, transform, with_bands, entries):
        bands = Bands(8000, 4, transform.window) if transform is not None and with_bands else None
        reference, estimates = signals(length, shape=(2, length))
        with pytest.MonkeyPatch.context() as patch:
            expected = gram(reference, estimates, transform=transform, bands=bands)
            patch.setattr(gram_module, "_BLOCK", entries)
            got = gram_of_blocks(cut(reference, estimates, lengths), transform=transform, bands=bands)
            again = gram(reference, estimates, transform=transform, bands=bands)
        for other in (got, again):
            assert other.gram.shape == expected.gram.shape
            assert_same(other, expected)

    def test_frames_come_in_order_and_add_up(self, monkeypatch):
        monkeypatch.setattr(gram_module, "_BLOCK", 8 * 4 * 16)
        reference, estimates = signals()
        parts = list(grams_of_blocks(cut(reference, estimates, [100, 100, 100]), transform=TRANSFORM))
        assert len(parts) > 3
        whole = gram(reference, estimates, transform=TRANSFORM)
        assert_same(Gram.concatenate(parts), whole)
        total = parts[0].sum()
        for part in parts[1:]:
            total = total + part.sum()
        assert_same(total, gram(reference, estimates))

    def test_one_piece_is_held_at_a_time(self):
        reference, estimates = signals(shape=(16,), models=1)
        taken = 0

        def blocks():
            nonlocal taken
            for _ in range(1000):
                taken += 1
                yield np.stack([reference, estimates[0]])

        lengths = [
            piece.audio.shape[-1]
            for piece in _streaming.pieces(blocks(), hop=16, before=3, after=2, entries=10 * 2 * 16)
        ]
        assert taken == 1000
        assert max(lengths) == 16 * 15
        assert len(lengths) == 100

    def test_bad_blocks(self):
        reference, estimates = signals()
        with pytest.raises(ValueError, match="no samples"):
            gram_of_blocks([])
        with pytest.raises(ValueError, match="no samples"):
            gram_of_blocks([], transform=TRANSFORM)
        with pytest.raises(ValueError, match="same signals"):
            gram_of_blocks([(reference, estimates), (reference, estimates[:2])])
        with pytest.raises(ValueError, match="common length"):
            gram_of_blocks([(reference[1:], estimates)], transform=TRANSFORM)
        with pytest.raises(ValueError, match="estimates with NaN"):
            gram_of_blocks([(reference, estimates), (reference, np.nan * estimates)])


class TestBands:
    def test_a_partition_on_the_erb_scale(self):
        bands = Bands(16000)
        assert bands.count == 32
        edges = bands.edges
        assert edges[0] == 0
        assert edges[-1] == bands.num_bins == 513
        assert (np.diff(edges) >= 1).all()
        np.testing.assert_array_equal(bands.index, np.searchsorted(edges, np.arange(513), side="right") - 1)
        # Wide bands, where the grid of bins matters little, are one width on the scale of 21.4 log10(1 + 0.00437 f).
        rates = 21.4 * np.log10(1 + 0.00437 * edges[10:-1] * 16000 / 1024)
        np.testing.assert_allclose(np.diff(rates), 21.4 * np.log10(1 + 0.00437 * 8000) / 32, rtol=0.15)
        assert (np.diff(bands.frequencies()) > 0).all()

    @settings(max_examples=100)
    @given(st.integers(1, 300).map(lambda half: 2 * half), st.data(), st.sampled_from([8000, 44100, 192000]))
    def test_no_band_is_empty(self, window, data, rate):
        count = data.draw(st.integers(1, window // 2 + 1))
        edges = Bands(rate, count, window).edges
        assert len(edges) == count + 1
        assert edges[0] == 0
        assert edges[-1] == window // 2 + 1
        assert (np.diff(edges) >= 1).all()

    def test_bad_input(self):
        with pytest.raises(ValueError, match="number of bins, 33"):
            Bands(16000, 34, 64)
        with pytest.raises(ValueError, match="rate"):
            Bands(0.0)
        with pytest.raises(ValueError, match="even window"):
            Bands(16000, 4, 63)
        reference, estimates = signals()
        with pytest.raises(ValueError, match="no transform"):
            gram(reference, estimates, bands=BANDS)
        with pytest.raises(ValueError, match="33 bins, but the transform has 17"):
            gram(reference, estimates, transform=STFT(32, 16), bands=BANDS)


class TestGramOfSeveral:
    def test_take_concatenate_add(self):
        g = gram(*signals(shape=(4, 30)))
        assert_same(Gram.concatenate([g.take([0, 1]), g.take(slice(2, None))]), g)
        assert_same(g.take(1) + g.take(3), g.take([1, 3]).sum())
        assert best_weights(g.take(np.array([True, False, True, False]))).shape == (2, 3)

    def test_bad_input(self):
        g = gram(*signals(shape=(4, 30)))
        with pytest.raises(ValueError, match="do not add"):
            _ = g + g.take(0)
        with pytest.raises(ValueError, match="batch axes"):
            g.take(0, axis=1)
        with pytest.raises(ValueError, match="no Gram"):
            Gram.concatenate([])
        with pytest.raises(ValueError, match="besides axis 0"):
            Gram.concatenate([g, gram(*signals(shape=(4, 30), models=2))])
        with pytest.raises(ValueError, match="no samples"):
            gram(*signals(shape=(0,)))
