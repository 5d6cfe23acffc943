"""Where answers of whole models end, and where those of their exports end in transformers."""

import json
import shutil
import types

import jax
import pytest
import tokenizers
import torch
import transformers

import msm_jax
from msm_jax import convert
from msm_jax.checkpoints import weights
from msm_jax.checkpoints.orbax import save_params
from msm_jax.models import LoraConfig, Model
from msm_jax.stages import own_model, scoring, training
from tests.data.checkpoints import QWEN_TOKENS, read_ids, write_json, write_tokenizer
from tests.tiny_checkpoints import write_chain

END, START, TURN = QWEN_TOKENS
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OTHER = CHATML.replace("<|im_start|>", "<|im_start|>the ")
CHAT = [{"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base model as Qwen's: END ends all that its files know, and it has a template. After a newline it says "Hi",
    TURN, a newline and so on; after a colon what its tokenizer has no word for."""
    folder = write_tokenizer(tmp_path_factory.mktemp("base"), QWEN_TOKENS)
    write_json(folder / "generation_config.json", {"eos_token_id": read_ids(folder, END)[0], "temperature": 0.5})
    named = {"eos_token": END, "chat_template": OTHER, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", named)
    newline, h, i, turn, colon = read_ids(folder, "Ċ", "H", "i", TURN, ":")
    return write_chain(folder, {newline: h, h: i, i: turn, turn: newline, colon: turn + 1})


@pytest.fixture(scope="module")
def ours(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "ours"
    assert convert.main(["import", f"--hf={base}", f"--out={out}"]) == 0
    described = json_of(out, "model.json")
    described["decoder"]["dtype"] = "float32"  # as `load` asks it, so that both are compiled once
    write_json(out / "model.json", described)
    return out


def write_stage(folder, ours, chat):
    """A stage that was trained in the format `chat` and learned nothing."""
    model = Model(weights.open_model(ours).decoder, LoraConfig(2, 4.0, ("q",)))
    folder.mkdir()
    save_params(folder / "final", jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), model.lora_shapes))
    weights.write_description(folder, model, base=str(ours), tokenizer=str(ours), chat=chat)
    return folder


@pytest.fixture(scope="module")
def stage(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "stage"
    return write_stage(folder, ours, {"template": CHATML, "thinking": "default", "name": ""})


@pytest.fixture(scope="module")
def exported(stage, tmp_path_factory):
    """The same for `peft`."""
    out = tmp_path_factory.mktemp("exported") / "peft"
    assert convert.main(["export", f"--checkpoint={stage}", f"--out={out}"]) == 0
    return out


def ends(model):
    return [model.tokenizer.spell([i]) for i in model.stop_ids]


def in_transformers(folder, chat=CHAT):
    """What transformers answers, with control tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made = model.generate(**ids, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(made[0, ids["input_ids"].shape[1] :])


def json_of(folder, name):
    return json.loads((folder / name).read_text())


def test_a_base_model_stops_where_its_template_closes_the_turn(base):
    model = msm_jax.load(base)
    assert ends(model) == [END, TURN]
    [[completion]] = model.generate([CHAT], temperature=0.0, max_tokens=8)
    assert (completion.text, completion.finished, completion.tokens) == ("Hi", True, 3)


@pytest.mark.parametrize("kind", ["base", "merged"])
def test_an_export_stops_in_transformers_too_and_has_one_template(ours, stage, tmp_path, kind):
    source, merge = (ours, []) if kind == "base" else (stage, ["--merge"])
    assert convert.main(["export", f"--checkpoint={source}", f"--out={tmp_path / 'out'}", *merge]) == 0
    assert in_transformers(tmp_path / "out") == "Hi<|im_end|>"
    template = OTHER if kind == "base" else CHATML
    assert json_of(tmp_path / "out", "tokenizer_config.json")["chat_template"] == template
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template
    described = json_of(tmp_path / "out", "generation_config.json")
    assert described == {"eos_token_id": read_ids(ours / "huggingface", END, TURN), "temperature": 0.5}


def test_an_adapter_for_peft_says_what_ends_its_answers(exported, base):
    assert json_of(exported, "generation_config.json") == {"eos_token_id": read_ids(base, END, TURN)}
    assert (exported / "chat_template.jinja").read_text() == CHATML


def with_the_end(folder):
    write_json(folder / "tokenizer_config.json", {"eos_token": START})


def with_the_id(folder):
    write_json(folder / "generation_config.json", {"eos_token_id": read_ids(folder.parent / "base", START)[0]})


def with_a_map(folder):
    with_the_end(folder)
    (folder / "tokenizer_config.json").rename(folder / "special_tokens_map.json")


@pytest.mark.parametrize("change", [with_the_end, with_the_id, with_a_map])
def test_what_an_adapter_s_folder_says_ends_an_answer(base, exported, tmp_path, change):
    """Also without a tokenizer of its own; and it is not lost on the way through a folder of ours."""
    folder, again, merged = tmp_path / "adapter", tmp_path / "ours", tmp_path / "merged"
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(exported, folder)
    (folder / "generation_config.json").unlink()
    change(folder)
    assert ends(msm_jax.load(base, adapter=folder)) == [END, START, TURN]
    assert convert.main(["import", f"--hf={folder}", f"--base={base}", f"--out={again}"]) == 0
    assert ends(msm_jax.load(again)) == [END, START, TURN]
    assert convert.main(["export", f"--checkpoint={again}", f"--out={merged}", "--merge"]) == 0
    assert json_of(merged, "generation_config.json")["eos_token_id"] == read_ids(base, END, START, TURN)


def test_an_adapter_s_own_tokenizer_is_its_model_s(base, exported, tmp_path):
    """It gave a name to a row of the embedding that the base had to spare."""
    folder, again, merged = tmp_path / "adapter", tmp_path / "ours", tmp_path / "merged"
    shutil.copytree(exported, folder)
    made = tokenizers.Tokenizer.from_file(str(base / "tokenizer.json"))
    made.add_special_tokens(["<|done|>"])
    made.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "chat_template.jinja").write_text(CHATML.replace(TURN, "<|done|>").replace("assistant\n", "assistant:"))
    assert convert.main(["import", f"--hf={folder}", f"--base={base}", f"--out={again}"]) == 0
    shutil.rmtree(folder)
    model = msm_jax.load(again)
    assert ends(model) == [END, TURN, "<|done|>"]
    [[completion]] = model.generate([CHAT], temperature=0.0, max_tokens=8)
    assert (completion.text, completion.finished, completion.tokens) == ("", True, 1)
    assert convert.main(["export", f"--checkpoint={again}", f"--out={merged}", "--merge"]) == 0
    assert in_transformers(merged) == "<|done|>"


def test_replies_of_a_model_of_ours_are_asked_anew_where_they_would_end_elsewhere(base, tmp_path):
    shutil.copytree(base, tmp_path / "model")
    assert own_model.name_of(str(tmp_path / "model")).split("-")[-1] == own_model.name_of(str(base)).split("-")[-1]
    config = json_of(base, "config.json") | {"eos_token_id": read_ids(base, START)[0]}
    write_json(tmp_path / "model" / "config.json", config)
    assert own_model.name_of(str(tmp_path / "model")).split("-")[-1] != own_model.name_of(str(base)).split("-")[-1]


NAMED = [{"name": "default", "template": OTHER}, {"name": "tool_use", "template": "{{ tools }}"}]
PLACES = ("tokenizer_config.json", "chat_template.json")


@pytest.mark.parametrize(
    ("config", "processor", "jinja", "trained", "wanted"),
    [
        (OTHER, None, None, CHATML, {"tokenizer_config.json": CHATML, "chat_template.jinja": CHATML}),
        (NAMED, OTHER, OTHER, CHATML, dict.fromkeys((*PLACES, "chat_template.jinja"), CHATML)),
        (None, None, OTHER, CHATML, {"chat_template.jinja": CHATML}),
        (CHATML, None, None, CHATML, {"tokenizer_config.json": CHATML}),
        (CHATML, None, OTHER, None, {"tokenizer_config.json": OTHER, "chat_template.jinja": OTHER}),  # as it is read
        (NAMED, None, None, None, {"tokenizer_config.json": NAMED}),
        (None, OTHER, None, None, {"chat_template.json": OTHER}),  # a processor's
        (None, None, None, None, {}),
    ],
)
def test_an_export_has_one_template(ours, tmp_path, config, processor, jinja, trained, wanted):
    """Wherever the checkpoint had one, and whatever there was."""
    copy, out, stage = tmp_path / "ours", tmp_path / "out", None
    shutil.copytree(ours, copy)
    kept = copy / "huggingface"
    for name, template in zip(PLACES, (config, processor), strict=True):
        described = json_of(kept, name) if (kept / name).exists() else {}
        described.pop("chat_template", None)
        if template or described:
            write_json(kept / name, described | ({"chat_template": template} if template else {}))
    if jinja:
        (kept / "chat_template.jinja").write_text(jinja)
    if trained:
        stage = write_stage(tmp_path / "stage", copy, {"template": trained, "thinking": "default", "name": ""})
    arguments = [f"--checkpoint={stage}", "--merge"] if stage else [f"--checkpoint={copy}"]
    assert convert.main(["export", *arguments, f"--out={out}"]) == 0
    found = {name: json_of(out, name).get("chat_template") for name in PLACES if (out / name).exists()}
    if (out / "chat_template.jinja").exists():
        found["chat_template.jinja"] = (out / "chat_template.jinja").read_text()
    assert {name: template for name, template in found.items() if template} == wanted


def test_an_evaluation_s_answers_end_there_too(ours):
    """The words of the model after the turn made them answers that nobody could read."""
    chat = {"template": CHATML, "thinking": "default"}
    context = types.SimpleNamespace(
        inputs={"model": ours, "tokenizer": ours}, params={"chat": chat}, stage=types.SimpleNamespace(name="score")
    )
    runtime = training.Runtime({"data": 1, "fsdp": 1, "tensor": 1}, {}, 1, 1, 1, 1)
    prompt = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    scorer = scoring._Scorer(context, runtime)
    for stop in ([], ["<|im_end|>"]):
        assert scorer.generate([prompt], 1, 0.0, 8, 0, stop) == [[("Hi", True)]]
