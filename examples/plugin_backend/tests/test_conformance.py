"""The suite that ships with Primus, run on this backend."""

from primus.testing.conformance import Conformance


class TestPlainTorch(Conformance):
    backend = "plain_torch"
    refused = {  # noqa: RUF012 - declared as a ClassVar by the suite
        "recompute": {"recompute": "full"},
        "compile": {"compile": True},
        "profile": {"profile": {"steps": [1, 2]}},
        "checkpoint.async": {"checkpoint": {"async": True}},
        "data.document_attention": {"data": {"document_attention": "within"}},
        "model.rope_scaling": {
            "model": {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 2.0,
                    "original_max_position_embeddings": 32,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                }
            }
        },
    }
