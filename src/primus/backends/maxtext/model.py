"""MaxText's model, optimizer and compiled steps, without its loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from maxtext.common import train_state_nnx
from maxtext.configs import pyconfig
from maxtext.optimizers import optimizers
from maxtext.trainers.pre_train.train import eval_step, train_step
from maxtext.utils import maxtext_utils, model_creation_utils, sharding, train_utils

from primus.backends.start import huggingface_values, random_values
from primus.checkpoints.weights import Values, Weight, regions
from primus.errors import EnvironmentFault
from primus.home import primus_home
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
        return train_state_nnx.TrainStateNNX(made, nnx.Optimizer(made, optimizer, wrt=nnx.Param))

    state, _, shardings, _, _ = maxtext_utils.setup_training_state(None, config, mesh, None, initial)
    with maxtext_utils.axis_rules(config.logical_axis_rules):
        graph = nnx.graphdef(nnx.eval_shape(initial))
    parameter_shardings, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    train, evaluate = train_utils.jit_train_and_eval_step(
        config, graph, mesh, state, shardings, train_step, eval_step, True, parameter_shardings
    )
    batch_sharding = sharding.get_input_data_sharding(config, mesh)
    return Built(config, mesh, batch_sharding, state, train, evaluate)


def configuration(plan: Plan) -> Any:
    """MaxText's own configuration object. Raises EnvironmentFault with MaxText's reason when it refuses."""
    base = os.path.join(os.path.dirname(pyconfig.__file__), "base.yml")
    for name in [name for name in os.environ if name.startswith("M_")]:
        del os.environ[name]  # MaxText would take these over its own defaults
    given = {
        "jax_cache_dir": str(primus_home() / "jax"),
        "run_name": plan.experiment.name,
        "base_output_directory": plan.run_directory,
        **plan.native,
    }
    try:
        return pyconfig.initialize(["primus", base], **given)
    except (Exception, SystemExit) as error:
        raise EnvironmentFault(f"MaxText refuses its configuration: {error}", where="maxtext") from error


def held(state: Any) -> dict[str, dict[str, Any]]:
    """What a checkpoint holds: part (``weights``, ``exp_avg``, ``exp_avg_sq``) -> parameter -> variable of `state`."""
    adam = state["optimizer"]["opt_state"][0]
    found = {
        "weights": nnx.split_state(state["model"], nnx.Param, ...)[0],
        "exp_avg": adam["mu"],
        "exp_avg_sq": adam["nu"],
    }
    return {part: {".".join(map(str, path)): v for path, v in nnx.to_flat_state(of)} for part, of in found.items()}


def begin(built: Built, plan: Plan, weights: list[Weight]) -> None:
    """Put the weights that training starts from into the parameters, each device its part."""
    model, here = plan.experiment.model, held(built.state)["weights"]
    known = {weight.native: weight for weight in weights}
    if here.keys() != known.keys():
        raise EnvironmentFault(f"MaxText's parameters are not the described ones: {sorted(here.keys() ^ known.keys())}")
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
