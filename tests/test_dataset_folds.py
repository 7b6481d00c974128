"""What every data set promises: order, splits, and folds that keep groups together."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from bayesfuse.datasets import Dataset, Entry, Mixture


class Numbers(Dataset):
    """Mixtures that are known by their first sample; counts how many were formed."""

    def __init__(self, entries):
        self.formed = 0
        super().__init__(entries, 100)

    def _form(self, index: int) -> Mixture:
        self.formed += 1
        x = np.full((1, 8), float(index))
        return Mixture("", x, {"a": x}, self.rate, (2, 6), metadata={"formed": index})


def numbers(groups, splits=None):
    splits = splits or ["all"] * len(groups)
    return Numbers(
        Entry(f"n{i}", split, group, {"speaker": group[0]}, i % 2 == 0)
        for i, (group, split) in enumerate(zip(groups, splits, strict=True))
    )


def test_a_set_is_a_sequence():
    data = numbers(["a", "b", "c", "d"], ["x", "y", "x", "y"])
    assert len(data) == 4 and data.names == ("n0", "n1", "n2", "n3") and data.splits == ("x", "y")
    assert data.formed == 0 and data.rate == 100
    assert [item.name for item in data] == list(data.names) and data.formed == 4
    item = data[-1]
    assert (item.name, item.split, item.group) == ("n3", "y", "d")
    assert item.metadata == {"speaker": "d", "formed": 3} and item.duration == 0.08
    assert data.mixture("n2").mixture[0, 0] == 2.0
    assert data[1:3].names == ("n1", "n2") and data[::-1][0].name == "n3"
    assert data.mixtures("y").names == ("n1", "n3") and data.mixtures().names == data.names
    assert data.mixtures("y", quick=False).names == ("n1", "n3")
    assert repr(data) == "<Numbers: 2 x, 2 y; 100 Hz>"
    with pytest.raises(ValueError, match="no mixture 'n9'"):
        data.mixture("n9")
    with pytest.raises(ValueError, match="unknown split 'z'; there are x, y"):
        data.mixtures("z")
    with pytest.raises(ValueError, match="marked as quick"):
        data.mixtures("y", quick=True)
    with pytest.raises(IndexError):
        data[4]
    with pytest.raises(ValueError, match="2 mixtures called 'n0'"):
        Numbers([Entry("n0", "x", "a"), Entry("n0", "y", "b")])
    with pytest.raises(ValueError, match="holds no mixtures"):
        Numbers([])


@given(
    groups=st.lists(st.sampled_from("abcdefgh"), min_size=6, max_size=40).filter(lambda g: len(set(g)) >= 3),
    k=st.integers(2, 8),
    seed=st.integers(0, 1000),
    validation=st.booleans(),
)
@settings(max_examples=40)
def test_folds(groups, k, seed, validation):
    data = numbers(groups)
    k = min(max(k, 3), len(set(groups)))
    folds = data.folds(k, seed, validation=validation)
    assert len(folds) == k and data.formed == 0
    tested = [name for fold in folds for name in fold.test.names]
    assert sorted(tested) == sorted(data.names)  # each once
    label = dict(zip(data.names, data.groups, strict=True))
    for i, fold in enumerate(folds):
        parts = [{label[name] for name in part.names} for part in fold]
        assert parts[0].isdisjoint(parts[2]) and parts[1].isdisjoint(parts[0] | parts[2])
        assert sum(map(len, fold)) == len(data) and len(fold.train) > 0 and len(fold.test) > 0
        assert fold.validation.names == (folds[(i + 1) % k].test.names if validation else ())
    again = data.folds(k, seed, validation=validation)
    assert [f.test.names for f in again] == [f.test.names for f in folds]


def test_folds_depend_on_the_seed_and_are_balanced():
    data = numbers([f"{i}" for i in range(20)])
    assert data.folds(5, 0)[0].test.names != data.folds(5, 1)[0].test.names
    assert {len(fold.test) for fold in data.folds(5, 7)} == {4}
    # [JVR16] VII.A: of five groups, three are learned on, one stops, one tests.
    assert [len(part) for part in data.folds(5, validation=True)[2]] == [12, 4, 4]


def test_folds_by_something_else_and_of_one_split():
    data = numbers(["ax", "ay", "bx", "by", "cx", "cy"], ["s"] * 4 + ["t"] * 2)
    for fold in data.folds(2, split="s", by="speaker"):
        assert set(fold.test.names) in ({"n0", "n1"}, {"n2", "n3"})
        assert fold.test[0].name == fold.test.names[0]
    with pytest.raises(ValueError, match=r"n0 has no such metadata; use 'group' or one of \['speaker'\]"):
        data.folds(2, by="room")
    with pytest.raises(ValueError, match="k=4 with 3 different values of speaker; expected 2 to 3"):
        data.folds(4, by="speaker")
    with pytest.raises(ValueError, match="k=2 with 6 different values of group; expected 3 to 6"):
        data.folds(2, validation=True)
