"""LightningModules: one file, one stage, thin: Trainer -> step -> one function of `mmemb`.

The names are loaded when asked for: extracting features needs no language model.
"""

from mmemb.faces import lazy_names

_HOMES = {
    "ContrastiveEmbedder": "contrastive_embedder",
    "CounterfactualSelector": "counterfactual_selector",
    "DepthValueExporter": "depth_value_exporter",
    "FeatureExtractor": "feature_extractor",
    "GatingPolicy": "gating_policy",
    "HardNegativeMiner": "hard_negative_miner",
    "QueryEmbedder": "query_embedder",
    "RationaleGenerator": "rationale_generator",
    "TeacherEmbedder": "teacher_embedder",
}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
