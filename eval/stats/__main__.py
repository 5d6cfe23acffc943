"""Prints the smallest differences that the standard designs find: python -m msm_jax.eval.stats [--rate=.2]"""

import argparse

from msm_jax.eval.stats.power import table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m msm_jax.eval.stats")
    parser.add_argument("--rate", type=float, default=0.5, help="the rate to expect (default .5, the worst case)")
    print(table(parser.parse_args().rate))
