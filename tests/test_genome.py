from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge3.genome import SEARCHED, Genome, live_groups, snap
from merge3.recipe import TRAITS, check, constant

GOOD: dict[str, Any] = {
    "methods": ("ties",),
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
    assert recipe.weights == {"a": {"attention": (0, 0), "mlp": (0, 0)}, "b": {"attention": (0, 0), "mlp": (0, 1)}}
    assert recipe.densities["a"]["attention"] == (0.6, 0.2)
    assert recipe.densities["b"]["attention"] == (0.2, 0.2)


@pytest.mark.parametrize("method", SEARCHED)
@given(data=st.data())
def test_every_genotype_is_a_recipe_that_can_be_merged(method: str, data: st.DataObject) -> None:
    genome = Genome(**(GOOD | {"methods": (method,)}))
    genes = data.draw(st.lists(st.floats(0, 1), min_size=len(genome.names), max_size=len(genome.names)))
    check(genome.decode(np.array(genes)))


def test_slerp_has_one_weight_and_dense_methods_no_density() -> None:
    assert Genome(**(GOOD | {"methods": ("slerp",), "knots": 1})).names == ["weight b attention 0", "weight b mlp 0"]
    assert all("density" not in name for name in Genome(**(GOOD | {"methods": ("linear",)})).names)


def test_a_start_is_what_it_says() -> None:
    genome = Genome(**GOOD)
    recipe = genome.decode(genome.encode({"a": 0.25, "b": 3.0}, density=0.6))
    assert recipe.weights["a"]["mlp"] == (0.25, 0.25)
    assert recipe.weights["b"]["mlp"] == (1.0, 1.0)  # clipped to the range
    assert recipe.densities["b"]["attention"] == (0.6, 0.6)
    assert genome.start.tolist() == [0.5] * 8 + [0.95] * 8  # all alike, all kept, a little off the side


def test_the_method_may_be_a_gene() -> None:
    genome = Genome(**(GOOD | {"methods": ("linear", "ties", "dare_ties")}))
    assert genome.names[0] == "method"
    assert len(genome.names) == 17
    genotype = np.full(17, 0.5)
    for gene, method in ((0.0, "linear"), (0.34, "ties"), (0.99, "dare_ties"), (1.0, "dare_ties")):
        genotype[0] = gene
        recipe = genome.decode(genotype)
        assert recipe.method == method
        assert bool(recipe.densities) == (method != "linear")
        check(recipe)
    assert genome.encode({"a": 0.5, "b": 0.5}, 1.0).tolist() == [0.5 / 3, *[0.5] * 8, *[1.0] * 8]
    genotype[0] = 0.5 / 3
    dense = genome.decode(genotype)
    for recipe in (dense, replace(dense, densities={"a": {}})):  # linear does not look at them
        place = genome.place(recipe)
        assert place is not None
        assert place.tolist() == [0.5 / 3, *[0.5] * 8, *[1.0] * 8]


@pytest.mark.parametrize("methods", [("linear",), ("ties",), ("slerp",), ("linear", "ties", "dare_ties")])
@given(data=st.data())
def test_a_recipe_has_the_place_that_it_was_decoded_from(methods: tuple[str, ...], data: st.DataObject) -> None:
    genome = Genome(**(GOOD | {"methods": methods}))
    genes = data.draw(st.lists(st.floats(0, 1), min_size=len(genome.names), max_size=len(genome.names)))
    recipe = genome.decode(np.array(genes))
    place = genome.place(recipe)
    assert place is not None
    assert genome.decode(place) == recipe
    assert len(methods) == 1 or place[0] == pytest.approx((methods.index(recipe.method) + 0.5) / len(methods))


@pytest.mark.parametrize("gene", [0.0, 0.5, 1.0])
def test_an_end_of_a_range_that_is_snapped_beyond_it_has_a_place(gene: float) -> None:
    genome = Genome(**(GOOD | {"weight_range": (0.334, 0.666), "density_range": (0.124, 0.996)}))
    recipe = genome.decode(np.full(16, gene))
    place = genome.place(recipe)
    assert place is not None
    assert genome.decode(place) == recipe


def test_a_merge_that_the_genome_does_not_have_has_no_place() -> None:
    genome = Genome(**GOOD)
    recipe = genome.decode(np.full(16, 0.5))
    flat = replace(
        recipe,
        weights={e: dict.fromkeys(("attention", "mlp"), (0.7,)) for e in "ab"},
        densities={e: dict.fromkeys(("attention", "mlp"), (1.0,)) for e in "ab"},
    )
    place = genome.place(flat)  # constant along depth: both knots alike
    assert place is not None
    assert place.tolist() == [0.7] * 8 + [1.0] * 8
    beyond = replace(flat, weights=flat.weights | {"a": dict.fromkeys(("attention", "mlp"), (1.1,))})
    three = replace(flat, weights=flat.weights | {"a": dict.fromkeys(("attention", "mlp"), (0.1, 0.2, 0.3))})
    others = (
        replace(recipe, experts=("b", "a")),
        replace(recipe, options={"normalize": 0.0}),
        replace(constant("ties", {"a": 0.5, "b": 0.5}), densities=recipe.densities),  # of parts that it does not tell
    )
    for other in (replace(recipe, method="linear"), beyond, three, *others):
        assert genome.place(other) is None
    assert genome.place(replace(recipe, mask_seed=1)) is not None  # ties draws no masks
    masked = Genome(**(GOOD | {"methods": ("dare_ties",)}))
    assert masked.place(replace(masked.decode(np.full(16, 0.5)), mask_seed=1)) is None


@given(st.floats(-3, 3))
def test_snapped_values_stay_near_and_stay_put(value: float) -> None:
    assert abs(snap(value) - value) <= 0.005 + 1e-9
    assert snap(snap(value)) == snap(value)
    assert str(snap(value)) != "-0.0"
    assert snap(value) == float(f"{snap(value):.2f}")


@given(st.lists(st.floats(0.02, 0.98), min_size=16, max_size=16), st.floats(-0.004, 0.004))
def test_genotypes_closer_than_the_resolution_are_one_recipe(genes: list[float], noise: float) -> None:
    genome = Genome(**(GOOD | {"density_range": (0.01, 1.0)}))
    centres = np.array([snap(gene) for gene in genes])
    assert genome.decode(centres).weights == genome.decode(np.clip(centres + noise, 0, 1)).weights


def test_a_method_that_is_unknown_is_refused_with_those_that_can_be_searched() -> None:
    with pytest.raises(ValueError, match="merge method must be one of") as refused:
        Genome(**(GOOD | {"methods": ("average",)}))
    assert {name for name in TRAITS if repr(name) in str(refused.value)} == {
        name for name in TRAITS if name not in ("karcher", "model_stock", "passthrough", "sce")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": ()}, "ties merges 1 or more experts, got 0"),
        ({"experts": ("a", "a")}, "experts must be distinct"),
        ({"groups": ("head",)}, "groups must be among"),
        ({"groups": ()}, "groups must be among"),
        ({"knots": 0}, "knots must be 1 or more"),
        ({"weight_range": (1.0, 1.0)}, "weight_range must be two finite numbers that rise"),
        ({"weight_range": (0.0, float("inf"))}, "weight_range"),
        ({"density_range": (-0.1, 1.0)}, "density_range must lie in"),
        ({"density_range": (0.001, 1.0)}, "density_range must lie in"),
        ({"density_range": (0.5, 1.1)}, "density_range must lie in"),
        ({"methods": ("slerp",), "weight_range": (0.0, 1.2)}, "slerp needs a weight_range in"),
        ({"methods": ("slerp",), "experts": ("a", "b", "c")}, "slerp merges 1 to 2 experts, got 3"),
        ({"methods": ("nuslerp",), "experts": ("a",)}, "nuslerp merges 2 to 2 experts, got 1"),
        ({"methods": ("model_stock",)}, "model_stock has no weights"),
        ({"methods": ("slerp", "ties"), "weight_range": (0.0, 1.0)}, "search it alone"),
        ({"methods": ("ties", "ties")}, "distinct merge methods"),
        ({"methods": ()}, "distinct merge methods"),
    ],
)
def test_a_genome_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Genome(**(GOOD | change))


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (np.zeros(3), "expected 16 genes"),
        (np.full(16, 1.1), r"lie in \[0, 1\]"),
        (np.full(16, -0.1), r"lie in \[0, 1\]"),
    ],
)
def test_a_genotype_of_another_genome_is_refused(genotype: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Genome(**GOOD).decode(genotype)


def test_a_random_merge_shares_a_random_total() -> None:
    change = {"methods": ("task_arithmetic",), "weight_range": (-0.5, 2.0), "experts": ("a", "b", "c")}
    genome = Genome(**(GOOD | change))
    generator = np.random.default_rng(0)
    drawn = [genome.draw((0.6, 1.8), generator) for _ in range(400)]
    weights = np.array([[[r.weights[e][g][0] for e in "abc"] for g in GOOD["groups"]] for r in drawn])
    totals = weights.sum(axis=2)
    assert 0.58 < totals.min() < 0.65 < 1.75 < totals.max() < 1.82
    assert totals.mean() == pytest.approx(1.2, abs=0.05)
    assert weights.mean(axis=(0, 1)) == pytest.approx(np.full(3, 0.4), abs=0.04)
    assert abs(np.corrcoef(totals.T)[0, 1]) < 0.15
    assert {len(set(r.weights["a"]["mlp"])) for r in drawn} == {1}  # the same along depth


def test_a_random_merge_stays_in_its_ranges() -> None:
    generator = np.random.default_rng(0)
    for change in ({"methods": ("slerp",), "density_range": (0.2, 1.0)}, {"methods": ("ties", "task_arithmetic")}):
        genome = Genome(**{**GOOD, **change, "weight_range": (0.0, 0.5)})
        for _ in range(20):
            recipe = genome.draw((0.6, 1.8), generator)
            check(recipe)
            assert all(0 <= w <= 0.5 for by in recipe.weights.values() for knots in by.values() for w in knots)


@pytest.mark.parametrize("totals", [(1.0, 0.5), (-0.1, 1.0), (0.0, np.inf)])
def test_totals_that_make_no_sense_are_refused(totals: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="totals must be two numbers of 0 or more, the lowest first"):
        Genome(**GOOD).draw(totals, np.random.default_rng(0))


def test_groups_without_a_difference_have_no_genes() -> None:
    assert live_groups(["model.layers.0.mlp.up_proj.weight"]) == ("mlp",)
    assert live_groups(["lm_head.weight", "model.layers.0.self_attn.q_proj.weight"]) == ("attention", "rest")
