"""What a run is: seed, task, model, optimizer, training, parallelism, as frozen dataclasses read strictly.

docs/knobs.md is generated from the `Attributes:` of these dataclasses by tools/knobs_page.py.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from flaxformer_lab import registry
from flaxformer_lab.data.own.address import with_absolute_path
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.model_config import ModelConfig, TransformerConfig
from flaxformer_lab.parsing import AtLeastOne, Decay, Name, NonNegative, Positive, Rate, Seed, Tagged, as_plain, parse
from flaxformer_lab.task_config import ImageClassificationConfig, TaskConfig
from flaxformer_lab.tasks import Task as _Task  # noqa: F401  registers all parts of the lab


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule.

    Attributes:
        name: AdamW; Muon for the matrices of the blocks and AdamW for the rest, diagonal maps included; SGD with
            momentum; or `ridge`: a model that is a single linear map begins at the least squares, in closed form, with
            weight_decay times the sum of squared weights, and updates leave it there (docs/forecasting.md).
        learning_rate: the peak, reached after the warmup.
        schedule: how the learning rate falls to 0 after the warmup; `constant` keeps it.
        warmup_steps: updates in which the learning rate rises linearly to its peak.
        weight_decay: decoupled weight decay of matrices and embedding tables; not of biases, norm scales, positions,
            maps of single features and the vectors of a table's columns.
        clip_norm: largest global norm of the gradient; none does not clip.
        beta1: decay of AdamW's first moment, or of SGD's momentum; Muon's own momentum is 0.95.
        beta2: decay of AdamW's second moment.
        scaling: `mup` scales the initial weights and the learning rate of each dense block of a map by its fan-in
            (a diagonal map's is 1, a block's its size), so that one rate suits maps of all structures; for AdamW.
        base_fan_in: the fan-in of a map whose learning rate `mup` leaves as it is.
    """

    name: Literal["adamw", "muon", "sgd", "ridge"] = "adamw"
    learning_rate: Positive = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: NonNegative = 0
    weight_decay: Decay = 0.0
    clip_norm: Positive | None = None
    beta1: Rate = 0.9
    beta2: Rate = 0.999
    scaling: Literal["none", "mup"] = "none"
    base_fan_in: AtLeastOne = 64

    def rules(self) -> None:
        """Raises ConfigError when keys contradict one another."""
        if self.scaling == "mup" and self.name != "adamw":
            raise ConfigError(
                f"optimizer.scaling=mup scales the rates of AdamW, not of optimizer.name={self.name}; set "
                "optimizer.name=adamw or optimizer.scaling=none"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """How long a run trains, on how much at once, and what it keeps.

    Attributes:
        steps: optimizer updates in the whole run.
        batch_size: examples in one update, over all devices.
        accumulate: micro-batches whose gradients are added before one update.
        loss_chunk: tokens of a device whose logits are in memory at once, in a language model's loss and its gradient;
            none means all of them up to 4 GiB of float32 logits, else as many as fit in 1 GiB.
        evaluate_every: updates between evaluations on the validation split.
        evaluate_batch_size: examples in one evaluation batch.
        checkpoint_every: updates between checkpoints.
        keep_last: how many of the newest checkpoints stay.
        keep_best: how many of the checkpoints with the best validation result stay.
        steps_per_call: updates inside one compiled call.
        input: `device` keeps the whole data set on the device, `stream` reads it from the host; `auto` decides by size.
        deterministic: the same config gives the same bytes on the same machine, which costs some speed on GPUs;
            none means true in float32 and false in bfloat16.
        init_from: a run's folder, a .safetensors file or a pretrained model's folder (docs/pretrained.md), from whose
            arrays a new run starts, matched by dotted names.
        init_only: which arrays to take: names, parts of the network (`body`, `embedding`) or patterns (`*.ffn.*`);
            all that are there by default.
        train_only: which arrays are trained, in the same words; the others stay as they start, but for the statistics
            of BatchNorm, which follow the data. All by default, or `lora,head` with lora_rank.
        lora_rank: rank of a product of two matrices that is added to each dense map of the body (LoRA, Hu et al. 2022);
            0 adds none.
    """

    steps: AtLeastOne = 1000
    batch_size: AtLeastOne = 64
    accumulate: AtLeastOne = 1
    loss_chunk: AtLeastOne | None = None
    evaluate_every: AtLeastOne = 100
    evaluate_batch_size: AtLeastOne = 256
    checkpoint_every: AtLeastOne = 1000
    keep_last: AtLeastOne = 2
    keep_best: NonNegative = 1
    steps_per_call: AtLeastOne = 10
    input: Literal["auto", "device", "stream"] = "auto"
    deterministic: bool | None = None
    init_from: Name | None = None
    init_only: tuple[Name, ...] = ()
    train_only: tuple[Name, ...] = ()
    lora_rank: NonNegative = 0

    @property
    def trained(self) -> tuple[str, ...]:
        """What is trained; nothing named means all."""
        return self.train_only or (("lora", "head") if self.lora_rank else ())

    def rules(self) -> None:
        """Raises ConfigError when keys contradict one another."""
        if self.init_only and self.init_from is None:
            raise ConfigError(
                f"training.init_only={','.join(self.init_only)} needs training.init_from, a run's folder or a "
                ".safetensors file to take them from"
            )


@dataclass(frozen=True)
class MeshConfig:
    """The size of each axis of the device mesh.

    Attributes:
        data: shards examples; none means all devices that the other axes leave.
        fsdp: shards examples, and parameters along the width.
        sequence: shards tokens.
        tensor: shards heads and hidden units.
    """

    data: AtLeastOne | None = None
    fsdp: AtLeastOne = 1
    sequence: AtLeastOne = 1
    tensor: AtLeastOne = 1


@dataclass(frozen=True)
class ParallelismConfig:
    """How a run uses several devices.

    Attributes:
        strategy: `auto` takes `mesh` where a key of the mesh asks for it, else `pmap` where there are several devices,
            else `single`.
    """

    strategy: Literal["auto", "single", "pmap", "mesh"] = "auto"
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def rules(self) -> None:
        """Raises ConfigError when keys contradict one another."""
        if self.strategy in ("single", "pmap") and self.mesh != MeshConfig():
            asked = next(f.name for f in dataclasses.fields(self.mesh) if getattr(self.mesh, f.name) != f.default)
            raise ConfigError(
                f"parallelism.mesh.{asked}={getattr(self.mesh, asked)} needs parallelism.strategy=mesh or auto, "
                f"not {self.strategy}"
            )


@dataclass(frozen=True)
class Config:
    """A whole run.

    Attributes:
        seed: of every random draw: parameters, order of the data, dropout.
    """

    seed: Seed = 0
    task: Annotated[
        TaskConfig, Tagged(lambda: registry.configs("task"), "image_classification", registry.format_choices)
    ] = field(default_factory=ImageClassificationConfig)
    model: Annotated[ModelConfig, Tagged(lambda: registry.configs("model"), "transformer", registry.format_choices)] = (
        field(default_factory=TransformerConfig)
    )
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)

    @property
    def deterministic(self) -> bool:
        """Whether the same bytes are promised: `training.deterministic`, by default in float32 alone."""
        asked = self.training.deterministic
        return self.model.dtype == "float32" if asked is None else asked

    def rules(self) -> None:
        """Raises ConfigError when parts contradict one another."""
        task, model, training, optimizer = self.task, self.model, self.training, self.optimizer
        declared = lambda key: registry.ask("model", model.name, key, model)  # noqa: E731
        if declared("needs_grid") and not registry.ask("task", task.name, "has_grid", task):
            raise ConfigError(
                f"model.name={model.name} needs a grid of patches, which task.name={task.name} has not; "
                "set model.name=cnn_1d or task.name=image_classification"
            )
        causal = declared("causal")
        if task.causal is not None and task.causal != bool(causal):
            reason = "lets a token see the one that it must predict" if task.causal else "hides what follows a token"
            reason = "does not declare causal=True" if task.causal and causal is None else reason
            way_out = f"set model.causal={_word(task.causal)}" if _has_knob(model) else "choose another model.name"
            raise ConfigError(f"{_format_task(task)} with {_format_causality(model)} {reason}; {way_out}")
        if getattr(task, "pooling", None) == "class_token" and (causal or declared("attends") is False):
            blind = "model.attention.kind=off" if model.name == "transformer" else f"model.name={model.name}"
            blind = _format_causality(model) if causal else blind
            raise ConfigError(
                f"task.pooling=class_token with {blind} hides the image from the class token, which "
                "comes first; set task.pooling=mean"
            )
        if optimizer.name == "ridge" and training.init_from:
            raise ConfigError(
                f"training.init_from={training.init_from} with optimizer.name=ridge, whose weights follow from the "
                "data alone; set it to none, or another optimizer.name"
            )
        if training.batch_size % training.accumulate:
            raise ConfigError(
                f"training.accumulate={training.accumulate} does not divide "
                f"training.batch_size={training.batch_size}; choose one of its divisors"
            )
        tensor = self.parallelism.mesh.tensor
        if isinstance(model, TransformerConfig) and model.attention.kind != "off" and model.num_kv_heads % tensor:
            raise ConfigError(
                f"parallelism.mesh.tensor={tensor} does not divide the {model.num_kv_heads} heads of keys and values "
                "(model.attention.num_kv_heads); a device works on whole heads; choose a divisor"
            )
        sequence = self.parallelism.mesh.sequence
        if sequence > 1 and not declared("shards_tokens"):
            able = " or ".join(registry.declaring("model", "shards_tokens"))
            raise ConfigError(
                f"parallelism.mesh.sequence={sequence} with model.name={model.name}: only model.name={able} "
                "can shard tokens; set parallelism.mesh.sequence=1 and leave the devices to data"
            )
        if optimizer.warmup_steps > training.steps:
            raise ConfigError(
                f"optimizer.warmup_steps={optimizer.warmup_steps} is more than training.steps={training.steps}; "
                "the learning rate would never reach its peak; choose fewer of the one or more of the other"
            )


def _format_task(task: TaskConfig) -> str:
    objective = getattr(task, "objective", None)
    return f"task.objective={objective}" if objective else f"task.name={task.name}"


def _format_causality(model: ModelConfig) -> str:
    return f"model.causal={_word(model.causal)}" if _has_knob(model) else f"model.name={model.name}"


def _has_knob(model: ModelConfig) -> bool:
    return any(knob.name == "causal" for knob in dataclasses.fields(model))


def _word(value: bool) -> str:
    return str(value).lower()


def parse_config(tree: Mapping[str, Any] | Config) -> Config:
    """Returns the config that a nested mapping of plain values describes; what it leaves out takes its default.

    A config that is one already is held against the same rules. `task.dataset` names a user's own files by their
    absolute path then.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, or keys that contradict one another.
    """
    config = parse(Config, tree, "")
    return dataclasses.replace(config, task=with_absolute_path(config.task))


def as_dict(config: Any) -> dict[str, Any]:
    """Returns the full resolved config as nested plain values, the form that `parse_config` reads back."""
    return _as_plain(dataclasses.asdict(config))


def _as_plain(value: Any) -> Any:
    """The same with lists for tuples, as JSON has them."""
    value = as_plain(value)
    if isinstance(value, dict):
        return {key: _as_plain(inner) for key, inner in value.items()}
    return [_as_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
