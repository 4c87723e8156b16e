"""Models: what a base and its experts are, how they are loaded, named by content, and checked to fit together.

Owns transformers' loading. Weights are safetensors; remote code is never run. An *expert* is a full model (a folder or
hub id), a GGUF file, or a LoRA adapter of the base; either way it is what it has where it differs from the base.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from math import isclose, prod
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.heterogeneity import AmbiguousGlobalPerLayerAttributeError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from merge3 import adapters, flat
from merge3.ingredients import Source

Changes = dict[str, Source]  # parameter name -> what an expert has there; absent where it is the base

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SMALL = ("*.json", "*.txt", "*.model", "*.jinja")  # of a model on the hub, beside its weights
SENTENCEPIECE = "tokenizer.model"  # which transformers reads and does not write
PROCESSORS = "*processor_config.json"  # of what is no text
NAMED = ("config.json", ADAPTER_CONFIG, "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt")
SAME = (  # fields of a config that all experts share with the base
    *("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "rope_parameters", "rms_norm_eps", "hidden_act", "tie_word_embeddings"),
)

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # as safetensors files name them
ROUTED = (  # fields of a config that say how many experts a mixture has, and how many of them a token goes through
    ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    ("num_experts_per_tok", "top_k_experts"),
)
ONWARD = ("is_decoder", "causal")  # fields by which a model that could read both ways reads from left to right
MADE = re.compile(r"(rotary_emb\.inv_freq|(attention|attn)\.(bias|masked_bias))$")  # anew by transformers, as masks are
CGROUP_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"  # the kernel's files of a limit, and of its use
CGROUP_2 = "memory.max", "memory.current", ""  # and how fields of memory.stat begin that count what is below, too
UNSAFE = "a file is no safetensors file; pickled weights are not opened"


class IncompatibleModels(ValueError):  # noqa: N818 - reads better where it is raised
    """A model that cannot be asked or merged, or an expert that cannot be merged with the base."""


# --- where models lie, and what names them


@dataclass(frozen=True)
class Expert:
    """An expert as the manifest names it: `source` is a folder or hub id, `fingerprint` the hash of its weights."""

    name: str
    source: str
    fingerprint: str


def write_manifest(path: Path, base: Expert, experts: list[Expert]) -> None:
    """Write the names, sources and fingerprints of the base and its experts."""
    content = {"base": asdict(base), "experts": [asdict(expert) for expert in experts]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> tuple[Expert, list[Expert]]:
    """The base and the experts that `write_manifest` wrote.

    Raises:
        ValueError: it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Expert(**content["base"]), [Expert(**expert) for expert in content["experts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): run the stage that wrote it again") from error


def absolute(source: str | Path) -> str:
    """A model's name as it is found from any folder: a path whole, a hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else str(source)


def is_gguf(source: str | Path) -> bool:
    """Whether a model is named as one GGUF file."""
    return str(source).endswith(".gguf")


def _located(source: str | Path) -> tuple[str | Path, dict[str, str]]:
    """Where transformers finds a model, and which file if it is a GGUF file."""
    return (Path(source).parent, {"gguf_file": Path(source).name}) if is_gguf(source) else (source, {})


def is_adapter(source: str | Path) -> bool:
    """Whether a local folder holds an adapter, by its config."""
    return (Path(source) / ADAPTER_CONFIG).exists()


def refuse_adapter(source: str | Path) -> None:
    """Stop where a base is an adapter.

    Raises:
        IncompatibleModels: it is one.
    """
    if is_adapter(source):
        raise IncompatibleModels(f"{source} is an adapter: a base is the model that it changes")


def adapted(folder: Path) -> str | None:
    """The model that an adapter is of, by its config; None for a model that is none, or where it does not say."""
    if not is_adapter(folder):
        return None
    named = _settings(folder).get("base_model_name_or_path")
    return None if named is None else str(named)


def _settings(folder: Path) -> dict[str, Any]:
    """What an adapter's config says.

    Raises:
        IncompatibleModels: it is no JSON object.
    """
    path = folder / ADAPTER_CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IncompatibleModels(f"{path} is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise IncompatibleModels(f"{path}: expected a JSON object with an adapter's settings, got {settings!r:.80}")
    return settings


def of_another(folder: Path, base: str) -> str | None:
    """The model that an adapter was made for, where that is not `base`, by path or hub id or the last part of it."""
    made_for = adapted(folder)
    if made_for is None or made_for == Path(base).name or absolute(made_for) == absolute(base):
        return None
    return made_for


def weights_folder(source: str) -> Path:
    """Where a model's weights lie: `source` itself, a folder or GGUF file, or the hub's snapshot of that id.

    Raises:
        FileNotFoundError: `source` is neither a folder nor a hub id that can be reached.
    """
    if Path(source).is_dir() or (is_gguf(source) and Path(source).is_file()):
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=["*.safetensors", *SMALL]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no model at {source!r}: expected a folder, or a hub id that can be reached from here"
        ) from error


def copy_files(source: Path, pattern: str, folder: Path) -> None:
    """Copy the files of a model folder that have such a name, if there are any."""
    for path in source.glob(pattern):
        shutil.copy(path, folder)


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of what a model's answers depend on: weights, configs, tokenizer.

    Raises:
        FileNotFoundError: there is no folder, or no safetensors file in it, nor a GGUF file of that name.
    """
    total = hashlib.sha256()
    for file in _files(folder):
        with file.open("rb") as stream:
            total.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def stamp(folder: Path) -> list[tuple[str, int, int, int]]:
    """Name, number, size and time of change of the files that `fingerprint` reads: another where one was written.

    Raises:
        FileNotFoundError: as `fingerprint`.
    """
    return [(f.name, (s := f.stat()).st_ino, s.st_size, s.st_mtime_ns) for f in _files(folder)]


def _files(folder: Path) -> list[Path]:
    files = [folder] if is_gguf(folder) and folder.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no model at {folder}: expected a folder with .safetensors files")
    return files + sorted(file for pattern in NAMED for file in folder.glob(pattern))


# --- devices and dtypes


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: the name is no device, or the machine has none of that kind.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device!r} cannot be used here: expected cpu, or cuda or cuda:1 for the first or second GPU, of "
            f"which torch {torch.__version__} finds {torch.cuda.device_count()}"
        ) from error


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process may still take: the computer's, or its container's (cgroup) if less.

    Files that are mapped or cached count as free. `root` is where the kernel shows `proc` and `sys`.
    """
    free: int = psutil.virtual_memory().available
    groups = root / "proc" / "self" / "cgroup"
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.exists() else ():
        _, kinds, own = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        most, used, prefix = CGROUP_1 if kinds else CGROUP_2
        place = PurePosixPath(own.lstrip("/"))
        for group in (place, *place.parents):
            folder = root / "sys" / "fs" / "cgroup" / ("memory" if kinds else "") / group
            try:
                left = int((folder / most).read_text()) - int((folder / used).read_text())
                stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                left += int(stat[f"{prefix}inactive_file"]) + int(stat[f"{prefix}active_file"])
            except (OSError, ValueError, KeyError):  # a group that is not shown here, or not whole, or has no limit
                continue
            free = min(free, left)
    return max(0, free)


def wait_for(device: str | torch.device) -> None:
    """Until a device has done what it was told; a processor has."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Around what there may be too little memory for, of a device or the computer: says so; a decorator, too.

    Raises:
        MemoryError: there is too little.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        said = ". ".join(str(error).split(". ")[:3])  # how much was wanted, and how much there is
        raise MemoryError(
            f"not enough memory {what}: {said}; end what else uses it, or take a device with more"
        ) from error


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """The torch dtype of a name; `auto` is bfloat16 where the device multiplies it in hardware, else float32.

    Raises:
        ValueError: the name is not `auto`, `float32`, `bfloat16` or `float16`.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in names:
        return names[dtype]
    if dtype != "auto":
        raise ValueError(f"dtype must be one of {['auto', *names]}, got {dtype!r}")
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = _bfloat16_unit() is not None
    return torch.bfloat16 if native else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype, as `resolve_dtype` takes it."""
    return str(dtype).removeprefix("torch.")


def _bfloat16_unit() -> str | None:
    """What multiplies bfloat16 in this processor; None where nothing does, and float32 is the faster."""
    if torch.cpu._is_amx_tile_supported():
        return f"AMX in products of {flat.ROWS} rows"
    return "AVX512_BF16" if torch.cpu._is_avx512_bf16_supported() else None


def runtime_name(device: str) -> str:
    """The device, its threads and torch's version: what answers can differ by in their last bits."""
    kind = torch.device(device).type
    name = {
        "cuda": torch.cuda.get_device_name,
        "cpu": lambda _: " ".join(filter(None, (torch.backends.cpu.get_cpu_capability(), _bfloat16_unit()))),
    }
    detail = f" {name[kind](device)}" if kind in name else ""
    return f"{kind}{detail}, {torch.get_num_threads()} threads, torch {torch.__version__}"


# --- configs


def config_of(source: str | Path) -> Any:
    """The transformers config of the causal language model in a folder, GGUF file or hub id.

    It is that of the text where transformers loads no more of a model, as of Qwen 3.5.

    Raises:
        OSError: there is none.
    """
    return _as_loaded(whole_config_of(source))


def _as_loaded(config: Any) -> Any:
    """The part of a config by which transformers loads a causal language model."""
    made = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    text = config.sub_configs.get("text_config")
    return config.get_text_config() if text is not None and getattr(made, "config_class", None) is text else config


def whole_config_of(source: str | Path) -> Any:
    """The transformers config of all that is in a folder, GGUF file or hub id.

    Raises:
        IncompatibleModels: it is an adapter.
        OSError: there is none.
    """
    refuse_adapter(source)
    place, file = _located(source)
    if not file and Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise FileNotFoundError(f"{source} is no model's folder: it has no config.json")
    return AutoConfig.from_pretrained(place, trust_remote_code=False, **file)


def value_of(config: Any, field: str) -> Any:
    """What a config says in a field: a list where it says it of each layer; None where it does not."""
    try:
        return getattr(config, field, None)
    except AmbiguousGlobalPerLayerAttributeError:
        return [getattr(layer, field, None) for layer in config.per_layer_config]


def check_causal(source: str | Path, config: Any) -> None:
    """Refuse a model that is no causal language model, as T5 and BERT are none.

    Raises:
        IncompatibleModels: transformers has no such model of this config, or none that reads from left to right.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise IncompatibleModels(
            f"model {str(source)!r}: transformers has no causal language model of kind {config.model_type!r}, and no "
            "other model can be asked or merged"
        )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not any(getattr(config, field, False) for field in ONWARD):
        raise IncompatibleModels(
            f"model {str(source)!r}: a {config.model_type} is a masked language model, which reads both ways; expected "
            "a causal one, which reads from left to right, as Llama, Qwen and Gemma do"
        )


def check_config(source: str | Path, base: Any) -> None:
    """Refuse a model that is no fine-tune of the base with this config.

    Raises:
        IncompatibleModels: they differ in a field that fine-tunes share.
        FileNotFoundError: there is no such model.
    """
    try:
        expert = config_of(source)
    except OSError as error:
        raise FileNotFoundError(f"no model at {str(source)!r}: {str(error).splitlines()[0]}") from error
    pairs = ((base, expert), (base.get_text_config(), expert.get_text_config()))  # one where there is only text
    for field, (our, their) in product(SAME, pairs):
        ours, theirs = value_of(our, field), value_of(their, field)
        close = isinstance(ours, float) and isinstance(theirs, float) and isclose(ours, theirs, rel_tol=1e-6)
        if ours != theirs and not close:  # a GGUF file holds numbers in float32
            raise IncompatibleModels(
                f"expert {str(source)!r}: {field} is {theirs!r}, the base's is {ours!r}; "
                "experts must be fine-tunes of the one base"
            )


def skeleton(config: Any, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a config, without its numbers."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model


def routed_past(model: PreTrainedModel) -> int:
    """How many parameters a token does not go through: the experts of a mixture that it is not routed to."""
    config = model.config.get_text_config()
    count, chosen = (next(filter(None, (value_of(config, field) for field in fields)), 0) for fields in ROUTED)
    if not (isinstance(count, int) and isinstance(chosen, int) and 0 < chosen < count):
        return 0
    routed = sum(tensor.numel() for name, tensor in model.named_parameters() if ".experts." in name)
    return routed * (count - chosen) // count


# --- loading


def load(source: str | Path, dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    """A causal language model in evaluation mode, from safetensors, or a GGUF file made dense; an adapter in its base.

    Raises:
        FileNotFoundError: `source` is neither a folder nor a hub id that can be reached.
        IncompatibleModels: it is no causal language model, or quantised by what is not here; tensors are missing, left
            over, or of another shape than the config says; or an adapter does not fit its base.
        MemoryError: the device has no room for it.
    """
    if is_adapter(source):
        return _in_its_base(Path(source), dtype, device)
    place, file = _located(source)
    how = {"quantization_config": GgufConfig(**file, dequantize=True)} if file else {"use_safetensors": True}
    try:
        config = whole_config_of(source)
        check_causal(source, _as_loaded(config))
        pair: Any = AutoModelForCausalLM.from_pretrained(
            place,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **file,
            **how,
        )
    except SafetensorError as error:
        raise IncompatibleModels(f"model {str(source)!r}: {UNSAFE} ({error})") from error
    except ImportError as error:  # of what reads quantised weights
        raise IncompatibleModels(f"model {str(source)!r}: {str(error).strip().splitlines()[0]}") from error
    except OSError as error:
        raise FileNotFoundError(
            f"no model at {str(source)!r}: expected a folder with config.json and .safetensors files, or a hub id "
            f"that can be reached from here ({str(error).splitlines()[0]})"
        ) from error
    model: PreTrainedModel
    model, loading = pair
    _check_whole(source, config, model, loading)
    module: torch.nn.Module = model  # whose methods have whole types
    with enough_memory(f"for model {str(source)!r}"):
        module.to(torch.device(device)).train(False).requires_grad_(False)
    return model


def _check_whole(source: str | Path, config: Any, model: PreTrainedModel, loading: Mapping[str, Any]) -> None:
    """Refuse a model where its files and its config do not say the same, by what transformers says of its loading."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found := sorted(map(str, loading[problem])):
            why = "its files are not whole, or not of its config"
            if problem == "unexpected_keys" and model.config.model_type != config.model_type:
                why = (
                    f"it is a {config.model_type}, of which transformers loads the text alone; expected its text as a "
                    f"model of its own, as {type(model).__name__}.from_pretrained(...).save_pretrained(...) writes it"
                )
            what = f"{len(found)} {problem.replace('_', ' ')} in its weights, first {found[0]}"
            raise IncompatibleModels(f"model {str(source)!r}: {what}; {why}")


def _in_its_base(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The base of an adapter, changed as the adapter says: rounded once, as a merge of that expert alone is."""
    base = adapted(folder)
    if base is None:
        raise IncompatibleModels(f"adapter {folder}: its config names no base_model_name_or_path")
    stored = weights_of(load_stored(base))
    model = load(base, dtype, device)
    weights = weights_of(model)
    added = added_tokens(folder, load_tokenizer(base)) if has_tokenizer(folder) else {}
    for name, change in changes(folder, stored, model.config, added.values()).items():
        dense = change if isinstance(change, Tensor) else stored[name].float() + change.rows(0, len(stored[name]))
        weights[name].copy_(dense)
    return model


def load_stored(source: str | Path, device: str = "cpu") -> PreTrainedModel:
    """A model whose tensors are as they are stored, mapped from their files: what merges are made of.

    Tensors that are wider than most stay so. If one of them has another name in the files than in the model, all are
    widened, which takes memory.

    Raises:
        FileNotFoundError: as `load`.
        IncompatibleModels: as `load` and `stored_dtype`.
    """
    dtype = written_dtype(source)
    model = load(source, dtype, device)
    weights = tensors_of(model)
    for name, tensor in _rounded(weights_folder(str(source)), dtype):
        ours = weights.get(name)
        if ours is None or not torch.equal(ours.cpu(), tensor.to(ours.dtype)):
            return load(source, torch.float32, device)
        ours.data = tensor.to(device)
    return model


def _rounded(folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model's files that a dtype would round, by their names there."""
    for file, name in _used(folder):
        if file.get_slice(name).get_dtype() != DTYPES[dtype]:
            tensor = file.get_tensor(name)
            if not torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
                yield name, tensor


def stored_dtype(source: str | Path) -> torch.dtype:
    """The widest dtype of what a model uses of its files: loaded so, nothing is rounded.

    A GGUF file, which is made dense, is float32.

    Raises:
        FileNotFoundError: there is no such model.
        IncompatibleModels: its tensors are of another kind than float32, float16 and bfloat16.
    """
    found = _stored(source)
    return next(iter(found)) if len(found) == 1 else torch.float32


def written_dtype(source: str | Path) -> torch.dtype:
    """The dtype that most bytes of a model are stored in, which merges of it are written in; of two alike the wider.

    Raises:
        FileNotFoundError: there is no such model.
        IncompatibleModels: as `stored_dtype`.
    """
    found = _stored(source)
    return max(found, key=lambda dtype: (found[dtype], dtype.itemsize))


def _stored(source: str | Path) -> dict[torch.dtype, int]:
    """The bytes of each dtype that a model uses of its files."""
    if is_gguf(source):
        return {torch.float32: 1}
    folder = weights_folder(str(source))
    names = {name: dtype for dtype, name in DTYPES.items()}
    found = dict[torch.dtype, int]()
    for file, name in _used(folder):
        tensor = file.get_slice(name)
        kind = tensor.get_dtype()
        if kind not in names:
            raise IncompatibleModels(
                f"model {str(source)!r}: tensors of dtype {kind} cannot be merged; expected {sorted(names)}"
            )
        dtype = names[kind]
        found[dtype] = found.get(dtype, 0) + prod(tensor.get_shape()) * dtype.itemsize
    if not found:
        raise FileNotFoundError(f"no model at {folder}: expected a folder with .safetensors files")
    return found


def _used(folder: Path) -> Iterator[tuple[Any, str]]:
    """The tensors that a model uses of its files: each one's file, and its name there."""
    for path in folder.glob("*.safetensors"):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if file.get_slice(name).get_dtype() != "BOOL" and not MADE.search(name):
                    yield file, name


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file.

    Raises:
        FileNotFoundError: it is not there.
        IncompatibleModels: it is none.
    """
    try:
        file: Any = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise IncompatibleModels(f"{path}: {UNSAFE} ({error})") from error
    with file as opened:
        yield opened


# --- parameters


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a merge changes, by name: parameters, tied ones once, and buffers that files hold.

    Such a buffer is the e_score_correction_bias by which DeepSeek-V3 chooses experts.
    """
    stored = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored and buffer.is_floating_point()}
    return dict(model.named_parameters()) | buffers


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The values of `tensors_of`."""
    return {name: tensor.data for name, tensor in tensors_of(model).items()}


def token_parameters(model: PreTrainedModel) -> list[str]:
    """The names of the parameters that have a row a token, the embedding's and the head's, each where it is used."""
    head: torch.nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    modules = [model.get_input_embeddings(), *([] if head is None else [head])]
    rows = {id(parameter) for module in modules for parameter in module.parameters()}
    return [name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in rows]


# --- tokenizers


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, GGUF file or hub id, with a padding token; of a bare adapter, its base's."""
    if (base := adapted(Path(source))) and not list(Path(source).glob("tokenizer*")):
        return load_tokenizer(base)
    tokenizer = stored_tokenizer(source)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stored_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, GGUF file or hub id as its files say, which may have no padding token."""
    place, file = _located(source)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **file)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files, the same bytes whether or not the hub could be reached when it was loaded."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("local_files_only", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def has_tokenizer(source: Path) -> bool:
    """Whether a model folder or GGUF file holds a tokenizer."""
    return is_gguf(source) or any(source.glob("tokenizer*"))


def vocabulary(source: Path) -> dict[str, int] | None:
    """The tokens of a model's tokenizer; None where it has none: the base's is meant."""
    return load_tokenizer(source).get_vocab() if has_tokenizer(source) else None


def added_tokens(source: Path, base: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens, with their numbers, that an expert's tokenizer, if it has one, added: a merge has the base's alone.

    Among them are those that the base added, too, by another number.

    Raises:
        IncompatibleModels: a number is one token in the expert and another in the base, and not added to both; the
            message names one.
    """
    if not has_tokenizer(source):
        return {}
    tokenizer = load_tokenizer(source)
    theirs, ours = tokenizer.get_vocab(), base.get_vocab()
    taken = set(ours.values()) - (set(base.get_added_vocab().values()) & set(tokenizer.get_added_vocab().values()))
    other = {token: number for token, number in theirs.items() if ours.get(token) != number}
    different = [token for token, number in other.items() if number in taken or ours.get(token) in taken]
    if different:
        token = min(different)
        raise IncompatibleModels(
            f"expert {str(source)!r}: token {token!r} is {theirs[token]} in its vocabulary and {ours.get(token)} in "
            f"the base's ({len(different)} differ); experts must have the base's tokens where it has them"
        )
    return {token: other[token] for token in sorted(other, key=other.__getitem__)}


def left_out(expert: str, added: Mapping[str, int]) -> str:
    """What is to be said of an expert with `added_tokens`."""
    first = next(iter(added))
    return (
        f"{expert} has tokens that the base lacks ({len(added)}, the first {first!r}): merges leave them out; "
        "`merge3 tokens` makes a base that has them"
    )


# --- what an expert changes


def changes(source: str | Path, base: Mapping[str, Tensor], config: Any, added: Collection[int] = ()) -> Changes:
    """What an expert has where it differs from the base, on the base's device: tensors as stored, or LoRA's factors.

    Embedding and head have a row for each of the base's: rows that the expert lacks, and those of tokens that it added,
    are the base's.

    Args:
        source: a folder with a full model or a LoRA adapter, a GGUF file, or a hub id.
        base: the parameters of the base, see `weights_of`.
        config: the transformers config of the base.
        added: the numbers of the tokens that the expert added, see `added_tokens`.

    Raises:
        IncompatibleModels: the expert's architecture, or a tensor's name or shape differs from the base's.
        FileNotFoundError: there is no such model.
    """
    if is_adapter(source):
        return _adapter(Path(source), base, config, added)
    check_config(source, config)
    model = load_stored(source)
    expert, by_token = weights_of(model), token_parameters(model)
    _check_names(source, set(expert), set(base))
    found: Changes = {}
    for name, tensor in expert.items():
        if name in by_token:
            tensor = _by_the_bases_tokens(tensor, base[name], added)
        _check_shape(source, name, tensor.shape, base[name])
        here = tensor.to(base[name].device)
        if not (torch.equal(here, base[name]) if here.dtype == base[name].dtype else (here == base[name]).all()):
            found[name] = here.contiguous()
    return found


def _check_names(source: str | Path, expert: set[str], base: set[str]) -> None:
    for names, what in ((base - expert, "lacks"), (expert - base, "has an unknown")):
        if names:
            raise IncompatibleModels(
                f"expert {str(source)!r} {what} parameter {min(names)!r} ({len(names)} in all); "
                "experts must be fine-tunes of the one base"
            )


def _check_shape(source: str | Path, name: str, shape: tuple[int, ...], base: Tensor) -> None:
    if tuple(shape) != tuple(base.shape):
        raise IncompatibleModels(
            f"expert {str(source)!r}: {name!r} has shape {tuple(shape)}, the base's {tuple(base.shape)}"
        )


def _by_the_bases_tokens(tensor: Tensor, base: Tensor, added: Collection[int]) -> Tensor:
    """A tensor with as many rows as the base's: what it lacks, and the rows of `added` tokens, are the base's."""
    within = [number for number in added if number < len(base)]  # others are beyond its rows
    if tensor.shape[1:] != base.shape[1:] or (len(tensor) >= len(base) and not within):
        return tensor[: len(base)]
    whole = torch.cat([tensor[: len(base)].to(base.device), base[len(tensor) :]])  # in the wider dtype
    whole[within] = base[within].to(whole.dtype)
    return whole


def _adapter(folder: Path, base: Mapping[str, Tensor], config: Any, added: Collection[int]) -> Changes:
    """`changes` of an adapter. A whole embedding or head has a row for each of the base's tokens, as a full model's."""
    settings, tensors = adapter(folder)
    try:
        empty = skeleton(config)
        across = {name for name, module in empty.named_modules() if isinstance(module, Conv1D)}
        whole, factors = adapters.read(settings, tensors, across)
        by_token = token_parameters(empty)
        shared = [name for name in by_token if name not in base]
        if shared:
            adapters.unite(by_token, shared, whole, factors, bool(settings.get("ensure_weight_tying")))
        for name in whole.keys() & set(by_token) & base.keys():
            whole[name] = _by_the_bases_tokens(whole[name], base[name], added)
        tokens = {
            name: {number: row for number, row in of.items() if number not in added}
            for name, of in adapters.rows(settings, tensors).items()
            if name not in shared
        }
        return adapters.changes(whole, factors, base, {name: of for name, of in tokens.items() if of})
    except ValueError as error:
        raise IncompatibleModels(f"adapter {folder}: {error}") from error


def adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the tensors of an adapter.

    Raises:
        FileNotFoundError: it has no weights as safetensors.
        IncompatibleModels: its weights are something else, or its config is no JSON object.
    """
    settings = _settings(folder)
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise FileNotFoundError(f"adapter {folder} has no weights: expected {ADAPTER_WEIGHTS} beside its config")
    with _opened(folder / ADAPTER_WEIGHTS) as file:
        return settings, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
