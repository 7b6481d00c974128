"""Time-frequency transforms against direct sums, SciPy and their own laws."""

import json

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.signal
from hypothesis import given, settings

from bayesfuse.transforms import QERB, STFT, Transform, transform_from_dict

# Exact up to rounding: an FFT of 1024 points and its inverse lose a few ulp of the peak of a frame.
EXACT = {np.dtype(np.float64): 1e-13, np.dtype(np.float32): 1e-6}
TRANSFORMS = (STFT(), STFT(16, 4), STFT(9, 3), STFT(6, 1), STFT(2, 1), QERB(16000.0, 20, 64))
RATES = (8000.0, 16000.0, 44100.0, 48000.0)

transforms = st.sampled_from(TRANSFORMS)
lengths = st.integers(1, 5000)
batches = st.sampled_from([(), (1,), (3,), (2, 1, 2)])
dtypes = st.sampled_from([np.float32, np.float64])
seeds = st.integers(0, 2**32 - 1)


def noise(seed: int, shape: tuple[int, ...], dtype: type[np.floating] = np.float64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def complex_noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return noise(seed, shape) + 1j * noise(seed + 1, shape)


def core(transform: STFT | QERB) -> STFT:
    return transform.stft if isinstance(transform, QERB) else transform


def peak_error(actual: object, expected: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("transform", [STFT(8, 4), STFT(12, 3), STFT(9, 3)])
@pytest.mark.parametrize("length", [1, 7, 12, 31])
def test_analysis_is_the_sum_it_says(transform: STFT, length: int) -> None:
    N, R = transform.window, transform.hop
    x = noise(length, (length,))
    frames = -(-length // R) + N // R - 1
    expected = np.zeros((N // 2 + 1, frames), complex)
    for n in range(frames):
        for f in range(N // 2 + 1):
            for k in range(N):
                t = n * R - (N - R) + k
                if 0 <= t < length:
                    w = np.sqrt(2 * R / N) * np.sin(np.pi * (k + 0.5) / N)
                    expected[f, n] += w * x[t] * np.exp(-2j * np.pi * f * k / N) / np.sqrt(N)
    np.testing.assert_allclose(transform.analysis(x), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("transform", [STFT(), STFT(1024, 256)])
def test_analysis_agrees_with_scipy(transform: STFT) -> None:
    N, R = transform.window, transform.hop
    x = noise(0, (2, 5001))
    window = np.sqrt(2 * R / N) * scipy.signal.windows.cosine(N) / np.sqrt(N)
    peer = scipy.signal.ShortTimeFFT(window, R, fs=1.0, phase_shift=None)
    # SciPy numbers frames by their centre, sample p R; ours, frame n, has it at n R - (N - R) + N / 2.
    first = 1 - N // R + N // R // 2
    expected = peer.stft(x, p0=first, p1=first + transform.num_frames(5001))
    np.testing.assert_allclose(transform.analysis(x), expected, rtol=0, atol=1e-13)


@settings(max_examples=60)
@given(transforms, lengths, batches, dtypes, seeds)
def test_any_signal_is_reconstructed(
    transform: STFT | QERB, length: int, batch: tuple[int, ...], dtype: type[np.floating], seed: int
) -> None:
    x = noise(seed, (*batch, length), dtype)
    before = x.copy()
    X = transform.analysis(x)
    y = transform.synthesis(X, length)
    assert X.shape == (*batch, transform.num_bins, transform.num_frames(length))
    assert y.dtype == dtype and y.shape == x.shape
    assert peak_error(y, x) < EXACT[np.dtype(dtype)]
    np.testing.assert_array_equal(x, before)


@settings(max_examples=40)
@given(transforms, lengths, dtypes, seeds)
def test_energy_is_kept(transform: STFT | QERB, length: int, dtype: type[np.floating], seed: int) -> None:
    x = noise(seed, (2, length), dtype)
    stft = core(transform)
    power = stft.power(transform.analysis(x))
    energy = np.sum(stft.multiplicity[:, None] * power.astype(np.float64), axis=(-2, -1))
    # Independent relative errors of a few ulp per coefficient.
    np.testing.assert_allclose(energy, np.sum(x.astype(np.float64) ** 2, axis=-1), rtol=5 * np.finfo(dtype).eps)


@settings(max_examples=40)
@given(transforms, st.integers(1, 400), seeds)
def test_synthesis_is_the_adjoint(transform: STFT | QERB, length: int, seed: int) -> None:
    # <A x, Y> = <x, A' Y> in the inner product of the full DFT; as A'A = 1, A' is the least-squares inverse.
    stft = core(transform)
    x = noise(seed, (length,))
    Y = complex_noise(seed, (transform.num_bins, transform.num_frames(length)))
    left = np.sum(stft.multiplicity[:, None] * np.real(np.conj(transform.analysis(x)) * Y))
    right = np.sum(x * transform.synthesis(Y, length))
    scale = np.linalg.norm(x) * np.linalg.norm(Y)
    assert abs(left - right) < 1e-13 * scale


@settings(max_examples=30)
@given(transforms, lengths, st.floats(-1e3, 1e3), seeds)
def test_analysis_is_linear(transform: STFT | QERB, length: int, factor: float, seed: int) -> None:
    x, y = noise(seed, (2, length))
    combined = transform.analysis(x + factor * y)
    expected = transform.analysis(x) + factor * transform.analysis(y)
    assert np.max(np.abs(combined - expected)) < 1e-13 * (1 + abs(factor)) * np.max(np.abs([x, y])) * 10


@settings(max_examples=30)
@given(transforms, st.integers(1, 1500), st.integers(0, 9), seeds)
def test_a_shift_by_hops_shifts_the_frames(transform: STFT | QERB, length: int, shift: int, seed: int) -> None:
    x = noise(seed, (length,))
    later = np.concatenate([np.zeros(shift * transform.hop), x])
    X, Y = transform.analysis(x), transform.analysis(later)
    np.testing.assert_allclose(Y[:, shift:], X, rtol=0, atol=1e-13)
    assert not np.any(Y[:, :shift])


@settings(max_examples=30)
@given(transforms, st.integers(1, 40), st.integers(1, 40), st.integers(0, 5), seeds)
def test_blocks_have_no_seam(transform: STFT | QERB, start: int, hops: int, tail: int, seed: int) -> None:
    # Frames that lie wholly inside a block cut at a multiple of the hop are the frames of the whole signal.
    hop, extra = transform.hop, transform.window // transform.hop - 1
    length = (start + hops + extra + tail) * hop
    x = noise(seed, (length,))
    block = x[start * hop : (start + hops + extra) * hop]
    inside = transform.analysis(block)[:, extra : extra + hops]
    whole = transform.analysis(x)[:, start + extra : start + extra + hops]
    np.testing.assert_allclose(inside, whole, rtol=0, atol=1e-13)


@settings(max_examples=30)
@given(transforms, lengths, st.floats(0, 1), seeds)
def test_resynthesis_in_pieces_adds_up(transform: STFT | QERB, length: int, where: float, seed: int) -> None:
    x = noise(seed, (length,))
    X = transform.analysis(x)
    early = np.arange(X.shape[-1]) < round(where * X.shape[-1])
    pieces = transform.synthesis(np.where(early, X, 0), length) + transform.synthesis(np.where(early, 0, X), length)
    assert peak_error(pieces, x) < 1e-13


@pytest.mark.parametrize("transform", [STFT(64, 32), STFT(64, 16)])
def test_white_noise_has_the_stated_level(transform: STFT) -> None:
    length = transform.hop * 4000
    power = transform.power(transform.analysis(3.0 * noise(1, (length,))))[:, 4:-4]
    # E |X|^2 = v / L. A bin's mean over n frames, of which n / L are independent, scatters by about
    # sqrt(2 L / n) for the real bins at the ends (less for the others): 5 sigma.
    tolerance = 5 * np.sqrt(2 * transform.overlap / power.shape[-1])
    np.testing.assert_allclose(power.mean(axis=-1), 9.0 / transform.overlap, rtol=tolerance)


@pytest.mark.parametrize("transform", [STFT(), STFT(12, 3), QERB(16000.0, 40, 256)])
@pytest.mark.parametrize("length", [1, 1000])
def test_jax_and_numpy_agree(transform: STFT | QERB, length: int, dtype: type[np.floating]) -> None:
    tolerance = 5 * EXACT[np.dtype(dtype)]
    x = noise(2, (2, length), dtype)
    X = transform.analysis(x)
    power = transform.power(X)
    with jax.enable_x64(dtype is np.float64):
        Z = jax.jit(transform.analysis)(jnp.asarray(x))
        y = jax.jit(lambda X: transform.synthesis(X, length))(Z)
        for result in (Z, y, transform.power(Z)):
            assert isinstance(result, jax.Array) and np.finfo(result.dtype).eps == np.finfo(dtype).eps
        assert peak_error(Z, X) < tolerance
        assert peak_error(y, x) < tolerance
        assert peak_error(transform.power(Z), power) < tolerance
        assert peak_error(transform.expand(jnp.asarray(power)), transform.expand(power)) < tolerance
        assert peak_error(transform.spread(jnp.asarray(power)), transform.spread(power)) < tolerance


def test_derivative_through_the_transform(x64: None) -> None:
    # By Parseval the weighted sum of the powers is the energy, whose gradient is 2 x.
    stft = STFT(12, 3)
    x = noise(3, (50,))
    gradient = jax.grad(lambda x: jnp.sum(stft.multiplicity[:, None] * stft.power(stft.analysis(x))))(x)
    np.testing.assert_allclose(gradient, 2 * x, rtol=0, atol=1e-13)


def test_transforms_are_values(x64: None) -> None:
    traced = []

    def band_powers(transform: Transform, x: jax.Array) -> jax.Array:
        traced.append(transform)
        return transform.power(transform.analysis(x))

    jitted = jax.jit(band_powers, static_argnums=0)
    x = jnp.asarray(noise(4, (100,)))
    for transform in (QERB(8000, 10, 32), QERB(8000.0, 10, 32), STFT(32, 16), STFT(32, 16), STFT(32, 8)):
        np.testing.assert_allclose(jitted(transform, x), transform.power(transform.analysis(np.asarray(x))), atol=1e-12)
    assert len(traced) == 3


@pytest.mark.parametrize("transform", [STFT(), STFT(12, 3), QERB(44100.0), QERB(16000.5, 12, 64)])
def test_descriptions_bring_the_transform_back(transform: STFT | QERB) -> None:
    assert isinstance(transform, Transform)
    again = transform_from_dict(json.loads(json.dumps(transform.to_dict())))
    assert again == transform and again.name == transform.name
    assert again != STFT(24, 4)


def test_axes_in_physical_units() -> None:
    stft = STFT(1024, 256)
    np.testing.assert_allclose(stft.frequencies(16000), np.linspace(0, 8000, 513), rtol=1e-15)
    # A click's energy sits, on average over frames, at the click.
    x = np.zeros(6000)
    x[3210] = 1.0
    energy = stft.power(stft.analysis(x)).sum(axis=0)
    times = stft.frame_times(16000, stft.num_frames(6000))
    assert abs(np.sum(energy * times) / energy.sum() - 3210.5 / 16000) < 0.5 * 256 / 16000
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    for transform in (stft, QERB(16000.0)):
        loudest = np.argmax(transform.power(transform.analysis(tone)).mean(axis=1))
        assert abs(transform.frequencies(16000)[loudest] - 1000) < 20


def gammatone_response(frequency: float, centre: float, width: float) -> float:
    """Squared spectrum of t^3 exp(-2 pi width t) exp(2 i pi centre t), t > 0, relative to its peak."""
    offset = (centre - frequency) / width  # in the unit u = 2 pi width t

    def part(weight: str) -> float:
        return scipy.integrate.quad(
            lambda u: u**3 * np.exp(-u) / 6, 0, 60, weight=weight, wvar=offset, limit=500, epsabs=1e-13
        )[0]

    return part("cos") ** 2 + part("sin") ** 2


def test_bands_are_gammatones_equally_spaced_in_erb() -> None:
    rate, window = 16000.0, 1024
    qerb = QERB(rate, 12, window)
    centres = qerb.frequencies()
    steps = np.diff(21.4 * np.log10(4.37 * centres / 1000 + 1))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-12)
    assert centres[0] == 0 and abs(centres[-1] - rate / 2) < 1e-9
    widths = 1.019 * 24.7 * (4.37 * centres / 1000 + 1)
    # Columns brute-forced by quadrature of the impulse response; far skirts are beyond quadrature's reach.
    for f in (0, 3, 17, 64, 200, 400, 512):
        response = np.array([gammatone_response(f * rate / window, c, s) for c, s in zip(centres, widths, strict=True)])
        np.testing.assert_allclose(qerb.matrix[:, f], response / response.sum(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rate", RATES)
def test_no_band_and_no_bin_is_left_out(rate: float) -> None:
    B = QERB(rate).matrix
    assert B.shape == (350, 513) and np.all(B.astype(np.float32) > 0)
    np.testing.assert_allclose(B.sum(axis=0), 1.0, rtol=1e-14)
    # A band hears at least a twentieth of a bin, so that its power is no rounding artefact.
    assert B.sum(axis=1).min() > 0.05


@pytest.mark.parametrize("rate", RATES)
def test_what_is_exact_in_qerb(rate: float, dtype: type[np.floating]) -> None:
    # A sum of 350 or 513 terms: rounding of at most a hundred ulp or so.
    rounding = 100 * np.finfo(dtype).eps
    qerb = QERB(rate)
    rng = np.random.default_rng(5)
    X = qerb.analysis(noise(6, (2, 3000), dtype))
    power = qerb.power(X)
    bins = np.abs(X) ** 2
    np.testing.assert_allclose(power.sum(axis=-2), bins.sum(axis=-2), rtol=rounding)
    np.testing.assert_allclose(qerb.spread(power).sum(axis=-2), bins.sum(axis=-2), rtol=rounding)
    flat = np.full_like(X, 2.0)
    np.testing.assert_allclose(qerb.spread(qerb.power(flat)), 4.0, rtol=rounding)
    np.testing.assert_allclose(qerb.expand(np.ones_like(power)), 1.0, rtol=rounding)
    gains = rng.uniform(0.2, 0.7, power.shape).astype(dtype)
    expanded = qerb.expand(gains)
    assert expanded.dtype == dtype
    assert expanded.min() >= 0.2 * (1 - rounding) and expanded.max() <= 0.7 * (1 + rounding)
    shares = rng.dirichlet(np.ones(3), power.shape).astype(dtype)
    np.testing.assert_allclose(sum(qerb.expand(shares[..., j]) for j in range(3)), 1.0, rtol=rounding)


def test_qerb_by_explicit_loops() -> None:
    qerb = QERB(8000.0, 5, 8)
    X = complex_noise(7, (5, 3))
    B = qerb.matrix
    power, gain, back = np.zeros((5, 3)), np.zeros((5, 3)), np.zeros((5, 3))
    values = np.abs(noise(8, (5, 3)))
    for b in range(5):
        for f in range(5):
            power[b] += B[b, f] * np.abs(X[f]) ** 2
            gain[f] += B[b, f] * values[b]
            back[f] += B[b, f] * values[b] / sum(B[b])
    np.testing.assert_allclose(qerb.power(X), power, rtol=1e-13)
    np.testing.assert_allclose(qerb.expand(values), gain, rtol=1e-13)
    np.testing.assert_allclose(qerb.spread(values), back, rtol=1e-13)
    with pytest.raises(ValueError):
        qerb.matrix[0, 0] = 1.0  # shared between equal transforms, hence read-only


@pytest.mark.parametrize("window, hop", [(1024, 300), (1024, 1024), (1024, 0), (0, 0), (9, 4), (8, -4), (1, 1)])
def test_windows_that_do_not_tile_are_refused(window: int, hop: int) -> None:
    with pytest.raises(ValueError, match=f"window={window} and hop={hop}"):
        STFT(window, hop)


def test_bad_input_is_refused() -> None:
    stft = STFT(8, 4)
    X = complex_noise(9, (5, 4))
    refused = {
        "at least one sample": lambda: stft.num_frames(0),
        "none empty": lambda: stft.analysis(np.zeros((2, 0))),
        "got dtype int64": lambda: stft.analysis(np.zeros(10, np.int64)),
        "got dtype complex128": lambda: stft.analysis(np.zeros(10, complex)),
        "got dtype float16": lambda: stft.analysis(np.zeros(10, np.float16)),
        "expected an array of complex64": lambda: stft.synthesis(X.real, 10),
        "pass the length that was analysed": lambda: stft.synthesis(X, 100),
        "has \\[5, 3\\]": lambda: stft.synthesis(X, 8),
        "positive number of Hz": lambda: stft.frequencies(0.0),
        "bands=1": lambda: QERB(16000.0, 1),
        "window=9": lambda: QERB(16000.0, 10, 9),
        "sampling rate of nan": lambda: QERB(float("nan")),
        "this QERB is for 8000 Hz, not 16000": lambda: QERB(8000.0).frequencies(16000.0),
        "got 5 rows": lambda: QERB(8000.0, 10, 8).expand(X.real),
        "unknown transform 'dct'": lambda: transform_from_dict({"name": "dct"}),
        "came with settings": lambda: transform_from_dict({"name": "stft", "window": 8}),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("transform", [STFT(), QERB(16000.0)])
def test_silence_stays_silence(transform: STFT | QERB) -> None:
    X = transform.analysis(np.zeros(700, np.float32))
    assert not np.any(X) and not np.any(transform.power(X)) and not np.any(transform.synthesis(X, 700))
