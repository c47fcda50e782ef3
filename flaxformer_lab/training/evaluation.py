"""The metrics of a whole split."""

from collections.abc import Callable

from flaxformer_lab.functional import metrics
from flaxformer_lab.tasks.examples import Examples
from flaxformer_lab.training.experiment import Experiment
from flaxformer_lab.training.feeds import host_evaluation
from flaxformer_lab.training.state import Tree
from flaxformer_lab.training.step import make_evaluation_step

Values = dict[str, float]


def make_evaluate(experiment: Experiment) -> Callable[[Tree, Tree, Examples], Values]:
    """Returns `evaluate(params, model_state, examples)`: the metrics of a whole split, from placed parameters."""
    config, strategy = experiment.config, experiment.strategy
    evaluation_step = strategy.compile(
        make_evaluation_step(experiment.task, experiment.network, seed=config.seed, axis_name=strategy.axis_name)
    )
    local_rows = strategy.process_local_rows(config.training.evaluate_batch_size)

    def evaluate(params: Tree, model_state: Tree, examples: Examples) -> Values:
        batches = [
            evaluation_step(params, model_state, strategy.split(batch, batch_axis=0))
            for batch in host_evaluation(config, examples, local_rows)
        ]
        return metrics.compute(strategy.fetch(batches))

    return evaluate
