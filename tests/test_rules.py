"""Learned rules: weights by hand, files that come back bit by bit, and errors that name the separators."""

import numpy as np
import pytest
import xarray as xr
from test_markov import enumerated

from bayesfuse import rules
from bayesfuse.fusion import select_weights, vb_weights
from bayesfuse.rules import StaticRule, VBRule, load_rule, load_rules, save_rules

NAMES = ("a", "b", "c")


def same(left, right):
    """Whether two rules agree to the last bit."""
    assert type(left) is type(right)
    for name in left.__dataclass_fields__:
        one, other = getattr(left, name), getattr(right, name)
        np.testing.assert_array_equal(one, other)
        assert getattr(one, "shape", None) == getattr(other, "shape", None)


RULES = [
    StaticRule(np.array([0.2, 0.3, 0.5]), NAMES, "speech"),
    VBRule(np.log([0.2, 0.3, 0.5]), 7.0, separators=NAMES),
    VBRule(np.array([0.0, -np.inf, 1.0]), np.inf, 0.3, ("model", "frame"), False, NAMES, "speech"),
    VBRule(np.zeros(3), [1.0, np.inf], 0.0, ("model", "frame"), True, NAMES),
    VBRule(np.zeros((3, 4)), np.ones((2, 4)), 0.9, ("model", "frame", "band"), True, NAMES),
]


class TestWeights:
    def test_per_signal_and_per_frame(self):
        energy = np.random.default_rng(0).normal(size=(2, 3)) * 100
        rule = VBRule(np.log([0.2, 0.3, 0.5]), 7.0)
        expected = vb_weights(energy, rule.log_prior, 7.0, frames=np.array([10, 20]))
        np.testing.assert_array_equal(rule.weights(energy, num_frames=np.array([10, 20])), expected)
        rule = VBRule(rule.log_prior, 7.0, axes=("model", "frame"))
        np.testing.assert_array_equal(rule.weights(energy.T), vb_weights(energy.T, rule.log_prior, 7.0, axis=0))

    def test_terms(self):
        rng = np.random.default_rng(0)
        terms = rng.normal(size=(3, 3, 5))
        rule = VBRule(np.zeros(3), [1.0, np.inf, 4.0], axes=("model", "frame"), per_term=True)
        np.testing.assert_allclose(rule.weights(terms), vb_weights(terms[0] + terms[2] / 4, None, 1.0, axis=0))
        rule = VBRule(np.zeros(3), [0.0, 0.0, 0.0], axes=("model", "frame"), per_term=True)
        np.testing.assert_array_equal(rule.weights(terms), select_weights(terms.sum(0), axis=0))

    @pytest.mark.parametrize("bands", [False, True])
    def test_sticky_against_all_paths(self, bands):
        rng = np.random.default_rng(1)
        energy, prior = rng.normal(size=(3, 5)), np.log([0.2, 0.3, 0.5])
        expected = enumerated(prior[:, None] + energy / 0.5, 0.8)
        axes = ("model", "frame", "band") if bands else ("model", "frame")
        rule = VBRule(prior, 0.5, 0.8, axes)
        given = np.stack([energy, energy[:, ::-1]], axis=-1) if bands else energy
        weights = rule.weights(given)
        assert weights.shape == given.shape
        np.testing.assert_allclose(weights[..., 0] if bands else weights, expected, atol=1e-12)
        np.testing.assert_allclose(rule.weights(np.stack([given, given]))[1], weights, atol=1e-12)

    def test_bands_of_their_own(self):
        energy = np.random.default_rng(1).normal(size=(3, 5, 2))
        prior = np.log(np.random.default_rng(2).dirichlet(np.ones(3), 2)).T
        weights = VBRule(prior, [0.5, 2.0], axes=("model", "frame", "band")).weights(energy)
        for b, beta in enumerate((0.5, 2.0)):
            np.testing.assert_array_equal(weights[..., b], vb_weights(energy[..., b], prior[:, b], beta, axis=0))

    def test_bad_input(self):
        rule = VBRule(np.zeros(3), [1.0, 2.0], axes=("model", "frame"), per_term=True)
        with pytest.raises(ValueError, match="3 models"):
            rule.weights(np.zeros((2, 4, 5)))
        with pytest.raises(ValueError, match="terms"):
            rule.weights(np.zeros((3, 3, 5)))
        with pytest.raises(ValueError, match="num_frames"):
            rule.weights(np.zeros((2, 3, 5)), num_frames=5)
        with pytest.raises(ValueError, match="num_frames"):
            VBRule(np.zeros(3), 1.0).weights(np.zeros(3))
        with pytest.raises(ValueError, match="4 bands"):
            VBRule(np.zeros((3, 2)), np.ones(2), axes=("model", "frame", "band")).weights(np.zeros((3, 5, 4)))
        for arguments, message in [
            ((np.zeros(3), -1.0), "beta"),
            ((np.zeros(3), 1.0, 1.0), "stickiness"),
            ((np.zeros(3), 1.0, 0.5), "no frame"),
            ((np.zeros((3, 2)), np.ones(2)), "no band"),
            ((np.zeros(3), np.ones(2)), "beta of shape"),
            ((np.zeros(3), 1.0, 0.0, ("frame",)), "axes"),
            ((np.zeros(3), 1.0, 0.0, ("model",), False, ("a", "a", "b")), "separators"),
        ]:
            with pytest.raises(ValueError, match=message):
                VBRule(*arguments)


class TestFiles:
    @pytest.mark.parametrize("rule", RULES)
    def test_round_trip(self, rule, tmp_path):
        rule.save(tmp_path / "rule.nc")
        same(load_rule(tmp_path / "rule.nc", separators=NAMES), rule)
        assert [path.name for path in tmp_path.iterdir()] == ["rule.nc"]

    def test_other_order_of_separators(self, tmp_path):
        for rule in RULES:
            rule.save(tmp_path / "rule.nc")
            other = load_rule(tmp_path / "rule.nc", separators=("c", "a", "b"))
            assert other.separators == ("c", "a", "b")
            values = (
                [rule.learned, other.learned] if isinstance(rule, StaticRule) else [rule.log_prior, other.log_prior]
            )
            np.testing.assert_array_equal(values[1], values[0][[2, 0, 1]])

    def test_several_sources(self, tmp_path):
        both = [StaticRule(np.array([0.5, 0.5]), ("x", "y"), name) for name in ("speech", "noise")]
        save_rules(both, tmp_path / "rules.nc")
        found = load_rules(tmp_path / "rules.nc")
        assert list(found) == ["speech", "noise"]
        same(found["noise"], both[1])
        with pytest.raises(ValueError, match="load_rules"):
            load_rule(tmp_path / "rules.nc")
        with pytest.raises(ValueError, match="one rule per source"):
            save_rules([both[0], both[0]], tmp_path / "rules.nc")

    def test_wrong_separators_are_named(self, tmp_path):
        RULES[0].save(tmp_path / "rule.nc")
        with pytest.raises(ValueError, match=r"\['a', 'b', 'c'\].*\['c'\] are missing and \['demucs'\] are unknown"):
            load_rule(tmp_path / "rule.nc", separators=("a", "b", "demucs"))
        with pytest.raises(ValueError, match="names of separators"):
            VBRule(np.zeros(2), 1.0).save(tmp_path / "rule.nc")

    def test_bad_files(self, tmp_path):
        path = tmp_path / "rule.nc"
        with pytest.raises(FileNotFoundError):
            load_rule(path)
        path.write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="cannot be read"):
            load_rule(path)
        for attributes, message in [
            ({}, "does not hold"),
            ({"format": rules.FORMAT, "schema_version": 99, "version": "9"}, "schema version 99"),
        ]:
            xr.DataTree(xr.Dataset(attrs=attributes)).to_netcdf(path, engine="h5netcdf")
            with pytest.raises(ValueError, match=message):
                load_rule(path)
        head = xr.Dataset(attrs={"format": rules.FORMAT, "schema_version": 1, "version": "1"})
        for attributes, message in [
            ({"separators": "[]"}, "incomplete"),
            ({"separators": "[]", "source": "", "kind": "magic"}, "unknown kind 'magic'"),
        ]:
            tree = xr.DataTree.from_dict({"/": head, "/rule0": xr.Dataset(attrs=attributes)})
            tree.to_netcdf(path, engine="h5netcdf")
            with pytest.raises(ValueError, match=message):
                load_rule(path)
