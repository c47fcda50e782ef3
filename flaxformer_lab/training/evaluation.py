"""The metrics of a whole split, and its first examples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flaxformer_lab.functional import metrics
from flaxformer_lab.tasks.examples import Examples
from flaxformer_lab.tasks.task import Batch
from flaxformer_lab.training.experiment import Experiment
from flaxformer_lab.training.feeds import host_evaluation
from flaxformer_lab.training.state import RngStream, Tree
from flaxformer_lab.training.step import example_keys, make_evaluation_step

Values = dict[str, float]


def make_evaluate(experiment: Experiment) -> Callable[[Tree, Tree, Examples], Values]:
    """Returns `evaluate(params, model_state, examples)`: the metrics of a whole split, from placed parameters."""
    config, strategy = experiment.config, experiment.strategy
    options = {"axis_name": strategy.axis_name, "loss_chunk": config.training.loss_chunk}
    evaluation_step = strategy.compile(
        make_evaluation_step(experiment.task, experiment.network, seed=config.seed, **options)
    )
    local_rows = strategy.process_local_rows(config.training.evaluate_batch_size)

    def evaluate(params: Tree, model_state: Tree, examples: Examples) -> Values:
        batches = [
            evaluation_step(params, model_state, strategy.split(batch, batch_axis=0))
            for batch in host_evaluation(config, examples, local_rows)
        ]
        return metrics.compute(strategy.fetch(batches))

    return evaluate


def first_examples(experiment: Experiment, split: str, number: int) -> tuple[Batch, Batch]:
    """The first examples of a split, as they are stored and as an evaluation prepares them."""
    source = experiment.task.examples(split)
    rows = np.arange(min(number, source.number))
    stored = jax.tree.map(jnp.asarray, source.read(source.evaluation_indices(rows)))
    stored |= {"example_weight": jnp.ones(len(rows))}
    keys = example_keys(experiment.config.seed, RngStream.EVALUATE, 0, jnp.asarray(rows, "int32"))
    return stored, experiment.task.prepare(stored, keys, training=False)
