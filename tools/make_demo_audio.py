"""Makes the recordings of `bayesfuse demo`: sentences of a speech synthesiser, synthetic household noise.

Needs the program `espeak-ng`, NumPy, SciPy and soundfile. Run from the root of the repository:

    python tools/make_demo_audio.py

It replaces the OGG files in `bayesfuse/demo_audio`, whose README describes what they are. The sentences were
written for this project. Training and test part share no sentence, no stretch of noise and no random seed.
"""

import argparse
import io
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from scipy import signal

RATE = 16_000
CONTEXT = 3.0  # seconds of noise alone before the utterance
LEVEL_DB = -26.0  # root mean square relative to full scale
VOICE = ["-v", "en-gb", "-s", "175", "-p", "42"]
# Vorbis quality from 0 (best) to 1 (smallest), in soundfile's scale.
SPEECH_COMPRESSION, NOISE_COMPRESSION = 0.8, 0.8

# Teaches the dictionaries.
READING = """
The kettle takes three minutes to boil.
Put the blue bowl back on the lower shelf.
We left the garden gate open last night.
Nine chairs stood around a very long table.
Her brother fixed the bicycle with a spoon.
Could you pass me the salt and the vinegar?
A cold wind blew dust along the harbour.
They measured the hallway twice before lunch.
Eight green apples rolled under the couch.
My uncle keeps his maps in an old violin case.
The train to the coast departs at half past six.
Choose a thick rope and tie it to the pier.
Some of the windows would not close in winter.
Jack thought the joke was rather too long.
This soup needs ginger, pepper and more time.
We saw four foxes near the chapel on Thursday.
Please turn the volume down a little.
The painter mixed a muddy shade of yellow.
Why did the baker shout at the pigeons?
Every road in the village leads to the pond.
She folded the letter and hid it in a shoe.
Two hours later the power came back.
The museum shows engines, clocks and looms.
I would rather walk than wait for the bus.
Youth is no reason to be late for choir.
Bring a towel, a torch and good boots.
His new camera fits into a shirt pocket.
Nobody noticed the cat behind the curtain.
The judge asked for silence and for coffee.
Fresh bread is sold at the corner from seven.
Their house has a red roof and a crooked chimney.
A thousand stars were visible from the ridge.
You should water the tomatoes before noon.
Zoe bought thirteen yards of rough cloth.
""".strip().splitlines()

# Mixed with noise to learn the temperature of the average.
TRAINING = """
The lighthouse keeper counted the ships and wrote their names in a book.
Leave the wet umbrella in the bath, and hang your jacket by the stove.
When the music stopped, the children ran out to look for the drummer.
There is a hole in the fence, so the sheep get into our vegetables.
The doctor arrived on horseback, with a bag full of oranges and thread.
If the bridge is closed again, we shall have to go around by the mill.
""".strip().splitlines()
TEST = """
The old radio in the kitchen plays nothing but weather and waltzes.
She promised to repair the wooden boat before the end of the summer.
Take the second turning on the left and park beside the fountain.
Our neighbours grow cherries, beans and a huge amount of parsley.
He could not remember whether the oven was on, so he drove home.
Just before dawn a thick fog covered the valley and the railway line.
""".strip().splitlines()


def speak(sentence: str) -> np.ndarray:
    """The sentence read by espeak-ng, at `RATE`, without the silence around it."""
    run = subprocess.run(["espeak-ng", *VOICE, "--stdout", sentence], capture_output=True, check=True)
    audio, rate = soundfile.read(io.BytesIO(_with_length(run.stdout)))
    common = np.gcd(RATE, rate)
    audio = signal.resample_poly(audio, RATE // common, rate // common)
    hop = RATE // 100
    power = np.array([np.mean(audio[i : i + hop] ** 2) for i in range(0, len(audio), hop)])
    loud = np.flatnonzero(power > 1e-4 * power.max())
    return audio[loud[0] * hop : (loud[-1] + 1) * hop]


def _with_length(wav: bytes) -> bytes:
    """The WAV stream with its two length fields filled in, unknown to a program that writes to a pipe."""
    data = wav.index(b"data") + 4
    riff_size, data_size = len(wav) - 8, len(wav) - data - 4
    return wav[:4] + riff_size.to_bytes(4, "little") + wav[8:data] + data_size.to_bytes(4, "little") + wav[data + 4 :]


def hum(rng: np.random.Generator, length: int) -> np.ndarray:
    """An appliance: harmonics of a fundamental with wow, and a rhythm of the load."""
    t = np.arange(length) / RATE
    fundamental = rng.uniform(90, 160)
    wow = 1 + 0.015 * np.sin(2 * np.pi * rng.uniform(0.2, 0.6) * t + rng.uniform(0, 6))
    wow += 0.02 * _slow(rng, length, 1.0)
    phase = 2 * np.pi * fundamental * np.cumsum(wow) / RATE
    strengths = rng.lognormal(0, 0.8, 40) / np.arange(1, 41) ** 0.9
    tone = sum(a * np.sin(k * phase + rng.uniform(0, 6)) for k, a in enumerate(strengths, 1) if k * fundamental < 7000)
    load = 1 + 0.5 * np.sin(2 * np.pi * rng.uniform(3, 6) * t)
    return tone * load


def water(rng: np.random.Generator, length: int) -> np.ndarray:
    """Running water: noise in a few bands that swell and fade independently."""
    edges = [300, 700, 1500, 2800, 4500, 7000]
    total = np.zeros(length)
    for low, high in itertools.pairwise(edges):
        band = signal.sosfilt(signal.butter(2, [low, high], "bandpass", fs=RATE, output="sos"), rng.normal(size=length))
        total += band * np.exp(0.9 * _slow(rng, length, 2.0)) * (1000 / low) ** 0.3
    return total


def clatter(rng: np.random.Generator, length: int) -> np.ndarray:
    """Dishes: a few objects with resonances of their own, struck at random."""
    objects = [
        (
            np.exp(rng.uniform(np.log(500), np.log(6500), 9)),
            rng.lognormal(0, 0.7, 9),
            rng.uniform(0.02, 0.12, 9),
        )
        for _ in range(5)
    ]
    return _strikes(rng, length, objects, per_second=5.0, spread=1.0)


def steps(rng: np.random.Generator, length: int) -> np.ndarray:
    """Footsteps and knocks on wood: low, short resonances."""
    objects = [(rng.uniform(70, 600, 6), rng.lognormal(0, 0.5, 6), rng.uniform(0.02, 0.06, 6)) for _ in range(2)]
    return _strikes(rng, length, objects, per_second=2.2, spread=0.4)


def _strikes(rng: np.random.Generator, length: int, objects: list, per_second: float, spread: float) -> np.ndarray:
    t = np.arange(RATE // 2) / RATE
    total = np.zeros(length + len(t))
    for start in rng.uniform(0, length, rng.poisson(per_second * length / RATE)).astype(int):
        frequencies, strengths, decays = objects[rng.integers(len(objects))]
        ring = np.sum(
            (strengths * rng.lognormal(0, 0.3, len(strengths)))[:, None]
            * np.exp(-t / decays[:, None])
            * np.sin(2 * np.pi * frequencies[:, None] * t + rng.uniform(0, 6, len(strengths))[:, None]),
            axis=0,
        )
        click = rng.normal(size=len(t)) * np.exp(-t / 0.002)
        total[start : start + len(t)] += rng.lognormal(0, spread) * (ring + click)
    return total[:length]


def _slow(rng: np.random.Generator, length: int, cutoff: float) -> np.ndarray:
    """Noise of unit variance below a cutoff in Hz."""
    knots = rng.normal(size=int(np.ceil(length / RATE * 2 * cutoff)) + 2)
    return np.interp(np.arange(length) / RATE * 2 * cutoff, np.arange(len(knots)), knots)


def household(rng: np.random.Generator, length: int) -> np.ndarray:
    """The four kinds at once, each with a level of its own."""
    kinds: list[tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = [
        (hum, -1.0), (water, -4.0), (clatter, 0.0), (steps, -3.0)
    ]  # fmt: skip
    total = np.zeros(length)
    for kind, level_db in kinds:
        part = kind(rng, length)
        total += 10 ** ((level_db + rng.uniform(-3, 3)) / 20) * part / np.sqrt(np.mean(part**2))
    return total


def write(path: Path, audio: np.ndarray, compression: float) -> None:
    """Write at `LEVEL_DB` as OGG Vorbis."""
    audio = audio * 10 ** (LEVEL_DB / 20) / np.sqrt(np.mean(audio**2))
    if np.max(np.abs(audio)) >= 1:
        raise ValueError(f"{path} would clip at {LEVEL_DB} dBFS")
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, RATE, format="OGG", subtype="VORBIS", compression_level=compression)


def main(arguments: list[str]) -> None:
    """Write all files below the folder given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent / "bayesfuse" / "demo_audio"
    parser.add_argument("--output", type=Path, default=default)
    root = parser.parse_args(arguments).output
    for old in root.glob("*/*.ogg"):
        old.unlink()
    # Few files, because each repeats the tables of the codec, some 4 kB.
    reading = [speak(sentence) for sentence in READING]
    write(root / "train_speech" / "reading.ogg", np.concatenate(reading), SPEECH_COMPRESSION)
    for part, sentences, seed in (("train", TRAINING, 2016), ("test", TEST, 2014)):
        for index, sentence in enumerate(sentences, 1):
            speech = speak(sentence)
            write(root / f"{part}_speech" / f"{part}_{index}.ogg", speech, SPEECH_COMPRESSION)
            noise = household(np.random.default_rng([seed, index]), round(CONTEXT * RATE) + len(speech))
            write(root / "noise" / f"{part}_{index}.ogg", noise, NOISE_COMPRESSION)
    files = sorted(root.glob("*/*.ogg"))
    seconds = sum(soundfile.info(file).duration for file in files)
    print(f"{len(files)} files, {seconds:.0f} s, {sum(file.stat().st_size for file in files) / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
