"""Experiments: from a configuration to its stages, which are run, shown or planned."""
