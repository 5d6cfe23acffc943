"""Statistics of rates: intervals, differences, what a design can detect, and how far a judge is to be believed.

An interval covers only the variation it was drawn over, so each says what it speaks of: these prompts or prompts like
these, these trained models or such training runs. docs/statistics.md says which to use when. statsmodels takes two
seconds to import, so functions import it where they use it, and reports that need none do not wait for it.
"""

from msm_jax.eval.stats.cells import CellDifference, CellMean, MissingBounds, cell_difference, cell_mean, missing_bounds
from msm_jax.eval.stats.claims import Contrast, Equivalence, equivalence, holm
from msm_jax.eval.stats.estimate import Estimate
from msm_jax.eval.stats.judges import (
    Accuracy,
    Agreement,
    ErrorRates,
    accuracy,
    accuracy_by_arm,
    agreement,
    compare_errors,
    corrected_rate,
)
from msm_jax.eval.stats.paired import (
    Floor,
    PairedDifference,
    item_difference,
    item_difference_in_differences,
    remeasurement_floor,
    seed_difference,
    seed_difference_in_differences,
)
from msm_jax.eval.stats.power import Design, smallest_difference, smallest_shift
from msm_jax.eval.stats.rates import (
    Interval,
    SeedSummary,
    cluster_bootstrap,
    clustered_share,
    clustered_wilson,
    seed_summary,
    wilson,
)
from msm_jax.eval.stats.variance import Components, judge_variance, variance_components

__all__ = [
    "Accuracy",
    "Agreement",
    "CellDifference",
    "CellMean",
    "Components",
    "Contrast",
    "Design",
    "Equivalence",
    "ErrorRates",
    "Estimate",
    "Floor",
    "Interval",
    "MissingBounds",
    "PairedDifference",
    "SeedSummary",
    "accuracy",
    "accuracy_by_arm",
    "agreement",
    "cell_difference",
    "cell_mean",
    "cluster_bootstrap",
    "clustered_share",
    "clustered_wilson",
    "compare_errors",
    "corrected_rate",
    "equivalence",
    "holm",
    "item_difference",
    "item_difference_in_differences",
    "judge_variance",
    "missing_bounds",
    "remeasurement_floor",
    "seed_difference",
    "seed_difference_in_differences",
    "seed_summary",
    "smallest_difference",
    "smallest_shift",
    "variance_components",
    "wilson",
]
