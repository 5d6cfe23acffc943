import json
import logging
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import multihost_utils

from msm_jax.checkpoints import orbax
from msm_jax.checkpoints.orbax import Checkpoints, load_params, save_params
from msm_jax.errors import UserError
from msm_jax.train.step import TrainState


def make_state(value: float) -> TrainState:
    params = {"layers": {"q": jnp.full((2, 8, 8), float(value)), "k": jnp.arange(64.0).reshape(8, 8) + value}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(optax.adam(1e-3, mu_dtype="bfloat16"), {"layers": True})
    )
    return TrainState(step=jnp.int32(value), params=params, opt_state=(optimizer.init(params), jnp.array(True)))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    checkpoints = Checkpoints(folder, "run", keep=2)
    for step in (3, 6):
        checkpoints.save(step, make_state(step), {"next_index": 10 * step})
    checkpoints.close()
    return folder


@pytest.fixture
def folder(two_checkpoints, tmp_path):
    return shutil.copytree(two_checkpoints, tmp_path / "checkpoints")


def restore(folder, identity="run"):
    checkpoints = Checkpoints(folder, identity, keep=2)
    try:
        return checkpoints.restore(make_state(0))
    finally:
        checkpoints.close()


def checksum(array):
    return orbax._describe({"a": jnp.asarray(array)})["a"]["checksum"]


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_restores_the_newest_with_its_data(folder, tmp_path):
    step, state, data = restore(folder)
    assert (step, data) == (6, {"next_index": 60})
    assert_equal(state, make_state(6))
    assert restore(tmp_path / "new") is None


def test_a_state_may_be_donated_as_soon_as_it_is_saved(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
    state = jax.tree.map(jnp.copy, make_state(5))
    checkpoints = Checkpoints(tmp_path, "run", keep=1)
    checkpoints.save(5, state, {"next_index": 5})
    zeros = overwrite(state)
    checkpoints.wait()
    assert_equal(checkpoints.restore(zeros)[1], make_state(5))


def test_keeps_the_newest_with_the_config_of_its_run(tmp_path, monkeypatch):
    # JAX takes the number of any question for that of the host's last one.
    asked, config = [], {"params": {"seed": 3}, "inputs": {"base": "pretrain-0a"}}
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    checkpoints = Checkpoints(tmp_path, "run", keep=2, config=config)
    assert checkpoints.latest is None
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), {"next_index": step})
        assert checkpoints.latest == step
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    assert json.loads((tmp_path / "3" / "meta" / "metadata").read_text())["config"] == config
    assert not asked


@pytest.mark.parametrize(
    ("part", "harm"),
    [
        *((part, "flip") for part in ("meta/metadata", "state/_METADATA", "state/manifest.ocdbt", "state/d/")),
        *(("state/d/", "truncate"), ("state/d/", "delete")),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(folder, caplog, capfd, part, harm):
    victims = [path for path in files_of(folder / "6") if part in str(path.relative_to(folder / "6"))]
    assert victims
    for path in victims:
        data = path.read_bytes()
        if harm == "delete":
            path.unlink()
        else:
            path.write_bytes(data[:-5] if harm == "truncate" else flip_a_bit(data))
    with caplog.at_level(logging.WARNING, logger="msm_jax"):
        step, state, data = restore(folder)
    if step == 6:
        assert_equal(state, make_state(6))  # the harm was in bytes that mean nothing
        return
    assert (step, data) == (3, {"next_index": 30})
    assert_equal(state, make_state(3))
    [warning] = [record.getMessage() for record in caplog.records if record.name.startswith("msm_jax")]
    assert str(folder / "6") in warning and "damaged" in warning
    assert (folder / "damaged-6").is_dir() and not (folder / "6").exists()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("part", ["", "state", "meta"])
def test_a_missing_folder_is_damage_and_is_written_anew(folder, part):
    shutil.rmtree(folder / "6" / part)
    (folder / "6").mkdir(exist_ok=True)
    assert restore(folder)[0] == 3
    if part == "state":
        checkpoints = Checkpoints(folder, "run", keep=2)
        checkpoints.save(6, make_state(6), {"next_index": 60})
        checkpoints.close()
        assert_equal(restore(folder)[1], make_state(6))


def test_damage_anywhere_never_gives_wrong_values(folder, tmp_path):
    draw = random.Random(0)
    files = [path for path in files_of(folder / "6") if path.name != "commit_success.txt"]
    for trial, path in enumerate({path.parent: path for path in reversed(files)}.values()):
        copy = shutil.copytree(folder, tmp_path / str(trial))
        victim = copy / path.relative_to(folder)
        data = bytearray(victim.read_bytes())
        for _ in range(8):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        victim.write_bytes(data)
        step, state, found = restore(copy)
        assert found == {"next_index": 10 * step}
        assert_equal(state, make_state(step))


def test_a_flipped_bit_that_the_reader_takes_is_found_by_the_checksum(tmp_path, caplog):
    state = {"weights": jax.random.normal(jax.random.key(0), (64, 64))}
    checkpoints = Checkpoints(tmp_path, "run", keep=2)
    checkpoints.save(1, state, {"next_index": 1})
    checkpoints.wait()
    for path in files_of(tmp_path / "1" / "state"):
        if path.stat().st_size > state["weights"].nbytes // 2:
            path.write_bytes(flip_a_bit(path.read_bytes()))
    assert checkpoints.restore(state) is None
    assert "checksum of weights differs" in caplog.text


def test_a_changed_digit_in_the_position_of_the_data_is_found(folder):
    path = folder / "6" / "meta" / "metadata"
    text = path.read_text()
    assert text.count('"next_index": 60') == 1
    path.write_text(text.replace('"next_index": 60', '"next_index": 61'))
    assert restore(folder)[0] == 3


def test_all_damaged_starts_afresh(folder, caplog):
    for step in ("3", "6"):
        (folder / step / "meta" / "metadata").write_text("{")
    assert restore(folder) is None
    assert len([record for record in caplog.records if "damaged" in record.getMessage()]) == 2
    assert (folder / "damaged-3").is_dir() and (folder / "damaged-6").is_dir()


def test_a_half_written_save_is_not_a_checkpoint(folder):
    torn = folder / "9.orbax-checkpoint-tmp"
    shutil.copytree(folder / "6" / "state", torn / "state")
    assert restore(folder)[0] == 6
    assert not torn.exists()


def test_another_run_is_refused_and_left_alone(folder):
    with pytest.raises(UserError, match="identity run, this run is other"):
        restore(folder, identity="other")
    assert restore(folder)[0] == 6


def test_a_read_that_fails_once_is_not_damage(folder, monkeypatch, caplog):
    check, calls = orbax._check_arrays, []

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError("connection lost")
        check(*arguments)

    monkeypatch.setattr(orbax, "_check_arrays", fail_once)
    assert restore(folder)[0] == 6
    assert not caplog.records and len(calls) == 2


def test_out_of_memory_is_not_damage(folder, monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(orbax, "_check_arrays", fail)
    with pytest.raises(jax.errors.JaxRuntimeError):
        restore(folder)
    monkeypatch.undo()
    assert restore(folder)[0] == 6


@settings(max_examples=30)
@given(st.data())
def test_checksum_sees_every_change_of_one_element(data):
    dtype = data.draw(st.sampled_from([np.float32, np.int32, np.bool_, jnp.bfloat16]))
    array = np.zeros((3, 1, 5), dtype)
    changed = array.copy()
    flat = changed.reshape(-1)[data.draw(st.integers(0, 14)) :][:1].view(np.uint8)
    flat[data.draw(st.integers(0, flat.size - 1))] = 1 if dtype is np.bool_ else data.draw(st.integers(1, 255))
    assert checksum(array) != checksum(changed)

    assert checksum(np.arange(6.0).reshape(2, 3)) != checksum(np.arange(6.0).reshape(2, 3)[:, ::-1]), "places count"


@pytest.mark.parametrize("keep", [True, False])
def test_params_come_back_and_are_cast_after_the_check(tmp_path, keep):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_state(7).params)
    save_params(tmp_path / "final", make_state(1).params)  # which is replaced
    save_params(tmp_path / "final", params)
    got = load_params(tmp_path / "final", make_state(0).params, keep_dtypes=keep)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {"bfloat16" if keep else "float32"}
    assert_equal(jax.tree.map(lambda x: x.astype(jnp.bfloat16), got), params)


@pytest.mark.parametrize("part", ["meta/metadata", "params/_METADATA", "params/manifest.ocdbt", "params/"])
def test_damaged_params_are_an_error(tmp_path, part):
    save_params(tmp_path / "final", make_state(7).params)
    for path in files_of(tmp_path / "final"):
        if part in str(path):
            path.write_bytes(flip_a_bit(path.read_bytes() or b"x"))
    with pytest.raises(UserError, match="the weights are damaged"):
        load_params(tmp_path / "final", make_state(0).params)


def test_params_of_another_model_are_an_error(tmp_path):
    save_params(tmp_path / "final", make_state(7).params)
    wider = {"layers": {"q": jnp.zeros((2, 8, 16)), "k": jnp.zeros((8, 8))}}
    for like, told in (
        (wider, r"layers/q is \[2, 8, 8\] in the folder and \[2, 8, 16\]"),
        ({"layers": {"q": jnp.zeros((2, 8, 8))}}, r"layers/k is \[8, 8\] in the folder and missing"),
    ):
        with pytest.raises(UserError, match=told):
            load_params(tmp_path / "final", like)


def test_no_params_are_an_error(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_params(tmp_path / "final", make_state(0).params)
    (tmp_path / "final").mkdir()
    with pytest.raises(UserError, match="damaged"):
        load_params(tmp_path / "final", make_state(0).params)
