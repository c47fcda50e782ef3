"""Training speed of recommenders beside deepctr-torch's models of fields and RecBole's SASRec, in one run.

    python benchmarks/recommenders.py                        # about 5 CPU minutes
    python benchmarks/recommenders.py --peers=ENV/bin/python # where PyTorch, deepctr-torch and RecBole are installed

Speeds are per CPU second of the whole process, so other work on the machine hardly matters; compiling and reading are
left out. Models of fields train on the flights' ten fields, batches of 1,024, vectors of 16. SASRec trains on first
purchases, 64 wide, 2 layers, 2 heads, a cross-entropy over all items: RecBole on one prefix of up to 50 items for each
event (`DataAugmentation`), the lab on whole histories, every item of which is predicted. A peer that cannot be imported
is named as absent; `pip install --no-deps deepctr-torch==0.3.0 recbole==1.2.1` beside PyTorch installs both.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

from contest import versions, write_result

BATCH, WIDTH, DEEP = 1024, 16, (256, 128)
EVENTS, PREFIX, SEQUENCES, PREFIXES = 100, 50, 64, 512
FIELD_MODELS = {  # the lab's model and task, beside the peer's class and its options
    "FM": ({"name": "field_products"}, {"readout": "sum"}, ("DeepFM", {"dnn_hidden_units": ()})),
    "DeepFM": (
        {"name": "field_products"},
        {"readout": "sum", "deep": DEEP},
        ("DeepFM", {"dnn_hidden_units": DEEP}),
    ),
    "AutoInt": ({"name": "autoint"}, {}, ("AutoInt", {"dnn_hidden_units": ()})),
    "AutoInt+": ({"name": "autoint"}, {"deep": DEEP}, ("AutoInt", {"dnn_hidden_units": DEEP})),
}


def speed_of(block: Callable[[], int], rounds: int) -> float:
    """Examples in a CPU second: the best of some rounds, after one that warms up. block returns how many it trained."""
    block()
    speeds = []
    for _ in range(rounds):
        start = time.process_time()
        trained = block()
        speeds.append(trained / (time.process_time() - start))
    return max(speeds)


# ------------------------------------------------------------------------------------------------------- the lab


def lab_block(tree: dict, steps: int, learned: Callable[[dict], float]) -> Callable[[], int]:
    """A block of updates by the program that `train.py` runs. learned: examples that one update learns from."""
    import jax
    import numpy as np

    from flaxformer_lab.config import parse_config
    from flaxformer_lab.training.experiment import make_experiment
    from flaxformer_lab.training.feeds import make_feeds
    from flaxformer_lab.training.programs import make_run_steps
    from flaxformer_lab.training.state import initial_state

    training = tree["training"] | {"steps": steps, "steps_per_call": steps}
    experiment = make_experiment(parse_config(tree | {"training": training, "parallelism": {"strategy": "single"}}))
    examples = experiment.task.examples("train")
    run_steps, data = make_run_steps(experiment, examples)
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    data = experiment.strategy.place(data)
    feed = next(make_feeds(experiment, examples, [(0, steps)]))
    count = experiment.strategy.place(np.int32(steps))
    each = learned(examples.load())

    def block() -> int:
        nonlocal state
        state, metrics = run_steps(state, data, feed, count)
        jax.block_until_ready((state, metrics))
        return steps * each

    return block


def lab_speeds(rounds: int) -> dict[str, float]:
    """Examples a CPU second, by model; of SASRec, events."""
    speeds = {}
    for name, (model, task, _) in FIELD_MODELS.items():
        tree = {
            "task": {"name": "click", **task},
            "model": {**model, "width": WIDTH},
            "training": {"batch_size": BATCH},
        }
        speeds[name] = speed_of(lab_block(tree, 20, lambda data: BATCH), rounds)
    tree = {
        "task": {"name": "next_basket", "split": "last", "tokens": "item", "events": EVENTS, "baskets": 64},
        "model": {"width": 64, "depth": 2, "causal": True, "attention": {"num_heads": 2}},
        "training": {"batch_size": SEQUENCES},
    }
    events = lambda data: SEQUENCES * float(((data["items"] > 0).sum(axis=1) - 1).mean())  # noqa: E731
    speeds["SASRec"] = speed_of(lab_block(tree, 4, events), rounds)
    return speeds


# --------------------------------------------------------------------------------------------------------- peers


def peer_speeds(arrays: str, items: int, rounds: int) -> dict:
    """The same of the peers, or why one is absent. arrays: a file of the flights' fields and labels."""
    import numpy as np

    stored, speeds = np.load(arrays), {}
    fields, labels = stored["fields"], stored["labels"].astype(np.float32)
    try:
        import deepctr_torch.models
        from deepctr_torch.inputs import SparseFeat
    except ImportError as error:
        speeds |= dict.fromkeys(FIELD_MODELS, f"absent: {error}")
    else:
        features = [SparseFeat(f"f{n}", int(fields[:, n].max()) + 1, WIDTH) for n in range(fields.shape[1])]
        given = {f"f{n}": fields[:, n] for n in range(fields.shape[1])}
        for name, (_, _, (kind, options)) in FIELD_MODELS.items():
            model = getattr(deepctr_torch.models, kind)(features, features, **options)
            model.compile("adam", "binary_crossentropy")

            def block(model=model) -> int:
                model.fit(given, labels, batch_size=BATCH, epochs=1, verbose=0)
                return len(labels)

            speeds[name] = speed_of(block, rounds)
    try:
        speeds["SASRec"] = speed_of(recbole_block(items), rounds)
    except ImportError as error:
        speeds["SASRec"] = f"absent: {error}"
    return speeds | {"versions": versions(("torch", "deepctr-torch", "recbole"))}


def recbole_block(items: int) -> Callable[[], int]:
    """Two updates of RecBole's SASRec with Adam, on prefixes of full length."""
    import torch
    from recbole.model.sequential_recommender.sasrec import SASRec

    config = {
        **{
            "USER_ID_FIELD": "user",
            "ITEM_ID_FIELD": "item",
            "LIST_SUFFIX": "_list",
            "ITEM_LIST_LENGTH_FIELD": "length",
        },
        **{"NEG_PREFIX": "neg_", "MAX_ITEM_LIST_LENGTH": PREFIX, "device": "cpu", "n_layers": 2, "n_heads": 2},
        **{"hidden_size": 64, "inner_size": 256, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2},
        **{"hidden_act": "gelu", "layer_norm_eps": 1e-12, "initializer_range": 0.02, "loss_type": "CE"},
    }

    class Shop:
        """What the model asks of a data set."""

        def num(self, field: str) -> int:
            del field
            return items + 1

    model = SASRec(config, Shop())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    drawn = torch.randint(1, items + 1, (PREFIXES, PREFIX + 1))
    batch = {"item_list": drawn[:, :-1], "item": drawn[:, -1], "length": torch.full((PREFIXES,), PREFIX)}

    def block() -> int:
        for _ in range(2):
            optimizer.zero_grad()
            model.calculate_loss(batch).backward()
            optimizer.step()
        return 2 * PREFIXES

    return block


def main() -> None:
    """Prints both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="the Python that has PyTorch and the peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/recommenders_cpu.json")
    parser.add_argument("--of_peers", nargs=2, metavar=("FILE", "ITEMS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.of_peers:
        file, items = arguments.of_peers
        print(json.dumps(peer_speeds(file, int(items), arguments.rounds)))
        return
    import tempfile

    import numpy as np

    from flaxformer_lab.data.source import open_split

    with tempfile.TemporaryDirectory() as folder:
        train = open_split("lab_flight_fields", "train").load()
        np.savez(f"{folder}/flights.npz", fields=train["categories"], labels=train["label"])
        command = [
            arguments.peers,
            __file__,
            f"--rounds={arguments.rounds}",
            "--of_peers",
            f"{folder}/flights.npz",
            "4206",
        ]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        sys.exit(f"the peers failed:\n{found.stderr}")
    peers, ours = json.loads(found.stdout.splitlines()[-1]), lab_speeds(arguments.rounds)
    print(f"{'model':10} {'lab':>12} {'peer':>12} {'ratio':>7}   examples (SASRec: events) a CPU second")
    for name, speed in ours.items():
        other = peers[name]
        shown = (f"{other:12,.0f}", f"{speed / other:7.2f}") if not isinstance(other, str) else (other, "")
        print(f"{name:10} {speed:12,.0f} {' '.join(shown)}")
    if arguments.write:
        found = {"lab": ours, "peers": peers, "versions": versions(("jax", "jaxlib", "flax")) | peers.pop("versions")}
        write_result("recommenders_cpu", found)


if __name__ == "__main__":
    main()
