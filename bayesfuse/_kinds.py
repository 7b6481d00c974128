"""Kinds of data sets by the names that configuration files and the command line use; plain data, loads nothing."""

# Module in `bayesfuse.datasets` and class or function in it, and what the path is.
KINDS: dict[str, tuple[str, str, str]] = {
    "chime2": ("chime2", "Chime2", "CHiME-2 track 1: the folder of train, devel, test"),
    "musdb18": ("music", "MUSDB18", "MUSDB18(-HQ) as WAV: the folder of train and test"),
    "dsd100": ("music", "DSD100", "DSD100: the folder of Mixtures and Sources"),
    "ccmixter": ("music", "CcMixter", "ccMixter corpus: the folder of one folder per track"),
    "librimix": ("speech", "LibriMix", "Libri2Mix or Libri3Mix: the folder of wav8k, wav16k"),
    "wham": ("speech", "Wham", "WHAM! or wsj0-mix: the folder of wav8k, wav16k"),
    "folder": ("lists", "FolderSet", "the folder of mixtures/NAME.wav and references/NAME/SOURCE.wav"),
    "manifest": ("lists", "ManifestSet", "a CSV or JSON file that lists mixtures and sources"),
    "recordings": ("lists", "Recordings", "any folder of audio files, without known sources"),
    "mini-chime": ("mini", "MiniChime", "the folder of the set mini-chime"),
    "mini-mus": ("mini", "MiniMus", "the folder of the set mini-mus"),
    "mini-binaural": ("mini", "MiniBinaural", "the folder of the set mini-binaural"),
    "synthetic": ("opening", "open_synthetic", "draws from the model; a set to learn from, or no path"),
}
