"""The package as `pip install` leaves it, away from the repository: configs, specs and evaluations are in it."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel holds, made from a copy of the repository: building leaves files beside setup.py."""
    folder = tmp_path_factory.mktemp("installed")
    left_out = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=left_out)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(folder / "source")]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", f"--target={folder / 'site'}", str(wheel)], check=True)
    return folder / "site"


@pytest.fixture
def msm_jax(installed, tmp_path):
    def msm_jax(*arguments):
        environment = os.environ | {"PYTHONPATH": str(installed)}
        command = [sys.executable, installed / "bin" / "msm-jax", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return msm_jax


def test_nothing_else_is_installed(installed):
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"msm_jax", "bin"}


def test_configs_and_specs_have_names(msm_jax):
    done = msm_jax("launch", "--config=corpus:philosophy", "--mode=show")
    assert (done.returncode, done.stderr) == (0, "")
    assert "specs = ('specs/philosophy.md',)" in done.stdout
    assert "corpus-msm-philosophy" in done.stdout


@pytest.mark.slow
def test_an_experiment_in_an_empty_folder(msm_jax, tmp_path):
    done = msm_jax("launch", "--config=cheese_tiny:smoke")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "cheese_tiny_smoke" / "report" / "report.html").exists()


@pytest.mark.parametrize("arguments", [[], ["lunch"]])
def test_a_command_that_there_is_not(msm_jax, arguments):
    done = msm_jax(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: no command '")


def test_help_names_the_commands(msm_jax):
    done = msm_jax("--help")
    assert done.returncode == 0 and "launch" in done.stdout and "convert" in done.stdout
