"""BSS Eval: against least squares on explicit matrices, the two common implementations, and the laws it obeys."""

import importlib
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import bss_eval as oracle

from bayesfuse import _projection, metrics
from bayesfuse.bss_eval import RATIOS, BSSEval, bss_eval_images, bss_eval_sources, bss_eval_v4, prepare
from bayesfuse.metrics import Reason

# Ratios of residuals 80 dB below the signal, on which two solvers in double precision still agree.
RESOLVED = 80.0


def sounds(seed, shape, level=0.1, colour=0.0):
    """References [source, channel, sample] and estimates with leakage, a short filter and noise."""
    rng = np.random.default_rng(seed)
    references = rng.standard_normal(shape)
    if colour:
        for t in range(1, shape[-1]):
            references[..., t] += colour * references[..., t - 1]
    estimates = references + level * (np.roll(references, 1, axis=0) if shape[0] > 1 else 0.0)
    estimates[..., 3:] += 0.2 * level * references[..., :-3]
    return references, estimates + level * rng.standard_normal(shape)


def assert_close(found, expected, tolerance):
    """Wherever the expected value is resolved, it is the one found; the others are NaN or large, too."""
    found, expected = np.broadcast_arrays(found, expected)
    resolved = np.abs(expected) < RESOLVED
    assert resolved.any()
    np.testing.assert_allclose(found[resolved], expected[resolved], rtol=0, atol=tolerance)
    beyond = found[~resolved]
    assert (np.isnan(beyond) | (np.abs(beyond) > RESOLVED - tolerance)).all()


def other(name):
    """An optional implementation of the same ratios; skips where it is absent or cannot run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} is not installed: {error}")
        except RuntimeError as error:
            pytest.skip(f"{name} cannot be imported: {error}")


def quietly(function, *arguments, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **settings)


# Against least squares ------------------------------------------------------------------------------------------------


def test_normal_equations_are_those_of_explicit_delays():
    rng = np.random.default_rng(0)
    references, taps = rng.standard_normal((3, 40)), 6
    delayed = [np.pad(row, (lag, taps - lag)) for row in references for lag in range(taps)]
    found = _projection.span(_projection.correlate(references, references, taps))
    expected = np.array(delayed) @ np.transpose(delayed) * np.outer(*2 * [np.repeat(found.scale, taps)])
    lower = np.tril(found.factor)
    np.testing.assert_array_equal(found.rows, np.arange(3 * taps))
    np.testing.assert_allclose(lower @ lower.T, expected, atol=1e-12)
    np.testing.assert_allclose(np.diagonal(expected), 1.0, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "taps"),
    [((2, 1, 90), 16), ((1, 1, 40), 8), ((3, 2, 150), 7), ((2, 2, 60), 1), ((2, 1, 20), 8), ((1, 2, 30), 12)],
    ids=str,
)
@pytest.mark.parametrize("level", [0.3, 1e-3])
def test_against_least_squares(shape, taps, level):
    references, estimates = sounds(1, shape, level)
    sources = bss_eval_sources(references, estimates, taps=taps)
    assert_close(
        sources.ratios[[0, 2, 3]], oracle.ratios(references, estimates, taps, of_sources=True)[[0, 2, 3], :, 0], 1e-8
    )
    images = bss_eval_images(references, estimates, taps=taps)
    assert_close(images.ratios, oracle.ratios(references, estimates, taps)[..., 0], 1e-8)
    windows = [slice(start, start + 9) for start in range(0, shape[-1] - 8, 6)]
    framed = bss_eval_v4(references, estimates, 1.0, window=9, hop=6, taps=taps)
    assert framed.sdr.shape == (shape[0], len(windows))
    assert_close(framed.ratios, oracle.ratios(references, estimates, taps, windows=windows), 1e-8)


def test_dependent_references_are_projected_on_as_least_squares_does():
    """Identical references, and as many delayed references as samples: singular normal equations, one projection."""
    references, estimates = sounds(2, (3, 1, 70))
    references[2] = references[0]
    found = bss_eval_images(references, estimates, taps=10)
    assert_close(found.ratios, oracle.ratios(references, estimates, 10)[..., 0], 1e-6)
    short, guess = references[:2, :, :12], estimates[:2, :, :12]
    found = bss_eval_sources(short, guess, taps=16)
    assert_close(found.sdr, oracle.ratios(short, guess, 16, of_sources=True)[0, :, 0], 1e-6)
    # Two signals of 12 samples delayed by 16 taps span all 27 samples: nothing is left that could be an artefact.
    assert (found.reasons[RATIOS.index("sar")] == Reason.NO_ERROR).all()


def test_blocks_and_groups_change_nothing(monkeypatch):
    references, estimates = sounds(3, (2, 2, 700))
    several = np.stack([estimates, estimates[::-1], references + 1e-2, estimates**2])
    expected = bss_eval_images(references, several, taps=20)
    for module, name, value in (
        (_projection, "_BLOCK", 64),
        (importlib.import_module("bayesfuse.bss_eval"), "_GROUP", 4),
    ):
        monkeypatch.setattr(module, name, value)
        found = bss_eval_images(references, several, taps=20)
        np.testing.assert_allclose(found.ratios, expected.ratios, rtol=0, atol=1e-10)


# Against other implementations ----------------------------------------------------------------------------------------

RANDOM, SHORT, SINGLE, COLOURED = (2, 1, 6000), (2, 1, 700), (1, 1, 3000), (3, 1, 4000)


@pytest.mark.parametrize(
    ("shape", "level", "colour"),
    [
        (RANDOM, 0.2, 0.0),
        (RANDOM, 2e-4, 0.0),
        (SHORT, 0.2, 0.0),
        (SINGLE, 0.2, 0.0),
        (SINGLE, 2e-4, 0.9),
        (COLOURED, 0.05, 0.9),
    ],
    ids=str,
)
@pytest.mark.parametrize("permute", [False, True])
def test_against_mir_eval(shape, level, colour, permute):
    separation = other("mir_eval.separation")
    references, estimates = sounds(4, shape, level, colour)
    if permute:
        estimates = estimates[::-1].copy()
    *expected, order = quietly(separation.bss_eval_sources, references[:, 0], estimates[:, 0], permute)
    found = bss_eval_sources(references[:, 0], estimates[:, 0], permute=permute)
    for value, other_value in zip((found.sdr, found.sir, found.sar), expected, strict=True):
        if not (np.abs(other_value) > RESOLVED).all():
            assert_close(value, other_value, 1e-6)
    np.testing.assert_array_equal(found.permutation, order)


@pytest.mark.parametrize(("shape", "level"), [((2, 2, 3000), 0.2), ((1, 2, 2000), 1e-3), ((2, 1, 2500), 2e-4)], ids=str)
def test_images_against_mir_eval(shape, level):
    separation = other("mir_eval.separation")
    references, estimates = sounds(5, shape, level)
    samples_first = [np.swapaxes(x, 1, 2) for x in (references, estimates)]
    *expected, _ = quietly(separation.bss_eval_images, *samples_first, False)
    found = bss_eval_images(references, estimates)
    for ratio, other_value in zip(found.ratios, expected, strict=True):
        if not (np.abs(other_value) > RESOLVED).all():
            assert_close(ratio, other_value, 1e-6)


@pytest.mark.parametrize(
    ("shape", "level", "window", "hop"),
    [((2, 2, 4000), 0.2, 1000, 700), ((1, 1, 3000), 1e-3, 1500, 1500), ((3, 1, 2500), 0.2, 3000, 3000)],
    ids=str,
)
def test_against_museval(shape, level, window, hop):
    museval = other("museval")
    references, estimates = sounds(6, shape, level)
    samples_first = [np.swapaxes(x, 1, 2) for x in (references, estimates)]
    *expected, order = quietly(
        museval.metrics.bss_eval, *samples_first, window=window, hop=hop, compute_permutation=shape[0] == 2
    )
    found = bss_eval_v4(references, estimates, 1000, window=window / 1000, hop=hop / 1000, permute=shape[0] == 2)
    np.testing.assert_array_equal(found.permutation, order[:, 0])
    for ratio, median, other_value in zip(found.ratios, found.median().ratios, expected, strict=True):
        if not (np.abs(other_value) > RESOLVED).all():
            assert_close(ratio, other_value, 1e-6)
            assert_close(median, np.nanmedian(other_value, axis=-1), 1e-6)


def test_silent_windows_are_left_out_as_museval_does():
    museval = other("museval")
    references, estimates = sounds(7, (2, 1, 3000))
    references[1, :, 1000:2000] = 0
    samples_first = [np.swapaxes(x, 1, 2) for x in (references, estimates)]
    *expected, _ = quietly(museval.metrics.bss_eval, *samples_first, window=1000, hop=1000)
    found = bss_eval_v4(references, estimates, 1000)
    np.testing.assert_array_equal(np.isnan(found.sdr), np.isnan(expected[0]))
    np.testing.assert_allclose(found.median().sdr, np.nanmedian(expected[0], axis=-1), rtol=0, atol=1e-6)


# Laws -----------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), sources=st.integers(1, 3), gain=st.floats(-60, 60))
@settings(max_examples=25)
def test_one_tap_is_the_scale_invariant_family(seed, sources, gain):
    references, estimates = sounds(seed, (sources, 1, 50))
    found = bss_eval_sources(references, 10 ** (gain / 20) * estimates, taps=1)
    np.testing.assert_allclose(found.sdr, metrics.si_sdr(references, estimates)[:, 0], rtol=0, atol=1e-8)
    if sources > 1:
        np.testing.assert_allclose(found.sir, metrics.si_sir(references[:, 0], estimates[:, 0]), rtol=0, atol=1e-8)


def test_orthogonal_parts_have_closed_formulas():
    """Impulses far apart are orthogonal under every delay of less than their distance: parts of known energy."""
    taps, place = 8, np.eye(400)
    references = np.stack([2.0 * place[0], place[100]])[:, None]
    # Own filtered reference (gain 1 at delay 0, 0.5 at delay 3), the other source, something unrelated.
    estimate = 2.0 * place[0] + 1.0 * place[3] + 0.3 * place[102] + 0.1 * place[300]
    estimates = np.stack([estimate, place[100]])[:, None]
    images = bss_eval_images(references, estimates, taps=taps).ratios[:, 0]
    decibel = lambda ratio: 10 * np.log10(ratio)  # noqa: E731
    expected = [4 / (1 + 0.09 + 0.01), 4 / 1, 5 / 0.09, (5 + 0.09) / 0.01]
    np.testing.assert_allclose(images, decibel(np.array(expected)), rtol=0, atol=1e-9)
    sources = bss_eval_sources(references, estimates, taps=taps).ratios[:, 0]
    np.testing.assert_allclose(
        sources[[0, 2, 3]], decibel(np.array([5 / 0.1, 5 / 0.09, 5.09 / 0.01])), rtol=0, atol=1e-9
    )
    assert np.isnan(sources[1])


def test_a_filter_of_the_reference_is_forgiven_by_sources_only():
    references, _ = sounds(8, (2, 1, 500))
    references[..., -3:] = 0  # so that the filtered references are not cut
    response = np.array([0.5, 0.0, -0.3, 0.1])
    filtered = np.stack([np.convolve(s[0], response)[:500] for s in references])[:, None]
    sources, images = (f(references, filtered, taps=4) for f in (bss_eval_sources, bss_eval_images))
    assert (sources.reasons[[0, 2, 3]] == Reason.NO_ERROR).all()
    np.testing.assert_allclose(images.sdr, images.isr, rtol=0, atol=1e-9)
    np.testing.assert_allclose(images.sdr, metrics.sdr(references, filtered, axis=(-2, -1)), rtol=0, atol=1e-9)
    assert (bss_eval_sources(references, filtered, taps=2).reasons[0] == Reason.VALID).all()


def test_more_taps_explain_more():
    references, estimates = sounds(9, (2, 1, 300))
    values = [bss_eval_sources(references, estimates, taps=taps) for taps in (1, 4, 16, 64)]
    assert (np.diff([v.sdr for v in values], axis=0) >= 0).all()
    assert (np.diff([v.sar for v in values], axis=0) >= 0).all()


@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1e6, 1e200])
def test_common_scale_does_not_matter(scale):
    references, estimates = sounds(10, (2, 1, 200))
    for measure in (bss_eval_sources, bss_eval_images):
        expected = measure(references, estimates, taps=8)
        found = measure(scale * references, scale * estimates, taps=8)
        np.testing.assert_allclose(found.ratios, expected.ratios, rtol=0, atol=1e-9)


def test_statistics_are_shared_and_arguments_unchanged():
    references, estimates = sounds(11, (2, 2, 300))
    several = np.stack([[estimates, 0.5 * estimates], [estimates[::-1], references + 0.1]])
    kept = references.copy(), several.copy()
    prepared = prepare(references, taps=12)
    for measure in (bss_eval_sources, bss_eval_images, lambda r, e, **k: bss_eval_v4(r, e, 100.0, **k)):
        together = measure(prepared, several)
        assert isinstance(together, BSSEval) and together.taps == 12
        for index in np.ndindex(2, 2):
            alone = measure(references, several[index], taps=12)
            np.testing.assert_allclose(together.ratios[:, *index], alone.ratios, rtol=0, atol=1e-9)
            np.testing.assert_array_equal(together.reasons[:, *index], alone.reasons)
    for before, after in zip(kept, (references, several), strict=True):
        np.testing.assert_array_equal(before, after)


def test_mono_without_channel_axis_float32_and_jax():
    references, estimates = (x.astype(np.float32) for x in sounds(12, (2, 1, 200)))
    expected = bss_eval_sources(references.astype(np.float64), estimates.astype(np.float64), taps=8)
    for kind in (np.asarray, jnp.asarray):
        found = bss_eval_sources(kind(references[:, 0]), kind(estimates[:, 0]), taps=8)
        assert found.sdr.dtype == np.float64 and found.sdr.shape == (2,)
        np.testing.assert_allclose(found.ratios, expected.ratios, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["sources", "images", "v4"])
def test_permutation_is_the_one_of_the_largest_mean_sir(kind):
    references, estimates = sounds(13, (4, 1, 400))
    order = np.array([2, 0, 3, 1])
    shuffled = np.stack([estimates[order], estimates])

    def measure(guess, **more):
        if kind == "v4":
            return bss_eval_v4(references, guess, 100.0, taps=8, **more)
        return (bss_eval_sources if kind == "sources" else bss_eval_images)(references, guess, taps=8, **more)

    found, plain = measure(shuffled, permute=True), measure(estimates)
    # Reference order[i] is estimated by i.
    np.testing.assert_array_equal(found.permutation, [np.argsort(order), np.arange(4)])
    for row in found.ratios.swapaxes(0, 1):
        np.testing.assert_allclose(row, plain.ratios, rtol=0, atol=1e-9)


# What has no score ----------------------------------------------------------------------------------------------------


def test_silent_and_identical_signals_are_nan_with_a_reason():
    references, estimates = sounds(14, (2, 1, 400))
    silent_reference, silent_estimate, broken = references.copy(), estimates.copy(), estimates.copy()
    silent_reference[1], silent_estimate[1], broken[1, 0, 7] = 0.0, 0.0, np.nan
    for measure, ratios in ((bss_eval_sources, [0, 2, 3]), (bss_eval_images, [0, 1, 2, 3])):
        cases = {
            Reason.SILENT_REFERENCE: measure(silent_reference, estimates, taps=8),
            Reason.SILENT_ESTIMATE: measure(references, silent_estimate, taps=8),
            Reason.NOT_FINITE: measure(references, broken, taps=8),
        }
        for reason, found in cases.items():
            assert np.isnan(found.ratios[:, 1]).all() and (found.reasons[ratios, 1] == reason).all()
            # The other source keeps its scores; without another reference there is no interference.
            kept = [r for r in ratios if not (reason is Reason.SILENT_REFERENCE and RATIOS[r] == "sir")]
            assert np.isfinite(found.ratios[kept, 0]).all() and (found.reasons[kept, 0] == Reason.VALID).all()
        identical = measure(references, references, taps=8)
        assert (identical.reasons[ratios] == Reason.NO_ERROR).all() and np.isnan(identical.ratios).all()
        assert (
            measure(np.where(np.arange(400) == 3, np.inf, references), estimates, taps=8).reasons[ratios]
            == Reason.NOT_FINITE
        ).all()
        nothing = measure(0 * references, 0 * estimates, taps=8)
        assert (nothing.reasons[ratios] == Reason.SILENT_REFERENCE).all()
    found = bss_eval_sources(references, silent_estimate, taps=8)
    assert found.counts() == {"valid": 3, "silent_estimate": 3, "undefined": 2}
    far = np.zeros((2, 1, 400))
    far[0, 0, 0] = far[1, 0, 300] = 1.0
    assert (bss_eval_images(far, far[::-1].copy(), taps=8).reasons[2] == Reason.NO_TARGET).all()


def test_a_single_source_has_no_interference_and_identical_references_neither():
    references, estimates = sounds(15, (2, 1, 300))
    single = bss_eval_images(references[:1], estimates[:1], taps=8)
    assert single.reasons[RATIOS.index("sir")] == Reason.NO_ERROR and np.isfinite(single.ratios[[0, 1, 3]]).all()
    twice = bss_eval_images(references[[0, 0]], estimates, taps=8)
    assert (twice.reasons[RATIOS.index("sir")] == Reason.NO_ERROR).all()
    np.testing.assert_allclose(twice.sar[0], single.sar[0], rtol=0, atol=1e-6)


def test_silence_in_windows():
    references, estimates = sounds(16, (2, 1, 500))
    references[1, :, 100:300] = 0
    estimates[0, :, 400:] = 0
    joint = bss_eval_v4(references, estimates, 100.0, taps=8)
    valid, other_is_silent = Reason.VALID, Reason.SILENT_OTHER
    reference, estimate = Reason.SILENT_REFERENCE, Reason.SILENT_ESTIMATE
    np.testing.assert_array_equal(
        joint.reasons[0],
        [
            [valid, other_is_silent, other_is_silent, valid, estimate],
            [valid, reference, reference, valid, other_is_silent],
        ],
    )
    own = bss_eval_v4(references, estimates, 100.0, taps=8, joint_silence=False)
    np.testing.assert_array_equal(
        own.reasons[0], [[valid] * 4 + [estimate], [valid, reference, reference, valid, valid]]
    )
    np.testing.assert_allclose(own.sdr[:, [0, 3]], joint.sdr[:, [0, 3]], rtol=0, atol=1e-9)
    np.testing.assert_allclose(joint.median().sdr, np.nanmedian(joint.sdr, axis=-1))
    # Nothing valid: the commonest reason remains.
    references[1, :, :400] = 0
    median = bss_eval_v4(references, estimates, 100.0, taps=8).median()
    broken = estimates.copy()
    broken[1, 0, 3] = np.inf
    codes = bss_eval_v4(sounds(16, (2, 1, 500))[0], broken, 100.0, taps=8).reasons[0]
    np.testing.assert_array_equal(codes, [[valid] * 4 + [estimate], [Reason.NOT_FINITE] * 5])
    assert np.isnan(median.sdr).all()
    np.testing.assert_array_equal(median.reasons[0], [other_is_silent, reference])


def test_windows_that_do_not_fit_are_left_out():
    references, estimates = sounds(17, (2, 1, 250))
    assert bss_eval_v4(references, estimates, 100.0, taps=8).sdr.shape == (2, 2)
    assert bss_eval_v4(references, estimates, 100.0, window=0.5, hop=0.4, taps=8).sdr.shape == (2, 6)
    whole = bss_eval_v4(references, estimates, 100.0, window=30.0, taps=8)
    np.testing.assert_allclose(whole.ratios[..., 0], bss_eval_images(references, estimates, taps=8).ratios, atol=1e-9)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    references, estimates = sounds(18, (2, 1, 50))
    with pytest.raises(ValueError, match="estimates must have the shape of the references"):
        bss_eval_sources(references, estimates[..., :-1])
    with pytest.raises(ValueError, match="estimates must have the shape of the references"):
        bss_eval_images(references, estimates[:1])
    for shape in ((50,), (2, 1, 0), (1, 2, 1, 50)):
        with pytest.raises(ValueError, match="references of shape"):
            prepare(np.zeros(shape))
    with pytest.raises(ValueError, match="at least one"):
        prepare(references, taps=0)
    with pytest.raises(ValueError, match="must last a sample"):
        bss_eval_v4(references, estimates, 100.0, window=1e-3)
    with pytest.raises(ValueError, match="has none"):
        bss_eval_sources(references, estimates, taps=4).median()
