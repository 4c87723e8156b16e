from __future__ import annotations

import dataclasses

import pytest

from merge3.recipe import (
    COUNTED,
    GROUPS,
    Layers,
    Merge,
    Recipe,
    constant,
    depth_of,
    group_of,
    holds,
    interpolate,
    layer_of,
)

PRINTS = {"a": "A", "b": "B", "c": "C"}


def same(first: Recipe, second: Recipe) -> bool:
    return first.phenotype(PRINTS) == second.phenotype(PRINTS)


@pytest.mark.parametrize(
    ("tensor", "group", "layer"),
    [
        ("model.layers.11.self_attn.q_proj.weight", "attention", 11),
        ("model.layers.0.mlp.down_proj.weight", "mlp", 0),
        ("model.layers.3.input_layernorm.weight", "rest", 3),
        ("model.layers.3.linear_attn.in_proj.weight", "attention", 3),
        ("model.decoder.layers.3.fc1.weight", "mlp", 3),
        ("model.decoder.layers.3.fc2.bias", "mlp", 3),
        ("model.embed_tokens.weight", "rest", None),
        ("transformer.h.1.attn.c_attn.bias", "attention", 1),
        ("transformer.h.1.mlp.c_fc.weight", "mlp", 1),
        ("lm_head.weight", "rest", None),
    ],
)
def test_parameters_have_a_group_and_a_layer(tensor: str, group: str, layer: int | None) -> None:
    assert (group_of(tensor), layer_of(tensor)) == (group, layer)


def test_knots_are_joined_by_lines() -> None:
    assert [interpolate((0.0, 1.0, 0.0), d) for d in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0, 0.5, 1, 0.5, 0]
    assert interpolate((0.3,), 0.7) == 0.3


def test_depth_is_mergekits() -> None:
    assert [depth_of(layer, 3) for layer in (0, 1, 2, None)] == [0, 0.5, 1, 0]
    assert depth_of(0, 1) == 1  # of a single layer


def test_a_piece_holds_what_the_group_of_its_name_does_not() -> None:
    norm = "model.layers.0.post_mlp_norm.weight"
    assert [holds(part, norm) for part in ("mlp", "~mlp", "rest", "~rest", "*")] == [False, True, True, False, True]


def test_coefficients_follow_group_and_depth() -> None:
    recipe = Recipe("ties", ("a", "b"), {"a": {"mlp": (0.0, 1.0)}, "b": {"mlp": (0.5,)}}, {"a": {"mlp": (0.2,)}})
    last = recipe.at("model.layers.2.mlp.up_proj.weight", layers=3)
    assert (last.weights, last.densities) == ((1.0, 0.5), (0.2, 1.0))
    assert recipe.at("model.layers.1.mlp.up_proj.weight", layers=3).weights == (0.5, 0.5)
    assert recipe.at("model.layers.2.self_attn.q_proj.weight", layers=3).weights == (0.0, 0.0)
    assert recipe.at("lm_head.weight", layers=3).weights == (0.0, 0.0)


def test_an_expert_that_weighs_nothing_is_not_there() -> None:
    assert same(constant("task_arithmetic", {"a": 0.5, "b": 0.0}), constant("task_arithmetic", {"a": 0.5}))
    assert same(constant("ties", {"a": 0.0}), constant("linear", {"b": 0.0}))  # both are the base
    for method in COUNTED:  # but by these it counts
        assert not same(constant(method, {"a": 1.0, "b": 0.0}), constant(method, {"a": 1.0}))
        assert not same(constant(method, {"a": 0.0, "b": 0.0}), constant("linear", {"a": 0.0}))


def test_one_model_on_the_sphere_is_itself_whatever_its_weight() -> None:
    one, other = (constant("multislerp", {"a": w}, options={"normalize": 0.0}) for w in (0.3, 0.9))
    assert same(one, other)


@pytest.mark.parametrize(
    ("method", "summed"), [("linear", True), ("multislerp", True), ("task_arithmetic", False), ("ties", False)]
)
def test_what_all_share_with_the_base_may_change_where_weights_need_not_sum_to_one(method: str, summed: bool) -> None:
    assert constant(method, {"a": 1.0}, options={"normalize": 0.0}).scales == summed
    assert not constant(method, {"a": 1.0}, options={"normalize": 1.0}).scales
    assert constant("passthrough", {"a": 1.0}).scales


def test_density_counts_only_where_there_is_a_weight_and_a_mask_seed_only_where_there_is_a_mask() -> None:
    sparse = Recipe("ties", ("a",), {"a": {"mlp": (0.5,)}}, {"a": {"mlp": (0.3,), "rest": (0.9,)}})
    assert same(sparse, dataclasses.replace(sparse, densities={"a": {"mlp": (0.3,)}}))
    assert not same(sparse, dataclasses.replace(sparse, densities={"a": {"mlp": (0.4,)}}))
    assert same(constant("ties", {"a": 1.0}, density=1.0), Recipe("ties", ("a",), {"a": {"*": (1.0,)}}))  # all is kept
    assert same(constant("ties", {"a": 1.0}, mask_seed=1), constant("ties", {"a": 1.0}, mask_seed=2))
    assert not same(
        constant("dare_ties", {"a": 1.0}, density=0.5, mask_seed=1),
        constant("dare_ties", {"a": 1.0}, density=0.5, mask_seed=2),
    )


def test_a_density_of_a_group_counts_for_a_weight_of_a_piece() -> None:
    piece = Recipe("ties", ("a",), {"a": {"q_proj": (0.5,)}}, {"a": {"attention": (0.3,)}})
    assert not same(piece, dataclasses.replace(piece, densities={"a": {"attention": (0.9,)}}))


def test_equal_knots_are_one_constant_and_a_part_without_weight_counts_where_another_may_hold_the_same() -> None:
    def weighed(parts: dict[str, tuple[float, ...]]) -> Recipe:
        return Recipe("ties", ("a",), {"a": parts})

    assert same(weighed({"mlp": (0.5, 0.5)}), weighed({"mlp": (0.5,)}))
    assert same(weighed({"mlp": (0.5,), "rest": (0.0,)}), weighed({"mlp": (0.5,)}))
    assert not same(*(weighed({part: (0.0,), "*": (1.0,)}) for part in ("q_proj", "k_proj")))
    assert same(weighed({"q_proj": (0.0,)}), weighed({"*": (0.0,)}))  # the base
    assert same(weighed({"norm": (0.5,), "~norm": (0.1,)}), weighed({"norm": (0.5,)}))  # the first counts


def test_weights_that_add_up_to_nothing_are_not_normalised() -> None:
    one, other = (constant("dare_linear", {"a": w, "b": -w}, options={"normalize": 1.0}) for w in (1.0, 2.0))
    assert not same(one, other)
    for method, times in (("linear", 1e-9), ("nuslerp", 1e-7)):
        assert not same(*(constant(method, {"a": scale * 0.3, "b": scale * 0.7}) for scale in (1.0, times)))


def test_only_ratios_matter_where_weights_are_normalised() -> None:
    for times in (1.0, 0.3, 0.7, 1.1):
        assert same(constant("linear", {"a": 0.1, "b": 0.2}), constant("linear", {"a": times * 0.1, "b": times * 0.2}))
    along = [Recipe("linear", ("a", "b"), {e: {"mlp": (w, 3.0)} for e in "ab"}) for w in (1.0, 2.0)]
    assert not same(*along)  # knots stay as they are
    assert same(constant("ties", {"a": 0.5, "b": 0.5}), constant("ties", {"a": 1.0, "b": 1.0}))
    assert same(constant("nuslerp", {"a": 0.5, "b": 1.5}), constant("nuslerp", {"a": 1.0, "b": 3.0}))
    assert not same(constant("ties", {"a": -0.5, "b": -0.5}), constant("ties", {"a": 1.0, "b": 1.0}))
    assert not same(
        constant("task_arithmetic", {"a": 1.0, "b": 3.0}), constant("task_arithmetic", {"a": 0.25, "b": 0.75})
    )


def test_the_order_of_experts_does_not_matter_except_for_slerp() -> None:
    there, back = {"a": 0.2, "b": 0.4}, {"b": 0.4, "a": 0.2}
    assert same(constant("task_arithmetic", there), constant("task_arithmetic", back))
    for method in ("slerp", "nuslerp"):
        assert not same(constant(method, there), constant(method, back))


def test_experts_are_named_by_their_weights_not_their_names() -> None:
    recipe = constant("task_arithmetic", {"a": 0.5})
    assert recipe.phenotype({"a": "X"}) == constant("task_arithmetic", {"b": 0.5}).phenotype({"b": "X"})
    with pytest.raises(KeyError):
        recipe.phenotype({})


def test_slerp_is_named_by_its_share_alone() -> None:
    assert same(constant("slerp", {"a": 0.7, "b": 0.4}), constant("slerp", {"a": 0.0, "b": 0.4}))
    assert same(constant("slerp", {"a": 0.0}), constant("linear", {"a": 0.0}))  # the base


def test_plain_values_lead_back() -> None:
    recipe = constant("dare_ties", {"a": 0.5, "b": -0.1}, density=0.3, mask_seed=4)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(ValueError, match="a recipe has the fields"):
        Recipe.from_dict({**recipe.to_dict(), "lambda": 1})
    with pytest.raises(ValueError, match="a recipe has the fields"):
        Recipe.from_dict({"method": "linear"})
    with pytest.raises(ValueError, match="weights of a: expected a number or a list of numbers, got 'much'"):
        Recipe.from_dict({"method": "linear", "experts": ["a"], "weights": {"a": {"mlp": "much"}}})
    with pytest.raises(ValueError, match="weights of a: expected a number or a list of numbers, got True"):
        Recipe.from_dict({"method": "linear", "experts": ["a"], "weights": {"a": True}})


@pytest.mark.parametrize("layers", [Layers("a", -1, 2), Layers("a", 2, 2), Layers("z", 0, 2)])
def test_layers_that_cannot_be_stacked_are_refused(layers: Layers) -> None:
    with pytest.raises(ValueError, match="a stack needs layers of known experts, first below last, got"):
        Merge(constant("passthrough", {"a": 1.0}), "base", {"a": "./a"}, stack=(layers,))


def test_a_person_writes_numbers_lists_and_parts() -> None:
    plain = {"method": "linear", "experts": ["a", "b"], "weights": {"a": 1, "b": {"q_proj": [0, 1], "*": 0.5}}}
    recipe = Recipe.from_dict(plain)
    assert recipe.weights == {"a": {"*": (1.0,)}, "b": {"q_proj": (0.0, 1.0), "*": (0.5,)}}
    assert recipe.at("model.layers.1.self_attn.q_proj.weight", 2).weights == (1.0, 1.0)
    assert recipe.at("model.layers.1.self_attn.k_proj.weight", 2).weights == (1.0, 0.5)


def test_the_first_part_that_holds_a_parameter_counts() -> None:
    parts = {"q_proj": (0.1,), "attention": (0.2,), "*": (0.3,)}
    recipe = Recipe("linear", ("a",), {"a": parts})
    names = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight", "lm_head.weight")
    assert [recipe.at(name, 2).weights for name in names] == [(0.1,), (0.2,), (0.3,)]
    assert not same(recipe, Recipe("linear", ("a",), {"a": dict(reversed(parts.items()))}))


def test_all_of_a_model_is_its_three_groups() -> None:
    assert same(
        constant("ties", {"a": 0.5}, density=0.3),
        Recipe("ties", ("a",), {"a": dict.fromkeys(GROUPS, (0.5,))}, {"a": dict.fromkeys(GROUPS, (0.3,))}),
    )


def test_a_piece_is_one_recipe_marked_or_not() -> None:
    plain, marked = (
        Recipe("ties", ("a",), {"a": {part: (0.5,), "*": (1.0,)}}, {"a": {part: (0.2,)}}) for part in ("norm", "~norm")
    )
    assert marked.phenotype({"a": "a"}) == plain.phenotype({"a": "a"})
    group, piece = (Recipe("ties", ("a",), {"a": {part: (0.5,), "*": (1.0,)}}) for part in ("mlp", "~mlp"))
    assert piece.phenotype({"a": "a"}) != group.phenotype({"a": "a"})


def test_options_count() -> None:
    assert same(constant("breadcrumbs", {"a": 1.0}, options={"gamma": 0.01}), constant("breadcrumbs", {"a": 1.0}))
    assert not same(constant("breadcrumbs", {"a": 1.0}, options={"gamma": 0.1}), constant("breadcrumbs", {"a": 1.0}))


def test_methods_without_weights_take_every_expert() -> None:
    both = Recipe("model_stock", ("a", "b"), {})
    assert same(both, Recipe("model_stock", ("b", "a"), {}))
    assert not same(both, Recipe("model_stock", ("a", "c"), {}))
