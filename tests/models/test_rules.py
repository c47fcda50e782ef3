"""Configs of models whose knobs contradict one another or would do nothing: refused, with the knob and a way out."""

import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.modules.attention import SoftmaxAttention
from flaxformer_lab.parsing import override
from flaxformer_lab.registry import register

ENCODER_DECODER = {"name": "encoder_decoder"}
CROSS_ALONE = ENCODER_DECODER | {"attention.kind": "off", "attention.cross_kind": "softmax"}


def model_of(knobs):
    tree = {}
    for key, value in knobs.items():
        tree = override(tree, key, value)
    return parse_config({"model": tree}).model


MASKED = ENCODER_DECODER | {"masked": True}
UNMASKED = ("channel", "fourier", "autocorrelation", "frequency", "wavelet", "off")
REFUSED = {
    **{
        f"{kind} attention that hides nothing": (
            MASKED | {"attention.kind": kind, "attention.cross_kind": "softmax"},
            [
                f"model.masked=true with model.attention.kind={kind}, which takes no mask of later tokens",
                "set model.masked=false or choose softmax, linear, lightning, mean, static, random or probsparse",
            ],
        )
        for kind in UNMASKED
    },
    "nothing to hide": (
        MASKED | {"self_attention": False},
        ["model.masked=true with model.self_attention=false", "set model.masked=false or model.self_attention=true"],
    ),
    "a causal convolution with statistics of all tokens": (
        {"name": "cnn_1d", "causal": True, "norm.kind": "batchnorm"},
        ["model.norm.kind=batchnorm with model.causal=true", "choose layernorm or rmsnorm"],
    ),
    **{
        f"{knob} {value} of {name}": (
            {"name": name, f"norm.{knob}": value},
            [f"model.norm.{knob}={value} with model.name={name}", f"set it to {way_out}, or choose model.name=trans"],
        )
        for name in ("cnn_1d", "cnn_2d", "mixer", "convnext")
        for knob, value, way_out in (
            ("placement", "post", "pre"),
            ("outer", "start", "auto or end"),
            ("outer", "off", "auto or end"),
        )
    },
    "shared heads of cross-attention alone": (
        CROSS_ALONE | {"attention.num_kv_heads": 3},
        ["model.attention.num_kv_heads=3 does not divide model.attention.num_heads=4"],
    ),
    "blocks of cross-attention alone": (
        CROSS_ALONE | {"attention.projection": "block", "attention.block_size": 24},
        ["model.attention.block_size=24", "choose one of"],
    ),
    "merged axes of cross-attention alone": (
        CROSS_ALONE | {"attention.mix_axes": True},
        ["model.attention.mix_axes=true with model.attention.cross_kind=softmax", "choose probsparse or frequency"],
    ),
}


@pytest.mark.parametrize(("knobs", "parts"), REFUSED.values(), ids=REFUSED)
def test_what_contradicts_itself_is_refused(knobs, parts):
    with pytest.raises(ConfigError) as error:
        model_of(knobs)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "knobs",
    [
        *(
            MASKED | {"attention.kind": kind, "attention.cross_kind": "softmax"}
            for kind in ("softmax", "linear", "lightning", "mean", "static", "random", "probsparse")
        ),
        {"name": "cnn_1d", "norm.kind": "batchnorm"},
        {"name": "mixer", "norm.outer": "end"},
        {"attention.kind": "off", "attention.num_kv_heads": 3},  # nothing reads it
        CROSS_ALONE | {"attention.cross_kind": "probsparse", "attention.mix_axes": True},
    ],
    ids=str,
)
def test_what_is_close_to_it_is_accepted(knobs):
    assert model_of(knobs).name == knobs.get("name", "transformer")


def test_a_kind_of_ones_own_hides_later_tokens_where_it_declares_so(own_parts):
    knobs = MASKED | {"attention.cross_kind": "softmax"}
    register("attention", "blind", causal=True)(type("Blind", (SoftmaxAttention,), {}))
    register("attention", "silent")(type("Silent", (SoftmaxAttention,), {}))
    assert model_of(knobs | {"attention.kind": "blind"}).masked
    with pytest.raises(ConfigError, match=r"model\.attention\.kind=silent, which takes no mask"):
        model_of(knobs | {"attention.kind": "silent"})


def test_a_causal_ffn_works_on_each_token_alone_without_attention_too(own_parts):
    register("ffn", "wide")(type("Wide", (), {}))
    with pytest.raises(ConfigError, match=r"model\.ffn\.kind=wide does not declare reach=0"):
        model_of({"causal": True, "attention.kind": "off", "ffn.kind": "wide"})
