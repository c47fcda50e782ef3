"""What attention adds to the next basket: of `baskets.py` those cells that 2 cores train in half an hour.

By time, the Transformer of baskets with attention and without, and the controls.

Command: python -m flaxformer_lab.ablate --config=configs/ablations/baskets_part.py --workdir=runs/baskets_part
Time: 41 minutes on 2 cores of an AMD EPYC beside much other work. Result: docs/results/baskets.md, whose values are in
docs/results/baskets.csv.gz.
"""

from typing import Any

import baskets


def get_config() -> dict[str, Any]:
    """The ablation."""
    tree = baskets.get_config().to_dict()
    task = tree["tasks"]["by time"]
    task["variants"] = {"attention off": task["variants"]["attention off"]} | baskets.CONTROLS
    return tree | {"tasks": {"by time": task}}
