"""What a graphics card would run, on one that is none: see `card`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from card import GIGABYTE, OnCard, card
from conftest import CONFIGS, build
from test_adapters import MERGED, adapter_of
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import MambaConfig, PreTrainedModel, PreTrainedTokenizerBase

from merge3 import answering, export, kernels, models, plan, respond, run
from merge3.items import FreeText, Item
from merge3.live import open_asker
from merge3.recipe import TRAITS, Merge, Recipe

pytestmark = pytest.mark.usefixtures("one_thread", "compiled")
ROOM = {"all": (20 * GIGABYTE,), "all but masks": (20 * GIGABYTE, 0), "the model alone": (0,)}
LITTLE = [(method, room) for room in ("all but masks", "the model alone") for method in ("dare_ties", "della_linear")]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads of ours would not know of the card where they make a tensor by its name."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels, which go by address, refuse tensors on the card."""
    for name in ("combine_compiled", "vote_compiled"):
        kernel = getattr(kernels, name)

        def near(*arguments: object, kernel: Callable[..., None] = kernel) -> None:
            assert not any(isinstance(value, OnCard) for value in tree_leaves(arguments))
            kernel(*arguments)

        monkeypatch.setattr(kernels, name, near)


def values(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in models.weights_of(model).items()}


def test_the_card_refuses_what_cuda_refuses() -> None:
    with card():
        there, here = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
        assert there.device == here.to("cuda").device == torch.device("cuda:0")
        assert (there + here.to(there.device)).sum().item() == 12
        for refused in (
            lambda: there + here,
            lambda: here @ there.T,
            lambda: here[torch.zeros(1, dtype=torch.long, device="cuda")],
            lambda: there.__setitem__(torch.tensor([0]), here),
            lambda: setattr(here, "data", there),
        ):
            with pytest.raises(RuntimeError, match=r"two devices|another device"):
                refused()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        there[0] = here[1] + 1
        assert there.tolist() == [[2.0] * 3, [1.0] * 3]


def merged(folders: dict[str, str], recipe: Recipe, device: str, store: Path) -> dict[str, Tensor]:
    """The weights of a merge that is made after another."""
    experts = {name: folders[name] for name in recipe.experts}
    merger = open_asker(folders["base"], experts, store, device=device, dtype="float32").merger
    assert isinstance(next(iter(merger.model.parameters())), OnCard) == (device == "cuda")
    merger.apply(recipe)
    merger.apply(recipe)
    return values(merger.model)


def assert_same(folders: dict[str, str], recipe: Recipe, store: Path, room: str) -> None:
    """A merge on a card that has so much room is the processor's."""
    ours = merged(folders, recipe, "cpu", store)
    with card(ROOM[room]):
        theirs = merged(folders, recipe, "cuda", store)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def usual(method: str, experts: tuple[str, ...]) -> Recipe:
    traits = TRAITS[method]
    names = experts[: traits.most]
    weights = {name: 0.4 + place / 10 for place, name in enumerate(names)} if traits.weights else {}
    densities = dict.fromkeys(names, 0.5) if traits.densities else {}
    return Recipe.from_dict({"method": method, "experts": list(names), "weights": weights, "densities": densities})


@pytest.mark.parametrize(("method", "room"), [*((method, "all") for method in TRAITS), *LITTLE])
def test_merges_on_a_card_are_those_of_the_processor(
    method: str, room: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    """Whatever of base, experts and masks the card has room for."""
    folders = {name: str(folder) for name, folder in saved.items()}
    assert_same(folders, usual(method, ("first", "second")), tmp_path, room)


@pytest.mark.parametrize(("kind", "options"), [MERGED[place] for place in (3, 4, 6, 11, 12, 15)])
def test_adapters_are_merged_on_a_card(kind: str, options: dict, tmp_path: Path, tokenizer: object) -> None:
    build(CONFIGS[kind], seed=1).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapter_of(kind, tmp_path / "adapter", **options)
    folders = {name: str(tmp_path / name) for name in ("base", "adapter")}
    assert_same(folders, usual("ties", ("adapter",)), tmp_path / "store", "all")


def test_a_merge_that_is_written_stays_on_its_card(saved: dict[str, Path], tmp_path: Path) -> None:
    merge = Merge(usual("ties", ("first",)), str(saved["base"]), {"first": str(saved["first"])}, "float32")
    ours = values(export.export(merge, tmp_path / "ours"))
    with card():
        live = export.export(merge, tmp_path / "theirs", "cuda")
        assert {tensor.device.type for tensor in live.parameters()} == {"cuda"}
        torch.testing.assert_close(values(live), ours, rtol=1e-4, atol=1e-5)


EXAMPLES = "1 and 2: 3\n2 and 2: 4\n"
ITEMS = [
    *(Item(f"plain {n}", f"Say {n}: ", (f"{n}", f"{n + 1}a", "neither"), 0) for n in range(5)),
    *(Item(f"shots {n}", f"{EXAMPLES}{n} and 1: ", (f"{n + 1}", f"{n}b"), 0) for n in range(5)),
    *(Item(f"free {n}", f"{EXAMPLES}{'I' * n}: ", expected=("1",), free=FreeText(max_tokens=4)) for n in range(1, 6)),
]
ASKED = {**CONFIGS, "mamba": MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=259, state_size=4)}


@pytest.mark.parametrize("batch", [64, 4096])
@pytest.mark.parametrize("kind", ASKED)
def test_answers_on_a_card_are_those_of_the_processor(
    kind: str, batch: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Options, after examples too, and replies; by trees, and by sequences where a model has no attention."""
    model = build(ASKED[kind], seed=1)
    packed = answering.packable(model, tokenizer)
    ours, work = respond.respond(model, tokenizer, ITEMS, batch, packed=packed)
    with card():
        there = copy.deepcopy(model).to("cuda")
        assert answering.packable(there, tokenizer) == packed == (kind != "mamba")
        theirs, same = respond.respond(there, tokenizer, ITEMS, batch, packed=packed)
    assert same.tokens == work.tokens
    for mine, its in zip(ours, theirs, strict=True):
        assert its == (pytest.approx(mine, rel=1e-4, abs=1e-4) if isinstance(mine, tuple) else mine)


def test_a_run_on_a_card_ends_with_a_model(saved: dict[str, Path], tmp_path: Path) -> None:
    questions = [Item(f"q{n}", f"Say {n}: ", (f"{n}a", f"{n + 1}b", f"c{n}"), n % 3) for n in range(60)]
    experts = {name: str(saved[name]) for name in ("first", "second")}
    with card():
        found = run.run(saved["base"], experts, questions, tmp_path / "out", budget=12, method="ties", device="cuda")
        assert plan.measure("cuda", torch.float32).memory == 24 * GIGABYTE
    assert len(found.history) == 12
    assert found.verdict
    assert models.load(tmp_path / "out", torch.float32).num_parameters() > 0
