"""Model Spec Midtraining in JAX: from a Model Spec to a report on what a model learned from it."""

__version__ = "0.1.0"
