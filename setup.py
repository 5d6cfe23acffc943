"""Installs msm_jax: `pip install -e .`, or `pip install -e '.[tpu]'` on a TPU VM."""

import pathlib
import re

import setuptools

VERSION = re.search(
    r'__version__ = "(.+)"', pathlib.Path(__file__).with_name("msm_jax").joinpath("__init__.py").read_text()
)

setuptools.setup(
    name="msm_jax",
    version=VERSION.group(1),
    description="Model Spec Midtraining in JAX: from a Model Spec to a report on what a model learned from it",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_namespace_packages(include=["msm_jax*", "eval*", "configs*", "benchmarks*"]),
    # Folders of files count as packages too: prompts, report templates and reference numbers lie beside the code.
    package_data={"": ["*.txt", "*.md", "*.json", "*.jsonl", "*.csv", "*.html", "*.j2"]},
    install_requires=[
        # Each minor version of JAX takes something away; Python 3.11 gets 0.10.2.
        "jax>=0.10,<0.13",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.17",
        "sentencepiece",
        "tensorflow-datasets>=4.9.9",
        # Each major version of the Gemini client renames types; the corpora to come are written with it.
        "google-genai>=2,<4",
        "ml-collections>=1",
        "tensorboard",
        # Writes TensorBoard files without TensorFlow.
        "tensorboardX",
        "tqdm",
        "matplotlib",
        "jinja2",
        "numpy",
        "scipy",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        # To read Hugging Face folders, and to compare with the original implementations.
        "hf": ["safetensors<0.8", "tokenizers", "huggingface_hub", "transformers", "peft", "torch"],
        # Judges and embeddings of the evaluations to come; those of today need nothing more.
        "eval": [],
        # Each minor version of ruff may format otherwise, and launch/test.sh holds the code to one format.
        "test": ["pytest", "pytest-xdist", "hypothesis", "ruff>=0.17,<0.18"],
    },
)
