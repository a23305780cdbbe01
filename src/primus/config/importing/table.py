"""Every key of the other systems that we know, one row each: what it is called here, or why it is not carried.

``to`` copies, ``switch`` is a truth value, ``choice`` translates words, ``native`` is the engine's own key,
``always`` has one value here, ``off`` agrees when it is off, ``no`` is never carried, ``by`` converts.
A name that ends in ``.*`` or ``*`` stands for all keys that begin so and have no row of their own.

The engines' rows are in ``table_megatron``, ``table_titan`` and ``table_maxtext``; here is what stands around them.
"""

from __future__ import annotations

from primus.config.importing import reasons as r
from primus.config.importing import values as v
from primus.config.importing.rules import Rule, by, no
from primus.config.importing.table_maxtext import MAXTEXT
from primus.config.importing.table_megatron import MEGATRON
from primus.config.importing.table_titan import TORCHTITAN

TABLES: dict[str, dict[str, Rule]] = {"megatron": MEGATRON, "torchtitan": TORCHTITAN, "maxtext": MAXTEXT}

# Beside the engine's settings: flags of the launcher in a shell script, and the head of the reference system's file.
LAUNCHING: dict[str, Rule] = {
    name: no(r.LAUNCHER)
    for name in (
        *("nproc_per_node", "nnodes", "node_rank", "master_addr", "master_port", "local_ranks_filter", "rdzv_id"),
        *("rdzv_endpoint", "rdzv_backend", "rdzv_conf", "max_restarts", "tee", "redirects", "log_dir", "local_rank"),
    )
} | {"standalone": no(r.LAUNCHER, flag=True), "max_restarts": no("set resilience.max_restarts")}

HEAD: dict[str, Rule] = {
    "work_group": no(r.OWNER),
    "user_name": no(r.OWNER),
    "workspace": no(r.CLUSTER),
    "exp_name": by("name", v.run_name),
    "config": no("a preset of that system, whose values are not in this file: defaults here apply"),
}

ENVIRONMENT: dict[str, Rule] = {
    "PRIMUS_DETERMINISTIC": no(r.SCRIPT),
    "CLEAN_DOCKER_CONTAINER": no(r.SCRIPT),
    "USING_AIC": no(r.SCRIPT),
    "LEGACY_GG": no(r.SCRIPT),
    "TURBO_DEEPEEP": no(r.TURBO),
    "TURBO_GROUPED_MLP": no(r.TURBO),
}
PASSED_ON = (
    *("NCCL_", "RCCL_", "GLOO_", "HSA_", "HIP_", "HIPBLASLT_", "ROCBLAS_", "MIOPEN_", "NVTE_", "CUDA_", "GPU_MAX_"),
    *("PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TRITON_", "OMP_", "MKL_", "TOKENIZERS_", "UCX_", "AITER_"),
    *("XLA_", "JAX_"),
)
"""Beginnings of names of variables that libraries of the ranks read: they go to ``env``."""
