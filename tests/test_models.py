from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
import torch
from conftest import CONFIGS, SIZES, build, fine_tune
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BertConfig,
    Gemma4TextConfig,
    GPTNeoXConfig,
    Llama4Config,
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    ReformerConfig,
    RobertaConfig,
    T5Config,
    XLMConfig,
)

from merge3 import models
from merge3.models import Expert, IncompatibleModels
from merge3.plan import Machine, plan


def test_a_full_model_changes_what_differs(saved: dict[str, Path], llama: PreTrainedModel) -> None:
    base = models.weights_of(models.load(saved["base"], torch.float32))
    expert = models.weights_of(models.load(saved["first"], torch.float32))
    found = models.changes(saved["first"], base, llama.config)
    assert set(found) == set(base)
    for name, tensor in found.items():
        assert torch.equal(tensor, expert[name])
    half = {name: tensor.bfloat16() for name, tensor in expert.items()}
    assert set(models.changes(saved["first"], half, llama.config)) == set(half)  # rounding is a difference
    assert models.changes(saved["base"], base, llama.config) == {}


def write_gguf(model: PreTrainedModel, path: Path) -> None:
    """A Llama as llama.cpp keeps it: other names, rotary halves interleaved."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in models.weights_of(model).items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            value = value.view(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_layer(last: int) -> PretrainedConfig:
    """A Gemma 4 whose heads are of another size in every second layer, of `last` in the last."""
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "hidden_size_per_layer_input": 0}
    sizes = {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": last, "sliding_window": 20}
    return Gemma4TextConfig(**SIZES, **kinds, **sizes, vocab_size=259)


def test_layers_may_differ_in_what_experts_share(tmp_path: Path) -> None:
    base = build(by_layer(16), 1)
    for name, expert in (("same", fine_tune(base, 2)), ("other", build(by_layer(32), 1))):
        expert.save_pretrained(tmp_path / name)
    weights = models.weights_of(base)
    assert models.changes(tmp_path / "same", weights, base.config).keys() == weights.keys()
    with pytest.raises(IncompatibleModels, match=r"head_dim is \[8, 32\], the base's is \[8, 16\]"):
        models.changes(tmp_path / "other", weights, base.config)


def test_a_gguf_file_is_an_expert(tmp_path: Path, llama: PreTrainedModel) -> None:
    path = tmp_path / "expert.gguf"
    expert = fine_tune(llama, 2)
    write_gguf(expert, path)
    assert models.weights_folder(str(path)) == path
    assert models.fingerprint(path) == models.fingerprint(path)
    found = models.changes(path, models.weights_of(llama), llama.config)
    for name, value in models.weights_of(expert).items():
        assert torch.equal(found[name], value)
    with pytest.raises(FileNotFoundError, match="no model at"):
        models.load(tmp_path / "none.gguf", torch.float32)


def test_tied_weights_occur_once(llama: PreTrainedModel) -> None:
    assert "lm_head.weight" not in models.weights_of(llama)
    assert "model.embed_tokens.weight" in models.weights_of(llama)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIGS["qwen2"], "model_type is 'qwen2', the base's is 'llama'"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, the base's is 2"),
        (
            {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
            "num_attention_heads is 8, the base's is 4",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_parameters is"),
        ({"intermediate_size": 48}, r"has shape \(48, 32\), the base's \(64, 32\)"),
    ],
)
def test_experts_that_do_not_fit_are_refused_by_name(
    llama: PreTrainedModel, tmp_path: Path, config: Qwen2Config | dict[str, int], message: str
) -> None:
    if isinstance(config, dict):
        config = type(llama.config)(**(llama.config.to_dict() | config))
    build(config, 7).save_pretrained(tmp_path)
    with pytest.raises(IncompatibleModels, match=message):
        models.changes(tmp_path, models.weights_of(llama), llama.config)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda kept: {k: v for k, v in kept.items() if "layers.1.mlp.up" not in k}, "1 missing keys"),
        (lambda kept: kept | {"model.extra.weight": torch.ones(2)}, "1 unexpected keys"),
        (
            lambda kept: kept | {"model.embed_tokens.weight": torch.ones(262, 32)},
            r"1 mismatched keys in its weights, first .'model\.embed_tokens\.weight', .*262, 32.*259, 32",
        ),
    ],
)
def test_weights_that_are_not_whole_are_refused(
    saved: dict[str, Path],
    tmp_path: Path,
    edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    message: str,
) -> None:
    shutil.copytree(saved["base"], tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(IncompatibleModels, match=message):
        models.load(tmp_path / "m", torch.float32)


def test_of_a_model_with_pictures_whose_text_alone_can_be_loaded_that_is_said(tmp_path: Path) -> None:
    text = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 259, "pad_token_id": 2}
    mixture = {"intermediate_size_mlp": 64, "num_local_experts": 2}
    sizes = {**SIZES, "num_hidden_layers": 1, "image_size": 28, "vision_output_dim": 32}
    pictures = sizes | {"projector_input_dim": 32, "projector_output_dim": 32}
    whole = Llama4ForConditionalGeneration(Llama4Config(text_config=text | mixture, vision_config=pictures))
    whole.save_pretrained(tmp_path / "whole")
    with pytest.raises(IncompatibleModels, match="it is a llama4, of which transformers loads the text alone") as error:
        models.load(tmp_path / "whole", torch.float32)
    assert "as Llama4ForCausalLM.from_pretrained(...).save_pretrained(...) writes it" in str(error.value)
    Llama4ForCausalLM.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "text")
    found, expected = models.load(tmp_path / "text", torch.float32), whole.language_model
    assert models.weights_of(found).keys() == models.weights_of(expected).keys()


def test_another_vocabulary_is_refused_by_a_token(
    saved: dict[str, Path], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert models.added_tokens(saved["first"], tokenizer) == {}
    assert models.added_tokens(tmp_path, tokenizer) == {}  # no tokenizer: the base's is meant
    shutil.copytree(saved["first"], tmp_path / "m")
    file = tmp_path / "m" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    with pytest.raises(IncompatibleModels, match="token 'a' is"):
        models.added_tokens(tmp_path / "m", tokenizer)


def test_tokens_that_an_expert_added_are_named_in_their_order(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    longer, other = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    longer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    longer.save_pretrained(tmp_path / "longer")
    added = models.added_tokens(tmp_path / "longer", tokenizer)
    assert list(added.items()) == [("<|im_start|>", 259), ("<|im_end|>", 260)]
    assert models.left_out("it", added) == (
        "it has tokens that the base lacks (2, the first '<|im_start|>'): merges leave them out; "
        "`merge3 tokens` makes a base that has them"
    )
    tokenizer.save_pretrained(tmp_path / "shorter")
    assert models.added_tokens(tmp_path / "shorter", longer) == {}
    other.add_tokens(["<think>"])
    assert models.added_tokens(tmp_path / "longer", models.load_tokenizer(tmp_path / "longer")) == {}
    assert models.added_tokens(tmp_path / "longer", other) == added  # 259 is another token there, added too
    other.add_tokens(["<|im_start|>"])
    assert models.added_tokens(tmp_path / "longer", other) == added  # which has 260 there


@pytest.mark.parametrize("rows", [262, 250])
def test_an_expert_with_other_rows_of_tokens_is_merged_as_far_as_the_base_has_them(
    model: PreTrainedModel, tmp_path: Path, rows: int
) -> None:
    fine_tune(model, 5).save_pretrained(tmp_path / "same")
    expert = models.load(tmp_path / "same", torch.float32)
    expert.resize_token_embeddings(rows, mean_resizing=False)
    expert.save_pretrained(tmp_path / "resized")
    base = models.weights_of(model)
    same, resized = (models.changes(tmp_path / name, base, model.config) for name in ("same", "resized"))
    assert same.keys() == resized.keys() == base.keys()
    by_token = [name for name in base if len(base[name]) == 259]
    assert len(by_token) == (2 if "lm_head.weight" in base else 1)
    for name, tensor in resized.items():
        assert tensor.shape == base[name].shape
        kept = rows if name in by_token else None
        assert torch.equal(tensor[:kept], same[name][:kept])
        if kept:
            assert torch.equal(tensor[kept:], base[name][kept:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_an_expert_added_in_the_bases_padding_is_left_out(
    model: PreTrainedModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    fine_tune(model, 5).save_pretrained(tmp_path)
    expert = models.load(tmp_path, dtype)
    expert.save_pretrained(tmp_path)
    base = models.weights_of(model)
    plain, found = (models.changes(tmp_path, base, model.config, added) for added in ((), (257, 258, 300)))
    for name in base:
        kept = 257 if len(base[name]) == 259 else len(base[name])
        assert torch.equal(found[name][:kept], plain[name][:kept].to(found[name].dtype))
        assert torch.equal(found[name][kept:], base[name][kept:])


def test_rows_that_a_coarser_expert_lacks_are_the_bases_to_the_bit(llama: PreTrainedModel, tmp_path: Path) -> None:
    fine_tune(llama, 5).save_pretrained(tmp_path)
    expert = models.load(tmp_path, torch.bfloat16)
    expert.resize_token_embeddings(250, mean_resizing=False)
    expert.save_pretrained(tmp_path)
    base = models.weights_of(llama)
    found = models.changes(tmp_path, base, llama.config)["model.embed_tokens.weight"]
    assert torch.equal(found[250:], base["model.embed_tokens.weight"][250:])


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    models.check_device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    expected = r"expected cpu, or cuda or cuda:1 for the first or second GPU, of which torch [\w.+]+ finds 2$"
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here: {expected}"):
        models.check_device(device)


def test_the_fingerprint_follows_what_answers_depend_on(saved: dict[str, Path], tmp_path: Path) -> None:
    first = models.fingerprint(saved["first"])
    assert first != models.fingerprint(saved["second"])
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in saved["first"].glob("*.safetensors"):
        (copy / file.name).write_bytes(file.read_bytes())
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (copy / file).write_bytes((saved["first"] / file).read_bytes())
    (copy / "README.md").write_text("anything")
    assert models.fingerprint(copy) == first
    for file in ("config.json", "tokenizer.json"):
        (copy / file).write_bytes((saved["first"] / file).read_bytes() + b" ")
        assert models.fingerprint(copy) != first
        (copy / file).write_bytes((saved["first"] / file).read_bytes())


def test_missing_models_are_said_so(tmp_path: Path, llama: PreTrainedModel) -> None:
    missing = tmp_path / "none"
    for look in (
        lambda: models.load(missing, torch.float32),
        lambda: models.fingerprint(missing),
        lambda: models.changes(missing, models.weights_of(llama), llama.config),
        lambda: models.weights_folder("nobody/nothing"),
    ):
        with pytest.raises(FileNotFoundError, match="no model at"):
            look()
    missing.mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"no model at .* \(.*none is no model's folder: it has no config\.json\)"
    ):
        models.load(missing, torch.float32)


@pytest.mark.parametrize("config", [T5Config, BartConfig])
def test_what_is_no_causal_language_model_is_refused(tmp_path: Path, config: type[PretrainedConfig]) -> None:
    config(d_model=32, num_layers=1, vocab_size=259).save_pretrained(tmp_path)
    save_file({"shared.weight": torch.ones(259, 32)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IncompatibleModels, match=f"no causal language model of kind '{config.model_type}'"):
        models.load(tmp_path, torch.float32)
    with pytest.raises(IncompatibleModels, match="no causal language model of kind"):
        plan(tmp_path, [], "ties", Machine(1.0, 1.0, 1.0), tokens=1)


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig, XLMConfig, ReformerConfig])
def test_a_masked_language_model_is_refused(tmp_path: Path, kind: type[PretrainedConfig]) -> None:
    kind().save_pretrained(tmp_path)
    for look in (
        lambda: models.load(tmp_path, torch.float32),
        lambda: plan(tmp_path, [], "ties", Machine(1.0, 1.0, 1.0), tokens=1),
    ):
        with pytest.raises(IncompatibleModels, match=f"a {kind.model_type} is a masked .* expected a causal one"):
            look()


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**SIZES, vocab_size=259, is_decoder=True),
        XLMConfig(emb_dim=32, n_layers=2, n_heads=4, vocab_size=259, causal=True),
        GPTNeoXConfig(**SIZES, vocab_size=259),  # not said to be a decoder, and one nevertheless
    ],
)
def test_what_reads_from_left_to_right_is_loaded(tmp_path: Path, config: PretrainedConfig) -> None:
    build(config, 1).save_pretrained(tmp_path)
    model = models.load(tmp_path, torch.float32)
    first, second = model(torch.tensor([[5, 6, 7], [5, 6, 8]])).logits
    torch.testing.assert_close(first[:2], second[:2])  # no token knows what follows it
    assert not torch.allclose(first[2], second[2])


def test_what_is_quantised_by_what_is_not_here_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(saved["base"], tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    file.write_text(json.dumps(json.loads(file.read_text()) | quantised))
    with pytest.raises(IncompatibleModels, match="GPTQ"):
        models.load(tmp_path / "m", torch.float32)


def test_a_pickle_is_not_read_as_weights(tmp_path: Path, saved: dict[str, Path]) -> None:
    (tmp_path / "config.json").write_bytes((saved["base"] / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="no model at"):
        models.load(tmp_path, torch.float32)


def test_weights_are_kept_as_they_are_stored(saved: dict[str, Path], tmp_path: Path, llama: PreTrainedModel) -> None:
    assert models.stored_dtype(saved["base"]) is torch.float32
    shutil.copytree(saved["first"], tmp_path / "m")
    half = models.load(saved["first"], torch.bfloat16)
    half.save_pretrained(tmp_path / "m")
    assert models.stored_dtype(tmp_path / "m") is torch.bfloat16
    found = models.changes(tmp_path / "m", models.weights_of(llama), llama.config)
    assert {source.dtype for source in found.values() if isinstance(source, torch.Tensor)} == {torch.bfloat16}
    file = tmp_path / "m" / "model.safetensors"
    kept = load_file(file)
    save_file({name: value.double() for name, value in kept.items()}, file, metadata={"format": "pt"})
    with pytest.raises(IncompatibleModels, match="tensors of dtype F64 cannot be merged"):
        models.stored_dtype(tmp_path / "m")


@pytest.mark.parametrize(("wide", "kept"), [("post_attention_layernorm.weight", True), ("experts.0.w1.weight", False)])
def test_one_wide_tensor_leaves_the_others_as_they_are_stored(tmp_path: Path, wide: str, kept: bool) -> None:
    sizes = {"num_key_value_heads": 2, "vocab_size": 259, "num_local_experts": 2}
    whole = build(MixtralConfig(**SIZES, **sizes), 1)
    for name, dtype in (("whole", torch.float32), ("mixed", torch.bfloat16)):
        whole.to(dtype).save_pretrained(tmp_path / name)
    file = tmp_path / "mixed" / "model.safetensors"
    own = load_file(tmp_path / "whole" / "model.safetensors")
    tensors = {name: own[name] if name.endswith(wide) else value for name, value in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    found = models.weights_of(models.load_stored(tmp_path / "mixed"))
    expected = models.weights_of(models.load(tmp_path / "mixed", torch.float32))
    assert all(torch.equal(found[name].float(), expected[name]) for name in expected)
    are_wide = {name for name, value in found.items() if value.dtype == torch.float32}
    assert are_wide == ({name for name in found if name.endswith(wide)} if kept else set(found))


def test_what_a_model_does_not_use_has_no_say_in_its_dtype(saved: dict[str, Path], tmp_path: Path) -> None:
    models.load(saved["first"], torch.bfloat16).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = load_file(file)
    made = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "mask": torch.ones(4, dtype=torch.bool),
    }
    save_file(kept | made, file, metadata={"format": "pt"})
    assert models.stored_dtype(tmp_path) is models.written_dtype(tmp_path) is torch.bfloat16
    save_file(kept | {"model.norm.weight": kept["model.norm.weight"].float()}, file, metadata={"format": "pt"})
    assert models.stored_dtype(tmp_path) is torch.float32  # nothing is rounded
    assert models.written_dtype(tmp_path) is torch.bfloat16
    for wide, narrow in (("a", "b"), ("b", "a")):
        save_file({wide: torch.ones(4), narrow: torch.ones(8).bfloat16()}, file, metadata={"format": "pt"})
        assert models.written_dtype(tmp_path) is torch.float32  # of two alike the wider


def test_a_tokenizer_is_written_alike_wherever_it_came_from(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for name in ("one", "two"):
        tokenizer.init_kwargs["local_files_only"] = name == "one"
        models.save_tokenizer(tokenizer, tmp_path / name)
    tokenizer.init_kwargs.pop("local_files_only")
    written = [(tmp_path / name / "tokenizer_config.json").read_bytes() for name in ("one", "two")]
    assert written[0] == written[1]


def test_dtypes_have_names() -> None:
    assert models.resolve_dtype("float32", "cpu") is torch.float32
    with pytest.raises(ValueError, match="got 'int4'"):
        models.resolve_dtype("int4", "cpu")


@pytest.mark.parametrize(
    ("amx", "avx", "dtype", "unit"),
    [
        (True, True, torch.bfloat16, " AMX in products of 1536 rows,"),
        (False, True, torch.bfloat16, " AVX512_BF16,"),
        (False, False, torch.float32, None),
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool, dtype: torch.dtype, unit: str | None
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert models.resolve_dtype("auto", "cpu") is dtype
    name = models.runtime_name("cpu")  # whose answers differ in their last bits
    assert unit in name if unit else "AMX" not in name and "BF16" not in name


def test_the_manifest_is_read_as_written(tmp_path: Path) -> None:
    base, experts = Expert("base", "b", "0"), [Expert("x", "y", "1")]
    models.write_manifest(tmp_path / "m.json", base, experts)
    assert models.read_manifest(tmp_path / "m.json") == (base, experts)


def test_a_tokenizer_can_always_pad(saved: dict[str, Path], tokenizer: PreTrainedTokenizerBase) -> None:
    assert models.load_tokenizer(saved["base"]).pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/\n", {"memory.max": "9000", "memory.current": "4000"}, 9000 - 4000 + 30 + 200),
        ("0::/\n", {"memory.max": "max", "memory.current": "4000"}, 10**6),
        ("0::/slice/job\n", {"slice/memory.max": "9000", "slice/memory.current": "8900"}, 330),
        ("0::/slice/job\n", {"slice/job/memory.max": "100", "slice/job/memory.current": "4000"}, 0),
        (
            "9:cpu:/x\n4:memory,x:/docker/1\n0::/\n",
            {"memory/memory.limit_in_bytes": "9000", "memory/memory.usage_in_bytes": "4000"},
            9000 - 4000 + 1 + 7,
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": str(2**63), "memory/memory.usage_in_bytes": "4"}, 10**6),
        ("0::/\n", {"memory.max": "9000", "memory.current": "4000", "memory.stat": "anon 5\n"}, 10**6),
        (None, {}, 10**6),
    ],
)
def test_a_containers_limit_is_what_it_may_take(
    groups: str | None, files: dict[str, str], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    if groups:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(groups)
    stat = "inactive_file 30\nactive_file 200\ntotal_inactive_file 1\ntotal_active_file 7\nanon 5\n"
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "memory.stat").write_text(stat)
        path.write_text(text)
    assert models.free_memory(tmp_path) == left
