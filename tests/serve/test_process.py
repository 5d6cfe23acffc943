"""The command as a process: what it says, how it stops, and what it is missing."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from msm_jax import serve

ROOT = pathlib.Path(serve.__file__).parents[1]
TEXT = "/v1/completions"
LONG = {"model": "tiny", "prompt": "a", "max_tokens": 256, "n": 300, "ignore_eos": True, "stream": True}


@contextlib.contextmanager
def started(*arguments, **environment):
    """(the process, its address, the lines that it wrote); it must listen."""
    command = [sys.executable, "-m", "msm_jax.serve", "--port=0", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    lines, ready = [], threading.Event()

    def read():
        for line in process.stdout:
            lines.append(line)
            if line.startswith("serving"):
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert ready.wait(120) and process.poll() is None, lines
        yield process, re.search(r"(http://\S+)/v1", "".join(lines))[1], lines
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def command(imported, arms):
    few = "--rows=1", "--max_prompt_tokens=16", "--max_tokens=256"  # one shape, and so few compilations
    return f"--model={imported}", "--name=tiny", *few, *(f"--adapter={name}={folder}" for name, folder in arms.items())


def test_a_drain_answers_what_has_begun_and_refuses_the_rest(command, tmp_path):
    key = tmp_path / "key"
    key.write_text("some-key\n")
    headers = {"Authorization": "Bearer some-key"}
    with started(*command, f"--api_key_file={key}", "--drain_seconds=100") as (process, url, lines):
        with httpx.Client(base_url=url, headers=headers, timeout=100) as client:
            assert client.get("/health").json() == {"status": "ok"}
            assert httpx.get(f"{url}/v1/models").status_code == 401
            with client.stream("POST", TEXT, json=LONG | {"n": 20}) as stream:
                events = stream.iter_lines()
                next(events)
                process.send_signal(signal.SIGTERM)
                end = time.monotonic() + 60
                while (health := httpx.get(f"{url}/health")).status_code == 200 and time.monotonic() < end:
                    time.sleep(0.01)
                assert health.status_code == 503 and health.json()["error"]["code"] == "stopping"
                refused = httpx.post(url + TEXT, json=LONG, headers=headers)
                assert refused.status_code == 503 and refused.json()["error"]["type"] == "server_error"
                rest = [line for line in events if line]
            assert rest[-1] == "data: [DONE]"
            assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(60) == 0
    output = "".join(lines)
    assert "some-key" not in output and "Traceback" not in output
    assert "stopping: 1 requests are answered" in output


def test_a_second_signal_ends_it_at_once(command):
    with started(*command, "--drain_seconds=100") as (process, url, lines):
        with httpx.stream("POST", url + TEXT, json=LONG, timeout=100) as stream:
            events = stream.iter_lines()  # dropped, it would close the stream
            next(events)
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 128 + signal.SIGINT
    assert lines[-1] == "stopped at once\n"


def refused(capsys, *arguments):
    assert serve.main(list(arguments)) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and output.err.startswith("error: ")
    return output.err


def test_a_port_in_use(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"--port={port}: Address already in use" in refused(capsys, "--model=m", f"--port={port}")


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "prometheus_client"])
def test_a_package_that_is_missing(capsys, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'msm_jax[serve]'" in refused(capsys, "--model=m")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "required: --model"),
        (["--model=m", "--rows=0"], "--rows=0: must be 1 or more"),
        (["--model=m", "--max_tokens=0"], "--max_tokens=0: must be 1 or more"),
        (["--model=m", "--drain_seconds=-1"], "--drain_seconds=-1: must be 0 or more"),
        (["--model=m", "--port=70000"], "at most 65535"),
        (["--model=m", "--api_key_file=none"], "--api_key_file=none: cannot be read"),
        (["--model=m", "--host=256.0.0.1", "--port=0"], "--host=256.0.0.1"),
        (["--model=/none/m", "--port=0"], "/none/m"),
        (["--model=m", "--adapter=a=b", "--adapter=a=c", "--port=0"], "two are called 'a'"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(capsys, arguments, line):
    assert line in refused(capsys, *arguments)


def test_a_key_that_is_none(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MSM_JAX_API_KEY", " ")
    assert "$MSM_JAX_API_KEY: must hold a key" in refused(capsys, "--model=m")
    (tmp_path / "key").write_text("two\nlines")
    assert "two" not in refused(capsys, "--model=m", f"--api_key_file={tmp_path / 'key'}")
