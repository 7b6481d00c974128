"""Weights per frame, band and source, and fusion in blocks, against the plain computation on whole signals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayesfuse import weighted_sum
from bayesfuse.fusion import Bands, fuse, fuse_blocks
from bayesfuse.transforms import STFT

TRANSFORM = STFT(window=64, hop=16)
BANDS = Bands(16000, count=8, window=64)


def drawn(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def whole(weights, estimates, transform):
    """Weights [model, frame, bin] applied to all coefficients at once."""
    coefficients = transform.analysis(estimates)
    gains = np.swapaxes(weights, -1, -2).reshape(len(weights), *[1] * (estimates.ndim - 2), *weights.shape[:0:-1])
    return transform.synthesis((gains * coefficients).sum(axis=0), estimates.shape[-1])


class TestBands:
    def test_bands_scale_their_bins(self):
        estimates = drawn((3, 2, 300))
        weights = drawn((3, TRANSFORM.num_frames(300), 8), 1)
        fused = fuse(weights, estimates, transform=TRANSFORM, bands=BANDS)
        np.testing.assert_allclose(fused, whole(weights[..., BANDS.index], estimates, TRANSFORM), atol=1e-12)

    def test_the_same_weights_in_all_bands(self, dtype):
        estimates = drawn((3, 200)).astype(dtype)
        weights = drawn((3, TRANSFORM.num_frames(200)), 1).astype(dtype)
        fused = fuse(np.repeat(weights[..., None], 8, axis=-1), estimates, transform=TRANSFORM, bands=BANDS)
        assert fused.dtype == dtype
        expected = fuse(weights, estimates, transform=TRANSFORM)
        np.testing.assert_allclose(fused, expected, atol=100 * np.finfo(dtype).eps)

    def test_jax(self, x64):
        estimates, weights = drawn((3, 200)), drawn((3, TRANSFORM.num_frames(200), 8), 1)
        compiled = jax.jit(lambda w, e: fuse(w, e, transform=TRANSFORM, bands=BANDS))
        expected = fuse(weights, estimates, transform=TRANSFORM, bands=BANDS)
        np.testing.assert_allclose(compiled(jnp.asarray(weights), jnp.asarray(estimates)), expected, atol=1e-12)


class TestPerSource:
    @pytest.mark.parametrize("axes", [1, 2, 3])
    def test_each_source_by_itself(self, axes, x64):
        estimates = drawn((3, 2, 1, 150))
        weights = drawn((2, 3, TRANSFORM.num_frames(150), 8)[: 1 + axes], 1)
        settings = {"transform": TRANSFORM if axes > 1 else None, "bands": BANDS if axes > 2 else None}
        fused = fuse(weights, estimates, per_source=True, **settings)
        for source in range(2):
            np.testing.assert_array_equal(fused[source], fuse(weights[source], estimates[:, source], **settings))
        on_device = fuse(jnp.asarray(weights), jnp.asarray(estimates), per_source=True, **settings)
        np.testing.assert_allclose(on_device, fused, atol=1e-12)


class TestBlocks:
    @settings(max_examples=40)
    @given(
        st.integers(1, 700),
        st.lists(st.integers(0, 200), max_size=6),
        st.integers(1, 3),
        st.booleans(),
        st.sampled_from([1, 300, 5000]),
    )
    def test_blocks_are_the_whole(self, length, lengths, axes, per_source, entries):
        estimates = drawn((3, 2, length), length)
        weights = drawn((2, 3, TRANSFORM.num_frames(length), 8)[: 1 + axes], 1)
        weights = weights if per_source else weights[0]
        settings = {
            "transform": TRANSFORM if axes > 1 else None,
            "bands": BANDS if axes > 2 else None,
            "per_source": per_source,
        }
        expected = fuse(weights, estimates, **settings)
        cuts = np.minimum(np.cumsum(lengths, dtype=int), length)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weighted_sum, "_BLOCK", entries)
            blocks = np.split(estimates, cuts, axis=-1)
            fused = np.concatenate(list(fuse_blocks(weights, blocks, **settings)), axis=-1)
            again = fuse(weights, estimates, **settings)
        assert fused.shape == (2, length)
        np.testing.assert_allclose(fused, expected, atol=1e-12)
        np.testing.assert_allclose(again, expected, atol=1e-12)

    @pytest.mark.parametrize("frames", [-1, 1])
    def test_weights_of_another_length(self, frames, monkeypatch):
        monkeypatch.setattr(weighted_sum, "_BLOCK", 3 * 16 * 4)
        estimates = drawn((3, 500))
        weights = drawn((3, TRANSFORM.num_frames(500) + frames), 1)
        with pytest.raises(ValueError, match="use the transform with which"):
            list(fuse_blocks(weights, np.split(estimates, 5, axis=-1), transform=TRANSFORM))

    def test_bad_blocks(self):
        estimates = drawn((3, 100))
        with pytest.raises(ValueError, match="weights with NaN"):
            fuse_blocks(np.full(3, np.nan), [estimates])
        with pytest.raises(ValueError, match="estimates with NaN"):
            list(fuse_blocks(np.ones(3), [estimates, estimates * np.nan]))
        with pytest.raises(ValueError, match="2 models, but there are 3"):
            list(fuse_blocks(np.ones(2), [estimates]))
        with pytest.raises(ValueError, match="same signals"):
            list(fuse_blocks(np.ones(3), [drawn((3, 2, 10)), drawn((3, 1, 10))]))


def test_bad_input():
    estimates = drawn((3, 2, 200))
    frames = TRANSFORM.num_frames(200)
    with pytest.raises(ValueError, match=r"must be \[model\], \[model, frame\]"):
        fuse(np.ones((3, frames, 8, 1)), estimates, transform=TRANSFORM, bands=BANDS)
    with pytest.raises(ValueError, match=r"\[source, model\]"):
        fuse(np.ones(3), estimates, per_source=True)
    with pytest.raises(ValueError, match="no bands"):
        fuse(np.ones((3, frames, 8)), estimates, transform=TRANSFORM)
    with pytest.raises(ValueError, match="8 bands"):
        fuse(np.ones((3, frames, 7)), estimates, transform=TRANSFORM, bands=BANDS)
    with pytest.raises(ValueError, match="8 bands"):
        fuse(np.ones((3, frames)), estimates, transform=TRANSFORM, bands=BANDS)
    with pytest.raises(ValueError, match="for 4 sources, but the estimates are of 2"):
        fuse(np.ones((4, 3)), estimates, per_source=True)
    with pytest.raises(ValueError, match=r"must be \[model, source"):
        fuse(np.ones((2, 3)), estimates[:, 0], per_source=True)
