"""The stages of an experiment: the graph that runs each once, and what each kind does."""
