"""Contradictions between keys that need nothing but the experiment to be seen.

What depends on the number of devices is the planner's to check, what depends on the engine the backend's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from primus.config.document import Node
from primus.config.experiment import Experiment
from primus.config.families import EXPERT_FIELDS, FAMILIES, having, latent_attention
from primus.config.keys import keys
from primus.config.suggest import closest
from primus.errors import Problem

Finding = tuple[str, str, str]
"""Dotted key to point at, message, remedy."""
Written = Callable[[str], bool]
"""Whether the experiment file or the command line itself sets a key, and not just to its default."""

RESERVED = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"}
)
"""Variables that the launcher sets for every rank."""

MOST_HEADS = 1024
"""No model has more key/value heads."""

DECAYING = ("cosine", "linear", "wsd")


def check(experiment: Experiment, tree: Node) -> list[Problem]:
    """Every contradiction in `experiment`, each at its place in `tree`."""
    from primus.config.validate import tree_key_mark

    def written(key: str) -> bool:
        node = tree
        for part in key.split("."):
            entry = node.value.get(part) if isinstance(node.value, dict) else None
            if entry is None:
                return False
            node = entry.node
        field = keys()[key].field
        if node.value is None or node.value == field.get_default(call_default_factory=True, validated_data={}):
            return False
        return node.mark.source.kind in ("file", "override")

    return [
        tree_key_mark(tree, key).problem(message, remedy)
        for rule in (
            _backend,
            _schedule,
            _profile,
            _heads,
            _rope,
            _experts,
            _family,
            _pipeline,
            _moe,
            _eval,
            _rollback,
            _monitor,
            _env,
        )
        for key, message, remedy in rule(experiment, written)
    ]


def _backend(experiment: Experiment, written: Written) -> Iterator[Finding]:
    from primus.backends import registry

    name = experiment.backend
    if name not in registry.BUILT_IN and name not in registry.names():
        near = closest(name, registry.names())
        hint = f"did you mean {near}? " if near else ""
        yield "backend", f"there is no backend '{name}'", f"{hint}installed: {', '.join(registry.names())}"


def _schedule(experiment: Experiment, written: Written) -> Iterator[Finding]:
    optimizer, schedule = experiment.optimizer, experiment.optimizer.schedule
    end = schedule.decay_steps or experiment.train.steps
    end_key = "optimizer.schedule.decay_steps" if schedule.decay_steps else "train.steps"
    if optimizer.min_lr > optimizer.lr:
        yield (
            "optimizer.min_lr",
            f"optimizer.min_lr, {optimizer.min_lr:g}, is above optimizer.lr, {optimizer.lr:g}",
            f"set optimizer.min_lr to {optimizer.lr / 10:g}, a tenth of the peak, or 0",
        )
    if schedule.stable_steps is not None and schedule.name != "wsd":
        yield (
            "optimizer.schedule.stable_steps",
            f"stable_steps belongs to the schedule wsd, not to {schedule.name}",
            "remove it, or set optimizer.schedule.name to wsd",
        )
    if schedule.name == "wsd" and schedule.stable_steps is None:
        rest = max(0, end - schedule.warmup_steps)
        yield (
            "optimizer.schedule.name",
            "the schedule wsd needs optimizer.schedule.stable_steps",
            f"set it to e.g. {rest * 9 // 10}: of the {rest} steps after warm-up, a tenth is then left for the decay",
        )
    if schedule.name == "constant":
        for key, value in (("schedule.decay_steps", schedule.decay_steps), ("min_lr", optimizer.min_lr)):
            if value and written(f"optimizer.{key}"):
                yield f"optimizer.{key}", f"optimizer.{key} has no meaning with a constant schedule", "remove it"
    before = schedule.warmup_steps + (schedule.stable_steps or 0 if schedule.name == "wsd" else 0)
    if schedule.name in DECAYING and before >= end:
        what = "warm-up and stable steps" if before > schedule.warmup_steps else "warm-up"
        yield (
            "optimizer.schedule.warmup_steps" if before == schedule.warmup_steps else "optimizer.schedule.stable_steps",
            f"{before} steps of {what} leave nothing of {end_key}, {end}, for the decay",
            f"fewer than {end} steps of {what}, or a larger {end_key}",
        )


def _profile(experiment: Experiment, written: Written) -> Iterator[Finding]:
    if experiment.profile is None:
        return
    first, last = experiment.profile.steps
    if first > last:
        yield "profile.steps", f"profile.steps ends before it begins: {first}, {last}", f"write [{last}, {first}]"
    elif first > experiment.train.steps:
        yield (
            "profile.steps",
            f"profile.steps begins at {first}, after the last of {experiment.train.steps} steps",
            "choose earlier steps",
        )
    ranks = experiment.profile.ranks
    if not ranks or len(set(ranks)) < len(ranks):
        yield (
            "profile.ranks",
            f"profile.ranks {'is empty' if not ranks else 'names a rank twice'}",
            "name each rank once",
        )


_EVEN = "rotary embeddings need an even width"


def _heads(experiment: Experiment, written: Written) -> Iterator[Finding]:
    model = experiment.model
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    if groups and heads % groups:
        yield (
            "model.num_key_value_heads",
            f"{heads} query heads cannot be shared evenly by {groups} key/value heads",
            f"choose one of {', '.join(map(str, _divisors(heads)))}",
        )
    if latent_attention(model.model_type):
        rotated = model.qk_rope_head_dim
        if rotated and rotated % 2:
            yield (
                "model.qk_rope_head_dim",
                f"a part of width {rotated} cannot be rotated: {_EVEN}",
                f"e.g. {rotated + 1}",
            )
        return
    if model.head_dim is None and model.hidden_size % heads:
        yield (
            "model.hidden_size",
            f"hidden_size {model.hidden_size} is not a multiple of {heads} heads",
            "change one of them, or set model.head_dim",
        )
    width = model.head_dim or model.hidden_size // heads
    if width % 2:
        yield "model.head_dim", f"heads of width {width} cannot be rotated: {_EVEN}", ""


def _divisors(number: int) -> list[int]:
    """Its divisors below MOST_HEADS, and itself: a mistyped number may be far too large to try them all."""
    return [*(small for small in range(1, min(number, MOST_HEADS)) if number % small == 0), number]


def _rope(experiment: Experiment, written: Written) -> Iterator[Finding]:
    scaling = experiment.model.rope_scaling
    if scaling is None:
        return
    key = "model.rope_scaling"
    of_type = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    }
    for kind, names in of_type.items():
        for name in names:
            value = getattr(scaling, name)
            if kind != scaling.rope_type and value is not None and written(f"{key}.{name}"):
                yield f"{key}.{name}", f"{name} belongs to rope_type {kind}, not to {scaling.rope_type}", "remove it"
            elif kind == scaling.rope_type == "llama3" and value is None:
                yield key, f"rope_type llama3 needs {name}", f"add {name} to {key}"
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blends = experiment.model.model_type != "llama4_text"  # whose instruct models are published with both equal
    if scaling.rope_type == "llama3" and low and high and (low > high or (blends and low == high)):
        yield f"{key}.low_freq_factor", f"low_freq_factor, {low:g}, must be below high_freq_factor, {high:g}", ""


def _experts(experiment: Experiment, written: Written) -> Iterator[Finding]:
    model = experiment.model
    if model.num_experts is None:
        for name in EXPERT_FIELDS:
            if getattr(model, name) is not None:  # num_experts itself is not
                yield f"model.{name}", f"model.{name} has no meaning without model.num_experts", "set both or none"
        return
    chosen = model.num_experts_per_tok
    if chosen is None:
        yield "model.num_experts", "a model with experts needs model.num_experts_per_tok", "set it, e.g. to 2"
    elif chosen > model.num_experts:
        yield (
            "model.num_experts_per_tok",
            f"a token cannot be routed to {chosen} of {model.num_experts} experts",
            f"{model.num_experts} at most",
        )
    if "moe_intermediate_size" in FAMILIES[model.model_type].fields and model.moe_intermediate_size is None:
        yield "model.num_experts", f"{model.model_type} experts need model.moe_intermediate_size", "set it"
    if (model.first_k_dense_replace or 0) > model.num_hidden_layers:
        yield (
            "model.first_k_dense_replace",
            f"{model.first_k_dense_replace} dense layers are more than all {model.num_hidden_layers}",
            f"{model.num_hidden_layers} at most",
        )
    groups = model.n_group or 1
    if model.num_experts % groups:
        yield "model.n_group", f"{model.num_experts} experts do not divide into {groups} groups", "choose a divisor"
    elif model.model_type == "deepseek_v3" and groups > 1 and model.num_experts == groups:
        yield "model.n_group", "deepseek_v3 judges a group by its two best experts, and has one in each", "fewer groups"
    if (model.topk_group or 1) > groups:
        yield "model.topk_group", f"topk_group {model.topk_group} is more than n_group, {groups}", f"{groups} at most"


def _family(experiment: Experiment, written: Written) -> Iterator[Finding]:
    """Fields that the family needs, and those of others. Whether it has experts at all is the planner's to say."""
    model = experiment.model
    family = FAMILIES[model.model_type]
    missing = [name for name in family.needed if getattr(model, name) is None]
    if missing:
        yield "model.model_type", f"{model.model_type} needs model.{', model.'.join(missing)}", "a preset sets them"
    for name in type(model).model_fields:
        owners = having(name)
        if owners and name not in EXPERT_FIELDS and name not in family.fields and getattr(model, name) is not None:
            theirs = " and ".join((*filter(None, [", ".join(owners[:-1])]), owners[-1]))
            yield f"model.{name}", f"model.{name} belongs to {theirs}, not to {model.model_type}", "remove it"


def _pipeline(experiment: Experiment, written: Written) -> Iterator[Finding]:
    parallel = experiment.parallel
    interleaved = parallel.schedule == "interleaved_1f1b"
    if parallel.pipeline == 1:
        if parallel.virtual_pipeline > 1:
            yield (
                "parallel.virtual_pipeline",
                "parallel.virtual_pipeline needs parallel.pipeline of 2 or more",
                "remove it",
            )
        if parallel.schedule:
            yield "parallel.schedule", "parallel.schedule needs parallel.pipeline of 2 or more", "remove it"
    elif interleaved and parallel.virtual_pipeline == 1:
        yield "parallel.schedule", "interleaved_1f1b needs parallel.virtual_pipeline of 2 or more", "set it to 2"
    elif parallel.schedule and not interleaved and parallel.virtual_pipeline > 1:
        yield (
            "parallel.schedule",
            f"{parallel.schedule} runs one chunk a rank, but parallel.virtual_pipeline is {parallel.virtual_pipeline}",
            "use interleaved_1f1b, or remove one of them",
        )


def _moe(experiment: Experiment, written: Written) -> Iterator[Finding]:
    moe = experiment.moe
    if experiment.model.num_experts is None:
        for name in ("balance", "aux_loss_coeff", "dispatcher"):
            if written(f"moe.{name}"):
                yield f"moe.{name}", f"moe.{name} has no meaning: the model has no experts", "remove it"
    elif moe.aux_loss_coeff is not None and moe.balance != "aux_loss":
        yield (
            "moe.aux_loss_coeff",
            f"moe.aux_loss_coeff has no meaning with balance: {moe.balance}",
            "remove it, or set moe.balance to aux_loss",
        )


def _eval(experiment: Experiment, written: Written) -> Iterator[Finding]:
    if experiment.data.validation in (None, 0, 0.0):
        for key in ("eval.interval", "eval.steps"):
            if written(key):
                yield key, f"{key} has no meaning: data.validation is not set", "set data.validation, e.g. to 0.05"


def _rollback(experiment: Experiment, written: Written) -> Iterator[Finding]:
    if experiment.resilience.anomaly == "rollback" and experiment.checkpoint.interval is None:
        yield (
            "resilience.anomaly",
            "resilience.anomaly is rollback, but no checkpoint is made that it could go back to",
            "set checkpoint.interval",
        )


def _monitor(experiment: Experiment, written: Written) -> Iterator[Finding]:
    from urllib.parse import urlsplit

    uri = experiment.monitor.mlflow.uri if experiment.monitor.mlflow else None
    if uri is None:
        return
    key = "monitor.mlflow.uri"
    try:
        parts = urlsplit(uri)
        secret = parts.password or (parts.username and parts.scheme in ("http", "https"))
    except ValueError as error:
        yield key, f"{key} is no address: {error}", ""
        return
    if secret:
        yield (
            key,
            f"{key} holds a name or password, and would end up in plan.json",
            "leave them out: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment",
        )
    elif uri != "databricks" and parts.scheme not in ("http", "https", "sqlite", "file", "databricks"):
        remedy = "use https://HOST, sqlite:///FILE, file:DIR or databricks; other databases through an MLflow server"
        yield key, f"{key} is of a kind that is not here: {parts.scheme or 'a path'}", remedy
    elif parts.scheme in ("http", "https") and not parts.hostname:
        yield key, f"{key} names no host", f"as in {parts.scheme}://mlflow.example.com"
    elif parts.scheme == "sqlite" and (parts.netloc or len(parts.path) < 2):
        yield (
            key,
            f"{key} names no file",
            "as in sqlite:///mlflow.db, or with an absolute path sqlite:////data/mlflow.db",
        )


def _env(experiment: Experiment, written: Written) -> Iterator[Finding]:
    for name, value in experiment.env.items():
        if not name or "=" in name or any(char.isspace() or not char.isprintable() for char in name):
            yield f"env.{name}", f"'{name}' cannot be the name of an environment variable", ""
        elif name in RESERVED:
            yield f"env.{name}", f"env.{name} is set by the launcher for each rank", "remove it"
        if "\0" in value:
            yield f"env.{name}", f"env.{name} holds a null character", "remove it"
