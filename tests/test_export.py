from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import build, fine_tune, with_tokens
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Qwen3_5Config,
    Qwen3Config,
)

from merge3 import export, mergefile, mergekit, models
from merge3.models import IncompatibleModels, weights_of
from merge3.recipe import Layers, Merge, Recipe, constant

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {"num_key_value_heads": 2, "vocab_size": 272, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
ARCHITECTURES: dict[str, PretrainedConfig] = {  # a vocabulary padded beyond the tokenizer's 259 tokens
    "qwen3": Qwen3Config(**SIZES, **MORE, head_dim=8),
    "mistral": MistralConfig(**SIZES, **MORE),
    "gemma3": Gemma3TextConfig(**SIZES, **MORE, head_dim=8),
    "phi3": Phi3Config(**SIZES, **MORE),
    "mixtral": MixtralConfig(**SIZES, **MORE, num_local_experts=2),
    "deepseek_v3": DeepseekV3Config(  # its e_score_correction_bias is a buffer
        **SIZES,
        **MORE | {"num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
}
PICTURES = Gemma3Config(  # a vision tower that is deeper than the text's
    text_config=Gemma3TextConfig(**SIZES, **MORE, head_dim=8).to_dict(),
    vision_config={**SIZES, "hidden_size": 16, "num_hidden_layers": 3, "image_size": 28, "patch_size": 14},
    mm_tokens_per_image=4,
)
BLEND = {"a": 0.5, "b": 0.3}


def sources(saved: dict[str, Path]) -> dict[str, str]:
    return {"a": str(saved["first"]), "b": str(saved["second"])}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_what_is_written_is_the_merge(architecture: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    base = build(ARCHITECTURES[architecture], seed=1)
    experts = {"a": fine_tune(base, 2), "b": fine_tune(base, 3)}
    for name, model in {"base": base, **experts}.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    merge = Merge(
        constant("task_arithmetic", BLEND), str(tmp_path / "base"), {name: str(tmp_path / name) for name in experts}
    )
    export.export(merge, tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert written.config.tie_word_embeddings == base.config.tie_word_embeddings
    tied = written.get_output_embeddings().weight.data_ptr() == written.get_input_embeddings().weight.data_ptr()
    assert tied == base.config.tie_word_embeddings
    assert written.get_input_embeddings().weight.shape[0] == 272
    start = weights_of(base)
    for name, parameter in weights_of(written).items():
        moved = sum(w * (weights_of(experts[e])[name] - start[name]) for e, w in BLEND.items())
        torch.testing.assert_close(parameter, start[name] + moved, rtol=1e-5, atol=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer.get_vocab()
    assert not list((tmp_path / "out").glob("*.bin"))


def test_adapters_and_models_are_merged_together(saved: dict[str, Path], tmp_path: Path) -> None:
    base = models.load(saved["base"], torch.float32)
    made = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    made.save_pretrained(tmp_path / "adapter")
    whole = weights_of(made.merge_and_unload())
    start, first = (weights_of(models.load(saved[name], torch.float32)) for name in ("base", "first"))
    merge = Merge(
        constant("task_arithmetic", BLEND),
        str(saved["base"]),
        {"a": str(saved["first"]), "b": str(tmp_path / "adapter")},
    )
    for name, parameter in weights_of(export.build(merge)).items():
        expected = start[name] + 0.5 * (first[name] - start[name]) + 0.3 * (whole[name] - start[name])
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_made_for_another_base_is_said_to_be(saved: dict[str, Path], tmp_path: Path) -> None:
    base = models.load(saved["base"], torch.float32)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    merge = Merge(constant("linear", {"a": 1.0}), str(saved["base"]), {"a": str(tmp_path / "adapter")})
    file, told = tmp_path / "adapter" / "adapter_config.json", list[str]()
    own = file.read_text()
    for place, named in enumerate((str(saved["base"]), saved["base"].name, "org/other")):
        file.write_text(own.replace(str(saved["base"]), named))
        export.export(merge, tmp_path / str(place), say=told.append)
    assert told == [f"a is an adapter made for org/other; the base here is {saved['base']}"]
    assert f"{told[0]}." in (tmp_path / "2" / "README.md").read_text()


def test_tokens_that_an_expert_added_are_left_out_and_said_so(
    saved: dict[str, Path], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with_tokens(saved["first"], tmp_path / "longer", "<|im_start|>", "<|im_end|>")
    same = Merge(constant("task_arithmetic", BLEND), str(saved["base"]), sources(saved))
    merge = Merge(same.recipe, same.base, sources(saved) | {"a": str(tmp_path / "longer")})
    told: list[str] = []
    live = export.export(merge, tmp_path / "out", say=told.append)
    (line,) = told
    assert line.startswith("a has tokens that the base lacks (2, the first '<|im_start|>'): merges leave them out;")
    assert f"{line}." in (tmp_path / "out" / "README.md").read_text()
    for name, parameter in weights_of(export.build(same)).items():
        assert torch.equal(weights_of(live)[name], parameter)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


def test_experts_without_a_weight_are_said_to_be_left_out(saved: dict[str, Path], tmp_path: Path) -> None:
    found = sources(saved)
    for place, (method, weights, expected) in enumerate(
        (
            ("ties", {"b": 0.4}, ["a has no weight: nothing of it is merged"]),
            ("ties", {"a": 0.0, "b": 0.4}, []),
            ("slerp", {"b": 0.4}, []),  # whose first expert has none
            ("karcher", {}, []),
        )
    ):
        told: list[str] = []
        recipe = Recipe(method, tuple(found), {name: {"*": (weight,)} for name, weight in weights.items()})
        export.export(Merge(recipe, str(saved["base"]), found), tmp_path / str(place), say=told.append)
        assert told == expected


def test_a_passthrough_without_weights_is_refused(saved: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="passthrough without weights is a model of zeros"):
        Merge(Recipe("passthrough", ("a",), {}), str(saved["base"]), {"a": str(saved["first"])})


def test_layers_of_models_with_other_tokens_are_not_stacked(saved: dict[str, Path], tmp_path: Path) -> None:
    longer = with_tokens(saved["first"], tmp_path / "longer", "<|im_end|>")
    stack = (Layers("a", 0, 2), Layers("b", 0, 2))
    for base, first in (
        (saved["base"], longer),
        (with_tokens(saved["base"], tmp_path / "base", "<x>"), saved["first"]),
    ):
        found = {"a": str(first), "b": str(saved["second"])}
        merge = Merge(constant("passthrough", {"a": 1.0}), str(base), found, stack=stack)
        with pytest.raises(ValueError, match="has not the base's tokens: layers of it cannot be stacked"):
            export.export(merge, tmp_path / "out")


def test_the_card_says_how_it_was_made(tmp_path: Path) -> None:
    for name, text in (
        ("one", "---\nlicense: mit\n---\n# One"),
        ("two", "---\nlicense: apache-2.0\n---\n"),
        ("three", "#"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(text)
    merge = Merge(
        constant("linear", BLEND), str(tmp_path / "one"), {"a": str(tmp_path / "two"), "b": str(tmp_path / "three")}
    )
    scores = pd.DataFrame({"model": ["it"], "accuracy": [0.5], "low": [0.45], "high": [0.55]})
    text = export.card(merge, "it", torch.bfloat16, scores)
    front = yaml.safe_load(text.split("---")[1])
    assert "base_model" not in front  # the hub takes ids, not folders
    assert "license" not in front
    assert "licences differ (apache-2.0, mit)" in text
    assert "| b | " + str(tmp_path / "three") + " | not stated |" in text
    assert f"No licence is known of {tmp_path / 'three'}" in text
    assert "| it | 50.0 | 45.0-55.0 |" in text
    assert mergefile.to_yaml(merge).strip() in text
    text = export.card(Merge(merge.recipe, "org/base", {"a": "org/a", "b": "org/b"}), "it", torch.bfloat16)
    front = yaml.safe_load(text.split("---")[1])
    assert (front["base_model"], front["base_model_relation"]) == (["org/base", "org/a", "org/b"], "merge")
    same = Merge(constant("linear", {"a": 1.0}), str(tmp_path / "one"), {"a": str(tmp_path / "one")})
    assert yaml.safe_load(export.card(same, "it", torch.float32).split("---")[1])["license"] == "mit"


def test_another_dtype_is_rounded_once(saved: dict[str, Path]) -> None:
    recipe = constant("linear", BLEND)
    whole = weights_of(export.build(Merge(recipe, str(saved["base"]), sources(saved))))
    half = export.build(Merge(recipe, str(saved["base"]), sources(saved), dtype="bfloat16"))
    assert half.dtype == torch.bfloat16
    for name, parameter in weights_of(half).items():
        assert torch.equal(parameter, whole[name].bfloat16())


def test_one_wide_tensor_is_merged_whole_and_leaves_the_dtype_as_most_are(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    found = {}
    for name in ("base", "first"):
        shutil.copytree(saved[name], tmp_path / name)
        models.load(saved[name], torch.bfloat16).save_pretrained(tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        norm = load_file(saved[name] / "model.safetensors")["model.norm.weight"]
        save_file(load_file(file) | {"model.norm.weight": norm}, file, metadata={"format": "pt"})
        found[name] = norm
    both = {"a": str(tmp_path / "base"), "b": str(tmp_path / "first")}
    merge = Merge(constant("linear", {"a": 1.0, "b": 1.0}), str(tmp_path / "base"), both)
    live = weights_of(export.build(merge))
    assert {weight.dtype for weight in live.values()} == {torch.bfloat16}
    assert torch.equal(live["model.norm.weight"], ((found["base"] + found["first"]) / 2).bfloat16())


def test_the_bases_tokenizer_is_written_without_a_padding_token_that_it_lacks(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(saved["base"], tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").write_bytes(b"pieces")
    file = tmp_path / "base" / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "pad_token"}))
    for name, merged in (("without", tmp_path / "base"), ("with", saved["base"])):
        export.export(Merge(constant("linear", BLEND), str(merged), sources(saved)), tmp_path / name)
    without, whole = (json.loads((tmp_path / n / "tokenizer_config.json").read_text()) for n in ("without", "with"))
    assert whole == without | {"pad_token": "<pad>"}
    assert (tmp_path / "without" / "tokenizer.model").read_bytes() == b"pieces"
    assert models.load_tokenizer(tmp_path / "without").pad_token == "</s>"  # as before: the end pads


def test_layers_are_stacked(saved: dict[str, Path], tmp_path: Path) -> None:
    recipe = Recipe("passthrough", ("a", "b"), {"a": {"*": (1.0,)}, "b": {"mlp": (0.5,), "*": (1.0,)}})
    stack = (Layers("a", 0, 2), Layers("b", 1, 2))
    export.export(Merge(recipe, str(saved["base"]), sources(saved), stack=stack), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    written = weights_of(models.load(tmp_path / "out", torch.float32))
    first, second = (weights_of(models.load(saved[name], torch.float32)) for name in ("first", "second"))
    assert torch.equal(written["model.layers.1.mlp.up_proj.weight"], first["model.layers.1.mlp.up_proj.weight"])
    up = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(written[up.replace("1", "2", 1)], 0.5 * second[up])
    assert torch.equal(written["model.embed_tokens.weight"], first["model.embed_tokens.weight"])
    assert torch.equal(written["model.norm.weight"], second["model.norm.weight"])
    deep = Merge(recipe, str(saved["base"]), sources(saved), stack=(Layers("a", 0, 3),))
    with pytest.raises(ValueError, match="'a' has 2 layers, the stack asks for 3"):
        export.build(deep)


def test_a_stacks_knots_run_along_each_part(tmp_path: Path) -> None:
    deep = build(LlamaConfig(**SIZES | {"num_hidden_layers": 4}, **MORE), 1)
    deep.generation_config = GenerationConfig(eos_token_id=[1, 2])
    deep.save_pretrained(tmp_path / "deep")
    recipe = Recipe("passthrough", ("a",), {"a": {"mlp": (0.5, 2.0), "*": (1.0,)}})
    stack = (Layers("a", 0, 3), Layers("a", 2, 3), Layers("a", 2, 4))
    live = export.build(Merge(recipe, str(tmp_path / "deep"), {"a": str(tmp_path / "deep")}, stack=stack))
    name = "model.layers.{}.mlp.up_proj.weight".format
    for place, (layer, scale) in enumerate([(0, 0.5), (1, 1.25), (2, 2.0), (2, 2.0), (2, 0.5), (3, 2.0)]):
        assert torch.equal(weights_of(live)[name(place)], scale * weights_of(deep)[name(layer)])
    assert live.generation_config is not None
    assert live.generation_config.eos_token_id == [1, 2]


def test_a_slice_that_covers_a_part_of_the_model_is_refused(saved: dict[str, Path]) -> None:
    whole, part = (
        mergekit.read(
            {
                "merge_method": "slerp",
                "base_model": str(saved["first"]),
                "slices": [
                    {"sources": [{"model": source, "layer_range": [0, last]} for source in sources(saved).values()]}
                ],
                "parameters": {"t": 0.5},
            }
        )
        for last in (2, 1)
    )
    assert export.build(whole).config.num_hidden_layers == 2
    with pytest.raises(ValueError, match="must all cover the model: the base has 2, asked for are 1"):
        export.build(part)


def test_a_model_of_text_and_pictures_is_merged_whole(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    base = build(PICTURES, 1)
    expert = fine_tune(base, 2)
    for name, model in {"base": base, "a": expert}.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / "base" / name).write_text(f'{{"name": "{name}"}}')
    recipe = Recipe("task_arithmetic", ("a",), {"a": {"*": (0.0, 1.0)}})
    merge = Merge(recipe, str(tmp_path / "base"), {"a": str(tmp_path / "a")})
    live = weights_of(export.export(merge, tmp_path / "out"))
    for name in ("preprocessor_config.json", "processor_config.json"):
        assert (tmp_path / "out" / name).read_text() == f'{{"name": "{name}"}}'
    text = "model.language_model.layers.{}.mlp.up_proj.weight".format
    picture = "model.vision_tower.encoder.layers.{}.mlp.fc1.weight".format
    for name, share in ((text(0), 0.0), (text(1), 1.0), (picture(0), 0.0), (picture(1), 0.5), (picture(2), 1.0)):
        start, end = weights_of(base)[name], weights_of(expert)[name]
        torch.testing.assert_close(live[name], start + share * (end - start), rtol=1e-5, atol=1e-6)
    stack = Merge(constant("passthrough", {"a": 1.0}), merge.base, merge.experts, stack=(Layers("a", 0, 2),))
    with pytest.raises(ValueError, match="layers of a gemma3 cannot be stacked"):
        export.build(stack)


def test_of_a_model_whose_text_alone_transformers_loads_that_is_merged(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    linear = {f"linear_{part}_head_dim": 8 for part in ("key", "value")} | {"linear_num_value_heads": 16}
    kinds = {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
    pictures = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3_5Config(text_config={**SIZES, **MORE, **linear, **kinds}, vision_config=pictures)
    for name in ("base", "a"):
        AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    merge = Merge(constant("task_arithmetic", {"a": 1.0}), str(tmp_path / "base"), {"a": str(tmp_path / "a")})
    said: list[str] = []
    live = weights_of(export.export(merge, tmp_path / "out", say=said.append))
    assert said == [f"{tmp_path / 'base'} is a model of more than text: the merge is of its text alone"]
    for name, value in weights_of(models.load(tmp_path / "a", torch.float32)).items():
        torch.testing.assert_close(live[name], value)


def test_an_expert_whose_text_is_of_another_config_is_refused(tmp_path: Path) -> None:
    other = PICTURES.to_dict()
    other["text_config"]["rope_parameters"]["full_attention"]["rope_theta"] = 5.0
    build(Gemma3Config(**other), 1).save_pretrained(tmp_path)
    with pytest.raises(IncompatibleModels, match=r"rope_parameters is .*, the base's is"):
        models.check_config(tmp_path, PICTURES)


def test_a_folder_that_holds_something_is_left_alone(saved: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    merge = Merge(constant("linear", BLEND), str(saved["base"]), sources(saved))
    with pytest.raises(FileExistsError, match="is not empty"):
        export.export(merge, tmp_path)
    with pytest.raises(FileExistsError, match="is a file: name another place"):
        export.export(merge, tmp_path / "note")
    with pytest.raises(ValueError, match=r"'\.' names none: give it a name"):
        export.export(merge, Path())
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_a_written_model_that_differs_is_found_out(saved: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="logits differ"):
        export.check_written(models.load(saved["first"], torch.float32), saved["second"], "cpu")


def test_experts_that_do_not_fit_write_nothing(saved: dict[str, Path], tmp_path: Path) -> None:
    build(ARCHITECTURES["mistral"], 1).save_pretrained(tmp_path / "other")
    merge = Merge(constant("linear", {"a": 1.0}), str(saved["base"]), {"a": str(tmp_path / "other")})
    with pytest.raises(IncompatibleModels, match="model_type is 'mistral'"):
        export.export(merge, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_card_compares_the_winner_with_every_rival() -> None:
    scores = pd.DataFrame(
        {
            "model": ["won", "rival"],
            **{"accuracy": [0.5, 0.4], "low": [0.45, 0.35], "high": [0.55, 0.45]},
            **{"lead": [0.0, 0.1], "lead_low": [0.0, 0.02], "lead_high": [0.0, 0.18], "holm_p": [1.0, 0.0123]},
        }
    )
    text = export.card(Merge(constant("linear", {"a": 1.0}), "o/b", {"a": "o/a"}), "it", torch.float32, scores, "How.")
    assert "| won | 50.0 | 45.0-55.0 |  |  |" in text
    assert "| rival | 40.0 | 35.0-45.0 | +10.0 [+2.0, +18.0] | 0.0123 |" in text
    assert "## Scores\n\nHow.\n\n" in text


@pytest.mark.parametrize("field", ["weights", "densities"])
def test_a_part_that_holds_nothing_is_refused(saved: dict[str, Path], field: str) -> None:
    parts = {"weights": {"a": {"mlp": (1.0,)}}, field: {"a": {"atention": (1.0,)}}}
    merge = Merge(Recipe("ties", ("a",), **parts), str(saved["base"]), {"a": str(saved["first"])})
    with pytest.raises(ValueError, match=r"part 'atention' of 'a' holds none of the model's parameters: .*'attention'"):
        export.build(merge)


def test_a_part_of_a_stack_that_holds_nothing_is_refused(saved: dict[str, Path]) -> None:
    recipe = Recipe("passthrough", ("a",), {"a": {"mpl": (2.0,)}})
    merge = Merge(recipe, str(saved["base"]), {"a": str(saved["first"])}, stack=(Layers("a", 0, 2),))
    with pytest.raises(ValueError, match="part 'mpl' of 'a' holds none of the model's parameters"):
        export.build(merge)


def test_a_filter_of_mergekits_may_hold_nothing(saved: dict[str, Path], tmp_path: Path) -> None:
    weight = [{"filter": "modelnorm", "value": 0.75}, {"value": 0.5}]
    entries = [{"model": str(saved["first"]), "parameters": {"weight": weight}}]
    merge = mergekit.read({"merge_method": "task_arithmetic", "base_model": str(saved["base"]), "models": entries})
    export.export(merge, tmp_path / "out")
    plain = Merge(constant("task_arithmetic", {"a": 0.5}), merge.base, {"a": str(saved["first"])})
    again = weights_of(export.build(mergefile.read(tmp_path / "out" / "merge.yaml")))
    for name, parameter in weights_of(export.build(plain)).items():
        assert torch.equal(again[name], parameter)


def test_what_cannot_be_written_is_said_before_anything_is_merged(saved: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    merge = Merge(constant("linear", BLEND), str(saved["base"]), sources(saved))
    with pytest.raises(OSError, match=r"nothing can be written to .*file/out"):
        export.export(merge, tmp_path / "file" / "out")
    with pytest.raises(ValueError, match=r"scores must have the columns .*there is no 'high'"):
        export.export(merge, tmp_path / "out", scores=pd.DataFrame({"model": ["a"], "accuracy": [1.0], "low": [1.0]}))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for place in ("folder", "nowhere"):
        if place == "folder":
            (tmp_path / place).mkdir()
        (tmp_path / f"link-{place}").symlink_to(tmp_path / place)
        with pytest.raises(FileExistsError, match=f"link-{place} is a link: name another place"):
            export.export(merge, tmp_path / f"link-{place}")
