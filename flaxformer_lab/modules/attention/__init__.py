"""Token mixing with parameters: projections around one of the formulas of `functional/`.

`core.py` reads from top to bottom: the projections, the cache and softmax attention. The other kinds have a file each;
`properties.py` holds what several of them declare.
"""

from flaxformer_lab.modules.attention.core import Attention, Cache, SoftmaxAttention, make_attention

# The lab's own, in the order in which errors offer them.
# isort: off
from flaxformer_lab.modules.attention.linear import LinearAttention
from flaxformer_lab.modules.attention.lightning import LightningAttention
from flaxformer_lab.modules.attention.channel import ChannelAttention
from flaxformer_lab.modules.attention.mean import MeanAttention
from flaxformer_lab.modules.attention.static import RandomAttention, StaticAttention
from flaxformer_lab.modules.attention.fourier import FourierAttention
from flaxformer_lab.modules.attention.probsparse import ProbSparseAttention
from flaxformer_lab.modules.attention.autocorrelation import AutoCorrelation
from flaxformer_lab.modules.attention.frequency import FrequencyAttention, WaveletAttention

# isort: on

__all__ = [
    "Attention",
    "AutoCorrelation",
    "Cache",
    "ChannelAttention",
    "FourierAttention",
    "FrequencyAttention",
    "LightningAttention",
    "LinearAttention",
    "MeanAttention",
    "ProbSparseAttention",
    "RandomAttention",
    "SoftmaxAttention",
    "StaticAttention",
    "WaveletAttention",
    "make_attention",
]
