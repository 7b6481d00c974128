"""Configurations: every value arrives, and whatever is wrong is told by line and key with a remedy."""

from pathlib import Path

import pytest
import small_experiment

from bayesfuse.experiment_config import load_config, models_of, parse_config
from bayesfuse.transforms import QERB, STFT

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TEXT = small_experiment.CONFIG.format(executor="processes", workers=3, variational=small_experiment.VARIATIONAL)


def test_every_value_arrives():
    config = parse_config("seed = 5\n" + TEXT, home=Path("home"))
    assert config.seed == 5 and config.data.path == Path("home/set") and config.transform == STFT(64, 32)
    assert [s.learning for s in config.dictionaries.sources] == ["sources", "mixture"]
    assert config.dictionaries.sources[0].orders == (1, 2) and config.dictionaries.sources[1].orders == (1,)
    assert (config.execution.executor, config.execution.workers, config.execution.threads) == ("processes", 3, 1)
    assert config.records.metrics == ("sdr", "si_sdr") and config.records.bands == 4
    vb, ml = config.separators
    assert (vb.settings.num_iters, vb.settings.ml_iters, ml.settings.num_iters) == (5, 2, 5)
    assert [m.label for m in models_of(config)] == ["VB-NMF 1", "VB-NMF 2", "ML-NMF 2"]
    assert [m.orders for m in models_of(config)] == [(1, 1), (2, 1), (2, 1)]


def test_the_example_is_the_papers_experiment():
    config = load_config(BENCHMARKS / "mini_chime.toml")
    labels = [m.label for m in models_of(config)]
    orders = (2, 4, 8, 16, 32, 64, 128)
    assert labels == [f"{kind}-NMF {k}" for kind in ("VB", "ML") for k in orders]
    assert all((m.orders, m.order) == ((k, 32), k) for m, k in zip(models_of(config), orders * 2, strict=True))


def test_several_orders_of_two_sources_and_other_transforms():
    text = TEXT.replace("orders = 1", "orders = [1, 3]").replace(
        "window = 64", 'name = "qerb"\nrate = 2000\nbands = 20'
    )
    config = parse_config(text)
    assert config.transform == QERB(2000, 20, 1024)
    models = models_of(config)[:4]
    assert [m.label for m in models] == ["VB-NMF 1x1", "VB-NMF 1x3", "VB-NMF 2x1", "VB-NMF 2x3"]
    assert [m.order for m in models] == [1, 3, 2, 3]


def test_results_depend_on_settings_and_not_on_places_or_processes():
    config = parse_config(TEXT)
    same = config.replace("execution", workers=1).replace("data", path=Path("elsewhere"), limit=3, splits=("test",))
    assert same.results_depend_on() == config.results_depend_on()
    for section, change in (("records", {"bands": 8}), ("dictionaries", {"iterations": 6}), ("data", {"rest": "x"})):
        assert config.replace(section, **change).results_depend_on() != config.results_depend_on()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('kind = "folder"', 'kind = "folders"', r"line 3: \[data\] kind: got 'folders'; expected one of chime2, "),
        ('path = "set"', 'pth = "set"', r"line 4: \[data\] pth: is unknown; there are kind, path, splits"),
        ("window = 64", "window = 65", r"line 7: \[transform\] window: .*hop"),
        ("window = 64", "hop = 3.5", r"line 7: \[transform\] hop: got 3.5; expected a number of samples"),
        ("cross_fit = 2", "cross_fit = 1", r"line 11: \[dictionaries\] cross_fit: got 1; .*at least 2, or 0"),
        ('from = "mixture"', 'from = "air"', r"\[dictionaries.noise\] from: got 'air'; expected one of recordings"),
        ('from = "mixture"', "", r"\[dictionaries.noise\] from: is missing; expected one of"),
        ('from = "mixture"', 'from = "recordings"', r"recordings: is missing; expected the name of recordings"),
        ("orders = [1, 2]", "orders = [1, 1]", r"line 16: \[dictionaries.speech\] orders: got \[1, 1\]; expected"),
        ("orders = [1, 2]", "", r"line 13: \[dictionaries.speech\] orders: is missing"),
        ("orders = [2]", "orders = [4]", r"\[separators\] orders: got \[4\], which are not among"),
        ('kind = "ml-nmf"', 'kind = "vb-nmf"', r"separators: two are called 'VB-NMF'; give each its own `label`"),
        ('kind = "ml-nmf"', 'kind = "folder"', r"\[separators\] estimates: is missing"),
        ("iterations = 5\nml", "a = 0.0\nml", r"\[separators\] a: a=0.0: expected the shape"),
        ('"si_sdr"]', '"sir"]', r"\[records\] metrics: got \['sdr', 'sir'\]; expected a list .* of sdr, si_sdr"),
        ("workers = 3", "workers = true", r"\[execution\] workers: got True; expected a number of processes"),
        ("[records]", "[recordz]", r"recordz: is unknown"),
        ("bands = 4", "bands = = 4", "not valid TOML"),
    ],
)
def test_errors_name_line_and_key(tmp_path, before, after, message):
    assert TEXT.count(before) == 1
    path = tmp_path / "experiment.toml"
    path.write_text(TEXT.replace(before, after))
    with pytest.raises(ValueError, match=message) as found:
        load_config(path)
    assert str(path) in str(found.value)


def test_what_is_missing_altogether():
    with pytest.raises(FileNotFoundError, match=r"no configuration none\.toml"):
        load_config("none.toml")
    with pytest.raises(ValueError, match=r"data: is missing; expected a section \[data\]"):
        parse_config("")
    with pytest.raises(ValueError, match="vb-nmf needs the dictionaries of two sources or more"):
        parse_config('[data]\nkind = "synthetic"\n[[separators]]\nkind = "vb-nmf"\n')
