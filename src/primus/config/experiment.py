"""The experiment file's schema: the one definition behind validation, the key reference, and the JSON schema.

Every section is strict (``"8"`` is not a number, ``yes`` is not a step count), closed (unknown keys are errors) and
frozen. Model fields carry the names of Hugging Face's ``config.json``. Batch sizes are counted in sequences.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from primus.config.units import multiple, seconds


class Words(NamedTuple):
    """What a value must be, in plain words, where its type does not say it."""

    text: str


def _duration(text: str) -> str:
    seconds(text)
    return text


def _hang_timeout(text: str) -> str:
    factor = multiple(text)
    if factor is None:
        seconds(text)
    elif factor < 2:
        raise ValueError("must be a duration, or at least 2x the usual step")
    return text


Text = Annotated[str, Field(min_length=1)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128),
    Words("letters, digits, '.', '_' and '-' (at most 128), beginning with a letter or digit"),
]
Duration = Annotated[str, AfterValidator(_duration), Words("a duration with its unit, such as 90s, 10m or 1h30m")]
HangTimeout = Annotated[
    str,
    AfterValidator(_hang_timeout),
    Words("a duration with its unit, such as 90s or 10m, or a multiple of the usual step, such as 20x"),
]

Workflow = Literal["pretrain"]
Precision = Literal["fp32", "bf16", "fp8"]


class Section(BaseModel):
    # defer_build: only Experiment is compiled, once, with all its sections inside. Default sections are made by
    # model_construct, which does not compile them either. Half of the start-up time.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


class RopeScaling(Section):
    """Hugging Face ``rope_scaling``."""

    rope_type: Literal["llama3", "yarn"] = Field(description="How positions beyond the original window are scaled.")
    factor: PositiveFloat = Field(description="Ratio of the extended to the original context window.")
    original_max_position_embeddings: PositiveInt = Field(description="Context window before scaling, in tokens.")
    low_freq_factor: PositiveFloat | None = Field(
        default=None, description="llama3: below it, frequencies are fully scaled."
    )
    high_freq_factor: PositiveFloat | None = Field(default=None, description="llama3: above it, frequencies are kept.")
    beta_fast: PositiveFloat | None = Field(default=None, description="yarn: upper rotation bound of the blend.")
    beta_slow: PositiveFloat | None = Field(default=None, description="yarn: lower rotation bound of the blend.")
    mscale: PositiveFloat | None = Field(default=None, description="yarn: attention magnitude factor.")
    mscale_all_dim: PositiveFloat | None = Field(
        default=None, description="yarn: attention magnitude factor over all dimensions."
    )


class Model(Section):
    """Architecture in Hugging Face's names. A preset fills it; any field may be set again in the file."""

    model_type: Literal[
        "llama", "qwen2", "qwen3", "qwen3_moe", "mixtral", "llama4_text", "deepseek_v2", "deepseek_v3", "gpt_oss"
    ] = Field(description="Model family.")
    init: Text = Field(
        "random",
        description="`random` (equal on every backend), `native` (the engine's own), or a Hugging Face directory or "
        "`org/name[@revision]` Hub id whose weights training starts from; its `config.json` then fills "
        "the model fields.",
        examples=["random", "./llama", "meta-llama/Llama-3.1-8B@main"],
    )
    init_std: PositiveFloat = Field(default=0.02, description="Standard deviation of randomly started weights.")
    vocab_size: PositiveInt = Field(description="Rows of the embedding.")
    hidden_size: PositiveInt = Field(description="Width of the residual stream.")
    num_hidden_layers: PositiveInt = Field(description="Number of decoder layers.")
    num_attention_heads: PositiveInt = Field(description="Query heads.")
    num_key_value_heads: PositiveInt | None = Field(
        default=None, description="Key/value heads; default: as many as query heads."
    )
    head_dim: PositiveInt | None = Field(
        default=None, description="Width of a head; default: hidden_size / num_attention_heads."
    )
    intermediate_size: PositiveInt = Field(
        description="Width of the dense feed-forward layer; of one expert in gpt_oss, mixtral and llama4_text."
    )
    max_position_embeddings: PositiveInt = Field(description="Longest sequence the model allows, in tokens.")
    rms_norm_eps: PositiveFloat = Field(default=1e-5, description="Epsilon of every RMS norm.")
    rope_theta: PositiveFloat = Field(default=10000.0, description="Base of the rotary embedding.")
    rope_scaling: RopeScaling | None = Field(default=None, description="Rotary scaling for long contexts.")
    tie_word_embeddings: bool = Field(default=False, description="Output projection shares the embedding's weights.")
    # mixture of experts
    num_experts: PositiveInt | None = Field(default=None, description="Routed experts a layer (`n_routed_experts`).")
    num_experts_per_tok: PositiveInt | None = Field(default=None, description="Experts each token is routed to.")
    moe_intermediate_size: PositiveInt | None = Field(default=None, description="Width of one expert's feed-forward.")
    n_shared_experts: NonNegativeInt | None = Field(default=None, description="Experts every token passes through.")
    first_k_dense_replace: NonNegativeInt | None = Field(default=None, description="Leading layers that stay dense.")
    n_group: PositiveInt | None = Field(default=None, description="Expert groups for group-limited routing.")
    topk_group: PositiveInt | None = Field(default=None, description="Groups each token may use.")
    routed_scaling_factor: PositiveFloat | None = Field(
        default=None, description="Factor on the routed experts' output."
    )
    scoring_func: Literal["softmax", "sigmoid"] | None = Field(default=None, description="Router score function.")
    norm_topk_prob: bool | None = Field(
        default=None,
        description="Whether the chosen scores are normalised to sum to one; default: true, or as the family does.",
    )
    # multi-head latent attention (deepseek_v2, deepseek_v3)
    q_lora_rank: NonNegativeInt | None = Field(
        default=None, description="Rank of the query compression; 0 or unset: none."
    )
    kv_lora_rank: PositiveInt | None = Field(default=None, description="Rank of the key/value compression.")
    qk_nope_head_dim: PositiveInt | None = Field(default=None, description="Per-head query/key width without rotation.")
    qk_rope_head_dim: PositiveInt | None = Field(default=None, description="Per-head query/key width with rotation.")
    v_head_dim: PositiveInt | None = Field(default=None, description="Per-head value width.")
    # gpt_oss
    sliding_window: PositiveInt | None = Field(
        default=None, description="Window of the local attention layers, in tokens."
    )
    swiglu_limit: PositiveFloat | None = Field(default=None, description="Clamp on the gated activation.")
    # llama4_text
    intermediate_size_mlp: PositiveInt | None = Field(
        default=None, description="Width of the feed-forward in layers without experts."
    )
    interleave_moe_layer_step: PositiveInt | None = Field(
        default=None, description="Of every so many layers the last is a mixture of experts; 1: all are."
    )
    no_rope_layer_interval: PositiveInt | None = Field(
        default=None,
        description="Of every so many layers the last has no rotary positions and attends to the whole sequence.",
    )
    attention_chunk_size: PositiveInt | None = Field(
        default=None, description="Tokens that attend to each other in the layers with rotary positions."
    )
    use_qk_norm: bool | None = Field(
        default=None, description="Queries and keys are normed, without weights, after their rotation."
    )
    attn_temperature_tuning: bool | None = Field(
        default=None,
        description="In layers without rotary positions queries grow with their position p, counted from 1, by "
        "1 + attn_scale * ln(1 + floor(p / floor_scale)).",
    )
    floor_scale: PositiveInt | None = Field(
        default=None, description="Tokens between two steps of that growth; it begins with the first."
    )
    attn_scale: NonNegativeFloat | None = Field(default=None, description="Strength of that growth.")


class Hardware(Section):
    """One kind of machine. Filled by `extends: [hardware/NAME]`."""

    name: Text = Field(description="Name of the device, e.g. `MI300X` or `cpu`.")
    device: Literal["cpu", "cuda", "rocm"] = Field(description="Kind of device the engine runs on.")
    devices_per_node: PositiveInt | None = Field(
        default=None, description="Processes a node, one a device; unset: taken from `--nproc`, else 1."
    )
    memory_gib: PositiveFloat | None = Field(default=None, description="Memory of one device, in GiB.")
    bandwidth_gb_s: PositiveFloat | None = Field(default=None, description="Memory bandwidth of one device, in GB/s.")
    peak_tflops: dict[Precision, PositiveFloat] = Field(
        default={},
        description="Dense peak of one device by precision, in TFLOP/s; MFU is hidden where it is missing.",
    )


class DataSource(Section):
    """One dataset of a mixture."""

    path: Text = Field(description="Prefix of a prepared dataset: `PATH.bin` and `PATH.idx`.")
    weight: PositiveFloat = Field(
        default=1.0, description="Share of samples in the mixture, relative to the other sources."
    )


class Data(Section):
    """Token datasets, made by `primus-cli data prepare`. The order of samples follows from them and `train.seed`."""

    train: Text | Annotated[list[Text | DataSource], Field(min_length=1)] = Field(
        description="Prefix of a prepared dataset, a list of them (a mixture by weight), `stdlib` (the embedded "
        "corpus: Python's standard library), or `synthetic` (generated tokens, for speed tests).",
        examples=["stdlib", "data/web", [{"path": "data/web", "weight": 3}, {"path": "data/code", "weight": 1}]],
    )
    validation: Fraction | Text | None = Field(
        default=None,
        description="Fraction of the tokens held out from the end of each source, or the prefix of a dataset.",
    )
    tokenizer: Text | None = Field(
        default=None,
        description="Directory with `tokenizer.json` or a Hub id; must be the one that made the dataset. Default: the "
        "dataset's own.",
    )
    document_attention: Literal["full", "within"] = Field(
        default="full",
        description="`full`: attention crosses document boundaries; `within`: positions and attention restart at "
        "each document.",
    )
    mask_eod: bool = Field(default=False, description="Leave end-of-document targets out of the loss.")


class Train(Section):
    """Length of the run and size of its batches, in sequences. Gradient accumulation follows from these and the
    ranks."""

    steps: PositiveInt = Field(description="Optimizer steps in total.")
    global_batch_size: PositiveInt = Field(description="Sequences an optimizer step.")
    micro_batch_size: PositiveInt = Field(default=1, description="Sequences a forward pass on one data-parallel rank.")
    seq_length: PositiveInt = Field(description="Tokens a sequence.")
    seed: NonNegativeInt = Field(default=1234, description="Seed of the random start and of the sample order.")


class Schedule(Section):
    """Learning rate over the steps: linear warm-up to `lr`, then down to `min_lr`."""

    name: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine", description="Shape of the decay after warm-up."
    )
    warmup_steps: NonNegativeInt = Field(default=0, description="Steps of linear warm-up from 0 to `lr`.")
    decay_steps: PositiveInt | None = Field(
        default=None, description="Step at which `min_lr` is reached; default: the first plan's `train.steps`."
    )
    stable_steps: NonNegativeInt | None = Field(
        default=None, description="wsd: steps at `lr` between warm-up and decay."
    )


class Optimizer(Section):
    """AdamW with decoupled weight decay and one global gradient norm."""

    name: Literal["adamw"] = Field(default="adamw", description="Optimizer.")
    lr: PositiveFloat = Field(description="Peak learning rate.", examples=[3e-4])
    min_lr: NonNegativeFloat = Field(default=0.0, description="Learning rate at the end of the decay.")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.95), description="Decay of the first and second moment.")
    eps: PositiveFloat = Field(default=1e-8, description="Added outside the square root.")
    weight_decay: NonNegativeFloat = Field(
        default=0.1, description="Decoupled decay of weights with two or more dimensions."
    )
    clip_grad_norm: NonNegativeFloat = Field(
        default=1.0, description="Global gradient norm above which gradients are scaled down; 0: never."
    )
    schedule: Schedule = Field(default_factory=Schedule.model_construct, description="Learning rate over the steps.")


class Parallel(Section):
    """Ranks along each axis. `data_replicate * data_shard * context * tensor * pipeline` is the world size."""

    data_shard: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="Ranks that shard parameters, gradients and optimizer state (FSDP); `auto`: all that the other "
        "axes leave.",
    )
    data_replicate: PositiveInt = Field(default=1, description="Replicas of the sharded group (HSDP).")
    tensor: PositiveInt = Field(default=1, description="Tensor-parallel ranks, with sequence parallelism.")
    pipeline: PositiveInt = Field(default=1, description="Pipeline stages.")
    virtual_pipeline: PositiveInt = Field(
        default=1, description="Model chunks a pipeline rank; more than one needs an interleaved schedule."
    )
    schedule: Literal["1f1b", "interleaved_1f1b", "gpipe"] | None = Field(
        default=None,
        description="Pipeline schedule; default: 1f1b, or interleaved_1f1b with virtual stages; MaxText: its own.",
    )
    context: PositiveInt = Field(default=1, description="Ranks that share one sequence.")
    expert: PositiveInt = Field(
        default=1, description="Expert-parallel ranks, shared with the data_shard, context and tensor axes."
    )


class Moe(Section):
    """Routing of a model with experts."""

    balance: Literal["aux_loss", "bias", "none"] = Field(default="bias", description="How expert load is balanced.")
    aux_loss_coeff: NonNegativeFloat | None = Field(
        default=None, description="Weight of the auxiliary loss, with `balance: aux_loss`."
    )
    dispatcher: Literal["auto", "alltoall"] = Field(default="auto", description="How tokens travel to experts.")


class Eval(Section):
    """Evaluation on the validation split; there is none without `data.validation`."""

    interval: PositiveInt = Field(default=100, description="Steps between evaluations on the validation split.")
    steps: PositiveInt = Field(default=20, description="Global batches an evaluation.")


class Profile(Section):
    """Traces of chosen steps and ranks; without this section there are none."""

    steps: tuple[PositiveInt, PositiveInt] = Field(
        description="First and last step that is traced.", examples=[[10, 12]]
    )
    ranks: Annotated[list[NonNegativeInt], Field(min_length=1)] = Field(
        default=[0], description="Ranks that write a trace."
    )


class Checkpoint(Section):
    """Checkpoints in the run directory, visible only when complete. The last step is always saved."""

    interval: PositiveInt | None = Field(
        default=None, description="Steps between checkpoints; default: only at the end and on a stop."
    )
    keep: PositiveInt | None = Field(default=None, description="Newest checkpoints kept; default: all.")
    async_: bool = Field(default=True, alias="async", description="Write in the background while training goes on.")
    retries: NonNegativeInt = Field(
        default=3, description="Times a save that failed is tried again, after 1, 2, 4, ... seconds, at most 60 each."
    )
    resume: Literal["auto", "never"] = Field(
        default="auto", description="`auto`: continue from the newest complete checkpoint of the run directory."
    )


class Prometheus(Section):
    """Metrics for a Prometheus server to scrape, at `http://HOST:PORT/metrics` of node 0 while the run goes on."""

    port: Port = Field(default=9400, description="Port; the next free one of ten when it is taken.")
    host: Text = Field(
        default="127.0.0.1",
        description="Address to listen on. The default lets only this machine in; `0.0.0.0` lets in everyone who can "
        "reach it, without a password.",
        examples=["127.0.0.1", "0.0.0.0"],
    )


class MLflow(Section):
    """One MLflow run for the whole run, whatever its attempts. Secrets stay in the environment:
    `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`."""

    uri: Text | None = Field(
        default=None,
        description="Tracking server or store: `https://...`, `sqlite:///FILE`, `file:DIR` or `databricks`. Default: "
        "`MLFLOW_TRACKING_URI`, else `mlflow.db` beside the run directories.",
        examples=["https://mlflow.example.com", "sqlite:////data/mlflow.db"],
    )
    experiment: Text | None = Field(
        default=None,
        description="MLflow experiment; made when there is none. Default: `MLFLOW_EXPERIMENT_NAME`, else `primus`.",
    )


class Wandb(Section):
    """One W&B run for the whole run, whatever its attempts. The key stays in the environment (`WANDB_API_KEY`) or
    where `wandb login` put it; another server than wandb.ai is `WANDB_BASE_URL`."""

    project: Text | None = Field(default=None, description="W&B project. Default: `WANDB_PROJECT`, else `primus`.")
    entity: Text | None = Field(default=None, description="User or team. Default: `WANDB_ENTITY`, else the key's own.")
    mode: Literal["online", "offline"] | None = Field(
        default=None,
        description="`offline`: write files in the run directory, for `wandb sync` to send. Default: `WANDB_MODE`, "
        "else `online` where there is a key and `offline` where there is none.",
    )


class Monitor(Section):
    """What is shown and written while training. Every step is in the run's event files in any case."""

    log_interval: PositiveInt = Field(default=10, description="Steps between lines on a console without a terminal.")
    tensorboard: bool = Field(default=True, description="Write TensorBoard files.")
    sinks: list[str] = Field(
        default=[],
        description="Further places events go to: entry points of group `primus.sinks` of installed packages.",
    )
    prometheus: Prometheus | None = Field(
        default=None, description="Metrics to scrape; `{}` turns it on with its defaults."
    )
    mlflow: MLflow | None = Field(default=None, description="Tracking with MLflow; `{}` turns it on.")
    wandb: Wandb | None = Field(default=None, description="Tracking with Weights & Biases; `{}` turns it on.")

    @property
    def forwards(self) -> bool:
        """Whether a process beside the run is to forward its events."""
        return any(section is not None for section in (self.prometheus, self.mlflow, self.wandb))


class Resilience(Section):
    """What happens when a process fails or hangs."""

    fault_tolerance: Literal["restart", "torchft"] = Field(
        default="restart",
        description="What a failed process costs the others. `restart`: all start again, from the newest checkpoint. "
        "`torchft`: the groups along `parallel.data_replicate` are apart; when one fails, the others make its share of "
        "each step until it is back, and hand it their weights.",
    )
    max_restarts: NonNegativeInt = Field(
        default=3,
        description="Times the processes are started again within `restart_window` after a failure that a restart can "
        "mend; three starts in a row that end at the same step are the last in any case.",
    )
    restart_window: Duration = Field(
        default="1h", description="Restarts longer ago than this count no more.", examples=["30m", "1d"]
    )
    min_nodes: PositiveInt | None = Field(
        default=None,
        description="Fewest nodes with which the run may start, and go on when some are lost, its samples in the same "
        "order; default: as many as it asks for. Slurm does so; other places wait for all nodes, and say so.",
    )
    hang_timeout: HangTimeout = Field(
        default="10m",
        description="A run without a step for longer hangs: every rank's stack is kept and the processes are started "
        "again. A multiple is of the median of recent steps, and at least 30 s.",
        examples=["90s", "10m", "20x"],
    )
    start_timeout: Duration | None = Field(
        default=None,
        description="The same before the first step of a start: imports, compilation and loading take their time. "
        "Default: 10m, or `hang_timeout` if that is longer.",
        examples=["2m", "1h"],
    )
    anomaly: Literal["stop", "skip_step", "rollback"] = Field(
        default="stop",
        description="What is done about a loss or gradient norm that is NaN or infinite, or a spike. `stop`: the run "
        "ends. `skip_step`: its batch is left out, nothing is updated. `rollback`: back to the newest checkpoint; the "
        "batch is left out when training comes there again.",
    )
    anomaly_limit: PositiveInt = Field(
        default=5,
        description="The run stops instead when so many batches were left out already at the same step (`skip_step`) "
        "or since the same checkpoint (`rollback`).",
    )
    spike_factor: Annotated[float, Field(gt=1)] | None = Field(
        default=None,
        description="A loss above this factor times the median of the last `spike_window` steps is an anomaly too; "
        "default: never.",
    )
    spike_window: PositiveInt = Field(
        default=50, description="Steps of which a spike is told apart; none is found before so many were made."
    )


class Experiment(Section):
    """A whole experiment. Sections named after a backend hold that engine's own keys."""

    name: Name = Field(description="Name of the run and of its directory under `runs/`.")
    backend: str = Field(default="torchtitan", description="Training engine.")
    hardware: Hardware = Field(description="The machine; `extends: [hardware/NAME]` fills it.")
    model: Model = Field(description="Architecture and start.")
    data: Data = Field(description="What is learnt.")
    train: Train = Field(description="How much, in which batches.")
    optimizer: Optimizer = Field(description="Update rule and learning rate.")
    parallel: Parallel = Field(
        default_factory=Parallel.model_construct, description="How the model is spread over devices."
    )
    precision: Precision = Field(
        default="bf16", description="Arithmetic of forward and backward; master weights stay fp32."
    )
    recompute: Literal["none", "selective", "full"] = Field(
        default="none", description="Activations recomputed in the backward pass."
    )
    compile: bool = Field(default=False, description="Compile the layers with the engine's compiler.")
    moe: Moe = Field(default_factory=Moe.model_construct, description="Mixture of experts.")
    eval: Eval = Field(default_factory=Eval.model_construct, description="Evaluation on the validation split.")
    profile: Profile | None = Field(default=None, description="Tracing of chosen steps and ranks.")
    checkpoint: Checkpoint = Field(default_factory=Checkpoint.model_construct, description="Saving and continuing.")
    monitor: Monitor = Field(
        default_factory=Monitor.model_construct, description="What is shown and written while training."
    )
    resilience: Resilience = Field(default_factory=Resilience.model_construct, description="What happens on failures.")
    env: dict[str, str] = Field(
        default={},
        description="Environment variables of the ranks; numbers are taken as written.",
        examples=[{"NCCL_DEBUG": "WARN"}],
    )
    native: dict[str, dict[str, Any]] = Field(
        default={},
        description="Never written by hand: a top-level section named after a backend (`torchtitan: {...}`) lands "
        "here.",
    )
