"""MaxText's model, optimizer and compiled steps, without its loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from maxtext.common import train_state_nnx
from maxtext.layers.moe import MoEBiasVar
from maxtext.optimizers import optimizers
from maxtext.trainers.pre_train.train import eval_step, train_step
from maxtext.utils import maxtext_utils, model_creation_utils, sharding, train_utils

from primus.backends.maxtext.configuration import configuration
from primus.backends.maxtext.stages import without_stages
from primus.backends.start import huggingface_values, random_values
from primus.checkpoints.weights import Values, Weight, regions
from primus.errors import EnvironmentFault
from primus.numerics.schedule import learning_rate
from primus.plan.plan import Plan


@dataclass
class Built:
    """state: parameters, moments and counters, an ``nnx.State`` that ``train`` consumes and gives anew."""

    config: Any
    mesh: jax.sharding.Mesh
    batch_sharding: jax.sharding.Sharding
    state: Any
    train: Callable[..., Any]
    evaluate: Callable[..., Any]

    def set_updates(self, updates: int) -> None:
        """Tell the optimizer how many updates it has made: bias correction and learning rate depend on it."""
        optimizer = self.state["optimizer"]
        counters = [optimizer["step"], *(each["count"] for each in optimizer["opt_state"].values() if "count" in each)]
        for counter in counters:
            array = counter.get_value()
            counter.set_value(jax.device_put(jnp.full(array.shape, updates, array.dtype), array.sharding))


def build(plan: Plan) -> Built:
    """Model and optimizer of `plan`, with MaxText's own weights."""
    config = configuration(plan)
    mesh = maxtext_utils.get_mesh_from_config(config)
    create, model = model_creation_utils.create_nnx_abstract_model(config, mesh)
    rates = np.array(
        [learning_rate(step, plan.experiment.optimizer, plan.decay_steps) for step in range(config.steps)], np.float32
    )
    optimizer = optimizers.get_optimizer(config, lambda step: jnp.asarray(rates)[step], model, mesh=mesh)

    def initial() -> Any:
        made = create()
        if plan.experiment.model.init != "native":  # they are filled later: MaxText's own need not be compiled
            nnx.update(made, jax.tree.map(jnp.zeros_like, nnx.state(made, nnx.Param)))
        return train_state_nnx.TrainStateNNX(made, nnx.Optimizer(made, optimizer, wrt=nnx.Param))

    state, _, shardings, _, _ = maxtext_utils.setup_training_state(None, config, mesh, None, initial)
    with maxtext_utils.axis_rules(config.logical_axis_rules):
        graph = nnx.graphdef(nnx.eval_shape(initial))
    parameter_shardings, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    step = unless_unfinite(train_step) if plan.experiment.resilience.anomaly == "skip_step" else train_step
    train, evaluate = train_utils.jit_train_and_eval_step(
        config, graph, mesh, state, shardings, step, eval_step, True, parameter_shardings
    )
    batch_sharding = sharding.get_input_data_sharding(config, mesh)
    return Built(config, mesh, batch_sharding, state, train, evaluate)


def unless_unfinite(step: Callable[..., Any]) -> Callable[..., Any]:
    """MaxText's `step`, to be compiled: where its loss or gradient norm is NaN or infinite it gives the state that it
    was given, counters included."""

    def guarded(*arguments: Any) -> tuple[Any, Any]:
        *_, state, _ = arguments  # the last is the batch
        before = jax.tree.leaves(state)  # the step itself writes into `state`
        after, metrics = step(*arguments)
        figures = (metrics["scalar"][f"learning/{name}"] for name in ("lm_loss", "raw_grad_norm"))
        good = jnp.all(jnp.isfinite(jnp.stack([*figures])))
        leaves, structure = jax.tree.flatten(after)
        kept = [jnp.where(good, new, old) for new, old in zip(leaves, before, strict=True)]
        return jax.tree.unflatten(structure, kept), metrics

    return guarded


def held(state: Any) -> dict[str, dict[str, Any]]:
    """What a checkpoint holds: part (``weights``, ``exp_avg``, ``exp_avg_sq``) -> parameter -> variable of `state`.
    Among the weights are the biases that balance experts, which have no moments."""
    adam = state["optimizer"]["opt_state"][0]
    found = {
        "weights": nnx.split_state(state["model"], nnx.Any(nnx.Param, MoEBiasVar), ...)[0],
        "exp_avg": adam["mu"],
        "exp_avg_sq": adam["nu"],
    }
    return {
        part: without_stages({".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(of)})
        for part, of in found.items()
    }


def begin(built: Built, plan: Plan, weights: list[Weight]) -> None:
    """Put the weights that training starts from into the parameters, each device its part."""
    model, here = plan.experiment.model, held(built.state)["weights"]
    known = {weight.native: weight for weight in weights}
    needed = {weight.native for weight in weights if not weight.optional}
    if not needed <= here.keys() <= known.keys():
        wrong = sorted((needed - here.keys()) | (here.keys() - known.keys()))
        raise EnvironmentFault(f"MaxText's parameters are not the described ones: {wrong}")
    values = (
        random_values(model, plan.experiment.train.seed)
        if model.init == "random"
        else huggingface_values(here.keys(), weights, model, Path(model.init))
    )
    for name, variable in here.items():
        array = variable.get_value()
        if array.shape != known[name].shape:
            raise EnvironmentFault(f"{name} is {array.shape} in MaxText, described as {known[name].shape}")
        made = jax.make_array_from_callback(
            array.shape, array.sharding, lambda index, weight=known[name]: part(weight, index, values)
        )
        variable.set_value(made.astype(array.dtype))


def part(weight: Weight, index: tuple[slice, ...], values: Values) -> np.ndarray[Any, Any]:
    """float32 values of `weight` at `index`."""
    indices = [np.arange(*one.indices(size)) for one, size in zip(index, weight.shape, strict=True)]
    filled = np.empty([len(each) for each in indices], np.float32)
    for region in regions(weight, indices):
        block = values(weight, region.source, region.offsets, region.columns)
        if block.dtype == np.uint16:
            block = block.view(jnp.bfloat16)
        filled.reshape(-1, region.columns.size)[region.first : region.end] = block
    return filled
