"""Sets of mixtures with known sources, read lazily from folders that the user has."""

from bayesfuse.datasets.base import Dataset as Dataset
from bayesfuse.datasets.base import Entry as Entry
from bayesfuse.datasets.base import Fold as Fold
from bayesfuse.datasets.mini import MiniBinaural as MiniBinaural
from bayesfuse.datasets.mini import MiniChime as MiniChime
from bayesfuse.datasets.mini import MiniMus as MiniMus
from bayesfuse.datasets.mixture import Lazy as Lazy
from bayesfuse.datasets.mixture import Mixture as Mixture
from bayesfuse.datasets.mixture import Mixtures as Mixtures
from bayesfuse.datasets.mixture import PathLike as PathLike
from bayesfuse.datasets.mixture import Utterances as Utterances
from bayesfuse.datasets.mixture import Waveform as Waveform
