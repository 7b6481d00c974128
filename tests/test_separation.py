"""The front door, end to end: what every separation must satisfy, whatever its numbers."""

import functools

import numpy as np
import pytest
from small_example import ORDERS, RATE, SAMPLES, TRANSFORM, dictionaries, mixture, noise, voice

from bayesfuse import audio, fusion
from bayesfuse.metrics import sdr
from bayesfuse.results import Result
from bayesfuse.separation import separate
from bayesfuse.separators.vb_nmf import Settings, fit_orders
from bayesfuse.transforms import QERB, STFT

METHODS = ["joint", "average", "select", "mean"]


@functools.cache
def separated(method: str = "average", double: bool = False, **options) -> Result:
    """Separation of the small example; the same arguments give the same object."""
    dtype = np.float64 if double else np.float32
    x = mixture(dtype=dtype)
    return separate(x, RATE, dictionaries(double), transform=TRANSFORM, method=method, keep_estimates=True, **options)


def assert_close(a: np.ndarray, b: np.ndarray, tolerance: float) -> None:
    """Both waveforms agree within `tolerance` times the largest sample of the second."""
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.max(np.abs(b)))


def gains_by_hand(order: int, settings: Settings, x: np.ndarray, double: bool) -> tuple[np.ndarray, np.ndarray]:
    """Wiener gains of the sources and of the noise, [source, freq, frame] and [freq, frame], from the factors.

    Written out from the model: C_j = sum_k E[1/w]^-1 E[1/h]^-1, gain C_j / (sigma^2 + sum C), noise the rest.
    """
    power = np.abs(TRANSFORM.analysis(x)) ** 2
    speech, rest = dictionaries(double).values()
    fit = fit_orders(power, [[speech[order]], rest], settings)[0]
    C = np.stack([c[0].dictionary.harmonic @ c[0].activations.harmonic for c in fit.posterior.components])
    denominator = settings.noise + C.sum(axis=0)  # both in the unit of the normalised mixture
    return C / denominator, settings.noise / denominator


# ------------------------------------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("noise_level", [1e-6, 1e-2])
def test_estimates_and_noise_sum_to_the_mixture(noise_level):
    settings = Settings(noise=noise_level, num_iters=10)
    x = mixture(dtype=np.float64)
    result = separate(
        x, RATE, dictionaries(True), transform=TRANSFORM, method="average", settings=settings, keep_estimates=True
    )
    X = TRANSFORM.analysis(x)
    for order in range(len(ORDERS)):
        gains, rest = gains_by_hand(order, settings, x, True)
        expected = TRANSFORM.synthesis(gains * X, SAMPLES)
        assert_close(result.estimates[order, :, 0], expected, 1e-9)
        total = result.estimates[order, :, 0].sum(axis=0) + TRANSFORM.synthesis(rest * X, SAMPLES)
        assert_close(total, x, 1e-9)
    # The part that is left out belongs to bins near the level of the noise: it shrinks with it.
    left = np.sum((x - result.sources[:, 0].sum(axis=0)) ** 2) / np.sum(x**2)
    assert 0 < left < noise_level


@pytest.mark.parametrize("method", METHODS)
def test_fused_sources_are_the_weighted_sum_of_the_estimates(method):
    result = separated(method)
    assert_close(result.sources, fusion.fuse(result.weights, result.estimates), 1e-6)
    assert np.all(result.weights >= 0)
    assert abs(float(result.weights.sum()) - 1) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_separation_improves_on_the_mixture(method):
    before = sdr(voice(seed=1), mixture())
    after = sdr(voice(seed=1), separated(method).source("speech")[0])
    assert after > before + 3.0  # dB; about 6 are reached


@pytest.mark.parametrize("beta", [0.0, 0.05, 100.0, np.inf])
def test_weights_are_a_softmax_of_free_energies(beta):
    result = separated("average", beta=beta)
    energy = result.free_energy - result.free_energy.max()
    if beta == 0:
        expected = (energy == 0).astype(float)
    else:
        expected = np.exp(energy / (result.num_frames * beta))
        expected /= expected.sum()
    np.testing.assert_allclose(result.weights, expected, atol=1e-6)
    assert result.beta_per_frame == beta


def test_methods_differ_in_their_weights_alone():
    average, select, mean = (separated(method) for method in ("average", "select", "mean"))
    for other in (select, mean):
        np.testing.assert_array_equal(other.estimates, average.estimates)
        np.testing.assert_array_equal(other.free_energy, average.free_energy)
    best = int(np.argmax(select.free_energy))
    np.testing.assert_array_equal(select.weights, np.eye(len(ORDERS))[best])
    assert_close(select.sources, select.estimates[best], 1e-6)
    np.testing.assert_array_equal(mean.weights, np.full(len(ORDERS), 1 / len(ORDERS)))


def test_one_candidate_makes_the_joint_model_an_ordinary_one():
    sources = {"speech": dictionaries()["speech"][1], "noise": dictionaries()["noise"]}
    joint = separate(mixture(), RATE, sources, transform=TRANSFORM, method="joint")
    assert_close(joint.sources, separated("average").estimates[1], 1e-5)
    assert joint.free_energy[0] == pytest.approx(separated("average").free_energy[1], rel=1e-6)


def test_weights_per_frame_act_on_the_frames():
    # A temperature at which the frames differ: the free energies of the orders are some nats apart.
    result = separated("average", time_varying=True, beta=2.0)
    energies = result.per_frame("split")
    expected = np.exp((energies - energies.max(axis=0)) / 2.0)
    expected /= expected.sum(axis=0)
    np.testing.assert_allclose(result.weights, expected, atol=1e-5)
    assert np.ptp(result.weights[0]) > 0.1

    X = TRANSFORM.analysis(mixture())
    gains = [gains_by_hand(order, Settings(), mixture(), False)[0] for order in range(len(ORDERS))]
    fused = sum(w * g for w, g in zip(result.weights, gains, strict=True)) * X
    assert_close(result.sources[:, 0], TRANSFORM.synthesis(fused, SAMPLES), 1e-5)


def test_constant_weights_are_the_limit_of_weights_per_frame():
    varying = separated("average", time_varying=True, beta=np.inf)
    assert_close(varying.sources, separated("average", beta=np.inf).sources, 1e-6)


def test_variances_add_up():
    """Given the order, the sources and the noise share out each bin: variances are those of a Gaussian split."""
    result = separated("average", double=True)
    x = mixture(dtype=np.float64)
    power = np.abs(TRANSFORM.analysis(x)) ** 2
    unit = power.mean()
    within = between = 0.0
    gains = [gains_by_hand(order, Settings(), x, True)[0] for order in range(len(ORDERS))]
    mean = sum(w * g for w, g in zip(result.weights, gains, strict=True))
    for weight, order, gain in zip(result.weights, range(len(ORDERS)), gains, strict=True):
        rest = 1 - gain.sum(axis=0)
        # C_j (sigma^2 + sum_{l != j} C_l) / den = den g_j (1 - g_j), with den = sigma^2 / (noise's gain).
        total = 1e-6 / gains_by_hand(order, Settings(), x, True)[1]
        within = within + weight * unit * total * gain * (1 - gain)
        between = between + weight * (gain - mean) ** 2 * power
        assert np.all(rest > 0)
    np.testing.assert_allclose(result.within[:, 0], within, rtol=1e-5)
    np.testing.assert_allclose(result.between[:, 0], between, rtol=1e-5, atol=1e-12 * unit)


# --------------------------------------------------------------------------------------- units, channels, precision


@pytest.mark.parametrize("method", ["joint", "average"])
@pytest.mark.parametrize("gain", [2.0**-20, 1e-3, 300.0])
def test_a_louder_mixture_gives_louder_sources_and_nothing_else(method, gain):
    x = (np.float32(gain) * mixture()).astype(np.float32)
    result = separate(x, RATE, dictionaries(), transform=TRANSFORM, method=method)
    reference = separated(method)
    # Float32 through fifty iterations; exact for powers of two would be too much to ask of the means of the power.
    assert_close(result.sources / np.float32(gain), reference.sources, 1e-4)
    np.testing.assert_allclose(result.weights, reference.weights, atol=1e-4)
    bins = TRANSFORM.num_bins * result.num_frames
    expected = reference.free_energy - 2 * bins * np.log(gain)
    np.testing.assert_allclose(result.free_energy, expected, rtol=1e-5, atol=1.0)


def test_channels_are_recordings_of_their_own_with_common_weights():
    other = mixture(seed=2)
    stereo = separate(
        np.stack([mixture(), other]),
        RATE,
        dictionaries(),
        transform=TRANSFORM,
        method="average",
        keep_estimates=True,
    )
    right = separate(other, RATE, dictionaries(), transform=TRANSFORM, method="average", keep_estimates=True)
    left = separated("average")
    for channel, mono in enumerate((left, right)):
        assert_close(stereo.estimates[:, :, channel], mono.estimates[:, :, 0], 1e-5)
    np.testing.assert_allclose(stereo.free_energy, left.free_energy + right.free_energy, rtol=1e-6)
    assert_close(stereo.sources, fusion.fuse(stereo.weights, stereo.estimates), 1e-6)


def test_a_channel_twice_is_the_channel_once():
    twice = separate(np.stack([mixture()] * 2), RATE, dictionaries(), transform=TRANSFORM, method="average", beta=0.1)
    once = separated("average", beta=0.1)
    np.testing.assert_allclose(twice.weights, once.weights, atol=1e-5)
    assert_close(twice.sources[:, 0], once.sources[:, 0], 1e-6)
    assert_close(twice.sources[:, 1], once.sources[:, 0], 1e-6)


@pytest.mark.parametrize("double", [False, True])
def test_results_follow_the_precision_of_the_mixture(double):
    result = separated("average", double)
    dtype = np.float64 if double else np.float32
    for name in ("mixture", "sources", "estimates", "weights", "within", "between"):
        assert getattr(result, name).dtype == dtype, name
    assert_close(separated("average", False).sources.astype(dtype), result.sources, 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_silence_in_silence_out(method):
    result = separate(
        np.zeros(SAMPLES, np.float32), RATE, dictionaries(), transform=TRANSFORM, method=method, keep_estimates=True
    )
    assert not result.sources.any() and not result.estimates.any()
    assert np.isfinite(result.free_energy).all()
    assert abs(float(result.weights.sum()) - 1) < 1e-6


def test_the_mixture_is_not_written_to():
    x = mixture()
    before = x.copy()
    x.flags.writeable = False
    result = separate(x, RATE, dictionaries(), transform=TRANSFORM, method="mean")
    np.testing.assert_array_equal(x, before)
    assert result.mixture.shape == (1, SAMPLES)


# ---------------------------------------------------------------------------------------- what sources can be given as


def test_recordings_files_and_dictionaries_are_the_same_thing(tmp_path):
    folder = tmp_path / "speech"
    folder.mkdir()
    audio.write(folder / "voice.wav", voice(), RATE)
    saved = []
    for dictionary in dictionaries()["speech"]:
        saved.append(tmp_path / f"speech-{dictionary.order}.npz")
        dictionary.save(saved[-1])
    orders = {"speech": ORDERS, "noise": 2}
    given = {
        "array": voice(),
        "list of arrays": [voice()],
        "folder": folder,
        "pattern": str(tmp_path / "sp*" / "*.wav"),
        "files of dictionaries": saved,
        "dictionaries": dictionaries()["speech"],
    }
    for kind, speech in given.items():
        result = separate(
            mixture(), RATE, {"speech": speech, "noise": noise()}, orders, transform=TRANSFORM, cache=tmp_path / "cache"
        )
        np.testing.assert_array_equal(result.sources, separated("joint").sources, err_msg=kind)


def test_saved_dictionaries_can_be_chosen_from():
    result = separate(mixture(), RATE, dictionaries(), {"speech": [4]}, transform=TRANSFORM)
    assert result.orders.tolist() == [[4, 2]]


def test_a_source_can_be_learned_on_the_mixture():
    known = {"speech": dictionaries()["speech"][1], "noise": "learn"}
    result = separate(mixture(), RATE, known, {"noise": 2}, transform=TRANSFORM)
    again = separate(mixture(), RATE, known, {"noise": 2}, transform=TRANSFORM)
    np.testing.assert_array_equal(result.sources, again.sources)
    assert np.all(result.energy_dictionary < 0)  # minus the divergence of what was learned from its prior
    # Two spectra of a noise that is heard under speech alone: little, but in the right direction.
    assert sdr(voice(seed=1), result.source("speech")[0]) > sdr(voice(seed=1), mixture()) + 0.3


def test_the_same_seed_gives_the_same_result_another_does_not():
    def run(seed: int) -> Result:
        sources = {"speech": voice(), "noise": noise()}
        orders = {"speech": ORDERS, "noise": 2}
        return separate(mixture(), RATE, sources, orders, transform=TRANSFORM, seed=seed)

    np.testing.assert_array_equal(run(0).sources, run(0).sources)
    assert np.any(run(0).sources != run(3).sources)


def test_several_sources_with_several_orders_are_all_combinations():
    sources = {"speech": dictionaries()["speech"], "other": dictionaries()["speech"]}
    result = separate(mixture(), RATE, sources, transform=TRANSFORM, method="mean", settings=Settings(num_iters=1))
    assert result.orders.tolist() == [[2, 2], [2, 4], [4, 2], [4, 4]]
    assert result.order_labels[1] == "speech=2, other=4"


def test_prior_over_orders_is_what_remains_of_hot_weights():
    result = separated("average", beta=np.inf)
    np.testing.assert_allclose(result.weights, [0.5, 0.5], atol=1e-6)
    result = separate(
        mixture(), RATE, dictionaries(), transform=TRANSFORM, beta=np.inf, order_prior={"speech": [0.9, 0.1]}
    )
    np.testing.assert_allclose(result.weights, [0.9, 0.1], atol=1e-6)


def test_the_explicit_variant_separates_as_well():
    explicit = separate(mixture(), RATE, dictionaries(), transform=TRANSFORM, settings=Settings(variant="explicit"))
    assert explicit.settings["variant"] == "explicit"
    assert sdr(voice(seed=1), explicit.source("speech")[0]) > sdr(voice(seed=1), mixture()) + 3.0


def test_erb_bands():
    transform = QERB(RATE, bands=40, window=256)
    sources = {"speech": voice(), "noise": noise()}
    orders = {"speech": [4], "noise": [2]}
    result = separate(mixture(), RATE, sources, orders, transform=transform, keep_estimates=True)
    assert result.transform["name"] == "qerb"
    # Columns of the filters sum to one, so that gains summing to one less the noise's share do so in every bin.
    left = np.sum((mixture() - result.sources[:, 0].sum(axis=0)) ** 2) / np.sum(mixture() ** 2)
    assert left < 1e-6
    assert sdr(voice(seed=1), result.source("speech")[0]) > sdr(voice(seed=1), mixture()) + 3.0


# ------------------------------------------------------------------------------------------------------------- blocks

BLOCK, OVERLAP = 1.92, 0.4
LONG = 45000


@functools.cache
def long_result(blocks: bool, length: int = LONG, method: str = "average") -> Result:
    """A recording with a change of level, whole or in blocks."""
    x = mixture(length, seed=5)
    x = x * np.linspace(0.5, 2.0, length, dtype=np.float32)
    return separate(
        x,
        RATE,
        dictionaries(),
        transform=TRANSFORM,
        method=method,
        block_seconds=BLOCK if blocks else 60.0,
        overlap_seconds=OVERLAP,
        keep_estimates=True,
    )


def seams(length: int = LONG) -> list[tuple[int, int]]:
    """Sample ranges in which two blocks are cross-faded, as `separate` promises them: equal blocks on the grid."""
    hop, fade = 128, 128 * round(OVERLAP * RATE / 256) * 2
    size = round(BLOCK * RATE / hop) * hop
    count = -(-(length - fade) // (size - fade))
    step = -(-(length - fade) // (count * hop)) * hop
    return [(i * step, i * step + fade) for i in range(1, count)]


def test_blocks_change_little():
    """With fixed dictionaries frames are independent, and only the level that a block is normalised by differs."""
    whole, cut = long_result(False), long_result(True)
    assert len(seams()) >= 2
    assert cut.energy_frames.shape == whole.energy_frames.shape
    # About 30 dB below the sources; where two blocks overlap the estimates are averages of similar ones.
    for j in range(2):
        assert sdr(whole.sources[j, 0], cut.sources[j, 0]) > 20.0
    np.testing.assert_allclose(cut.weights, whole.weights, atol=0.02)
    share = cut.sources.sum(axis=0) - whole.sources.sum(axis=0)
    assert np.sum(share**2) < 1e-6 * np.sum(whole.mixture**2)


def test_blocks_of_equal_power_change_nothing():
    """A periodic recording cut at its period: each block has the power of the whole, edges apart."""
    length, x = LONG, mixture(128 * 20, seed=6)
    periodic = np.tile(x, 20)[:length]
    options = {"transform": TRANSFORM, "method": "mean", "overlap_seconds": OVERLAP}
    whole = separate(periodic, RATE, dictionaries(), **options)
    cut = separate(periodic, RATE, dictionaries(), block_seconds=BLOCK, **options)
    assert sdr(whole.sources[0, 0], cut.sources[0, 0]) > 35.0


def clicks(difference: np.ndarray) -> bool:
    """Whether a difference of two signals jumps at the seams more than it does anywhere else."""
    curvature = np.abs(np.diff(difference, 2))
    at_seam = np.zeros(len(curvature), bool)
    for start, stop in seams():
        for edge in (start, stop):
            at_seam[edge - 4 : edge + 4] = True
    return bool(curvature[at_seam].max() > 1.5 * np.quantile(curvature[~at_seam], 0.999))


def test_no_seam_is_heard():
    """Neither clicks nor steps in level where blocks meet, compared with all other places and with no blocks."""
    whole, cut = long_result(False), long_result(True)
    for j in range(2):
        a, b = whole.sources[j, 0].astype(np.float64), cut.sources[j, 0].astype(np.float64)
        assert not clicks(b - a)
        # A click of 36 dB below the peak would be seen.
        click = np.zeros(LONG)
        click[seams()[0][0]] = 0.016 * np.abs(a).max()
        assert clicks(b - a + click)
        # Level: energy in frames of 32 ms, relative to the uncut result, within a decibel around the seams.
        size = 256
        energy = [np.add.reduceat(y**2, np.arange(0, len(y), size)) for y in (a, b)]
        floor = 1e-3 * energy[0].mean()
        level = 10 * np.log10((energy[1] + floor) / (energy[0] + floor))
        frames = sorted({s // size for start, stop in seams() for s in range(start - size, stop + size, size)})
        assert np.abs(level[frames]).max() < 1.0


def test_blocks_of_a_recording_share_their_weights():
    cut = long_result(True)
    assert cut.weights.shape == (len(ORDERS),)
    energy = cut.free_energy - cut.free_energy.max()
    expected = np.exp(energy / (cut.num_frames * cut.beta_per_frame))
    np.testing.assert_allclose(cut.weights, expected / expected.sum(), atol=1e-6)
    assert_close(cut.sources, fusion.fuse(cut.weights, cut.estimates), 1e-6)


def test_nothing_larger_than_a_block_is_analysed(monkeypatch):
    """What would not fit into memory for long recordings, spectrograms and per-order waveforms, exists per block."""
    lengths = []
    analysis, synthesis = STFT.analysis, STFT.synthesis
    monkeypatch.setattr(STFT, "analysis", lambda self, x: (lengths.append(x.shape[-1]), analysis(self, x))[1])
    monkeypatch.setattr(STFT, "synthesis", lambda self, X, n: (lengths.append(n), synthesis(self, X, n))[1])
    result = separate(
        mixture(LONG, seed=5), RATE, dictionaries(), transform=TRANSFORM, method="average",
        block_seconds=BLOCK, overlap_seconds=OVERLAP, settings=Settings(num_iters=1),
    )  # fmt: skip
    assert len(lengths) > 2 * len(seams())
    assert max(lengths) <= BLOCK * RATE + TRANSFORM.hop
    assert result.estimates is None and result.within is None and result.between is None
    held = sum(leaf.nbytes for leaf in vars(result).values() if isinstance(leaf, np.ndarray))
    # Mixture and sources, and some numbers per frame.
    assert held < 1.1 * (result.mixture.nbytes + result.sources.nbytes) + 100 * result.num_frames
