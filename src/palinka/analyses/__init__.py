"""Statistics of activations: functions from arrays to frozen dataclasses.

Each is a function in a module of the same name; `result` describes how one declares its data.
"""

from palinka.analyses.ablation import ablation
from palinka.analyses.activation_patching import activation_patching
from palinka.analyses.attribution_patching import attribution_patching
from palinka.analyses.category_score import category_score
from palinka.analyses.direct_logit_attribution import direct_logit_attribution
from palinka.analyses.generalized_eigendecomposition import generalized_eigendecomposition
from palinka.analyses.head_scores import head_scores
from palinka.analyses.latent_statistics import latent_statistics
from palinka.analyses.lesion import lesion
from palinka.analyses.logit_lens import logit_lens
from palinka.analyses.pairwise_mutual_information import pairwise_mutual_information
from palinka.analyses.path_patching import path_patching
from palinka.analyses.representational_similarity import representational_similarity
from palinka.analyses.stats.absorption import absorption as absorption
from palinka.analyses.stats.comparison import Sample as Sample
from palinka.analyses.stats.comparison import compare as compare
from palinka.analyses.stats.comparison import (
    minimal_detectable_difference as minimal_detectable_difference,
)
from palinka.analyses.stats.comparison import seeds_needed as seeds_needed
from palinka.analyses.stats.dictionaries import latent_stability as latent_stability
from palinka.analyses.stats.dictionaries import match_latents as match_latents
from palinka.analyses.stats.ground_truth import feature_uniqueness as feature_uniqueness
from palinka.analyses.stats.ground_truth import firing_scores as firing_scores
from palinka.analyses.stats.ground_truth import hedging as hedging
from palinka.analyses.stats.ground_truth import known_absorption as known_absorption
from palinka.analyses.stats.ground_truth import (
    mean_correlation_coefficient as mean_correlation_coefficient,
)
from palinka.analyses.stats.ground_truth import related_features as related_features
from palinka.analyses.stats.knockoffs import benjamini_yekutieli as benjamini_yekutieli
from palinka.analyses.stats.knockoffs import knockoffs as knockoffs
from palinka.analyses.stats.probes import clustered_auc as clustered_auc
from palinka.analyses.stats.probes import sparse_probe as sparse_probe
from palinka.analyses.steering import steering
from palinka.analyses.subspace_removal import subspace_removal
from palinka.analyses.unit_tuning import unit_tuning

__all__ = [
    "ablation",
    "activation_patching",
    "attribution_patching",
    "category_score",
    "direct_logit_attribution",
    "generalized_eigendecomposition",
    "head_scores",
    "latent_statistics",
    "lesion",
    "logit_lens",
    "pairwise_mutual_information",
    "path_patching",
    "representational_similarity",
    "steering",
    "subspace_removal",
    "unit_tuning",
]
