"""The tree of a corpus: what was recorded stands in it, is read only when asked for, and survives its files."""

import json
import os

import equinox as eqx
import numpy as np
import pytest
from small_corpus import MODELS, SNRS, make_record, make_records, write_records
from small_records import TRANSFORM

from bayesfuse import _corpus_files, scores
from bayesfuse.corpus_results import by_order, corpus_tree, gram_of, open_corpus, save_corpus, score_table
from bayesfuse.grams import gram, sdr
from bayesfuse.lazy_records import Reader
from bayesfuse.metrics import Reason

FIELDS = ("energy", "cross", "gram")


@pytest.fixture(scope="module")
def drawn():
    return make_records(2, 4)


@pytest.fixture
def tree(drawn):
    return corpus_tree(drawn)


def same(tree, drawn, kinds=("whole", "frames", "bands")):
    """Whether all numbers of the records stand in the tree at their place."""
    for index, record in enumerate(drawn):
        at = {"example": record.name}
        count = record.free_energy.shape[-1]
        for kind in kinds:
            found = gram_of(tree[kind].to_dataset().sel(at))
            mine = record.scalar_products(kind)
            for field in FIELDS:
                have, want = getattr(found, field), getattr(mine, field)
                if kind != "whole":
                    assert not np.any(have[:, count:])
                    have = have[:, :count]
                np.testing.assert_allclose(have, want, rtol=2e-6, atol=2e-5)
        energy = tree["free_energy"].to_dataset().sel(at)
        np.testing.assert_array_equal(energy["terms"].values[..., :count], record.free_energy)
        assert np.isnan(energy["terms"].values[..., count:]).all()
        np.testing.assert_array_equal(energy["total"], record.total_free_energy)
        np.testing.assert_allclose(energy["scored"], record.free_energy.sum((1, 2)), rtol=1e-12)
        if "bands" in kinds:
            np.testing.assert_array_equal(
                energy["likelihood"].values[..., :count], record.likelihood.astype(np.float32)
            )
        for metric in ("sdr", "si_sdr"):
            np.testing.assert_array_equal(tree["scores"][metric].values[index], record.scores[metric])
            np.testing.assert_array_equal(tree["mixture_scores"][metric].values[index], record.mixture_scores[metric])
        np.testing.assert_array_equal(tree["timing"]["seconds"].values[index], record.seconds)
        about = tree["examples"].to_dataset().sel(at)
        assert (int(about["frames"]), int(about["first_frame"]), int(about["num_frames"])) == (count, 2, count + 5)
        assert int(about["rate"]) == record.rate and json.loads(str(about["metadata"].values)) == record.metadata


def test_everything_recorded_stands_in_the_tree(tree, drawn):
    same(tree, drawn)
    frames = tree["frames"]["errors"]
    assert frames.dims == ("example", "source", "frame", "model", "other")
    assert tree["bands"]["cross"].dims == ("example", "source", "frame", "band", "model")
    assert list(frames["model"].values) == list(MODELS) == list(frames["other"].values)
    assert list(frames["kind"].values) == ["VB-NMF"] * 3 + ["ML-NMF"]
    assert list(frames["order"].values) == [2, 8, 32, 8]
    assert list(frames["snr_db"].values) == [r.metadata["snr_db"] for r in drawn]
    assert list(frames["speaker"].values) == [r.group[0] for r in drawn] and "nested" not in frames.coords


def test_the_order_is_the_one_that_varies(drawn):
    """Beside a source of more components than the others have, the order of a model is still that of its label."""
    found = corpus_tree([eqx.tree_at(lambda r: r.orders, record, np.array([16, 16, 32, 16])) for record in drawn])
    assert list(found["scores"]["kind"].values) == ["VB-NMF"] * 3 + ["ML-NMF"]
    assert list(found["scores"]["order"].values) == [2, 8, 32, 8]


def test_small_errors_keep_their_digits():
    """Estimates 80 dB above their errors, of which single precision would leave nothing in a Gram."""
    record, truth, _ = make_record("a", "test", 0, "g", seed=1)
    estimates = truth + 1e-4 * np.random.default_rng(2).normal(size=(4, *truth.shape))
    frames, whole = gram(truth, estimates, transform=TRANSFORM), gram(truth, estimates)
    record = eqx.tree_at(lambda r: (r.frames, r.whole), record, (frames, whole))
    found = gram_of(corpus_tree([record])["frames"].to_dataset().isel(example=0)).sum(1)
    exact = 10 * np.log10((truth**2).sum(-1) / ((truth - estimates[0]) ** 2).sum(-1))
    np.testing.assert_allclose(sdr(np.eye(4)[0], found), exact, atol=1e-4)


class Counting(list):
    """Records that notice how often one is asked for."""

    def __init__(self, items):
        super().__init__(items)
        self.asked = []

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Slice([self[i] for i in range(*index.indices(len(self)))])
        self.asked.append(index)
        return super().__getitem__(index)


class Slice(list):
    pass


def test_arrays_over_frames_are_read_when_they_are_asked_for(drawn):
    counted = Counting(drawn)
    tree = corpus_tree(counted)
    counted.asked.clear()
    tree["scores"]["sdr"].mean("example")
    assert gram_of(tree["whole"]).num_models == 4 and counted.asked == []
    part = tree["frames"]["errors"].isel(example=[4, 1], frame=slice(1, 3), model=0)
    assert counted.asked == []
    values = part.values
    assert sorted(set(counted.asked)) == [1, 4]
    expected = corpus_tree(drawn)["frames"]["errors"].values[[4, 1]][:, :, 1:3, 0]
    np.testing.assert_array_equal(values, expected)
    # Indexing by labels, numbers, steps and from the end, against NumPy.
    whole = corpus_tree(drawn)["bands"]["cross"].values
    lazy = corpus_tree(drawn)["bands"]["cross"]
    np.testing.assert_array_equal(lazy[-1].values, whole[-1])
    np.testing.assert_array_equal(lazy[::2, 1, ::3, [0, 2]].values, whole[::2, 1, ::3][:, :, [0, 2]])
    np.testing.assert_array_equal(lazy[[], :].values, whole[[], :])
    np.testing.assert_array_equal(lazy.sel(example=drawn[2].name, model="ML-NMF 8").values, whole[2, ..., 3])


def test_a_record_is_read_once_for_all_variables(drawn):
    counted = Counting(drawn)
    reader = Reader(counted)
    reader(1, bands=True)
    counted.asked.clear()
    for _ in range(3):
        assert reader(1, bands=True) is drawn[1] and reader(1, bands=False) is drawn[1]
    assert counted.asked == []
    reader(0, bands=False)
    assert set(counted.asked) == {0}


@pytest.mark.parametrize("kind", ["nc", "zarr"])
@pytest.mark.parametrize("block", [1 << 25, 5000], ids=["whole", "in blocks"])
def test_files(tmp_path, drawn, monkeypatch, kind, block):
    """Written whole or in blocks of one example, opened without being read, with and without dask."""
    if kind == "zarr":
        pytest.importorskip("zarr", reason="zarr is not installed: pip install 'bayesfuse[zarr]'")
    import xarray as xr

    monkeypatch.setattr(_corpus_files, "_BLOCK", block)
    records = write_records(tmp_path, drawn)
    path = tmp_path / f"corpus.{kind}"
    tree = corpus_tree(records)
    save_corpus(tree, path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"records", path.name}
    again = open_corpus(path)
    try:
        same(again, [records[i] for i in range(len(records))])
        for node in tree.subtree:
            mine, theirs = node.to_dataset(), again[node.path].to_dataset()
            xr.testing.assert_equal(mine, theirs)
            assert set(mine.coords) == set(theirs.coords)
        assert again.attrs["transform"] == tree.attrs["transform"]
    finally:
        again.close()


def test_opening_reads_nothing_large(tmp_path, drawn, monkeypatch):
    """The file's large arrays may be damaged without being noticed, until they are asked for."""
    monkeypatch.setattr(_corpus_files, "_BLOCK", 1000)
    path = tmp_path / "corpus.nc"
    save_corpus(corpus_tree(drawn), path)
    import h5py

    with h5py.File(path) as file:
        place = file["bands/errors"].id.get_chunk_info(0)
    with open(path, "r+b") as file:
        file.seek(place.byte_offset)
        file.write(os.urandom(64))
    tree = open_corpus(path)
    try:
        score_table(tree)
        gram_of(tree["frames"])
        with pytest.raises(OSError):
            gram_of(tree["bands"])
    finally:
        tree.close()


def test_a_full_disk_leaves_nothing(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(_corpus_files, "_BLOCK", 1000)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    path = tmp_path / "corpus.nc"
    save_corpus(corpus_tree(drawn), path)
    before = path.read_bytes()
    monkeypatch.setattr(_corpus_files, "_fill", full)
    with pytest.raises(OSError, match="No space"):
        save_corpus(corpus_tree(drawn), path)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["corpus.nc"]


def test_errors(tmp_path, drawn):
    with pytest.raises(ValueError, match="no record"):
        corpus_tree([])
    with pytest.raises(ValueError, match="two records of train/00"):
        corpus_tree([drawn[0], drawn[0]])
    other = eqx.tree_at(lambda r: r.sources, drawn[1], ("voice", "noise"))
    with pytest.raises(ValueError, match="different models, sources"):
        corpus_tree([drawn[0], other])
    with pytest.raises(FileNotFoundError, match="no file"):
        open_corpus(tmp_path / "none.nc")
    bad = tmp_path / "bad.nc"
    bad.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read"):
        open_corpus(bad)
    import xarray as xr

    xr.DataTree.from_dict({"/a": xr.Dataset({"x": ("y", [1.0])})}).to_netcdf(bad, engine="h5netcdf")
    with pytest.raises(ValueError, match="not a bayesfuse corpus"):
        open_corpus(bad)
    newer = corpus_tree(drawn)
    newer.attrs["schema_version"] = 99
    with pytest.raises(ValueError, match="upgrade"):
        save_corpus(newer, tmp_path / "newer.nc")


def test_tables_are_a_line_of_code(tree, drawn):
    table = score_table(tree)
    assert list(table.columns[:8]) == list(scores.COLUMNS) and {"split", "snr_db", "speaker"} < set(table.columns)
    assert len(table) == len(drawn) * (len(MODELS) + 1) * 2 * 2
    by_hand = {}
    for record in drawn:
        for s, source in enumerate(record.sources):
            for m, model in enumerate(MODELS):
                key = ("sdr", source, model, record.metadata["snr_db"])
                by_hand.setdefault(key, []).append(record.scores["sdr"][m, s])
    summary = scores.summarise(table, by=["metric", "source", "system", "snr_db"])
    found = {tuple(row[:4]): row[4] for row in summary.itertuples(index=False)}
    for key, values in by_hand.items():
        assert found[key] == pytest.approx(np.mean(values))
    assert {key[2] for key in found} == {*MODELS, "mixture"} and {key[3] for key in found} == set(SNRS)


def test_scores_that_do_not_exist_say_why(drawn):
    silent = eqx.tree_at(lambda r: r.scores["sdr"], drawn[0], np.full((4, 2), np.nan))
    silent = eqx.tree_at(lambda r: r.whole.energy, silent, np.array([0.0, 1.0]))
    table = score_table(corpus_tree([silent]), mixture=False).query("metric == 'sdr'")
    assert set(table[table["source"] == "speech"]["reason"]) == {Reason.SILENT_REFERENCE.label}
    assert set(table[table["source"] == "noise"]["reason"]) == {Reason.UNDEFINED.label}


def test_models_by_kind_and_order(tree, drawn):
    found = by_order(tree["scores"].to_dataset())["sdr"]
    value = found.sel(kind="VB-NMF", order=8).isel(example=1)
    np.testing.assert_array_equal(value.transpose("source"), drawn[1].scores["sdr"][1])
    assert np.isnan(found.sel(kind="ML-NMF", order=2)).all()


def test_with_dask(tmp_path, drawn):
    pytest.importorskip("dask", reason="dask is not installed: pip install 'bayesfuse[dask]'")
    path = tmp_path / "corpus.nc"
    save_corpus(corpus_tree(drawn), path)
    tree = open_corpus(path, chunks={})
    try:
        lazy = tree["frames"]["energy"].sum()
        np.testing.assert_allclose(lazy.compute(), sum(r.frames.energy.sum() for r in drawn), rtol=1e-6)
    finally:
        tree.close()
