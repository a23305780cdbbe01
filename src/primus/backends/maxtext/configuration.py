"""MaxText's configuration object of a plan."""

from __future__ import annotations

import os
from typing import Any

from maxtext.configs import pyconfig

from primus.backends.maxtext import refusals
from primus.backends.maxtext.schema import schema
from primus.config.experiment import Model
from primus.errors import PlanError
from primus.home import primus_home
from primus.plan.plan import Plan

BIAS_RATE = 1e-3
"""What a step adds to or takes from the bias of an expert, as on the other engines."""


class Configuration(pyconfig.HyperParameters):  # type: ignore[misc]
    """MaxText's own; ``portable`` is the model as the experiment has it, for what this backend puts in MaxText's
    place."""

    portable: Model

    def __init__(self, fields: Any, portable: Model) -> None:
        super().__init__(fields)
        object.__setattr__(self, "portable", portable)
        if self.routed_bias:  # MaxText's check knows of DeepSeek's layers only; our router balances any
            self._flat_config["routed_bias_update_rate"] = BIAS_RATE

    def __deepcopy__(self, memo: dict[int, Any]) -> Configuration:
        return self  # neither changes


def configuration(plan: Plan) -> Configuration:
    """Raises PlanError with MaxText's reasons when it refuses."""
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
        fields = pyconfig.initialize_pydantic(["primus", base], **given)
        return Configuration(fields, plan.experiment.model)
    except (Exception, SystemExit) as error:
        # MaxText has written it to /dev/termination-log too, for Kubernetes, if there is such a file or may be one.
        raise PlanError(problems=refusals.problems(error, plan, schema())) from error
