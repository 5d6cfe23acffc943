"""Other engines that sample, each a side of `benchmarks.sample` that runs in an environment of its own."""
