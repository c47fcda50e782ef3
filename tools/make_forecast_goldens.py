"""Writes what PyTorch's forecasters compute, for small random weights and inputs, with all gradients.

    python tools/make_forecast_goldens.py

Needs the extras `parity` and `forecast-parity`. Each case is one file, `tests/goldens/forecast_NAME.npz`: `inputs/`,
`weights/` as PyTorch names them, `output`, and `gradients/` of sum(output * cotangent) by each input and weight. The
peers are the layers of `transformers` and `neuralforecast`; comments name what they do differently from the papers.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import neuralforecast.models.autoformer as nf_autoformer
import neuralforecast.models.fedformer as nf_fedformer
import neuralforecast.models.informer as nf_informer
import numpy as np
import torch
from neuralforecast.common import _modules as nf
from neuralforecast.losses.pytorch import MAE
from neuralforecast.models.dlinear import DLinear
from neuralforecast.models.itransformer import iTransformer
from neuralforecast.models.nlinear import NLinear
from neuralforecast.models.patchtst import PatchTST, TSTEncoder
from neuralforecast.models.timemixer import TimeMixer
from neuralforecast.models.vanillatransformer import VanillaTransformer
from transformers import PatchTSTConfig
from transformers.models.autoformer.modeling_autoformer import AutoformerAttention
from transformers.models.informer.modeling_informer import InformerConvLayer, InformerProbSparseAttention
from transformers.models.patchtst.modeling_patchtst import PatchTSTEncoderLayer

FOLDER = Path(__file__).parent.parent / "tests" / "goldens"
WIDTH, HEADS = 8, 2
Arrays = dict[str, np.ndarray]


@torch.no_grad()
def randomize(module: torch.nn.Module, rng: np.random.Generator) -> None:
    """Draws every parameter and running average again."""
    for name, parameter in [*module.named_parameters(), *module.named_buffers()]:
        if not parameter.is_floating_point() and not parameter.is_complex():
            continue
        if name.split(".")[-1] in ("pe", "scale"):  # the table of positions, 1 / sqrt(head_dim)
            continue
        draw = 0.3 * rng.standard_normal(parameter.shape, np.float32)
        if parameter.is_complex():
            draw = draw + 0.3j * rng.standard_normal(parameter.shape, np.float32)
        if "norm" in name and name.endswith(("weight", "running_var")):
            draw = 1 + np.abs(draw)
        parameter.copy_(torch.from_numpy(np.asarray(draw)))


def case(
    call: Callable[..., torch.Tensor], shapes: dict[str, tuple[int, ...]], module: torch.nn.Module, seed: int
) -> Arrays:
    """`call(module, **inputs)` with drawn inputs and weights; the gradients are by both."""
    rng = np.random.default_rng(seed)
    randomize(module, rng)
    inputs = {name: torch.from_numpy(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers() if name.split(".")[-1] != "pe"}
    for each in inputs.values():
        each.requires_grad_()
    output = call(module, **inputs)
    cotangent = torch.from_numpy(rng.standard_normal(tuple(output.shape), np.float32))
    torch.sum(output * cotangent).backward()
    arrays = {"output": output, "cotangent": cotangent} | {f"weights/{name}": each for name, each in buffers.items()}
    for kind, each in (("inputs", inputs), ("weights", dict(module.named_parameters()))):
        for name, tensor in each.items():
            arrays[f"{kind}/{name}"] = tensor
            if tensor.grad is not None:
                arrays[f"gradients/{name}"] = tensor.grad
    return {name: array.detach().resolve_conj().numpy() for name, array in arrays.items()}


# ------------------------------------------------------------------------------------------------- attention


def probsparse(queries: int, keys: int, masked: bool, seed: int) -> Arrays:
    """neuralforecast's; like the authors' code before its heads are merged, where it swaps axes in every layer."""
    sampled = torch.from_numpy(np.random.default_rng(seed).integers(keys, size=(queries, 3)))
    inner = nf_informer.ProbAttention(masked, factor=1, attention_dropout=0.0)

    def call(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with mock.patch.object(torch, "randint", lambda *_: sampled):
            return module(query, key, value, None)[0]

    shapes = {name: (2, tokens, HEADS, 4) for name, tokens in (("query", queries), ("key", keys), ("value", keys))}
    return case(call, shapes, inner, seed) | {"sampled": sampled.numpy()}


def probsparse_layer() -> Arrays:
    """transformers' layer. All its queries meet the same keys, and its logarithms are those of one token more."""
    sampled = torch.from_numpy(np.random.default_rng(3).integers(11, size=9))
    layer = InformerProbSparseAttention(WIDTH, HEADS, dropout=0.0, sampling_factor=1, is_decoder=False).eval()

    def call(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        with mock.patch.object(torch, "randint", lambda *_: sampled):
            return module(x)[0]

    return case(call, {"x": (2, 11, WIDTH)}, layer, 3) | {"sampled": sampled.numpy()}


def autocorrelation(queries: int, keys: int, training: bool, seed: int) -> Arrays:
    """neuralforecast's. Its inverse transform of an odd number of tokens is one too short, as the authors' is."""
    inner = nf_autoformer.AutoCorrelation(False, factor=2, attention_dropout=0.0).train(training)
    call = lambda module, query, key, value: module(query, key, value, None)[0]  # noqa: E731
    shapes = {name: (3, tokens, HEADS, 4) for name, tokens in (("query", queries), ("key", keys), ("value", keys))}
    return case(call, shapes, inner, seed)


def autocorrelation_layer() -> Arrays:
    """transformers' layer, of an odd number of tokens.

    Outside of training it gives the delays of one example to another, so there is one example; where there are more
    queries than keys it cuts the queries, so there are not.
    """
    layer = AutoformerAttention(WIDTH, HEADS, autocorrelation_factor=2).eval()
    call = lambda module, x, memory: module(x, key_value_states=memory)[0]  # noqa: E731
    return case(call, {"x": (1, 11, WIDTH), "memory": (1, 13, WIDTH)}, layer, 5)


def fourier_block(tokens: int, seed: int) -> Arrays:
    """neuralforecast's, which has eight heads in its shape. Its result has the axes (heads, features, tokens)."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    block = nf_fedformer.FourierBlock(16, 16, tokens, modes=3)
    call = lambda module, query: module(query, query, query, None)[0]  # noqa: E731
    return case(call, {"query": (2, tokens, 8, 2)}, block, seed) | {"modes": np.array(block.index)}


def fourier_cross_attention() -> Arrays:
    """neuralforecast's, with inputs so small that tanh does not come near its poles."""
    np.random.seed(7)
    block = nf_fedformer.FourierCrossAttention(16, 16, 11, 8, modes=3)
    call = lambda module, query, key: module(0.3 * query, 0.3 * key, key, None)[0]  # noqa: E731
    modes = {"query_modes": np.array(block.index_q), "key_modes": np.array(block.index_kv)}
    return case(call, {"query": (2, 11, 8, 2), "key": (2, 8, 8, 2)}, block, 7) | modes


# ---------------------------------------------------------------------------------------------- layers and models


def distilling() -> Arrays:
    """transformers' layer in training; neuralforecast's pads by one more, as the authors' does in PyTorch below 1.5."""
    call = lambda module, x: module(x)  # noqa: E731
    return case(call, {"x": (2, 9, WIDTH)}, InformerConvLayer(WIDTH).train(), 8)


def patchtst_encoder() -> Arrays:
    """neuralforecast's two blocks with BatchNorm after each part and scores that add up, in training."""
    encoder = TSTEncoder(5, WIDTH, HEADS, linear_hidden_size=12, n_layers=2, res_attention=True).train()
    return case(lambda module, x: module(x), {"x": (3, 5, WIDTH)}, encoder, 9)


def patchtst_layer() -> Arrays:
    """transformers' layer, with BatchNorm before each part, outside of training; it has no scores that add up."""
    config = PatchTSTConfig(d_model=WIDTH, num_attention_heads=HEADS, ffn_dim=12, attention_dropout=0.0)
    layer = PatchTSTEncoderLayer(config).eval()
    return case(lambda module, x: module(x[:, None])[0][:, 0], {"x": (3, 5, WIDTH)}, layer, 10)


def forecaster(build: Callable[..., torch.nn.Module], seed: int, width: int = WIDTH, training: bool = False, **options):
    """A whole model of neuralforecast: 12 steps of one series in, 5 out, 6 of the window in the decoder."""
    np.random.seed(seed)
    shared = {"h": 5, "input_size": 12, "hidden_size": width, "conv_hidden_size": 12, "dropout": 0.0}
    model = build(**shared, loss=MAE(), **options).train(training)
    call = lambda module, series: module({"insample_y": series, "futr_exog": None})  # noqa: E731
    return case(call, {"series": (3, 12, 1)}, model, seed)


def autoformer() -> Arrays:
    """neuralforecast's, in training. Six steps are forecast: an odd number of tokens meets its short transform."""
    options = {"n_head": HEADS, "factor": 2, "MovingAvg_window": 5, "decoder_layers": 2}
    return forecaster(lambda h, **shared: nf_autoformer.Autoformer(h=6, **shared), 11, training=True, **options)


def fedformer() -> Arrays:
    """neuralforecast's, on Fourier modes; it has no wavelets."""
    options = {"n_head": 8, "modes": 3, "MovingAvg_window": 5}
    models = []

    def build(**shared) -> torch.nn.Module:
        models.append(nf_fedformer.FEDformer(**shared))
        return models[0]

    arrays = forecaster(build, 12, width=16, **options)
    encoder, decoder = models[0].encoder.attn_layers[0], models[0].decoder.layers[0]
    of_block = lambda layer: np.array(layer.inner_correlation.index)  # noqa: E731
    cross = decoder.cross_attention.inner_correlation
    return arrays | {
        "encoder_modes": of_block(encoder.attention),
        "decoder_modes": of_block(decoder.self_attention),
        "cross_modes": np.array(cross.index_q),
        "memory_modes": np.array(cross.index_kv),
    }


def transformer() -> Arrays:
    """Informer's encoder and decoder around full attention.

    neuralforecast masks the decoder only where it returns the weights too; the papers' code masks it always.
    """

    def build(**shared) -> torch.nn.Module:
        model = VanillaTransformer(**shared, n_head=HEADS)
        model.decoder.layers[0].self_attention.inner_attention.output_attention = True
        return model

    return forecaster(build, 13)


def dlinear() -> Arrays:
    """neuralforecast's: one map of the season and one of the trend."""
    model = DLinear(h=5, input_size=12, moving_avg_window=5, loss=MAE())
    call = lambda module, series: module({"insample_y": series})  # noqa: E731
    return case(call, {"series": (3, 12, 1)}, model, 20)


def nlinear() -> Arrays:
    """neuralforecast's: a map of what is left without the last value."""
    call = lambda module, series: module({"insample_y": series})  # noqa: E731
    return case(call, {"series": (3, 12, 1)}, NLinear(h=5, input_size=12, loss=MAE()), 21)


def patchtst() -> Arrays:
    """neuralforecast's whole model in training: RevIN, patches with a padded end, two blocks, a flat head.

    Its RevIN subtracts the last value by default; the paper's code subtracts the mean.
    """
    options = {"patch_len": 4, "stride": 3, "encoder_layers": 2, "n_heads": HEADS, "hidden_size": WIDTH}
    options |= {"linear_hidden_size": 12, "dropout": 0.0, "fc_dropout": 0.0, "head_dropout": 0.0, "attn_dropout": 0.0}
    model = PatchTST(h=5, input_size=13, revin_subtract_last=False, loss=MAE(), **options).train()
    call = lambda module, series: module({"insample_y": series})  # noqa: E731
    return case(call, {"series": (3, 13, 1)}, model, 22)


def itransformer() -> Arrays:
    """neuralforecast's, of three series: a norm after each part and one at the end.

    Without RevIN, which it computes in place, so that there is no gradient by the series.
    """
    options = {"hidden_size": WIDTH, "n_heads": HEADS, "e_layers": 2, "d_ff": 12, "dropout": 0.0, "factor": 1}
    model = iTransformer(h=5, input_size=11, n_series=3, use_norm=False, loss=MAE(), **options).eval()
    call = lambda module, series: module({"insample_y": series})  # noqa: E731
    return case(call, {"series": (2, 11, 3)}, model, 23)


def timemixer() -> Arrays:
    """neuralforecast's, each of two channels by itself, at three scales; other than at powers of two it fails."""
    options = {"d_model": WIDTH, "d_ff": 12, "e_layers": 2, "moving_avg": 3, "down_sampling_layers": 2, "dropout": 0.0}
    model = TimeMixer(h=5, input_size=12, n_series=2, channel_independence=1, loss=MAE(), **options).eval()
    call = lambda module, series: module({"insample_y": series, "futr_exog": None})  # noqa: E731
    return case(call, {"series": (2, 12, 2)}, model, 24)


def decomposition() -> Arrays:
    """neuralforecast's; an even window would make the series shorter."""
    module = nf.SeriesDecomp(5)
    return case(lambda module, x: torch.stack(module(x)), {"x": (2, 7, 3)}, module, 14)


CASES: dict[str, Callable[[], Arrays]] = {
    "probsparse": lambda: probsparse(11, 11, False, 0),
    "probsparse_masked": lambda: probsparse(11, 11, True, 1),
    "probsparse_cross": lambda: probsparse(11, 7, False, 2),
    "probsparse_layer": probsparse_layer,
    "autocorrelation": lambda: autocorrelation(12, 12, False, 4),
    "autocorrelation_training": lambda: autocorrelation(12, 12, True, 15),
    "autocorrelation_longer": lambda: autocorrelation(12, 7, False, 16),
    "autocorrelation_shorter": lambda: autocorrelation(12, 15, True, 17),
    "autocorrelation_layer": autocorrelation_layer,
    "fourier_block": lambda: fourier_block(12, 6),
    "fourier_block_odd": lambda: fourier_block(11, 18),
    "fourier_cross_attention": fourier_cross_attention,
    "distilling": distilling,
    "patchtst_encoder": patchtst_encoder,
    "patchtst_layer": patchtst_layer,
    "autoformer": autoformer,
    "fedformer": fedformer,
    "transformer": transformer,
    "decomposition": decomposition,
    "dlinear": dlinear,
    "nlinear": nlinear,
    "patchtst": patchtst,
    "itransformer": itransformer,
    "timemixer": timemixer,
}


def main() -> None:
    """Writes every case's file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the files")
    parser.add_argument("--only", default=",".join(CASES), help="cases to write, separated by commas")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(","):
        path = options.folder / f"forecast_{name}.npz"
        np.savez_compressed(path, **CASES[name]())
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
