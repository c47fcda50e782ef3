"""The same weights give the same logits as transformers; what cannot be the same is refused."""

import functools
import json
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.conversion import ARCHITECTURES, PLANS, Converted, from_huggingface, to_huggingface

GOLDENS = Path(__file__).parent.parent / "goldens"
NAMES = ("gpt2", "bert_tokens", "bert_masked", "bert_sequence", "vit")
ODD = (
    *("bert_body", "roberta_masked", "roberta_sequence", "distilbert_masked", "distilbert_sequence"),
    *("deit", "deit_teacher", "gpt_neox", "llama", "resnet", "resnet_bottleneck"),
)


class Golden(NamedTuple):
    weights: dict[str, np.ndarray]
    settings: dict
    inputs: jax.Array
    valid: jax.Array | None
    logits: np.ndarray

    def given(self, **settings) -> "Golden":
        return self._replace(settings={**self.settings, **settings})

    def holding(self, **weights) -> "Golden":
        return self._replace(weights={**self.weights, **weights})

    def lacking(self, pattern: str) -> "Golden":
        return self._replace(weights={name: w for name, w in self.weights.items() if not re.search(pattern, name)})

    def renamed(self, pattern: str, new: str) -> "Golden":
        return self._replace(weights={re.sub(pattern, new, name): w for name, w in self.weights.items()})

    def convert(self, **options) -> Converted:
        return from_huggingface(self.weights, self.settings, **options)


def from_arrays(weights, settings, inputs, valid, logits) -> Golden:
    return Golden(weights, settings, jnp.asarray(inputs), None if valid is None else jnp.asarray(valid), logits)


@functools.cache
def golden(name: str) -> Golden:
    with safe_open(GOLDENS / f"parity_{name}.safetensors", "numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        settings = json.loads(file.metadata()["config"])
    weights = {key.removeprefix("weights/"): w for key, w in tensors.items() if key.startswith("weights/")}
    return from_arrays(weights, settings, tensors["inputs"], tensors.get("valid"), tensors["logits"])


@functools.cache
def converted(name: str) -> Converted:
    return golden(name).convert()


def logits_of(reference: Golden, model: Converted) -> np.ndarray:
    apply = jax.jit(model.network.apply)
    return np.asarray(apply(model.params, model.model_state, reference.inputs, valid=reference.valid)[0])


def assert_parity(reference: Golden, model: Converted) -> None:
    np.testing.assert_allclose(logits_of(reference, model), reference.logits, rtol=1e-4, atol=1e-4)


def assert_same_params(model: Converted, expected: Converted) -> None:
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, expected.params))


# ---------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("name", NAMES + ODD)
def test_logits_equal_those_of_transformers(name):
    assert_parity(golden(name), converted(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES + ODD)
def test_logits_equal_those_of_fresh_transformers_models(name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tools import make_parity_goldens as tool

    live = from_arrays(*tool.make(tool.MODELS[name], seed=100))
    assert_parity(live, live.convert())
    assert np.max(np.abs(live.logits - golden(name).logits)) > 1e-2


def test_logits_equal_those_of_transformers_with_unusual_settings():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tools import make_parity_goldens as tool

    models = (
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**tool.GPT2, n_inner=40, activation_function="silu", tie_word_embeddings=False)
        ),
        transformers.ViTForImageClassification(
            transformers.ViTConfig(**tool.VIT | {"patch_size": 8, "num_channels": 1}, qkv_bias=False, num_labels=3)
        ),
    )
    for model in models:
        live = from_arrays(*tool.make(model, seed=200))
        assert_parity(live, live.convert())


@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_matters(name):
    reference, model = golden(name), converted(name)
    leaves, structure = jax.tree.flatten(model.params)
    before, rng = logits_of(reference, model), np.random.default_rng(0)
    for number, path in enumerate(leaf_paths(model.params)):
        noise = 0.1 * rng.standard_normal(leaves[number].shape, np.float32)
        for changed in (leaves[number] + noise, 0 * leaves[number]):
            params = jax.tree.unflatten(structure, [*leaves[:number], changed, *leaves[number + 1 :]])
            after = logits_of(reference, model._replace(params=params))
            assert np.max(np.abs(after - before)) > 1e-2, path


@pytest.mark.parametrize("name", NAMES + ODD)
def test_every_leaf_has_a_source_and_every_source_a_leaf(name):
    reference = golden(name)
    architecture = reference.settings["architectures"][0]
    plan = PLANS[reference.settings["model_type"]](reference.settings, reference.weights, architecture)
    model = converted(name)
    assert set(plan.table) == set(leaf_paths(model.params)) and set(plan.state) == set(leaf_paths(model.model_state))


@pytest.mark.parametrize("name", NAMES + ODD)
def test_written_back_are_the_tensors_that_the_parameters_say(name):
    """Moves every parameter by something else, and finds each tensor moved by it, through the way in."""
    reference, model = golden(name), converted(name)
    same, settings = to_huggingface(model.params, reference.weights, reference.settings)
    assert settings == reference.settings
    assert same.keys() == reference.weights.keys()
    for tensor, given in reference.weights.items():
        np.testing.assert_allclose(same[tensor], given, rtol=1e-6, atol=1e-6)
    rng, paths = np.random.default_rng(0), leaf_paths(model.params)
    moved = {path: leaf + rng.standard_normal(leaf.shape, np.float32) for path, leaf in paths.items()}
    params = jax.tree.unflatten(jax.tree.structure(model.params), list(moved.values()))
    written, settings = to_huggingface(params, reference.weights, reference.settings)
    apart = name == "gpt2" or name.endswith("_masked")  # their heads are tied to the embedding
    assert (settings["tie_word_embeddings"] is False) == apart if apart else settings == reference.settings
    again = from_huggingface(written, settings).params
    for path, leaf in leaf_paths(again).items():
        np.testing.assert_allclose(leaf, moved[path], rtol=1e-5, atol=1e-5, err_msg=path)


def test_what_has_no_place_in_the_file_is_not_written():
    reference = golden("vit").given(qkv_bias=False).lacking(r"attention\.attention\.\w+\.bias")
    params = jax.tree.map(lambda leaf: leaf + 1, reference.convert().params)
    with pytest.raises(ConfigError, match=r"projection.bias cannot be written into .*query.*: the file has no bias"):
        to_huggingface(params, reference.weights, reference.settings)
    with pytest.raises(ConfigError, match=r"not those of this model: body.norm.bias, body.norm.scale are in one of"):
        fewer = {**params, "body": {k: v for k, v in params["body"].items() if k != "norm"}}
        to_huggingface(fewer, reference.weights, reference.settings)


def test_the_golden_file_tells_epsilons_apart():
    reference = golden("gpt2").given(layer_norm_epsilon=1e-5)
    assert np.max(np.abs(logits_of(reference, reference.convert()) - reference.logits)) > 1e-2


@pytest.mark.parametrize(("name", "causal"), [("gpt2", True), ("bert_tokens", False)])
def test_gpt2_is_causal_and_bert_is_not(name, causal):
    reference, place = golden(name), 7
    inputs = reference.inputs.at[:, place].set((reference.inputs[:, place] + 1) % 60)
    changed = logits_of(reference._replace(inputs=inputs), converted(name))
    moved = np.max(np.abs(changed - logits_of(reference, converted(name))), axis=(0, 2))
    assert np.all(moved[place:] > 1e-3)
    assert np.all(moved[:place] == 0) if causal else np.all(moved[:place] > 1e-3)


# ------------------------------------------------------------------------------------- forms of a file


def test_a_file_gives_what_its_tensors_give(tmp_path):
    reference = golden("gpt2")
    save_file(reference.weights, tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", str(tmp_path / "model.safetensors")):
        assert_same_params(from_huggingface(path, reference.settings), converted("gpt2"))


@pytest.mark.parametrize("name", NAMES)
def test_names_may_lack_the_prefix(name):
    assert_same_params(golden(name).renamed(r"^(transformer|bert|vit)\.", "").convert(), converted(name))


def test_early_names_of_norms():
    early = golden("bert_masked").renamed("LayerNorm.weight", "LayerNorm.gamma")
    early = early.renamed("LayerNorm.bias", "LayerNorm.beta")
    assert_same_params(early.convert(), converted("bert_masked"))
    written, _ = to_huggingface(converted("bert_masked").params, early.weights, early.settings)
    assert written.keys() == golden("bert_masked").weights.keys()


def test_known_buffers_are_no_weights():
    mask = np.tri(16, dtype=bool)[None, None]
    gpt2 = golden("gpt2").holding(**{"transformer.h.0.attn.bias": mask, "transformer.h.1.attn.masked_bias": mask[0, 0]})
    assert_same_params(gpt2.convert(), converted("gpt2"))
    bert = golden("bert_tokens").holding(**{"bert.embeddings.position_ids": np.arange(16)[None]})
    assert_same_params(bert.convert(), converted("bert_tokens"))


def test_half_precision_weights_become_float32():
    reference = golden("vit")
    half = reference._replace(weights={name: w.astype(np.float16) for name, w in reference.weights.items()}).convert()
    for leaf, expected in zip(jax.tree.leaves(half.params), jax.tree.leaves(converted("vit").params), strict=True):
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-3)


def test_what_is_dropped_does_not_matter():
    pooler = {"bert.pooler.dense.weight": np.ones((32, 32), np.float32), "bert.pooler.dense.bias": np.ones(32)}
    model = golden("bert_masked").holding(**pooler).convert(drop=("bert.pooler.",))
    assert_same_params(model, converted("bert_masked"))


def test_a_tied_head_may_be_in_the_file():
    embedding = golden("gpt2").weights["transformer.wte.weight"]
    assert_same_params(golden("gpt2").holding(**{"lm_head.weight": embedding}).convert(), converted("gpt2"))


def test_an_untied_head_is_read():
    embedding = golden("gpt2").weights["transformer.wte.weight"]
    model = golden("gpt2").given(tie_word_embeddings=False).holding(**{"lm_head.weight": 2 * embedding}).convert()
    assert np.array_equal(model.params["head"]["kernel"], 2 * embedding.T)
    assert np.array_equal(model.params["embedding"]["table"], embedding)


def test_vit_without_projection_biases():
    biases = r"attention\.attention\.\w+\.bias"
    model = golden("vit").given(qkv_bias=False).lacking(biases).convert()
    zeroed = {name: 0 * w for name, w in golden("vit").weights.items() if re.search(biases, name)}
    assert len(zeroed) == 6
    assert_same_params(model, golden("vit").holding(**zeroed).convert())


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "gpt2",
            {"model_type": "gpt3"},
            r"model_type='gpt3' cannot be converted: did you mean gpt2 or gpt_neox\? choose gpt2",
        ),
        ("gpt2", {"model_type": None}, "model_type=None cannot be converted: choose gpt2, bert, vit"),
        ("gpt2", {"n_embd": None}, "n_embd=None must be a whole number of at least 1; use the config.json"),
        ("gpt2", {"n_layer": 2.5}, "n_layer=2.5 must be a whole number"),
        ("gpt2", {"n_head": 5}, "num_heads=5 does not divide model.width=32"),
        (
            "gpt2",
            {"activation_function": "mish"},
            "activation_function='mish' cannot .*; choose a model with one of gelu, gelu_new",
        ),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True of gpt2 cannot"),
        ("gpt2", {"scale_attn_weights": False}, "choose a model with scale_attn_weights=True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("bert_tokens", {"is_decoder": True}, "is_decoder=True of bert cannot be expressed"),
        ("bert_tokens", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("vit", {"image_size": [16, 16]}, r"image_size=\[16, 16\] must be a whole number"),
        ("vit", {"image_size": 18}, "patch_size=4 does not divide image_size=18"),
    ],
)
def test_settings_that_cannot_be_expressed(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        golden(name).given(**settings).convert()


HEADS = {
    "gpt2": ("GPT2Model", "GPT2ForSequenceClassification", "GPT2DoubleHeadsModel", "GPT2ForTokenClassification"),
    "bert_masked": ("BertForPreTraining", "BertForNextSentencePrediction", "BertLMHeadModel"),
    "bert_tokens": ("BertForMultipleChoice", "BertForQuestionAnswering"),
    "vit": ("ViTModel", "ViTForMaskedImageModeling"),
}


@pytest.mark.parametrize(("name", "head"), [(name, head) for name, heads in HEADS.items() for head in heads])
def test_another_head_is_refused_whatever_tensors_there_are(name, head):
    kind = golden(name).settings["model_type"]
    message = (
        rf"architectures=\['{head}'\] of {kind} cannot be converted; choose .* {', '.join(ARCHITECTURES[kind])}, or"
    )
    with pytest.raises(ConfigError, match=message):
        golden(name).given(architectures=[head]).convert(drop=("score.", "cls.seq_relationship."))


@pytest.mark.parametrize("value", [[], ["GPT2LMHeadModel"] * 2, "GPT2LMHeadModel", [None], 3])
def test_architectures_is_a_list_of_one_name(value):
    with pytest.raises(ConfigError, match=r"architectures=.* cannot be converted"):
        golden("gpt2").given(architectures=value).convert()


@pytest.mark.parametrize("name", ["gpt2", "bert_masked", "bert_tokens", "vit"])
def test_tensors_tell_the_head_where_the_settings_do_not(name):
    assert_same_params(golden(name).given(architectures=None).convert(), converted(name))


def test_a_pooler_may_be_of_two_heads():
    nameless = golden("bert_sequence").given(architectures=None)
    for drop in ((), ("bert.pooler.",)):
        with pytest.raises(
            ConfigError, match=r"architectures=None of bert cannot be converted; .*name the one whose head"
        ):
            nameless.convert(drop=drop)


def test_a_sequence_is_not_classified_without_its_pooler():
    with pytest.raises(ConfigError, match=r"lack bert.pooler.dense.bias, .*BertForSequenceClassification saves"):
        golden("bert_sequence").convert(drop=("bert.pooler.",))


def test_a_sequence_has_one_row_of_logits_that_padding_does_not_reach():
    reference, model = golden("bert_sequence"), converted("bert_sequence")
    logits = logits_of(reference, model)
    assert logits.shape == (3, 3)
    padding = np.asarray(~reference.valid)
    changed = jnp.where(padding, (reference.inputs + 1) % 60, reference.inputs)
    np.testing.assert_allclose(logits_of(reference._replace(inputs=changed), model), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("symbol", [-1, 60, 2**31 - 1])
def test_a_symbol_outside_the_vocabulary_is_refused(symbol):
    model, inputs = converted("gpt2"), golden("gpt2").inputs.at[1, 3].set(symbol)
    with pytest.raises(
        ConfigError, match=f"symbol {symbol} is not one of this network's vocabulary of 60, from 0 to 59"
    ):
        model.network.apply(model.params, {}, inputs)
    logits = jax.jit(model.network.apply)(model.params, {}, inputs)[0]  # whose values no program can look at
    assert np.all(np.isnan(logits[1, 3:])) and np.all(np.isfinite(logits[::2]))


@pytest.mark.parametrize(
    ("name", "pattern", "message"),
    [
        ("gpt2", "wte", "lack lm_head.weight, transformer.wte.weight; convert the file that GPT2LMHeadModel saves"),
        ("gpt2", r"h\.1\.", r"lack transformer\.h\.1\.attn\.c_attn\.bias, .* and 4 more; convert"),
        ("bert_tokens", "^classifier", "lack classifier.bias, classifier.weight; convert the file that BertForToken"),
        ("bert_masked", "predictions.bias", "lack cls.predictions.decoder.bias"),
        ("vit", "cls_token", "lack vit.embeddings.cls_token"),
    ],
)
def test_missing_tensors(name, pattern, message):
    with pytest.raises(ConfigError, match=message):
        golden(name).lacking(pattern).convert()


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("gpt2", "score.weight"),
        ("gpt2", "wte.weight"),
        ("gpt2", "transformer.h.2.ln_1.weight"),
        ("bert_tokens", "bert.pooler.dense.weight"),
        ("bert_tokens", "bert.embeddings.LayerNorm.gamma"),
        ("bert_masked", "classifier.weight"),
        ("vit", "vit.embeddings.mask_token"),
    ],
)
def test_a_tensor_without_a_place_is_refused(name, extra):
    with pytest.raises(ConfigError, match=f"does not use {extra}; .*, or name in `drop` what to leave out"):
        golden(name).holding(**{extra: np.ones(32, np.float32)}).convert()


def test_missing_and_extra_tensors_are_told_together():
    with pytest.raises(
        ConfigError, match=r"lack transformer\.wpe\.weight and .* does not use transformer\.wqe\.weight;"
    ):
        golden("gpt2").renamed("wpe", "wqe").convert()


def test_two_values_for_one_tied_tensor():
    other = {"lm_head.weight": np.ones((60, 32), np.float32)}
    with pytest.raises(
        ConfigError, match=r"lm_head.weight differs from transformer.wte.weight, but tie_word_embeddings"
    ):
        golden("gpt2").holding(**other).convert()


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("gpt2", "transformer.wpe.weight", (15, 32)),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", (96, 32)),
        ("bert_tokens", "bert.embeddings.token_type_embeddings.weight", (2, 1)),
        ("bert_tokens", "bert.encoder.layer.1.attention.self.key.weight", (32, 31)),
        ("bert_tokens", "classifier.weight", (6, 32)),
        ("vit", "vit.embeddings.cls_token", (2, 1, 32)),
        ("vit", "vit.embeddings.patch_embeddings.projection.weight", (32, 4, 4, 3)),
        ("vit", "vit.layernorm.weight", ()),
    ],
)
def test_wrong_shapes(name, tensor, shape):
    message = f"{re.escape(f'{tensor} {shape}')}.* cannot make .*, whose shape is .* by the settings; use the config"
    with pytest.raises(ConfigError, match=message):
        golden(name).holding(**{tensor: np.ones(shape, np.float32)}).convert()


def test_quantised_weights_are_refused():
    with pytest.raises(
        ConfigError, match=r"transformer.wte.weight is of type int8, .*; save the model without quantisation"
    ):
        golden("gpt2").holding(**{"transformer.wte.weight": np.ones((60, 32), np.int8)}).convert()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model"])
def test_pickles_are_never_opened(name, tmp_path):
    (tmp_path / name).write_bytes(b"cos\nabort\n(tR.")
    with pytest.raises(ConfigError, match=r"must be a .safetensors file or a folder of them: pickled weights"):
        from_huggingface(tmp_path / name, golden("gpt2").settings)


@pytest.mark.parametrize("content", [None, b"", b"not a tensor in sight"])
def test_unreadable_files(content, tmp_path):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"weights=.*model.safetensors cannot be read: "):
        from_huggingface(path, golden("gpt2").settings)
