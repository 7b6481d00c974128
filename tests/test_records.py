"""Records: what is written comes back, small errors keep their digits, damage is noticed, reading is lazy."""

import json

import numpy as np
import pytest
import xarray
from small_records import TRANSFORM, draw_record

from bayesfuse import records
from bayesfuse.grams import sdr, squared_error
from bayesfuse.record_file import read_record, write_record
from bayesfuse.records import open_records, record_path


def write(folder, *drawn):
    for record in drawn:
        write_record(record, record_path(folder, record.name))
    return open_records(folder)


def test_a_record_comes_back(tmp_path):
    record, _, _ = draw_record("folder/a")
    found = write(tmp_path, record)[0]
    for field in ("name", "split", "group", "rate", "metadata", "models", "sources", "terms", "first_frame", "seed"):
        assert getattr(found, field) == getattr(record, field), field
    for field in ("num_frames", "transform", "versions", "key"):
        assert getattr(found, field) == getattr(record, field), field
    for field in ("orders", "free_energy", "dictionary_energy", "total_free_energy", "likelihood", "seconds"):
        np.testing.assert_array_equal(getattr(found, field), getattr(record, field), err_msg=field)
    np.testing.assert_array_equal(found.scores["sdr"], record.scores["sdr"])
    np.testing.assert_array_equal(found.mixture_scores["sdr"], record.mixture_scores["sdr"])
    np.testing.assert_allclose(found.frame_times, TRANSFORM.frame_times(1000, 2 + 17)[2:])
    with xarray.open_datatree(record_path(tmp_path, "folder/a"), engine="h5netcdf") as tree:  # others read it, too
        assert tree["scores/sdr"].dims == ("model", "source") and tree["scores"]["model"].values[0] == "VB-NMF 1"
        assert tree["bands/errors"].dims == ("source", "frame", "band", "pair")
    assert [entry.name for entry in (tmp_path / "records/folder").iterdir()] == ["a.nc"]


def test_small_errors_keep_their_digits_in_single_precision(tmp_path):
    """The best estimate is 80 dB above its error: in a Gram of float32 nothing would be left of that error."""
    record, truth, estimates = draw_record()
    found = write(tmp_path, record)[0]
    weights = np.array([0.99999, 0.000006, 0.000004])
    error = np.sum((truth - np.einsum("m,msk->sk", weights, estimates)) ** 2, axis=-1)
    for kind, axes in (("whole", ()), ("frames", (1,)), ("bands", (1, 2))):
        total = squared_error(weights, found.scalar_products(kind)).sum(axes)
        np.testing.assert_allclose(total, error, rtol=1e-6)
    exact = 10 * np.log10((truth**2).sum(-1) / ((truth - estimates[0]) ** 2).sum(-1))
    np.testing.assert_allclose(sdr(np.eye(3)[0], found.whole), exact, rtol=1e-7)
    # What a Gram kept in single precision would make of it.
    energy, cross, gram = (
        part.astype(np.float32) for part in (record.whole.energy, record.whole.cross, record.whole.gram)
    )
    lost = energy - 2 * cross[:, 0] + gram[:, 0, 0]
    assert not np.allclose(lost, np.sum((truth - estimates[0]) ** 2, axis=-1), rtol=0.5)


def test_records_are_selected_stacked_and_padded(tmp_path):
    drawn = [
        draw_record(n, s, samples=k, seed=i)[0] for i, (n, s, k) in enumerate([("a", "train", 500), ("b", "test", 300)])
    ]
    found = write(tmp_path, *drawn)
    assert found.names == ("a", "b") and found.splits == ("train", "test") and "1 train, 1 test" in repr(found)
    assert found.select(split="test").names == ("b",) and found[1:].names == ("b",) and found[-1].name == "b"
    assert found.select(names=["b", "a"]).names == ("b", "a")
    whole, every = found.stack()
    assert every.all()
    for kind in ("frames", "bands"):
        g, mask = found.stack(kind)
        assert mask.sum(1).tolist() == [17, 11]
        axes = (2,) if kind == "frames" else (2, 3)
        for part in ("energy", "cross", "gram"):
            np.testing.assert_allclose(getattr(g, part).sum(axes), getattr(whole, part), rtol=1e-6, atol=1e-4)
            assert not np.any(getattr(g, part)[1, :, 11:])
    energies, mask = found.free_energies()
    np.testing.assert_array_equal(energies[1][..., mask[1]], drawn[1].free_energy)
    assert not np.any(energies[1][..., ~mask[1]])
    with pytest.raises(ValueError, match="no record is of the split 'val'; there are train, test"):
        found.select(split="val")
    with pytest.raises(ValueError, match=r"no record of c \(not computed yet\)"):
        found.select(names=["c"])


def test_records_of_different_models_do_not_stack(tmp_path):
    found = write(tmp_path, draw_record("a")[0], draw_record("b", models=2)[0])
    with pytest.raises(ValueError, match="different models"):
        found.stack()
    with pytest.raises(ValueError, match="there are no records"):
        found[:0].stack()


def test_bands_are_optional(tmp_path):
    found = write(tmp_path, draw_record(bands=None, likelihood=None)[0])
    assert found[0].bands is None and found[0].likelihood is None
    with pytest.raises(ValueError, match=r"no scalar products of kind 'bands'.*\[records\]"):
        found.stack("bands")


def test_errors_and_unfinished_files(tmp_path):
    write(tmp_path, draw_record()[0])
    (tmp_path / records.ERRORS).write_text(json.dumps({"b": "it is cut short"}))
    (tmp_path / "records/.a-0123.nc").write_bytes(b"half")
    found = open_records(tmp_path)
    assert found.names == ("a",) and found.errors == {"b": "it is cut short"}
    with pytest.raises(ValueError, match="it is cut short"):
        found.select(names=["b"])


def test_damage_is_noticed(tmp_path):
    write(tmp_path, draw_record()[0])
    path = record_path(tmp_path, "a")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        read_record(path)
    # One byte of the scalar products: found by the checksum.
    place = whole.find(np.float32(draw_record()[0].bands.energy[0, 0, 0]).tobytes())
    assert place > 0
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match="damaged"):
        read_record(path)
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none.nc")
    with pytest.raises(FileNotFoundError, match="holds no records"):
        open_records(tmp_path / "none")
    for name in ("../a", "/a", "", "x/.a"):
        with pytest.raises(ValueError, match="cannot be that of a file"):
            record_path(tmp_path, name)
