"""Every model between embedding and head, by the name that `config.model.name` gives."""

from flax import nnx

from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models.convolution import ConvolutionalNetwork
from flaxformer_lab.models.encoder_decoder import EncoderDecoder
from flaxformer_lab.models.mixer import Mixer
from flaxformer_lab.models.mlp import MLP, FactorizationMachine
from flaxformer_lab.models.recurrent import RecurrentNetwork
from flaxformer_lab.models.transformer import Transformer
from flaxformer_lab.modules.rngs import Rngs

Grid = tuple[int, ...] | dict[str, tuple[int, ...]]

BODIES: dict[str, type[nnx.Module]] = {
    "transformer": Transformer,
    "encoder_decoder": EncoderDecoder,
    "mlp": MLP,
    "factorization_machine": FactorizationMachine,
    "cnn_1d": ConvolutionalNetwork,
    "cnn_2d": ConvolutionalNetwork,
    "lstm": RecurrentNetwork,
    "gru": RecurrentNetwork,
    "mixer": Mixer,
}


def make_body(config: ModelConfig, *, grid: Grid, rngs: Rngs) -> nnx.Module:
    """The model that maps token vectors to token vectors, [batch, tokens, width] both.

    grid: how the tokens are laid out, (tokens,) or (rows, columns); an encoder-decoder wants that of both sequences.
    """
    return BODIES[config.name](config, grid=grid, rngs=rngs)
