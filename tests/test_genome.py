from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge3.genome import Genome, live_groups
from merge3.merging import METHODS, check
from merge3.recipe import SPARSE

GOOD: dict[str, Any] = {
    "method": "ties",
    "experts": ("a", "b"),
    "groups": ("attention", "mlp"),
    "knots": 2,
    "weight_range": (0.0, 1.0),
    "density_range": (0.2, 1.0),
    "mask_seed": 0,
}


def test_genes_are_named_in_the_order_they_are_read() -> None:
    genome = Genome(**GOOD)
    names = genome.names
    assert len(names) == 2 * 2 * 2 * 2
    genotype = np.zeros(len(names))
    genotype[names.index("weight b mlp 1")] = 1.0
    genotype[names.index("density a attention 0")] = 0.5
    recipe = genome.decode(genotype)
    assert recipe.weights == {"attention": {"a": (0, 0), "b": (0, 0)}, "mlp": {"a": (0, 0), "b": (0, 1)}}
    assert recipe.densities["attention"] == {"a": (0.6, 0.2), "b": (0.2, 0.2)}


@pytest.mark.parametrize("method", sorted(METHODS))
@given(data=st.data())
def test_every_genotype_is_a_recipe_that_can_be_merged(method: str, data: st.DataObject) -> None:
    genome = Genome(**(GOOD | {"method": method}))
    genes = data.draw(st.lists(st.floats(0, 1), min_size=len(genome.names), max_size=len(genome.names)))
    check(genome.decode(np.array(genes)))


def test_slerp_has_one_weight_and_dense_methods_no_density() -> None:
    assert Genome(**(GOOD | {"method": "slerp", "knots": 1})).names == ["weight b attention 0", "weight b mlp 0"]
    assert all("density" not in name for name in Genome(**(GOOD | {"method": "linear"})).names)
    assert {m for m in METHODS if any("density" in n for n in Genome(**(GOOD | {"method": m})).names)} == SPARSE


def test_a_start_is_what_it_says() -> None:
    genome = Genome(**GOOD)
    recipe = genome.decode(genome.encode({"a": 0.25, "b": 3.0}, density=0.6))
    assert recipe.weights["mlp"] == {"a": (0.25, 0.25), "b": (1.0, 1.0)}  # clipped to the range
    assert recipe.densities["attention"]["b"] == (0.6, 0.6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "average"}, "merge method must be one of"),
        ({"experts": ()}, "distinct experts"),
        ({"experts": ("a", "a")}, "distinct experts"),
        ({"groups": ("head",)}, "groups must be among"),
        ({"groups": ()}, "groups must be among"),
        ({"knots": 0}, "knots must be 1 or more"),
        ({"weight_range": (1.0, 1.0)}, "weight_range must be two finite numbers that rise"),
        ({"weight_range": (0.0, float("inf"))}, "weight_range"),
        ({"density_range": (-0.1, 1.0)}, "density_range must lie in"),
        ({"density_range": (0.001, 1.0)}, "density_range must lie in"),
        ({"density_range": (0.5, 1.1)}, "density_range must lie in"),
        ({"method": "slerp", "weight_range": (0.0, 1.2)}, "slerp needs a weight_range in"),
        ({"method": "slerp", "experts": ("a", "b", "c")}, "slerp merges one or two experts"),
    ],
)
def test_a_genome_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Genome(**(GOOD | change))


@pytest.mark.parametrize(
    ("genotype", "message"), [(np.zeros(3), "expected 16 genes"), (np.full(16, 1.1), r"lie in \[0, 1\]")]
)
def test_a_genotype_of_another_genome_is_refused(genotype: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Genome(**GOOD).decode(genotype)


def test_groups_without_a_difference_have_no_genes() -> None:
    assert live_groups(["model.layers.0.mlp.up_proj.weight"]) == ("mlp",)
    assert live_groups(["lm_head.weight", "model.layers.0.self_attn.q_proj.weight"]) == ("attention", "rest")
