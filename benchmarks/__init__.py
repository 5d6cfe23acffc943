"""Side-by-side measurements against peers: one command each, alternating in one run, and the ratio is the result."""
