from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge3 import mergefile, mergekit
from merge3.recipe import Layers, Merge, Recipe, constant

OWN = """
base: org/base
experts: {maths: org/maths, german: ./german}
method: ties
weights: {maths: 0.6, german: {attention: [0.2, 0.8], mlp: 0.4}}
densities: {maths: 0.3}
options: {lambda: 1.1}
dtype: bfloat16
"""
STACKED = "base: b\nexperts: {a: a}\nmethod: passthrough\n"
THEIRS: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "org/base",
    "models": [
        {"model": "org/maths", "parameters": {"weight": 0.6, "density": 0.3}},
        {"model": "other/maths", "parameters": {"weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.2}]}},
    ],
    "parameters": {"lambda": 1.1, "density": 0.5},
    "dtype": "bfloat16",
}


def written(folder: Path, text: str) -> Path:
    path = folder / "merge.yaml"
    path.write_text(text)
    return path


def test_our_own_form(tmp_path: Path) -> None:
    merge = mergefile.read(written(tmp_path, OWN))
    assert (merge.base, merge.dtype, dict(merge.experts)) == (
        "org/base",
        "bfloat16",
        {"maths": "org/maths", "german": "./german"},
    )
    assert merge.recipe.weights == {"maths": {"*": (0.6,)}, "german": {"attention": (0.2, 0.8), "mlp": (0.4,)}}
    assert merge.recipe.all_options == {"lambda": 1.1, "normalize": 1.0}
    assert mergefile.read(written(tmp_path, mergefile.to_yaml(merge))) == merge


def test_names_that_yaml_reads_as_numbers_are_text(tmp_path: Path) -> None:
    text = "base: b\nexperts: {1: x, 0.5: y}\nmethod: ties\nweights: {1: 0.6, 0.5: 1}\ndensities: {1: 0.3}\n"
    merge = mergefile.read(written(tmp_path, text))
    assert merge.experts == {"1": "x", "0.5": "y"}
    assert merge.recipe == Recipe(
        "ties", ("1", "0.5"), {"1": {"*": (0.6,)}, "0.5": {"*": (1.0,)}}, {"1": {"*": (0.3,)}}
    )
    assert mergefile.read(written(tmp_path, mergefile.to_yaml(merge))) == merge
    stack = "base: b\nexperts: {1: x}\nmethod: passthrough\nstack: [{expert: 1, first: 0, last: 2}]\n"
    assert mergefile.read(written(tmp_path, stack)).stack == (Layers("1", 0, 2),)


def test_mergekits_form(tmp_path: Path) -> None:
    merge = mergefile.read(written(tmp_path, yaml.safe_dump(THEIRS)))
    assert dict(merge.experts) == {"maths": "org/maths", "maths-2": "other/maths"}
    assert merge.recipe.weights["maths-2"] == {"~mlp": (0.0, 1.0), "*": (0.2,)}
    assert merge.recipe.densities == {"maths": {"*": (0.3,)}, "maths-2": {"*": (0.5,)}}
    assert merge.recipe.options == {"lambda": 1.1}


def test_groups_become_filters_for_mergekit(tmp_path: Path) -> None:
    recipe = Recipe(
        "ties", ("a",), {"a": {"rest": (0.1,), "attention": (0.2, 0.4), "mlp": (0.3,)}}, {"a": {"mlp": (0.5,)}}
    )
    text = mergefile.to_mergekit(Merge(recipe, "base", {"a": "./a"}))
    again = mergefile.read(written(tmp_path, text)).recipe
    names = [
        *("model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"),
        *("transformer.h.1.attn.c_attn.weight", "model.layers.1.block_sparse_moe.gate.weight"),
        *("model.layers.1.linear_attn.out_proj.weight", "model.decoder.layers.1.fc1.weight"),
    ]
    for name in names:
        assert again.at(name, 2) == recipe.at(name, 2)


def test_models_have_names_of_their_own() -> None:
    models = [{"model": source, "parameters": {"weight": 1}} for source in ("me/a-3", "me/a", "you/a", "us/a/")]
    found = mergekit.read({"merge_method": "linear", "models": models})
    assert found.experts == {"a-3": "me/a-3", "a": "me/a", "a-4": "you/a", "a-5": "us/a/"}


def test_an_adapter_on_a_model_is_the_adapter() -> None:
    assert mergekit.read(THEIRS | {"models": [{"model": "org/base+me/lora", "parameters": {"weight": 1}}]}).experts == {
        "lora": "me/lora"
    }


def test_an_adapter_of_another_model_is_refused() -> None:
    model = {"model": "org/tuned+me/lora", "parameters": {"weight": 1}}
    with pytest.raises(ValueError, match=r"'org/tuned\+me/lora' is an adapter of 'org/tuned', and the base_model is"):
        mergekit.read(THEIRS | {"models": [model]})
    with pytest.raises(ValueError, match=r"names a model: got \{'parameters'"):
        mergekit.read(THEIRS | {"models": [{"parameters": {"weight": 1}}]})


@pytest.mark.parametrize("weights", [{"attention": (1.0,), "rest": (0.5,)}, {"rest": (0.5,)}, {"attention": (1.0,)}])
def test_what_has_no_weight_has_none_in_mergekits_form(tmp_path: Path, weights: dict[str, Any]) -> None:
    recipe = Recipe("task_arithmetic", ("a",), {"a": weights})
    again = mergefile.read(written(tmp_path, mergefile.to_mergekit(Merge(recipe, "base", {"a": "./a"})))).recipe
    for name in (
        *("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"),
        *("gpt_neox.layers.0.attention.dense.weight", "transformer.h.0.self_attention.dense.weight"),
    ):
        assert again.at(name, 2) == recipe.at(name, 2), name
    odd = Recipe("task_arithmetic", ("a",), {"a": {"rest": (0.5,), "norm": (0.1,)}})
    with pytest.raises(ValueError, match="mergekit cannot tell 'norm' from 'rest'"):
        mergefile.to_mergekit(Merge(odd, "base", {"a": "./a"}))


@pytest.mark.parametrize(
    "weights",
    [
        {"rest": (0.5,), "*": (0.25, 1.0)},
        {"mlp": (0.1,), "rest": (0.5,), "*": (0.25,)},
        {"*": (0.25,), "rest": (0.5,)},
        {"norm": (0.1,), "rest": (0.5,)},
    ],
)
def test_the_rest_is_told_from_what_holds_everywhere(tmp_path: Path, weights: dict[str, Any]) -> None:
    recipe = Recipe("task_arithmetic", ("a",), {"a": weights})
    again = mergefile.read(written(tmp_path, mergefile.to_mergekit(Merge(recipe, "base", {"a": "./a"})))).recipe
    for part in ("layers.1.self_attn.q_proj", "layers.1.mlp.up_proj", "layers.1.input_layernorm", "embed_tokens"):
        name = f"model.{part}.weight"
        assert again.at(name, 2).weights == recipe.at(name, 2).weights, name


@pytest.mark.parametrize(
    ("weights", "stack"),
    [
        ({"a": {"mlp": (2.0,)}}, ()),
        ({"a": {"mlp": (2.0,)}}, (Layers("a", 0, 2),)),
        ({}, (Layers("a", 0, 2),)),
    ],
)
def test_what_passthrough_leaves_out_is_left_out_by_mergekit(
    tmp_path: Path, weights: dict[str, Any], stack: tuple[Layers, ...]
) -> None:
    recipe = Recipe("passthrough", ("a",), weights)
    merge = Merge(recipe, "base", {"a": "./a"}, stack=stack)
    again = mergefile.read(written(tmp_path, mergefile.to_mergekit(merge))).recipe
    attention, mlp = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
    scale = 1.0 if stack and not weights else 0.0
    assert again.at(attention, 2).weights == (scale,)
    assert again.at(mlp, 2).weights == ((2.0,) if weights else (scale,))


@pytest.mark.parametrize("method", ["linear", "karcher", "ties"])
def test_one_slice_is_a_merge_of_its_models_alone(tmp_path: Path, method: str) -> None:
    own = {} if method == "karcher" else {"parameters": {"weight": 0.5}}
    entries = [{"model": model, "layer_range": [0, 4]} | own for model in ("org/a", "org/b")]
    values = {"merge_method": method, "base_model": "org/base", "slices": [{"sources": entries}]}
    merge = mergekit.read(values)
    assert (merge.base, dict(merge.experts), merge.depth) == ("org/base", {"a": "org/a", "b": "org/b"}, 4)
    for text in (mergefile.to_yaml(merge), mergefile.to_mergekit(merge)):
        assert mergefile.read(written(tmp_path, text)) == merge


@pytest.mark.parametrize("alone", [True, False])
def test_where_no_filter_of_a_slice_holds_the_files_setting_does(alone: bool) -> None:
    """As mergekit's `resolve_parameter` asks each scope in turn, until one has a value."""
    rule = {"filter": "mlp", "value": 0.5}
    rules = rule if alone else [rule]
    entry: dict[str, Any] = {"model": "org/a", "layer_range": [0, 4], "parameters": {"weight": 1}}
    values: dict[str, Any] = {"merge_method": "ties", "base_model": "org/base", "parameters": {"density": 0.3}}
    read = mergekit.read(values | {"slices": [{"sources": [entry], "parameters": {"density": rules}}]})
    assert read.recipe.densities["a"] == {"~mlp": (0.5,), "*": (0.3,)}
    entry["parameters"] = {"scale": rules}
    slices = [{"sources": [entry], "parameters": {"scale": [0.2, 0.4]}}]
    read = mergekit.read({"merge_method": "passthrough", "slices": slices})
    assert read.recipe.weights["a"] == {"~mlp": (0.5,), "*": (0.2, 0.4)}


def test_an_adapter_is_written_for_mergekit_on_its_base(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    lora = str(tmp_path / "lora")
    merge = Merge(constant("task_arithmetic", {"a": 0.5, "b": 0.5}), "org/base", {"a": "org/a", "b": lora})
    values = mergekit.write(merge)
    assert [entry["model"] for entry in values["models"]] == ["org/a", f"org/base+{lora}"]
    theirs = THEIRS | {"models": [{"model": "org/base+me/lora", "parameters": {"weight": 1}}]}
    again = mergefile.read(written(tmp_path, mergefile.to_mergekit(mergekit.read(theirs))))
    assert mergekit.write(again)["models"][0]["model"] == "org/base+me/lora"


def test_the_bases_config_and_tokenizer_are_kept_by_mergekit_where_it_can(tmp_path: Path) -> None:
    experts = {"a": "org/a", "b": "org/b"}
    merge = Merge(constant("linear", {"a": 0.5, "b": 0.3}), "org/base", experts)
    values = mergekit.write(merge)
    assert values["base_model"] == "org/base"
    assert values["models"][-1] == {"model": "org/base", "parameters": {"weight": 0.0}}
    assert mergefile.read(written(tmp_path, mergefile.to_mergekit(merge))).experts == experts
    for recipe in (
        *(Recipe("karcher", ("a", "b"), {}), Recipe("slerp", ("a", "b"), {"b": {"*": (0.5,)}})),
        Recipe("nuslerp", ("a", "b"), {e: {"*": (0.5,)} for e in experts}, options={"around_base": 0.0}),
    ):
        text = mergefile.to_mergekit(Merge(recipe, "org/base", experts))
        assert text.startswith("# config and tokenizer are those of one of the models: mergekit would merge the base, ")
        assert dict(mergefile.read(written(tmp_path, text)).experts).keys() | {"a"} == {"a", "b"}
    among = mergekit.write(Merge(Recipe("karcher", ("a", "b"), {}), "org/a", experts))
    assert (among["base_model"], [entry["model"] for entry in among["models"]]) == ("org/a", ["org/a", "org/b"])


def test_the_base_is_named_once_and_by_its_own_name() -> None:
    experts = {"a": "org/a", "b": "org/b"}
    among = mergekit.write(Merge(constant("linear", {"a": 0.5, "b": 0.3}), "org/a", experts))
    assert [entry["model"] for entry in among["models"]] == ["org/a", "org/b"]
    assert among["models"][0]["parameters"] == {"weight": 0.5}
    alone = mergekit.write(Merge(constant("slerp", {"a": 0.5}), "org/base", {"a": "org/a"}))
    assert (alone["base_model"], alone["models"]) == ("org/base", [{"model": "org/a"}])
    both = mergekit.write(Merge(Recipe("slerp", ("a", "b"), {"b": {"*": (0.5,)}}), "org/base", experts))
    assert (both["base_model"], both["models"]) == ("org/a", [{"model": "org/b"}])


TWO: list[dict[str, Any]] = [{"model": model, "parameters": {"weight": 0.5}} for model in ("org/a", "org/b")]


@pytest.mark.parametrize(
    ("method", "parameters", "file"),
    [
        ("ties", {}, {"tokenizer": {"source": "base"}}),
        ("ties", {"rescale": False}, {}),
        ("task_arithmetic", {"density": 0.5, "rescale": True}, {}),
        ("model_stock", {"normalize": False}, {}),
    ],
)
def test_what_changes_nothing_in_mergekit_changes_nothing(
    method: str, parameters: dict[str, Any], file: dict[str, Any]
) -> None:
    models = [{"model": entry["model"]} for entry in TWO] if method == "model_stock" else TWO
    plain = {"merge_method": method, "base_model": "org/base", "models": models}
    assert mergekit.read(plain | {"parameters": parameters} | file) == mergekit.read(plain)


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_what_is_merged_on_the_sphere_is_told_by_whether_there_is_a_base(method: str) -> None:
    values = {"merge_method": method, "models": TWO}
    assert mergekit.read(values).recipe.all_options["around_base"] == 0.0
    assert mergekit.read(values | {"base_model": "org/base"}).recipe.all_options["around_base"] == 1.0


def test_the_dtype_of_what_is_written_counts_before_that_of_merging() -> None:
    values = {"merge_method": "karcher", "models": [{"model": "org/a"}, {"model": "org/b"}]}
    assert mergekit.read(values | {"dtype": "float32"}).dtype == "float32"
    assert mergekit.read(values | {"dtype": "float32", "out_dtype": "bfloat16"}).dtype == "bfloat16"


def test_a_number_that_yaml_reads_as_text_is_one(tmp_path: Path) -> None:
    text = "merge_method: karcher\nmodels: [{model: org/a}, {model: org/b}]\nparameters: {tol: 1e-9}\n"
    assert mergefile.read(written(tmp_path, text)).recipe.options == {"tol": 1e-9}


def changed(**values: Any) -> dict[str, Any]:
    return THEIRS | values


MODEL = {"model": "x", "parameters": {"weight": 1.0}}
PART = {"sources": [{**MODEL, "layer_range": [0, 2]}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(merge_method="arcee_fusion"), "merge_method must be one of .* got 'arcee_fusion'"),
        (changed(modules={}), "'modules' is not supported"),
        (changed(tokenizer_source="union"), "tokenizer_source 'union' is not supported"),
        (changed(base_model=None), "ties needs a base_model"),
        (changed(models=[]), "at least one model"),
        (changed(models=[{"model": "org/base"}]), "at least one model beside the base"),
        (changed(models=[{"model": 3}]), "a model must be a folder or hub id, got 3"),
        (changed(models=[{"model": "x"}]), "'weight' is not set for every parameter"),
        (changed(models=[{"model": "x", "parameters": {"weight": "high"}}]), "'weight' must be a number"),
        (changed(models=[MODEL], parameters={"gamma": 0.1}), "ties has no parameter 'gamma'"),
        (changed(models=[MODEL], parameters={"lambda": [0.1, 0.2]}), "'lambda' must be one number here"),
        (changed(models=[MODEL], slices=[{}]), "either models or slices"),
        (
            changed(
                merge_method="model_stock", models=[{"model": "x"}, {"model": "y"}], parameters={"filter_wise": True}
            ),
            "filter_wise: True is not supported",
        ),
        (changed(models=None, slices=[{"sources": []}]), "must all cover the model"),
        (
            changed(models=None, slices=[{"sources": [{"model": "x", "layer_range": [1, 3]}]}]),
            "must all cover the model",
        ),
        *(
            (
                changed(models=None, slices=[{"sources": [MODEL | given]}], merge_method=method),
                rf"layer_range must be two whole numbers that rise, from 0 on, got {re.escape(repr(wrong))}",
            )
            for method in ("ties", "passthrough")
            for wrong in ([0, 2, 3], [0], [0, "x"], [0.0, 2.7], "02", [2, 2], [0, -1], None)
            for given in [{} if wrong is None else {"layer_range": wrong}]
        ),
        (
            changed(models=None, slices=[{"sources": [{"model": "x", "layer_range": [0, 1]}]}] * 2),
            "slices of ties are not supported but for one",
        ),
        (
            changed(models=None, slices=[PART | {"base_model": "other"}]),
            "a slice's base_model 'other' is not supported",
        ),
        (
            changed(models=None, slices=[PART | {"residual_weight": 0.5}]),
            "a slice has a field 'residual_weight', which is not supported",
        ),
        (
            changed(models=None, slices=[{"sources": [{**MODEL, "layer_range": [0, 2], "scale": 2}]}]),
            "an entry of sources has a field 'scale'",
        ),
        (changed(models=[{"model": "x", "weight": 1.0}]), "an entry of models has a field 'weight'"),
        (changed(tokenizer={"source": "union"}), "tokenizer {'source': 'union'} is not supported"),
        (changed(tokenizer={"source": "base", "tokens": {}}), "tokenizer {'source': 'base', 'tokens': {}} is not"),
        (changed(tokenizer={"source": "base"}, tokenizer_source="base"), "tokenizer_source 'base' is not supported"),
        (changed(models=[MODEL], parameters={"rescale": True}), "rescale: True is not supported"),
        (changed(models=[MODEL], parameters={"lambda": "high"}), "'lambda' must be one number here"),
        (changed(base_model="org/base+me/lora"), r"base_model 'org/base\+me/lora' is an adapter"),
        (changed(models=[MODEL, MODEL]), "'x' is there twice in models: name each model once"),
        (changed(models=None, slices=[{"sources": PART["sources"] * 2}]), "'x' is there twice in sources"),
    ],
)
def test_what_is_not_done_is_refused_by_name(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    kept = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        mergefile.read(written(tmp_path, yaml.safe_dump(kept)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a mapping"),
        ("a: [", "cannot be read as YAML: line 1, column "),
        (OWN + "\nlambda: 2", "unknown 'lambda'; fields are"),
        (OWN.replace("base: org/base", ""), "missing 'base'"),
        (OWN.replace("method: ties", "method: tise"), "merge method must be one of"),
        (OWN.replace("bfloat16", "int4"), "dtype must be one of"),
        (OWN.replace("{maths: 0.3}", "{math: 0.3}"), "densities are given for 'math'"),
        ("base: b\nexperts: [a]\nmethod: ties", "experts must map names"),
        ("base: b\nexperts: {a: a}\nmethod: ties\nstack: [{expert: a, first: 0, last: 1}]", "by passthrough alone"),
        ("base: b\nexperts: {a: a}\nmethod: passthrough\nstack: [{expert: a}]", "a stack is a list of"),
        ("base: b\nexperts: {a: x, a: y}\nmethod: ties", "'a' stands twice in a mapping"),
        ("base: b\nexperts: {a: x}\nmethod: ties\nmethod: linear", "'method' stands twice in a mapping"),
        ("? [base]\n: b", "cannot be read as YAML: line 1, column "),
        ("base: b\nexperts: {a: x}\nmethod: ties\nweights: 0.5", "weights must map experts to numbers, got 0.5"),
        ("base: b\nexperts: {a: x}\nmethod: ties\noptions: 5", "options must map names to numbers, got 5"),
        ("base: b\nexperts: {a: null}\nmethod: ties", "a must be a folder, a GGUF file or a hub id, got None"),
        ("base: b\nexperts: {a: [x]}\nmethod: ties", r"a must be a folder, a GGUF file or a hub id, got \['x'\]"),
        ("base:\nexperts: {a: x}\nmethod: ties", "base must be a folder, a GGUF file or a hub id, got None"),
        (OWN.replace("{lambda: 1.1}", "{lambda: high}"), "option 'lambda' must be a number, got 'high'"),
        (OWN.replace("{lambda: 1.1}", "{lambda: }"), "option 'lambda' must be a number, got None"),
        (OWN + "mask_seed: high", "mask_seed must be a whole number, got 'high'"),
        (OWN + "mask_seed: true", "mask_seed must be a whole number, got True"),
        (OWN + "depth: 1.5", "depth must be a whole number, got 1.5"),
        (STACKED + "stack: [{expert: a, first: 0, last: 2.9}]", "last must be a whole number, got 2.9"),
        (STACKED + "stack: [{expert: a, first: x, last: 2}]", "first must be a whole number, got 'x'"),
        (STACKED + "stack: [{expert: a, first: 0, last: 2}]\nweights: {A: 2}", "weights are given for 'A'"),
        (STACKED + "stack: [{expert: a, first: 0, last: 2}]\nweights: {a: .nan}", "weights must be finite"),
        (STACKED + "stack: [{expert: a, first: 0, last: 2}]\noptions: {gamma: 2}", "passthrough has no option 'gamma'"),
        ("base: 2024-13-45\nexperts: {a: x}\nmethod: ties", "cannot be read as YAML: month must be in"),
        (OWN.replace("maths: 0.3", "maths: 1" + 400 * "0"), "another kind than a merge file's: int too large"),
        ("!!python/object/apply:os.system [true]", "cannot be read as YAML: line 1, column "),
    ],
)
def test_files_that_say_no_merge_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mergefile.read(written(tmp_path, text))


def test_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no merge file at"):
        mergefile.read(tmp_path / "none.yaml")


def test_experts_need_sources() -> None:
    with pytest.raises(ValueError, match="no source is given for expert 'b'"):
        Merge(constant("linear", {"a": 1.0, "b": 1.0}), "base", {"a": "x"})
    with pytest.raises(ValueError, match="a stack needs layers"):
        Merge(constant("passthrough", {"a": 1.0}), "a", {"a": "x"}, stack=(Layers("a", 2, 2),))


@pytest.mark.parametrize(
    "values",
    [
        {"base": "b", "experts": {"a": "x"}, "method": ["ties"]},
        {"base": "b", "experts": {"a": "x"}, "method": "ties", "stack": 5},
        {"merge_method": "linear", "models": [{"model": "x"}], "parameters": 5},
        {"merge_method": "passthrough", "slices": 3},
        {"merge_method": "passthrough", "slices": [{}]},
        {"merge_method": "linear", "models": [{"model": "x", "parameters": {"weight": [{"filter": "mlp"}]}}]},
    ],
)
def test_values_of_another_kind_are_refused_with_the_files_name(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=r"m\.yaml: "):
        mergefile.read(tmp_path / "m.yaml")


def test_values_that_are_the_same_are_written_each_time() -> None:
    curve = (0.1, 0.2, 0.3)
    parts = {"attention": curve, "mlp": curve}
    merge = Merge(Recipe("linear", ("a", "b"), {"a": parts, "b": parts}), "base", {"a": "x", "b": "y"})
    for text in (mergefile.to_yaml(merge), mergefile.to_mergekit(merge)):
        assert "&" not in text
        assert "*id" not in text


def test_a_file_of_bytes_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"\xbc\x00")
    with pytest.raises(ValueError, match=f"{tmp_path / 'model'} cannot be read as YAML: 'utf-8' codec"):
        mergefile.read(tmp_path / "model")
