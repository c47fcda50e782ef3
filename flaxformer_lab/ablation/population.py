"""Population training: all replicas of a config, one for each seed and learning rate, inside one compiled program.

A replica is the ordinary train step with its own seed and its own learning rate, under `vmap`; replicas are spread over
the devices and do not interact. Each is what the same run alone would be, up to rounding, and its state is an ordinary
one.
"""

import copy
import dataclasses
import functools
import inspect
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jaxtyping import Array, Float

from flaxformer_lab import registry
from flaxformer_lab.ablation.provenance import describe_devices
from flaxformer_lab.analysis import attention_maps, concentration, symmetry
from flaxformer_lab.analysis.jacobian import cross_shares
from flaxformer_lab.compilation import compile_at
from flaxformer_lab.config import Config
from flaxformer_lab.data.prefetch import prefetch
from flaxformer_lab.functional import metrics
from flaxformer_lab.models.footprint import program_bytes
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.task_config import TaskConfig
from flaxformer_lab.tasks import SPLITS, make_task
from flaxformer_lab.tasks.task import EXAMPLES, LOSS, examples_of
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.experiment import Experiment, make_experiment
from flaxformer_lab.training.feeds import (
    call_schedule,
    check_batch_size,
    host_evaluation,
    host_feed,
    should_run,
    stack_trees,
)
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.initialization import starting_weights
from flaxformer_lab.training.optimizer import make_population_optimizer
from flaxformer_lab.training.parallelism import Pmap, Single
from flaxformer_lab.training.programs import run_calls, run_steps_of
from flaxformer_lab.training.state import RngStream, Seed, State, initial_state, stream_key
from flaxformer_lab.training.step import example_keys

Tree = Any  # a pytree of arrays
Table = dict[str, Float[np.ndarray, "..."]]  # of metrics
MEASURED_EXAMPLES, RANDOM_VECTORS = 16, 64  # for the shares of cross energy of each replica


@dataclass(frozen=True)
class Replica:
    """One member of a population."""

    seed: int
    learning_rate: float

    def config(self, config: Config) -> Config:
        """The config of the same run alone."""
        optimizer = dataclasses.replace(config.optimizer, learning_rate=self.learning_rate)
        return dataclasses.replace(config, seed=self.seed, optimizer=optimizer)


@dataclass(frozen=True)
class Outcome:
    """What became of the replicas; NaN where one diverged.

    states: one an entry, in the replicas' order. seconds: of compiling and running. test_examples: what each example
    adds to the primary metric (total, weight), where all seeds are tested on the same ones; beside_examples: to those
    beside it, by name.
    """

    replicas: tuple[Replica, ...]
    steps: tuple[int, ...]  # of the evaluations
    validation: dict[str, Float[np.ndarray, "replicas evaluations"]]
    test: dict[str, Float[np.ndarray, " replicas"]]
    measures: dict[str, Float[np.ndarray, " replicas"]]
    states: tuple[State, ...]
    seconds: float
    test_examples: Float[np.ndarray, "replicas 2 examples"] | None = None
    device: str = ""
    parameters: int = 0  # of a control
    beside_examples: dict[str, Float[np.ndarray, "replicas 2 examples"]] = field(default_factory=dict)


class Population:
    """The compiled programs of a population: made first, which takes seconds, and then run.

    memory: bytes that a device may use; where a program for all replicas needs more, they train in chunks.
    """

    def __init__(self, config: Config, replicas: Sequence[Replica], *, memory: int | None = None):
        begin = time.perf_counter()
        kind = Pmap if jax.local_device_count() > 1 and len(replicas) > 1 else Single
        strategy = kind(deterministic=config.deterministic)
        # Read before the population allocates any itself: the reports of its programs include all that it holds.
        memory = available_memory() // jax.local_device_count() if memory is None else memory
        experiment = make_experiment(config, strategy=Single())
        optimizer = make_population_optimizer(
            config.optimizer, config.training.steps, experiment.network.fans, config.training.trained
        )
        self._experiment = dataclasses.replace(experiment, optimizer=optimizer)
        initial = starting_weights(experiment)
        self._initial = initial.values if initial else None
        self._strategy = strategy
        self.config, self.replicas = config, tuple(replicas)
        self._examples = dict(zip(SPLITS, map(experiment.task.examples, SPLITS), strict=True))
        check_batch_size(config, self._examples["train"])
        resident = self._examples["train"].lives_on_device(config.training.input)
        self._data = strategy.place(self._examples["train"].load() if resident else {})
        self._schedule = call_schedule(config, 0, config.training.steps)
        per_device = -(-len(self.replicas) // strategy.num_devices)
        while True:
            self.chunk = per_device * strategy.num_devices
            self._compile()
            if per_device == 1 or self.device_bytes <= memory:
                break
            per_device = -(-per_device // 2)
        self.preparing_seconds = time.perf_counter() - begin

    def with_replicas(self, replicas: Sequence[Replica]) -> "Population":
        """The same compiled programs for as many other replicas."""
        if len(replicas) != len(self.replicas):
            raise ValueError(f"{len(replicas)} replicas for programs of {len(self.replicas)}")
        other = copy.copy(self)
        other.replicas, other.preparing_seconds = tuple(replicas), 0.0
        return other

    def _compile(self) -> None:
        """Compiles the programs for one chunk of replicas, side by side."""
        experiment, strategy, examples = self._experiment, self._strategy, self._examples
        replicas = self._chunks()[0]
        seeds, rates = self._seeds_and_rates(replicas)
        run_steps = jax.vmap(run_steps_of(experiment, examples["train"]), in_axes=(0, 0, None, 0, None))
        run = strategy.compile(run_steps, donate=(1,))
        evaluate, measure = (strategy.compile(jax.vmap(each)) for each in (self._figures, self._measures))
        state = self._start(seeds, rates)
        feed, count = self._feed(replicas, *self._schedule[0]), strategy.place(np.int32(1))
        batch = self._prepared(seeds, next(host_evaluation(self.config, examples["validation"])))
        lowered = (
            run.lower(seeds, state, self._data, feed, count),
            evaluate.lower(state.params, state.model_state, batch),
            measure.lower(seeds, state.params, state.model_state, self._first_examples(batch)),
        )
        # Compiling a small program takes longer than running it, and its products of matrices are library calls.
        with futures.ThreadPoolExecutor() as threads:
            self._run, self._evaluate, self._measure = threads.map(compile_at, (1, 1, 0), lowered)
        arguments = jax.tree.map(self._of_one_device, (seeds, state, self._data, feed, count))
        self.device_bytes = program_bytes(self._run, run_steps, *arguments)

    def run(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Outcome:
        """Trains all replicas; reports progress(updates applied, updates to apply), counting each chunk's as one."""
        begin, chunks = time.perf_counter(), self._chunks()
        total = self.config.training.steps * len(chunks)
        parts = []
        for number, chunk in enumerate(chunks):
            before = number * self.config.training.steps
            parts.append(self._run_chunk(chunk, lambda done, before=before: progress(before + done, total)))
        join = lambda *leaves: np.concatenate(leaves)[: len(self.replicas)]  # noqa: E731
        validation, test = (_by_name([part[place] for part in parts], join) for place in (0, 1))
        test_examples, beside_examples, measures, states = jax.tree.map(join, *(part[2:] for part in parts))
        ordinary = dataclasses.replace(states, opt_state=states.opt_state.inner_state)
        return Outcome(
            replicas=self.replicas,
            steps=self._evaluated,
            validation=validation,
            test=test,
            measures=measures,
            states=tuple(jax.tree.map(lambda leaf, k=k: leaf[k], ordinary) for k in range(len(self.replicas))),
            seconds=self.preparing_seconds + time.perf_counter() - begin,
            test_examples=test_examples,
            beside_examples=beside_examples,
            device=describe_devices(),
        )

    def _run_chunk(self, replicas: tuple[Replica, ...], progress: Callable[[int], None]) -> tuple[Tree, ...]:
        """(validation, test, test_examples, beside_examples, measures, states) of a chunk, [replicas, ...] each."""
        training, strategy = self.config.training, self._strategy
        seeds, rates = self._seeds_and_rates(replicas)
        state = self._start(seeds, rates)
        curve = []
        feeds = prefetch(lambda call: self._feed(replicas, *self._schedule[call]), 0, len(self._schedule))
        run_call = lambda state, feed, count: self._run(seeds, state, self._data, feed, count)  # noqa: E731
        calls = run_calls(run_call, state, self._schedule, feeds, strategy.place)
        for step, _, state, _ in calls:
            if should_run(step, training.steps, training.evaluate_every):
                curve.append(self._evaluate_split(seeds, state, "validation")[0])
            progress(step)
        few = self._first_examples(self._prepared(seeds, next(host_evaluation(self.config, self._examples["test"]))))
        measures = self._measure(seeds, state.params, state.model_state, few)
        validation = _by_name(curve, lambda *values: np.stack(values, axis=1))
        test = self._evaluate_split(seeds, state, "test")
        return validation, *test, strategy.gather(measures), strategy.gather(state)

    def seconds_per_update(self, updates: int) -> float:
        """What one update of all replicas takes, from a trial of so many whose results are thrown away.

        Where they are slow, of as many as take about a second.
        """
        replicas = self._chunks()[0]
        seeds, rates = self._seeds_and_rates(replicas)
        begin, count = self._schedule[0]
        feed, most = self._feed(replicas, begin, count), min(count, updates)
        state, count, seconds = self._start(seeds, rates), 1, 0.0
        for _ in range(2):  # the first call, of one update, warms up
            start = time.perf_counter()
            state, _ = self._run(seeds, state, self._data, feed, self._strategy.place(np.int32(count)))
            jax.block_until_ready(state)
            seconds = (time.perf_counter() - start) / count
            count = max(1, min(most, int(1 / seconds)))
        return seconds * len(self._chunks())

    @property
    def _evaluated(self) -> tuple[int, ...]:
        training = self.config.training
        ends = (begin + count for begin, count in self._schedule)
        return tuple(end for end in ends if should_run(end, training.steps, training.evaluate_every))

    def _evaluate_split(self, seeds: Array, state: State, split: str) -> tuple[Table, np.ndarray | None, Table]:
        """The metrics; what each example adds to the primary one, [replicas, 2, examples], where known; and beside it.

        A replica whose loss is not finite has diverged: all its metrics are NaN, also those that take NaN for a class
        or for no object.
        """
        batches = [
            self._strategy.gather(self._evaluate(state.params, state.model_state, self._prepared(seeds, batch)))
            for batch in host_evaluation(self.config, self._examples[split])
        ]
        values = [
            metrics.compute([jax.tree.map(lambda leaf, k=k: leaf[k], batch) for batch in batches])
            for k in range(self.chunk)
        ]
        examples = [each.pop(EXAMPLES, None) for each in values]
        names = [name for name in self._experiment.task.primary_metric.beside if examples_of(name) in values[0]]
        beside = {name: np.stack([each.pop(examples_of(name)) for each in values]) for name in names}
        values = [each if np.isfinite(each[LOSS.name]) else dict.fromkeys(each, np.nan) for each in values]
        tables = [{name: np.array(value) for name, value in each.items()} for each in values]
        known = None if examples[0] is None else np.stack(examples)
        return _by_name(tables, lambda *each: np.stack(each)), known, beside

    def _prepared(self, seeds: Array, batch: Tree) -> Tree:
        """Evaluation examples as each replica's seed prepares them."""
        prepare = preparation(self.config.task, self._strategy.num_devices)
        return prepare(seeds, self._strategy.place(batch))

    def _start(self, seeds: Array, rates: Array) -> State:
        # Not compiled as a whole: its few kinds of operation are compiled once and serve all populations of a process.
        network = dataclasses.replace(self._experiment.network, init=inspect.unwrap(self._experiment.network.init))

        def one(seed: Seed, learning_rate: Float[Array, ""]) -> State:
            state = initial_state(network, self._experiment.optimizer, seed, self._initial)
            hyperparameters = state.opt_state.hyperparams | {"learning_rate": learning_rate}
            return dataclasses.replace(state, opt_state=state.opt_state._replace(hyperparams=hyperparameters))

        every = (jnp.asarray(self._strategy.gather(each)) for each in (seeds, rates))
        return self._strategy.split(jax.device_get(jax.vmap(one)(*every)), 0)

    # ------------------------------------------------------------------------------------------ one replica

    def _figures(self, params: Tree, model_state: Tree, prepared: Tree):
        experiment = self._experiment
        outputs, _ = experiment.network.apply(params, model_state, prepared["inputs"], valid=prepared.get("valid"))
        # Generated examples hold nothing: each seed draws its own, and the spread of seeds has their error in it.
        if not self._examples["test"].num_bytes:
            return experiment.task.loss_and_metrics(outputs, prepared)
        return experiment.task.metrics_and_examples(outputs, prepared)

    def _measures(self, seed: Seed, params: Tree, model_state: Tree, prepared: Tree) -> dict[str, Array]:
        """What a replica mixes, on a few examples of its own; nothing where they are padded or of two sequences."""
        network = self._experiment.network
        vectors = jax.eval_shape(network.embed, params, model_state, prepared["inputs"])
        if "valid" in prepared or not isinstance(vectors, jax.ShapeDtypeStruct):
            return {}
        x = network.embed(params, model_state, prepared["inputs"]).astype(jnp.float32)
        body = functools.partial(network.body, params, model_state)
        looks = self._looks(seed, params, model_state, prepared)
        if jax.eval_shape(body, x).shape != x.shape:  # what reaches what is asked of equal numbers of tokens
            return looks
        features, tokens = cross_shares(body, x, RANDOM_VECTORS, jax.random.key(0))
        generator = np.random.default_rng(0)
        orders = (generator.permutation(size) for size in x.shape[1:])
        by_token, by_feature = symmetry.equivariance_errors(body, x, *orders)
        return (
            {
                "cross_feature_energy": features,
                "cross_token_energy": tokens,
                "token_equivariance_error": by_token,
                "feature_equivariance_error": by_feature,
            }
            | looks
            | self._attention_measures(body, x, prepared["loss_weights"])
        )

    def _looks(self, seed: Seed, params: Tree, model_state: Tree, prepared: Tree) -> dict[str, Array]:
        """How much more of the attention and of the gradient lies inside of objects than by their area.

        Of the trained model, and of the weights that its seed draws at first; nothing without objects.
        """
        if "object_pixels" not in prepared:
            return {}
        network, inputs, pixels = self._experiment.network, prepared["inputs"], prepared["object_pixels"]
        found = {}
        untrained = network.init(stream_key(seed, RngStream.INIT))
        for name, variables in (("", (params, model_state)), ("_untrained", untrained)):
            _, offered = network.run_with_cache(*variables, inputs, names=("*.attention.weights",))
            given = [concentration.attention_received(weights) for weights in offered.values() if weights.ndim == 4]
            places = [concentration.covered_tokens(pixels, each.shape[1]) for each in given]
            if given:
                shares = [concentration.concentration(*each) for each in zip(given, places, strict=True)]
                found[f"object_attention{name}"] = jnp.mean(jnp.stack(shares))
            shown = concentration.saliency(lambda x, variables=variables: network.apply(*variables, x)[0], inputs)
            found[f"object_saliency{name}"] = concentration.concentration(shown, pixels)
        return found

    def _attention_measures(self, body: Callable[..., Array], x: Array, asked: Array) -> dict[str, Array]:
        """The entropy of the attention weights and the diversity of heads, means over layers; nothing without weights.

        In the last layer of the tokens that the task asks about alone: no other reaches the output.
        """
        model, collected = self.config.model, Intermediates(collects=lambda name: name.endswith(".attention.weights"))
        if x.shape[1] > 1 and registry.ask("model", model.name, "has_token_weights", model, x.shape[1]) is True:
            body(x, intermediates=collected)
        if not collected.values:
            return {}
        every = [jnp.ones(x.shape[:2])] * len(collected.values)
        every[-1] = asked if asked.shape == x.shape[:2] else every[-1]
        window = getattr(getattr(model, "attention", None), "window", None)
        masks = {"causal": getattr(model, "causal", False), "window": window}
        found = [
            (
                attention_maps.entropy(weights, **masks, asked=rows),
                attention_maps.head_diversity(weights * rows[:, None, :, None]),
            )
            for weights, rows in zip(collected.values.values(), every, strict=True)
        ]
        entropies, diversities = zip(*found, strict=True)
        return {
            "attention_entropy": jnp.mean(jnp.stack(entropies)),
            "head_diversity": jnp.mean(jnp.stack(diversities)),
        }

    # ----------------------------------------------------------------------------------- chunks and batches

    def _chunks(self) -> list[tuple[Replica, ...]]:
        """The replicas in equal chunks; the last one is padded with copies whose results are dropped."""
        chunks = [self.replicas[start : start + self.chunk] for start in range(0, len(self.replicas), self.chunk)]
        chunks[-1] = tuple(itertools.islice(itertools.cycle(chunks[-1]), self.chunk))
        return chunks

    def _seeds_and_rates(self, replicas: tuple[Replica, ...]) -> tuple[Array, Array]:
        seeds = np.array([replica.seed for replica in replicas], np.uint32)
        rates = np.array([replica.learning_rate for replica in replicas], np.float32)
        return self._strategy.split((seeds, rates), 0)

    def _of_one_device(self, leaf: Array) -> jax.ShapeDtypeStruct:
        shape = leaf.shape[1:] if self._strategy.num_devices > 1 else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    def _feed(self, replicas: tuple[Replica, ...], begin: int, count: int) -> Tree:
        examples = self._examples["train"]
        by_seed = {replica.seed: host_feed(self.config, examples, replica.seed, begin, count) for replica in replicas}
        return self._strategy.split(stack_trees([by_seed[replica.seed] for replica in replicas]), 0)

    def _first_examples(self, prepared: Tree) -> Tree:
        """The first examples of each replica."""
        axes = (slice(None),) * (2 if self._strategy.num_devices > 1 else 1)
        return jax.tree.map(lambda leaf: leaf[*axes, :MEASURED_EXAMPLES], prepared)


@functools.cache
def preparation(config: TaskConfig, num_devices: int) -> Callable[[Array, Tree], Tree]:
    """The compiled `prepare(seeds, batch)` of a task's evaluation, for all populations that learn it."""
    task, strategy = make_task(config), Pmap() if num_devices > 1 else Single()

    def prepare(seed: Seed, batch: Tree) -> Tree:
        return task.prepare(batch, example_keys(seed, RngStream.EVALUATE, 0, batch["row"]), training=False)

    return strategy.compile(jax.vmap(prepare, in_axes=(0, None)))


def _by_name(tables: Sequence[Table], join: Callable[..., np.ndarray]) -> Table:
    """Tables with the same shape in every place as one; what a table lacks is NaN in it."""
    names = dict.fromkeys(name for table in tables for name in table)
    return {
        name: join(*(table.get(name, np.full_like(table[LOSS.name], np.nan)) for table in tables)) for name in names
    }


def train_population(config: Config, replicas: Sequence[Replica], **options: Any) -> Outcome:
    """Trains the replicas of a config; `options` as for `Population`."""
    return Population(config, replicas, **options).run()


def save_replica(config: Config, outcome: Outcome, number: int, workdir: str | Path) -> None:
    """Writes one replica as an ordinary run's new folder, for `load_run`, `evaluate`, `measure`, or to go on training.

    Raises:
        ConfigError, RunError: as for training in that folder.
    """
    own = outcome.replicas[number].config(config)
    experiment: Experiment = make_experiment(own, strategy=Single())
    folder = RunFolder(workdir)
    folder.claim(own, dict(experiment.task.metadata))
    metrics = {name: float(values[number, -1]) for name, values in outcome.validation.items()}
    with Checkpoints(folder.checkpoints) as checkpoints:
        checkpoints.save(jax.tree.map(jnp.asarray, outcome.states[number]), metrics)
        checkpoints.wait()


def available_memory() -> int:
    """Bytes that a population may use: most of what is free on the accelerators, or of the machine's free memory.

    Devices have equal parts of a population, so the fullest of them decides for all.
    """
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("bytes_limit" in each for each in statistics):
        free = min(int(0.9 * each["bytes_limit"]) - each.get("bytes_in_use", 0) for each in statistics)
        return max(free, 0) * len(statistics)
    return int(0.8 * psutil.virtual_memory().available)
