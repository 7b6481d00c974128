"""Sets of mixtures with known sources, read lazily from folders that the user has; nothing is ever downloaded.

A set is a sequence of `Mixture` (`Dataset`): cheap to make, in an order that never changes, with `splits` and with
`folds` that keep groups together. `open_dataset` makes one from the name of its kind, `check_dataset` reads it all and
reports.
"""

from bayesfuse.datasets.base import Dataset as Dataset
from bayesfuse.datasets.base import Entry as Entry
from bayesfuse.datasets.base import Fold as Fold
from bayesfuse.datasets.checking import CheckReport as CheckReport
from bayesfuse.datasets.checking import check_dataset as check_dataset
from bayesfuse.datasets.chime2 import Chime2 as Chime2
from bayesfuse.datasets.files import Files as Files
from bayesfuse.datasets.files import FileSet as FileSet
from bayesfuse.datasets.lists import FolderSet as FolderSet
from bayesfuse.datasets.lists import ManifestSet as ManifestSet
from bayesfuse.datasets.lists import Recordings as Recordings
from bayesfuse.datasets.mini import MiniBinaural as MiniBinaural
from bayesfuse.datasets.mini import MiniChime as MiniChime
from bayesfuse.datasets.mini import MiniMus as MiniMus
from bayesfuse.datasets.mixture import Lazy as Lazy
from bayesfuse.datasets.mixture import Mixture as Mixture
from bayesfuse.datasets.mixture import Mixtures as Mixtures
from bayesfuse.datasets.mixture import PathLike as PathLike
from bayesfuse.datasets.mixture import Utterances as Utterances
from bayesfuse.datasets.mixture import Waveform as Waveform
from bayesfuse.datasets.music import DSD100 as DSD100
from bayesfuse.datasets.music import MUSDB18 as MUSDB18
from bayesfuse.datasets.music import CcMixter as CcMixter
from bayesfuse.datasets.opening import KINDS as KINDS
from bayesfuse.datasets.opening import guess_kind as guess_kind
from bayesfuse.datasets.opening import open_dataset as open_dataset
from bayesfuse.datasets.speech import LibriMix as LibriMix
from bayesfuse.datasets.speech import Wham as Wham
from bayesfuse.datasets.synthetic import Synthetic as Synthetic
from bayesfuse.datasets.synthetic import learned as learned
