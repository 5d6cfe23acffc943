"""Configurations: read from Python files, overridden on the command line, and checked before anything runs."""

from msm_jax.config.reading import flatten, lacking, lacking_told, load, nearest, override, to_dict

__all__ = ["flatten", "lacking", "lacking_told", "load", "nearest", "override", "to_dict"]
