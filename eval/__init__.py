"""Evaluations of a trained model, their statistics, and the report. A model is seen only through a `Scorer`."""
