"""What a model is: the knobs of the Transformer, and those of the baselines that it is compared with.

`name` selects one; the other models' keys are then unknown. All of them map token vectors to token vectors of `width`.
The registered parts declare which kinds of attention and FFN there are, and what they can do (`registry.py`).
docs/knobs.md is generated from the `Attributes:` of these dataclasses by tools/knobs_page.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from flaxformer_lab import registry
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import NOT_EMPTY, AtLeastOne, Choices, Depth, Positive, Rate, Rule

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"]
# Of float32 products, by JAX's names. GPUs and TPUs can multiply float32 faster in fewer bits; a CPU never does.
# highest: float32; high: TF32 on a GPU, three passes of bfloat16 on a TPU; default: the device's fastest.
Precision = Literal["highest", "high", "default"]
MixingMap = Literal["dense", "low_rank", "monarch", "hadamard", "fourier", "block"]  # of features
AttentionKind = Annotated[str, Choices(lambda: (*registry.names("attention"), "off"), registry.format_choices)]
FeedForwardKind = Annotated[str, Choices(lambda: (*registry.names("ffn"), "off"), registry.format_choices)]


class ModelConfig:
    """Base of every model's config: a frozen dataclass with name, width, bias, dtype and precision, all with defaults.

    With `depth`, where the model has layers, it keeps that of the Transformer whose place it takes. keeps_tokens: the
    outputs are a vector of `width` for each token, or for each of the target's where there are two sequences.
    """

    keeps_tokens = True


@dataclass(frozen=True)
class AttentionConfig:
    """Token mixing.

    Attributes:
        kind: `softmax`; `linear` (elu + 1); `lightning` (linear with one decay per head, no softmax); `channel`
            (cross-covariance over features, XCiT); `mean`; `static` (learned weights that do not see the input);
            `random` (drawn ones that stay as they are); `fourier` (a fixed Fourier transform over the tokens);
            `probsparse` (Informer: softmax for the queries that single out some keys, the mean for the others);
            `autocorrelation` (Autoformer: the series shifted by the delays at which it resembles itself); `frequency`
            (FEDformer: a complex map of some Fourier modes); `wavelet` (FEDformer: the same on multiwavelets); `off`.
        cross_kind: the kind that attends to another sequence; none means attention.kind.
        num_heads: independent of head_dim.
        head_dim: features of one head; none means model.width / num_heads.
        num_kv_heads: heads of keys and values, each shared by a group of query heads; none means num_heads.
        window: a token sees the tokens less than this many positions away, itself included; none means all. For
            `softmax`, `mean`, `static` and `random`.
        slopes: which convention gives the decays of `lightning` (functional/lightning.py).
        activation: applied to query, key and value after the projection.
        norm: of the merged heads, before the output map; model.norm.epsilon is its epsilon.
        gate: multiplies the merged heads by the sigmoid of a low-rank map of the input (rank head_dim).
        projection: of query, key and value: `dense`; `low_rank`; `monarch` (two block-diagonal maps with a shuffle
            between); `hadamard` and `fourier` (fixed dense maps); `block` (features mix within their block);
            `diagonal` (one weight per feature, no mixing); `identity`.
        output: the map from the merged heads to model.width; `off` removes the map, as `identity` does.
        block_size: features of the model that share a block of `block` and `monarch`.
        rank: of `low_rank`, for each of query, key, value and output.
        factor: of the logarithm of the number of tokens, which gives the queries that attend and the keys that are
            sampled (`probsparse`), or the delays that are summed (`autocorrelation`).
        modes: the most Fourier modes that `frequency` and `wavelet` use.
        mode_selection: which modes `frequency` uses: drawn at `random` with the parameters, or the `lowest`.
        wavelet_order: coefficients of a token and channel of `wavelet`.
        wavelet_channels: of `wavelet`.
        mix_axes: for `probsparse` and `frequency`, whose papers' code merges heads with tokens and features in another
            order than it splits them (Informer's flag `mix`, in the decoder alone; FEDformer always).
        residual_scores: for `softmax`: each block adds its scores to those of the block before (RealFormer, PatchTST).
        rotary_base: with model.position=rotary: pair i of d features turns by t / rotary_base^(2i/d) at token t.
        rotary_share: the share of a head's features that rotary positions turn; the others do not know their place.
    """

    kind: AttentionKind = "softmax"
    cross_kind: AttentionKind | None = None
    num_heads: AtLeastOne = 4
    head_dim: AtLeastOne | None = None
    num_kv_heads: AtLeastOne | None = None
    window: AtLeastOne | None = None
    slopes: Literal["transnormer", "minimax", "flash_linear_attention"] = "transnormer"
    activation: Activation = "identity"
    norm: Literal["layernorm", "rmsnorm", "srmsnorm", "off"] = "off"
    gate: bool = False
    projection: Literal[MixingMap, "diagonal", "identity"] = "dense"
    output: Literal[MixingMap, "diagonal", "identity", "off"] = "dense"
    block_size: AtLeastOne = 8
    rank: AtLeastOne = 8
    factor: Positive = 3.0
    modes: AtLeastOne = 64
    mode_selection: Literal["random", "lowest"] = "random"
    wavelet_order: AtLeastOne = 8
    wavelet_channels: AtLeastOne = 8
    mix_axes: bool = False
    residual_scores: bool = False
    rotary_base: Positive = 1e4
    rotary_share: Annotated[float, Rule("must be above 0 and at most 1", lambda value: 0 < value <= 1)] = 1.0

    @property
    def kind_of_cross(self) -> str:
        """The kind that attends to another sequence."""
        return self.cross_kind or self.kind


@dataclass(frozen=True)
class FeedForwardConfig:
    """Feature mixing inside a token.

    Attributes:
        kind: `mlp`; `gated` (GLU); `bilinear` (a GLU without activation); `diagonal` (a small MLP for each feature);
            `off`.
        activation: of the hidden units.
        expansion: hidden units per feature of the model.
        projection: the maps of `mlp`, `gated` and `bilinear`, as in model.attention.
        block_size: features of the model that share a block of `block` and `monarch`.
        rank: of each map of `low_rank`.
    """

    kind: FeedForwardKind = "mlp"
    activation: Activation = "gelu"
    expansion: Positive = 4.0
    projection: MixingMap = "dense"
    block_size: AtLeastOne = 8
    rank: AtLeastOne = 8


@dataclass(frozen=True)
class NormConfig:
    """Normalisation.

    Attributes:
        kind: over a token's features, or of each feature over the batch (`batchnorm`). `srmsnorm` is RMSNorm without
            parameters; `off` removes the norms.
        placement: `pre` normalises the input of attention and FFN, `post` the sum after the skip connection. Models
            other than Transformers have `pre` alone.
        outer: where one more norm stands: before the first block (`start`), after the last (`end`), nowhere (`off`), or
            by `auto` at the end with `pre` and at the start with `post`. Models other than Transformers have it at the
            end.
        epsilon: added to the variance or to the mean square.
    """

    kind: Literal["layernorm", "rmsnorm", "srmsnorm", "batchnorm", "off"] = "layernorm"
    placement: Literal["pre", "post"] = "pre"
    outer: Literal["auto", "start", "end", "off"] = "auto"
    epsilon: Positive = 1e-6

    @property
    def outer_place(self) -> str:
        """`start`, `end` or `off`."""
        return {"pre": "end", "post": "start"}[self.placement] if self.outer == "auto" else self.outer


@dataclass(frozen=True)
class SkipConfig:
    """Residual connections.

    Attributes:
        attention: around attention.
        ffn: around the FFN.
    """

    attention: bool = True
    ffn: bool = True


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """The Transformer.

    Attributes:
        name: selects this model.
        width: features of a token.
        depth: number of blocks.
        position: how tokens know their place: a learned table, one that starts from U(-0.02, 0.02) (`uniform`,
            PatchTST) or a sinusoidal one, rotary query and key, or not at all. `rotary` does nothing for `mean`,
            `static`, `random`, `fourier`, `frequency` and `wavelet`.
        bias: whether maps and norms have biases.
        parallel: attention and FFN of a block read the same input, and both are added to it (GPT-J, GPT-NeoX).
        causal: a token does not see later tokens.
        dropout: rate of dropout on what attention and FFN add.
        dtype: of the computation; parameters, their gradients and all sums stay float32.
        precision: of float32 products on GPUs and TPUs: `highest` is float32; `high` is TF32 or three bfloat16
            passes; `default` is the device's fastest.
        remat: recompute each block in the backward pass, which saves memory.
        remat_policy: what a block that is recomputed keeps all the same (`jax.checkpoint_policies`): nothing, the
            results of all matrix products, or of those without batch axes, which attention's scores have.
    """

    name: Literal["transformer"] = "transformer"
    width: AtLeastOne = 64
    depth: Depth = 4
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    ffn: FeedForwardConfig = field(default_factory=FeedForwardConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    skip: SkipConfig = field(default_factory=SkipConfig)
    position: Literal["learned", "uniform", "sinusoidal", "rotary", "off"] = "learned"
    bias: bool = True
    parallel: bool = False
    causal: bool = False
    dropout: Rate = 0.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"
    remat: bool = False
    remat_policy: Literal["nothing", "dots", "dots_with_no_batch_dims"] = "nothing"

    @property
    def head_dim(self) -> int:
        """Features of one head."""
        return self.attention.head_dim or self.width // self.attention.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.attention.num_kv_heads or self.attention.num_heads

    @property
    def attention_kinds(self) -> dict[str, str]:
        """The kinds of attention that the model has, by the knob of model.attention that names each."""
        return {} if self.attention.kind == "off" else {"kind": self.attention.kind}

    @property
    def rotary_features(self) -> int:
        """How many of a head's features rotary positions turn."""
        return int(self.head_dim * self.attention.rotary_share)

    @property
    def hidden(self) -> int:
        """Hidden units of an FFN whose maps are not diagonal."""
        return max(1, round(self.width * self.ffn.expansion))

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        attention = self.attention
        self._rules_of_heads()
        if attention.kind == "off" and self.ffn.kind == "off" and self.depth > 0:
            raise ConfigError(
                "model.attention.kind=off and model.ffn.kind=off leave every block empty; keep one of them, "
                "or set model.depth=0 for embedding and head alone"
            )
        if self.remat_policy != "nothing" and not self.remat:
            raise ConfigError(
                f"model.remat_policy={self.remat_policy} with model.remat=false, where blocks keep everything; set "
                "model.remat=true or leave model.remat_policy at nothing"
            )
        _check_statistics(self.causal, self.norm)
        if self.parallel and self.norm.placement == "post":
            raise ConfigError(
                "model.parallel=true with model.norm.placement=post: the norm after attention would be between the two "
                "parts; set model.norm.placement=pre or model.parallel=false"
            )
        if self.parallel and not self.skip.ffn and self.ffn.kind != "off":
            raise ConfigError(
                "model.parallel=true with model.skip.ffn=false: the FFN's output would take the place of attention's, "
                "which it does not read; set model.skip.ffn=true or model.parallel=false"
            )
        if self.position == "sinusoidal" and self.width % 2:
            raise ConfigError(
                f"model.position=sinusoidal pairs a sine with a cosine, so model.width={self.width} must be even; "
                "choose an even width, or position learned, rotary or off"
            )
        if self.ffn.kind != "off":
            _check_map("ffn", "projection", self.ffn.projection, self.ffn, self.width, self.hidden)
            if self.causal and registry.ask("ffn", self.ffn.kind, "reach", self) != 0:
                raise ConfigError(
                    f"model.ffn.kind={self.ffn.kind} does not declare reach=0, that it works on each token alone, so "
                    "it cannot be causal; set model.causal=false or choose another"
                )
        builds = [registry.lookup("attention", kind).build for kind in self.attention_kinds.values()]
        if attention.mix_axes and builds and not any(getattr(build, "mixes_axes", False) for build in builds):
            knob, kind = next(iter(self.attention_kinds.items()))
            raise ConfigError(
                f"model.attention.mix_axes=true with model.attention.{knob}={kind}, whose heads are merged in one way "
                "only; set it to false or choose probsparse or frequency"
            )
        if attention.kind != "off":
            self._rules_of_kind()

    def _rules_of_kind(self) -> None:
        """What the kind of attention to oneself declares must allow the knobs; an unknown property allows none."""
        kind, window = self.attention.kind, self.attention.window
        windowed, causal = (registry.ask("attention", kind, key, self) for key in ("windowed", "causal"))
        if window is not None and not windowed:
            reason = "sums over all tokens at once" if windowed is False else "does not declare windowed=True"
            raise ConfigError(
                f"model.attention.window={window} with model.attention.kind={kind}, which {reason}; "
                f"set model.attention.window to none or choose {_attention_kinds('windowed')}"
            )
        if self.causal and not causal:
            reason = "sums over all tokens" if causal is False else "does not declare causal=True"
            raise ConfigError(
                f"model.attention.kind={kind} {reason}, so it cannot be causal; set model.causal=false "
                f"(and a task that allows it) or choose {_attention_kinds('causal')}"
            )
        if self.attention.residual_scores and (kind != "softmax" or self.causal):
            raise ConfigError(
                f"model.attention.residual_scores=true with model.attention.kind={kind} and "
                f"model.causal={self.causal}: scores are added for softmax attention without a cache; set it to false, "
                "or kind=softmax and causal=false"
            )
        turns = getattr(registry.lookup("attention", kind).build, "parts", 3) > 1  # there are queries and keys
        turned = self.rotary_features
        if turns and self.position == "rotary" and (turned % 2 or not turned):
            share = self.attention.rotary_share
            share = f" x model.attention.rotary_share={share} = {turned}" if share < 1 else ""
            raise ConfigError(
                f"model.position=rotary rotates pairs of features, so head_dim={self.head_dim}{share} must be even; "
                "choose another num_heads or head_dim, or position learned, sinusoidal or off"
            )

    def _rules_of_heads(self) -> None:
        attention, heads, shared = self.attention, self.attention.num_heads, self.num_kv_heads
        if attention.head_dim is None and self.width % heads:
            divisors = [n for n in range(1, min(self.width, 1024) + 1) if self.width % n == 0]
            raise ConfigError(
                f"model.attention.num_heads={heads} does not divide model.width={self.width}; "
                f"set model.attention.head_dim or choose one of {', '.join(map(str, divisors))}"
            )
        if not self.attention_kinds:
            return
        merged = heads * self.head_dim
        for key, value in (("projection", attention.projection), ("output", attention.output)):
            _check_map("attention", key, value, attention, self.width, merged)
            if value in ("diagonal", "identity", "off") and merged != self.width:
                raise ConfigError(
                    f"model.attention.{key}={value} maps each feature to itself, so num_heads x head_dim must equal "
                    f"model.width={self.width}, not {heads} x {self.head_dim} = {merged}; "
                    "set model.attention.head_dim to none or change num_heads"
                )
        if heads % shared:
            divisors = [n for n in range(1, heads + 1) if heads % n == 0]
            raise ConfigError(
                f"model.attention.num_kv_heads={shared} does not divide model.attention.num_heads={heads}; "
                f"choose one of {', '.join(map(str, divisors))}, or none"
            )
        if shared != heads and attention.projection != "dense":
            raise ConfigError(
                f"model.attention.projection={attention.projection} has equal parts, so keys have as many heads as "
                f"queries, not model.attention.num_kv_heads={shared}; set it to none or choose dense"
            )


def _check_statistics(causal: bool, norm: NormConfig) -> None:
    """Raises ConfigError where a norm would let a token see later ones."""
    if causal and norm.kind == "batchnorm":
        raise ConfigError(
            "model.norm.kind=batchnorm with model.causal=true: in training its statistics are those of all tokens, "
            "later ones included; choose layernorm or rmsnorm"
        )


def _check_places(name: str, norm: NormConfig) -> None:
    """Raises ConfigError where a norm shall stand elsewhere than before each part and after the last block."""
    for knob, value, fixed in (("placement", norm.placement, ("pre",)), ("outer", norm.outer, ("auto", "end"))):
        if value not in fixed:
            raise ConfigError(
                f"model.norm.{knob}={value} with model.name={name}, whose norms have fixed places; set it to "
                f"{' or '.join(fixed)}, or choose model.name=transformer"
            )


def _check_map(part: str, key: str, kind: str, knobs: AttentionConfig | FeedForwardConfig, width: int, inner: int):
    """Raises ConfigError where a structured map cannot lead from `width` features to `inner` ones and back."""
    where, sizes = f"model.{part}.{key}={kind}", f"{width} features (model.width) and {inner}"
    sizes += " merged heads" if part == "attention" else " hidden units"
    if kind == "hadamard" and (inner != width or width & (width - 1)):
        raise ConfigError(
            f"{where} is a square matrix whose size is a power of two, not a map between {sizes}; make both such a "
            "number, or choose monarch"
        )
    if kind == "fourier" and inner != width:
        raise ConfigError(
            f"{where} is a square matrix, not a map between {sizes}; make both the same, or choose monarch"
        )
    if kind == "low_rank" and knobs.rank > min(width, inner):
        raise ConfigError(
            f"model.{part}.rank={knobs.rank} with {where} is more than a map between {sizes} can have; choose at most "
            f"{min(width, inner)}"
        )
    if kind in ("block", "monarch"):
        sound = [size for size in range(1, width + 1) if _has_blocks(kind, size, width, inner)]
        if knobs.block_size not in sound:
            raise ConfigError(
                f"model.{part}.block_size={knobs.block_size} with {where} does not divide {sizes} into equally many "
                f"blocks; choose one of {', '.join(map(str, sound))}"
            )


def _has_blocks(kind: str, block_size: int, width: int, inner: int) -> bool:
    """Whether blocks of so many features lead from `width` features to `inner` ones and back."""
    blocks, rest = divmod(width, block_size)
    if rest or inner % blocks:
        return False
    return kind == "block" or max(width, inner) % (min(width, inner) // blocks) == 0


@dataclass(frozen=True)
class EncoderDecoderConfig(TransformerConfig):
    """A Transformer that attends to a second one, which reads another sequence (Vaswani et al. 2017).

    Attributes:
        depth: number of blocks of the decoder.
        causal: of the decoder; the encoder sees its whole sequence.
        encoder_depth: number of blocks of the encoder.
        distil: a convolution with pooling between the encoder's blocks halves its tokens (Informer).
        masked: the decoder's attention to itself hides later tokens. Unlike `causal` it also takes `probsparse`
            (Informer), which hides their values but lets them decide which queries attend.
        self_attention: the decoder's tokens attend to one another; without it, to the other sequence alone.
    """

    name: Literal["encoder_decoder"] = "encoder_decoder"
    encoder_depth: Depth = 2
    distil: bool = False
    masked: bool = False
    self_attention: bool = True

    @property
    def attention_kinds(self) -> dict[str, str]:
        """Those of the Transformer, and that which attends to the other sequence where it has a knob of its own."""
        cross = self.attention.cross_kind
        return super().attention_kinds | ({} if cross in (None, "off") else {"cross_kind": cross})

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        super().rules()
        self._rules_of_masked()
        if self.parallel:
            raise ConfigError(
                f"model.parallel=true with model.name={self.name}, whose blocks have parts one after another; set it "
                "to false or choose model.name=transformer"
            )
        if self.attention.residual_scores and self.distil and self.encoder_depth > 1:
            raise ConfigError(
                "model.attention.residual_scores=true with model.distil=true: a block has half the tokens of the one "
                "before, whose scores do not fit; set one of them to false"
            )
        key, kind = "cross_kind" if self.attention.cross_kind else "kind", self.attention.kind_of_cross
        if kind == "off" or not registry.ask("attention", kind, "crosses", self):
            raise ConfigError(
                f"model.attention.{key}={kind} cannot attend to another sequence, which "
                f"model.name={self.name} needs; choose {_attention_kinds('crosses')}"
            )

    def _rules_of_masked(self) -> None:
        if self.masked and not self.self_attention:
            raise ConfigError(
                "model.masked=true with model.self_attention=false: the decoder's tokens do not attend to one another, "
                "so nothing is hidden; set model.masked=false or model.self_attention=true"
            )
        able = [name for name in registry.names("attention") if self._masks(name)]
        if self.masked and self.attention.kind not in able:
            raise ConfigError(
                f"model.masked=true with model.attention.kind={self.attention.kind}, which takes no mask of later "
                f"tokens; set model.masked=false or choose {_one_of(able)}"
            )

    def _masks(self, kind: str) -> bool:
        """Whether a kind of attention hides later tokens where it is asked to."""
        part = registry.lookup("attention", kind)
        return registry.ask("attention", kind, "causal", self) is True or getattr(part.build, "masks", False)


@dataclass(frozen=True)
class AutoformerConfig(EncoderDecoderConfig):
    """Autoformer (Wu et al. 2021): blocks that take the trend away and add it up; with other attention, FEDformer.

    Attributes:
        distil: must be false.
        masked: must be false.
        self_attention: must be true.
        remat: must be false.
        position: must be `off`.
        moving_average: steps of the moving average that is the trend; of several, a mixture is learned.
        seasonal_norm: the norm after the last block is less its mean over the tokens.
    """

    name: Literal["autoformer"] = "autoformer"
    position: Literal["off"] = "off"
    moving_average: tuple[AtLeastOne, ...] = (25,)
    seasonal_norm: bool = True

    keeps_tokens = False  # the trends are beside them

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        super().rules()
        if not self.moving_average:
            raise ConfigError("model.moving_average is empty; give one or more numbers of steps, like 25")
        if self.remat or self.norm.kind != "layernorm":
            knob, needed = ("remat=true", "false") if self.remat else (f"norm.kind={self.norm.kind}", "layernorm")
            raise ConfigError(
                f"model.{knob} with model.name=autoformer, whose blocks have no norms and keep what they compute; set "
                f"it to {needed}: the norm after the last block is a LayerNorm"
            )
        unread = {
            "masked": (self.masked, False),
            "self_attention": (self.self_attention, True),
            "norm.placement": (self.norm.placement, "pre"),
            "norm.outer": (self.norm.outer, "auto"),
            "attention.residual_scores": (self.attention.residual_scores, False),
        }
        for knob, (value, needed) in unread.items():
            if value != needed:
                raise ConfigError(
                    f"model.{knob}={str(value).lower()} with model.name=autoformer, whose blocks do not read it; leave "
                    f"it at {str(needed).lower()}, or choose model.name=encoder_decoder"
                )
        if self.distil or self.causal:
            knob = "distil" if self.distil else "causal"
            raise ConfigError(
                f"model.{knob}=true with model.name=autoformer, whose moving averages see all tokens around; set it to "
                "false or choose model.name=encoder_decoder"
            )


def _attention_kinds(key: str) -> str:
    """The kinds that declare `key`: a, b or c."""
    return _one_of(registry.declaring("attention", key))


def _one_of(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


# ------------------------------------------------------------------------------------------------ baselines


@dataclass(frozen=True)
class MLPConfig(ModelConfig):
    """Dense layers with an activation, for each token alone: features mix, tokens do not.

    Attributes:
        depth: number of layers.
        activation: of the hidden units.
    """

    name: Literal["mlp"] = "mlp"
    width: AtLeastOne = 64
    depth: Depth = 2
    activation: Activation = "gelu"
    bias: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

    causal = True  # a token sees nothing that comes after it


@dataclass(frozen=True)
class FactorizationMachineConfig(ModelConfig):
    """A linear map plus products of every two features (Rendle 2010), for each token alone.

    Attributes:
        width: features of a token, and the rank of the products.
    """

    name: Literal["factorization_machine"] = "factorization_machine"
    width: AtLeastOne = 64
    bias: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

    causal = True


@dataclass(frozen=True)
class FieldProductsConfig(ModelConfig):
    """The products of every two tokens, by feature (Rendle 2010); over the fields of a record, with a head that sums.

    Attributes:
        width: features of a field's vector.
    """

    name: Literal["field_products"] = "field_products"
    width: AtLeastOne = 16
    bias: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

    causal = False


@dataclass(frozen=True)
class AutoIntConfig(ModelConfig):
    """Attention over fields, with a linear map beside it and ReLU after it (Song et al. 2019).

    Attributes:
        heads: of the attention; they divide the width.
    """

    name: Literal["autoint"] = "autoint"
    width: AtLeastOne = 16
    depth: Depth = 3
    heads: AtLeastOne = 2
    bias: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

    causal = False

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.width % self.heads:
            raise ConfigError(f"model.heads={self.heads} does not divide model.width={self.width}; choose a divisor")


@dataclass(frozen=True)
class ConvolutionConfig(ModelConfig):
    """Residual convolutions over the tokens.

    Attributes:
        name: along the sequence (`cnn_1d`), or over an image's grid of patches (`cnn_2d`).
        depth: number of blocks, each of two convolutions.
        kernel_size: tokens (or rows and columns) that one convolution sees.
        dilation: in each block these tokens are so many times as far apart as in the block before; 2 makes a temporal
            convolutional network (Bai et al. 2018).
        position: a learned table that is added to the tokens, or none; zeros beyond the edges tell a convolution its
            place as well, as far as it sees.
        activation: between the two convolutions of a block.
    """

    name: Literal["cnn_1d", "cnn_2d"] = "cnn_1d"
    width: AtLeastOne = 64
    depth: Depth = 4
    kernel_size: AtLeastOne = 3
    dilation: AtLeastOne = 1
    position: Literal["learned", "off"] = "off"
    activation: Activation = "gelu"
    norm: NormConfig = field(default_factory=NormConfig)
    bias: bool = True
    causal: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

    @property
    def reach(self) -> int:
        """How many tokens back an input can still be seen; rows up and columns left in 2d."""
        # Two convolutions a block.
        apart = sum(self.dilation**layer for layer in range(self.depth))
        return 2 * apart * (self.kernel_size - 1 if self.causal else self.kernel_size // 2)

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.causal and self.name == "cnn_2d":
            raise ConfigError(
                "model.causal=true with model.name=cnn_2d: a grid of patches has no before and after; "
                "set model.causal=false or model.name=cnn_1d"
            )
        if self.dilation > 1 and self.name == "cnn_2d":
            raise ConfigError(
                f"model.dilation={self.dilation} with model.name=cnn_2d: only a sequence is dilated; set "
                "model.dilation=1 or model.name=cnn_1d"
            )
        _check_statistics(self.causal, self.norm)
        _check_places(self.name, self.norm)


@dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """Recurrent layers from the first token to the last.

    Attributes:
        name: `lstm` (Hochreiter & Schmidhuber 1997) or `gru` (Cho et al. 2014).
        depth: number of layers.
    """

    name: Literal["lstm", "gru"] = "lstm"
    width: AtLeastOne = 64
    depth: Depth = 2
    bias: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

    causal = True


@dataclass(frozen=True)
class MixerConfig(ModelConfig):
    """MLP-Mixer (Tolstikhin et al. 2021): an MLP over tokens, then an MLP over features, each with norm and skip.

    Attributes:
        token_hidden: hidden units of the MLP over tokens.
        expansion: hidden units of the MLP over features, per feature of the model.
        activation: of the hidden units.
    """

    name: Literal["mixer"] = "mixer"
    width: AtLeastOne = 64
    depth: Depth = 4
    token_hidden: AtLeastOne = 32
    expansion: Positive = 4.0
    activation: Activation = "gelu"
    norm: NormConfig = field(default_factory=NormConfig)
    bias: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

    causal = False

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        _check_places(self.name, self.norm)


@dataclass(frozen=True)
class ImageNormConfig:
    """Normalisation of a ResNet.

    Attributes:
        kind: of each feature over the batch (`batchnorm`), of groups of features over an image (`groupnorm`), of a
            position's features (`layernorm`), or not at all.
        groups: of `groupnorm`, where they divide the features; else as many as divide both.
        epsilon: added to the variance.
    """

    kind: Literal["batchnorm", "groupnorm", "layernorm", "off"] = "batchnorm"
    groups: AtLeastOne = 8
    epsilon: Positive = 1e-5


@dataclass(frozen=True)
class ResNetConfig(ModelConfig):
    """ResNet (He et al. 2016) on a grid of patches; task.stem makes the first features.

    Attributes:
        width: features of the stem; a stage has twice those of the stage before.
        depths: number of blocks in each stage; a stage has half the rows and columns of the one before.
        block: `basic`, two 3 x 3 convolutions; or `bottleneck`, a 3 x 3 one between two dense maps, whose output has
            four times the features.
        kernel_size: rows and columns that a convolution sees.
        activation: after each convolution, and after the sum with the skip connection.
    """

    name: Literal["resnet"] = "resnet"
    width: AtLeastOne = 32
    depths: Annotated[tuple[AtLeastOne, ...], NOT_EMPTY] = (2, 2)
    block: Literal["basic", "bottleneck"] = "basic"
    kernel_size: AtLeastOne = 3
    activation: Activation = "relu"
    norm: ImageNormConfig = field(default_factory=ImageNormConfig)
    bias: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

    causal = False

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(self.depths)

    @property
    def keeps_tokens(self) -> bool:
        """Whether no stage halves rows and columns, and no block adds features."""
        return len(self.depths) == 1 and self.block == "basic"

    @property
    def reach(self) -> int | float:
        """How many patches up or left an input can still be seen; all of them through the statistics of an image."""
        if self.norm.kind == "groupnorm":
            return math.inf
        convolutions = 2 if self.block == "basic" else 1
        apart = sum(blocks * 2**stage for stage, blocks in enumerate(self.depths))
        return convolutions * apart * (self.kernel_size // 2)


@dataclass(frozen=True)
class ConvNeXtConfig(ModelConfig):
    """ConvNeXt (Liu et al. 2022) without halving: a depthwise convolution, a norm and an MLP in each block.

    Attributes:
        depth: number of blocks.
        kernel_size: rows and columns that a convolution sees.
        expansion: hidden units of the MLP, per feature of the model.
        activation: of the hidden units.
    """

    name: Literal["convnext"] = "convnext"
    width: AtLeastOne = 64
    depth: Depth = 4
    kernel_size: AtLeastOne = 7
    expansion: Positive = 4.0
    activation: Activation = "gelu"
    norm: NormConfig = field(default_factory=NormConfig)
    bias: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

    causal = False

    @property
    def reach(self) -> int:
        """How many patches up or left an input can still be seen."""
        return self.depth * (self.kernel_size // 2)

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        _check_places(self.name, self.norm)


@dataclass(frozen=True)
class TimeMixerConfig(ModelConfig):
    """TimeMixer (Wang et al. 2024): MLPs over time that mix coarser and finer copies of a series; for forecasting.

    Attributes:
        depth: number of blocks.
        scales: coarser copies, each of the means of two steps of the one before.
        expansion: hidden units of the MLP over features, per feature of the model.
        activation: of the hidden units.
        moving_average: steps of the moving average that is the trend; of several, a mixture is learned.
    """

    name: Literal["timemixer"] = "timemixer"
    width: AtLeastOne = 16
    depth: Depth = 2
    scales: AtLeastOne = 3
    expansion: Positive = 2.0
    activation: Activation = "gelu"
    moving_average: tuple[AtLeastOne, ...] = (25,)
    bias: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

    causal = False
    keeps_tokens = False  # there are those of every scale
