"""A world where the truth is affordable: a Llama of 0.1 M parameters, trained here, that answers in milliseconds.

Problems are `name number verb number noun =` in four made-up languages: numbers, verbs and nouns are words of the
language, the result is a token that all share. Four options cross the operation (right, wrong) with the result (right,
wrong), as in the demonstration. The base learnt all languages a little, each of four experts one of them well. A merge
adds the experts' differences, weighted by eight genes: the expert's weight in attention and elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from figures import command_line
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

KEPT = Path(".bench/tiny")
LANGUAGES, NUMBERS, VERBS, NOUNS, NAMES = 4, 40, 3, 6, 12
RESULTS = 2 * NUMBERS - 1
GROUPS = ("attention", "rest")
WEIGHTS = (0.0, 1.2)  # what a gene of 0 and of 1 mean
BASE_STEPS, EXPERT_STEPS, BATCH = 500, 120, 128
SEARCH, TEST = 250, 500  # items of each language

# tokens: results, names, the equals sign, then each language's numbers, verbs of both operations, nouns
FIRST_NAME = RESULTS
EQUALS = FIRST_NAME + NAMES
OWN = EQUALS + 1
WORDS = NUMBERS + 2 * VERBS + NOUNS
VOCABULARY = OWN + LANGUAGES * WORDS
LENGTH = 6  # tokens of a problem
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
)


@dataclass(frozen=True)
class Problems:
    """Prompts and their four options; the first is right."""

    prompts: Int[np.ndarray, "items 6"]
    options: Int[np.ndarray, "items 4"]
    languages: Int[np.ndarray, " items"]

    def __len__(self) -> int:
        return len(self.prompts)


def problems(count: int, languages: list[int], seed: int) -> Problems:
    """`count` distinct problems of each of the languages."""
    generator = np.random.default_rng(seed)
    prompts, options, spoken = [], [], []
    for language in languages:
        seen: set[tuple[int, ...]] = set()
        while len(seen) < count:
            high, low = sorted(generator.integers(0, NUMBERS, 2).tolist(), reverse=True)
            if low == 0:
                continue
            subtract = int(generator.integers(2))
            word = OWN + language * WORDS
            first, second = (high, low) if language % 2 == 0 else (low, high)
            prompt = (
                FIRST_NAME + int(generator.integers(NAMES)),
                word + first,
                word + NUMBERS + subtract * VERBS + int(generator.integers(VERBS)),
                word + second,
                word + NUMBERS + 2 * VERBS + int(generator.integers(NOUNS)),
                EQUALS,
            )
            if prompt in seen:
                continue
            seen.add(prompt)
            right, other = (high - low, high + low) if subtract else (high + low, high - low)
            taken = {right, other}
            for value in (right, other):  # a wrong result beside each
                near = [v for d in (1, -1, 2, -2, 3, -3) if 0 <= (v := value + d) < RESULTS and v not in taken]
                taken.add(near[int(generator.integers(min(2, len(near))))])
            prompts.append(prompt)
            options.append([right, other, *sorted(taken - {right, other})])
            spoken.append(language)
    return Problems(np.array(prompts), np.array(options), np.array(spoken))


def _train(model: LlamaForCausalLM, languages: list[int], steps: int, rate: float, seed: int) -> None:
    """Learn the results of fresh problems."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        drawn = problems(BATCH // len(languages), languages, seed * 100_003 + step)
        logits = model(torch.from_numpy(drawn.prompts), logits_to_keep=1).logits[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(drawn.options[:, 0]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"languages {languages}: step {step + 1} of {steps}, loss {loss.item():.2f}", flush=True)


def trained() -> list[dict[str, torch.Tensor]]:
    """Weights of the base and of the four experts; trained once, a few minutes on a thread."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    made = []
    for number in range(LANGUAGES + 1):
        path = KEPT / f"{number}.safetensors"
        if not path.exists():
            if number == 0:
                _train(model, list(range(LANGUAGES)), BASE_STEPS, 5e-3, 1)
            else:
                model.load_state_dict(made[0])
                _train(model, [number - 1], EXPERT_STEPS, 2e-3, 1 + number)
            KEPT.mkdir(parents=True, exist_ok=True)
            save_file({name: value.clone() for name, value in model.state_dict().items()}, path)
        made.append(load_file(path))
    return made


class World:
    """The base, the experts, and two sets of problems: one to search on, one to tell the truth."""

    def __init__(self) -> None:
        weights = trained()
        self.model = LlamaForCausalLM(CONFIG).eval().requires_grad_(False)
        self.base = weights[0]
        self.names = sorted(self.base)
        self.deltas = {
            name: torch.stack([(w[name] - self.base[name]).flatten() for w in weights[1:]]) for name in self.names
        }
        every = problems(SEARCH + TEST, list(range(LANGUAGES)), 999)
        place = np.arange(len(every)) % (SEARCH + TEST)
        self.search, self.test = (
            Problems(every.prompts[chosen], every.options[chosen], every.languages[chosen])
            for chosen in (place < SEARCH, place >= SEARCH)
        )
        self.genes = LANGUAGES * len(GROUPS)

    @cached_property
    def standard(self) -> dict[str, Float[np.ndarray, " genes"]]:
        """Genotypes of the base, the experts and the usual merges."""
        made = {"base": np.zeros(self.genes)}
        for expert in range(LANGUAGES):
            one = np.zeros((len(GROUPS), LANGUAGES))
            one[:, expert] = 1.0
            made[f"expert {expert}"] = one.ravel() / WEIGHTS[1]
        made["uniform average"] = np.full(self.genes, 0.25 / WEIGHTS[1])
        made["task arithmetic"] = np.full(self.genes, 0.4 / WEIGHTS[1])
        return made

    @torch.inference_mode()
    def margins(
        self, genotype: Float[np.ndarray, " genes"], items: Int[np.ndarray, " asked"], of: Problems | None = None
    ) -> Float[np.ndarray, " asked"]:
        """The lead of the right option over the best other, in nats, of the merge on items of `of` (search items)."""
        of = of or self.search
        low, high = WEIGHTS
        table = torch.from_numpy(low + (high - low) * genotype.reshape(len(GROUPS), LANGUAGES)).float()
        for name, parameter in self.model.named_parameters():
            weights = table[0 if "self_attn" in name else 1]
            parameter.data = (self.base[name].flatten() + weights @ self.deltas[name]).view_as(parameter)
        logits = self.model(torch.from_numpy(of.prompts[items]), logits_to_keep=1).logits[:, 0]
        scores = logits.gather(1, torch.from_numpy(of.options[items])).double().numpy()
        return scores[:, 0] - scores[:, 1:].max(axis=1)

    def truth(self, genotype: Float[np.ndarray, " genes"]) -> float:
        """Accuracy on the test items."""
        return float((self.margins(genotype, np.arange(len(self.test)), self.test) > 0).mean())


def main() -> None:
    """Train, and say what base, experts and the usual merges know."""
    command_line(__doc__).parse_args()
    torch.set_num_threads(1)
    world = World()
    for name, genotype in world.standard.items():
        margins = world.margins(genotype, np.arange(len(world.test)), world.test)
        by_language = [(margins[world.test.languages == language] > 0).mean() for language in range(LANGUAGES)]
        print(f"{name:<16} {(margins > 0).mean():.3f}", *(f"{value:.2f}" for value in by_language))


if __name__ == "__main__":
    main()
