from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import CONFIGS, build, fine_tune, with_tokens
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from merge3 import cli, export, models
from merge3.recipe import Merge, constant
from merge3.tokens import give

TEMPLATE = "{% for turn in messages %}<|im_start|>{{ turn['content'] }}<|im_end|>{% endfor %}"


def saved_as(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> str:
    """A model's folder."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return str(out)


@pytest.fixture(params=[True, False])  # embedding and head as one, and apart
def family(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> dict[str, str]:
    """A base, a chat tune with two further tokens, a template and another end, and a plain tune."""
    config = LlamaConfig(**CONFIGS["llama"].to_dict() | {"tie_word_embeddings": request.param})
    base = build(config, seed=1)
    places = {"base": saved_as(base, tokenizer, tmp_path / "base")}
    places["plain"] = saved_as(fine_tune(base, 2), tokenizer, tmp_path / "plain")
    saved_as(fine_tune(base, 3), tokenizer, tmp_path / "before")
    chat = with_tokens(tmp_path / "before", tmp_path / "chat", "<|im_start|>", "<|im_end|>")
    longer = AutoTokenizer.from_pretrained(chat)
    longer.chat_template = TEMPLATE
    longer.eos_token = "<|im_end|>"
    longer.save_pretrained(chat)
    GenerationConfig(eos_token_id=[257, 260]).save_pretrained(chat)
    stored = json.loads((chat / "config.json").read_text())
    (chat / "config.json").write_text(json.dumps(stored | {"eos_token_id": 260}))
    return places | {"chat": str(chat)}


def test_the_base_has_the_tokens_and_is_the_base_otherwise(family: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (Path(family["chat"]) / "tokenizer.model").write_bytes(b"pieces")
    (Path(family["base"]) / "preprocessor_config.json").write_text("{}")
    assert give(family["base"], family["chat"], out) == {"<|im_start|>": 259, "<|im_end|>": 260}
    base, chat, made = (models.load(source, torch.float32) for source in (family["base"], family["chat"], out))
    ours, theirs, before = (models.weights_of(model) for model in (made, chat, base))
    for name, tensor in before.items():
        assert torch.equal(ours[name][: len(tensor)], tensor)
        assert torch.equal(ours[name][len(tensor) :], theirs[name][len(tensor) :])
    tokens = torch.arange(30)[None]
    torch.testing.assert_close(made(tokens).logits[..., :259], base(tokens).logits)
    assert (made.config.vocab_size, made.config.eos_token_id) == (261, 260)
    assert made.generation_config.eos_token_id == [257, 260]
    tokenizer = models.load_tokenizer(out)
    assert (tokenizer.chat_template, tokenizer.eos_token) == (TEMPLATE, "<|im_end|>")
    assert (out / "tokenizer.model").read_bytes() == b"pieces"
    assert (out / "preprocessor_config.json").exists()


def test_merges_of_it_keep_the_tokens(family: dict[str, str], tmp_path: Path) -> None:
    base = str(tmp_path / "new")
    give(family["base"], family["chat"], Path(base))
    experts = {"chat": family["chat"], "plain": family["plain"]}
    told: list[str] = []
    whole = Merge(constant("task_arithmetic", {"chat": 1.0}), base, experts)
    made = export.export(whole, tmp_path / "out", say=told.append)
    assert told == []
    tokens = torch.tensor([[5, 259, 7, 260]])
    torch.testing.assert_close(made(tokens).logits, models.load(family["chat"], torch.float32)(tokens).logits)
    half = Merge(constant("task_arithmetic", {"chat": 0.3, "plain": 0.5}), base, experts)
    by_token = models.token_parameters(made)
    rows = models.weights_of(models.load(family["chat"], torch.float32))
    for name, tensor in models.weights_of(export.build(half)).items():
        if name in by_token:
            torch.testing.assert_close(tensor[259:], rows[name][259:])


def test_tokens_in_the_bases_padding_are_the_experts(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base = build(CONFIGS["llama"], seed=1)
    base.resize_token_embeddings(270, mean_resizing=False)
    saved_as(base, tokenizer, tmp_path / "base")
    saved_as(fine_tune(llama, 3), tokenizer, tmp_path / "before")
    chat = with_tokens(tmp_path / "before", tmp_path / "chat", "<|im_end|>")
    assert give(str(tmp_path / "base"), str(chat), tmp_path / "out") == {"<|im_end|>": 259}
    ours, theirs, before = (
        models.load(source, torch.float32).get_input_embeddings().weight
        for source in (tmp_path / "out", chat, tmp_path / "base")
    )
    assert torch.equal(ours[259], theirs[259])
    assert torch.equal(ours[260:], before[260:])
    assert CONFIGS["llama"].vocab_size == 259  # other tests have it, too
    assert torch.equal(ours[:259], before[:259])


def test_a_base_is_stored_as_before_where_one_tensor_is_wider(
    saved: dict[str, Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base = build(CONFIGS["llama"], seed=1).to(torch.bfloat16)
    base.model.norm.float().weight.fill_(1.0001)
    saved_as(base, tokenizer, tmp_path / "base")
    chat = with_tokens(saved["first"], tmp_path / "chat", "<|im_end|>")
    give(str(tmp_path / "base"), str(chat), tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    assert models.written_dtype(tmp_path / "out") == torch.bfloat16
    assert {tensor.dtype for tensor in before.values()} == {torch.float32, torch.bfloat16}
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name][: len(tensor)], tensor)


def test_numbers_that_are_no_tokens_have_rows(
    saved: dict[str, Path], llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    chat = fine_tune(llama, 3)
    chat.resize_token_embeddings(270, mean_resizing=False)
    saved_as(chat, tokenizer, tmp_path / "chat")
    stored = json.loads((tmp_path / "chat" / "tokenizer.json").read_text())
    stored["model"]["vocab"]["<|im_end|>"] = 265
    (tmp_path / "chat" / "tokenizer.json").write_text(json.dumps(stored))
    assert give(str(saved["base"]), str(tmp_path / "chat"), tmp_path / "out") == {"<|im_end|>": 265}
    made = models.load(tmp_path / "out", torch.float32).get_input_embeddings().weight
    assert torch.equal(made[259:], chat.get_input_embeddings().weight[259:266])


def test_what_cannot_give_its_tokens_is_refused(
    saved: dict[str, Path], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    base = str(saved["base"])
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / models.ADAPTER_CONFIG).write_text("{}")
    with pytest.raises(ValueError, match=r"merge it into its base first, by PEFT's .* \(`merge3 merge` leaves its"):
        give(base, str(tmp_path / "adapter"), tmp_path / "out")
    build(CONFIGS["llama"], 2).save_pretrained(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        give(base, str(tmp_path / "bare"), tmp_path / "out")
    other = saved_as(build(CONFIGS["qwen2"], 2), tokenizer, tmp_path / "other")
    with pytest.raises(models.IncompatibleModels, match="model_type is 'qwen2'"):
        give(base, other, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty is no model's folder: it has no config\.json"):
        give(str(tmp_path / "empty"), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileExistsError, match="is not empty"):
        give(base, str(saved["first"]), saved["second"])


def test_the_command_says_what_was_added(
    saved: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = with_tokens(saved["first"], tmp_path / "chat", "<|im_end|>")
    capsys.readouterr()
    assert cli.main(["tokens", str(saved["base"]), str(chat), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/out: the base with the tokenizer of {chat}, 1 tokens added\n"
    assert cli.main(["tokens", str(saved["base"]), str(chat), str(tmp_path / "again"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(tmp_path / "again"), "tokens": {"<|im_end|>": 259}}
