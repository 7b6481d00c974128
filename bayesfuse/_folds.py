"""Folds that keep groups together, in one way for all that cross-validates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

Folds = list[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held_out"]]]


def group_folds(groups: Sequence[Any] | np.ndarray, folds: int, seed: int) -> Folds:
    """Positions of training and held-out items of each fold; every item is held out once, every group in one fold.

    Folds are balanced in the number of items as well as groups allow; groups of one size are spread at random.

    Parameters
    ----------
    groups
        Label of each item; at least two different ones.
    folds
        Number of folds, at least 2; as many as there are groups if these are fewer.
    seed
        Of the assignment.
    """
    from sklearn.model_selection import GroupKFold

    labels, member = np.unique([str(label) for label in groups], return_inverse=True)
    order = np.random.default_rng(seed).permutation(labels.size)
    splits = GroupKFold(min(folds, labels.size)).split(np.zeros(member.size), groups=order[member])
    return [(np.asarray(train), np.asarray(held_out)) for train, held_out in splits]
