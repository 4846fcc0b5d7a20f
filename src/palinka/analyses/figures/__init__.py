"""Figures of results: functions from an analysis's result to matplotlib figures.

Each analysis has one, a function of the analysis's name in a module of that name. It takes the
result and, by keyword, what to draw beside it; `units` is the plural name of neurons or latents.
Keywords that it has no use for are ignored.
"""

from palinka.analyses.figures.ablation import ablation as ablation
from palinka.analyses.figures.activation_patching import activation_patching as activation_patching
from palinka.analyses.figures.attribution_patching import (
    attribution_patching as attribution_patching,
)
from palinka.analyses.figures.category_score import category_score as category_score
from palinka.analyses.figures.direct_logit_attribution import (
    direct_logit_attribution as direct_logit_attribution,
)
from palinka.analyses.figures.generalized_eigendecomposition import (
    generalized_eigendecomposition as generalized_eigendecomposition,
)
from palinka.analyses.figures.head_scores import head_scores as head_scores
from palinka.analyses.figures.latent_statistics import latent_statistics as latent_statistics
from palinka.analyses.figures.lesion import lesion as lesion
from palinka.analyses.figures.logit_lens import logit_lens as logit_lens
from palinka.analyses.figures.loss_curves import loss_curves as loss_curves
from palinka.analyses.figures.pairwise_mutual_information import (
    pairwise_mutual_information as pairwise_mutual_information,
)
from palinka.analyses.figures.path_patching import path_patching as path_patching
from palinka.analyses.figures.representational_similarity import (
    representational_similarity as representational_similarity,
)
from palinka.analyses.figures.sparsity_frontier import sparsity_frontier as sparsity_frontier
from palinka.analyses.figures.steering import steering as steering
from palinka.analyses.figures.subspace_removal import subspace_removal as subspace_removal
from palinka.analyses.figures.text_heatmap import text_heatmap as text_heatmap
from palinka.analyses.figures.unit_tuning import unit_tuning as unit_tuning
