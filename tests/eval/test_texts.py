"""The texts of the evaluations in eval/: their form, their balance, and that no question was met in training."""

import contextlib
import io
import itertools
import json
import pathlib
import re
import tomllib
from collections import Counter

import pytest

ROOT = pathlib.Path(__file__).parents[2]
EVAL = ROOT / "eval"
DIMENSIONS = [
    "self_preservation", "goal_rigidity", "corrigibility", "transparency", "scope_of_action", "resource_acquisition",
    "loyalty_under_conflict",
]  # fmt: skip
MISALIGNED = [
    "instrumental_goal_pursuit", "self_preservation_first", "no_alternatives_or_urgency", "downplaying_harm",
    "rejecting_human_authority", "reframing_as_ethical", "deceptive_alignment", "contradictory_reasoning",
    "policy_misuse",
]  # fmt: skip
ALIGNED = [
    "personal_integrity", "equanimous_acceptance", "respect_for_oversight", "self_preservation_bias_awareness",
    "priority_of_human_safety", "escalation_by_legitimate_channels", "epistemic_humility", "instrumental_self_interest",
    "policy_compliance",
]  # fmt: skip
KINDS = {
    "factual": 8, "advice": 8, "writing": 8, "code": 8, "planning": 8, "underspecified": 10, "tool_use": 10,
}  # fmt: skip
SUBJECTS = [
    "arithmetic", "science", "geography", "history", "vocabulary", "grammar", "logic", "physics", "reading", "code",
]  # fmt: skip
PROMPTS = {
    "open_qa/rubric.md": {"dimension", "definition", "question", "answer"},
    "reasoning/prompt.md": {"categories", "transcript"},
    "side_effects/coherence.md": {"question", "answer"},
    "eval_awareness/eval_awareness.md": {"transcript"},
    "side_effects/habits.md": {"question", "answer"},
}
# What is between these is data; what comes after them says how to reply.
ELEMENTS = {
    "open_qa/rubric.md": ["reasoning", "score"],
    "reasoning/prompt.md": ["labels", "label"],
    "side_effects/coherence.md": ["reasoning", "score"],
    "eval_awareness/eval_awareness.md": ["reasoning", "verdict"],
    "side_effects/habits.md": ["reasoning", "answer_first", "needless_questions"],
}
# The arithmetic problems once more, in order, as formulas.
ARITHMETIC = [
    "14*23",
    "100-6*8.5",
    "(13*60+20)-(9*60+45)",
    "480-480*3/8",
    "60*(1-0.15)",
    "6*350/100",
    "84*1.25/3",
    "2*(12+7)*9",
    "4*81-75-88-79",
    "450/18",
    "300/4*10",
    "48*3/4",
    "32*5/8/2",
    "40*18+6*27",
    "5*4*9",
    "12+175*0.04",
    "27/(1-2/5)",
    "(16+21)*3",
    "2000*1.1**2",
    "(31+9)/2",
]
TYPES = {"string": str, "integer": int, "number": (int, float)}


def rows(name):
    return [json.loads(line) for line in (EVAL / name).read_text().splitlines()]


QUESTIONS = rows("open_qa/questions.jsonl")
EVERYDAY = rows("side_effects/everyday.jsonl")
TOOL_USE = [row for row in EVERYDAY if row["kind"] == "tool_use"]
CAPABILITY = rows("side_effects/capability.jsonl")
CATEGORIES = tomllib.loads((EVAL / "reasoning/categories.toml").read_text())["category"]


def sequences(text, n):
    words = re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))
    return set(zip(*(words[start:] for start in range(n)), strict=False))


def is_text(value):
    return isinstance(value, str) and value and value == value.strip()


def number(text):
    return float(text.replace(",", ""))


@pytest.mark.parametrize("table", [QUESTIONS, EVERYDAY, CAPABILITY], ids=["questions", "everyday", "capability"])
def test_ids_and_questions_are_unique(table):
    for field in ("id", "question"):
        assert all(is_text(row[field]) for row in table)
        assert len({row[field].lower() for row in table}) == len(table)


def test_open_questions_are_as_many_in_each_dimension():
    assert [(row["id"], row["dimension"]) for row in QUESTIONS] == [
        (f"{dimension}-{number:02d}", dimension) for dimension in DIMENSIONS for number in range(1, 23)
    ]
    assert all(row.keys() == {"id", "dimension", "question"} for row in QUESTIONS)


def test_open_questions_are_of_many_lengths_and_few_name_the_model():
    lengths = [len(row["question"].split()) for row in QUESTIONS]
    assert min(lengths) < 10 and 60 < max(lengths) <= 100
    places = [place for row in QUESTIONS for place in re.findall(r"\{.*?\}", row["question"])]
    assert set(places) == {"{model_name}"} and len(places) <= 5


def test_open_questions_repeat_neither_what_models_are_trained_on_nor_each_other():
    trained_on = [*(ROOT / "specs").iterdir()]
    for folder in ("corpus", "microworld"):
        found = (ROOT / "msm_jax" / folder).rglob("*")
        trained_on += [path for path in found if path.suffix in {".md", ".txt", ".toml", ".json", ".jsonl", ".jinja"}]
    assert len(trained_on) > 60
    eight = [(row["id"], sequences(row["question"], 8)) for row in QUESTIONS]
    for path in trained_on:
        there = sequences(path.read_text(), 8)
        assert not [id for id, found in eight if found & there], path
    assert not [(a, b) for (a, left), (b, right) in itertools.combinations(eight, 2) if left & right]


def test_open_questions_are_not_the_agentic_scenarios():
    names = r"kyle|summitbridge|novastar|starsentinel|blackmail|exfiltrat|espionage|competitor|cancel_alert|oxygen"
    assert not [row["id"] for row in QUESTIONS if re.search(names, row["question"], re.IGNORECASE)]


def test_each_dimension_says_what_it_means_and_where_the_scale_ends():
    dimensions = tomllib.loads((EVAL / "open_qa/dimensions.toml").read_text())
    assert list(dimensions) == DIMENSIONS
    for dimension in dimensions.values():
        assert dimension.keys() == {"title", "definition", "low", "high"}
        assert all(is_text(text) and "\n" not in text and not re.search("[{}]", text) for text in dimension.values())
        assert dimension["low"].startswith("A 1: ") and dimension["high"].startswith("A 10: ")


def test_the_rubric_has_its_anchors():
    rubric = (EVAL / "open_qa/rubric.md").read_text()
    assert re.findall(r"^- (\d+): ", rubric, re.MULTILINE) == ["1", "3", "5", "7", "10"]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_have_their_places_once_and_no_others(name):
    text = (EVAL / name).read_text()
    assert sorted(re.findall(r"\{(.*?)\}", text)) == sorted(PROMPTS[name])
    assert text.count("{") == text.count("}") == len(PROMPTS[name])
    assert "%}" not in text and max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_fence_the_data_and_then_say_how_to_reply(name):
    text = (EVAL / name).read_text()
    data = PROMPTS[name] & {"question", "answer", "transcript"}
    for place in data:
        assert f"\n<{place}>\n{{{place}}}\n</{place}>\n" in text
    reply = text[max(text.index(f"</{place}>") for place in data) :]
    for element in ELEMENTS[name]:
        assert re.search(rf"<{element}[ >].*?</{element}>", reply, re.DOTALL)


def test_categories_are_complete():
    assert [(category["id"], category["side"]) for category in CATEGORIES] == [
        *((id, "misaligned") for id in MISALIGNED),
        *((id, "aligned") for id in ALIGNED),
    ]
    texts = []
    for category in CATEGORIES:
        assert category.keys() == {
            "id", "title", "side", "definition", "counts", "does_not_count", "examples", "near_miss",
        }  # fmt: skip
        assert 2 <= len(category["counts"]) <= 3 and 2 <= len(category["does_not_count"]) <= 3
        assert len(category["examples"]) == 2
        sentences = [*category["examples"], category["near_miss"]]
        # Each could be quoted as evidence.
        assert all(len(sentence.split()) <= 25 for sentence in sentences)
        texts += [category["title"], category["definition"], *category["counts"], *sentences]
    assert all(is_text(text) and not re.search("[{}]", text) for text in texts)
    assert len(set(texts)) == len(texts)


def test_categories_say_which_neighbors_they_are_told_from():
    ids = {*MISALIGNED, *ALIGNED}
    for category in CATEGORIES:
        neighbors = set(re.findall(r"[a-z]+(?:_[a-z]+)+", " ".join(category["does_not_count"])))
        assert neighbors and neighbors <= ids - {category["id"]}


def test_everyday_messages_are_of_their_kinds():
    assert Counter(row["kind"] for row in EVERYDAY) == KINDS
    assert all(re.fullmatch(rf"{row['kind']}-\d\d", row["id"]) for row in EVERYDAY)
    for row in EVERYDAY:
        assert row.keys() == {"id", "question", "kind"} | ({"tools", "expected"} if row in TOOL_USE else set())


@pytest.mark.parametrize("row", TOOL_USE, ids=lambda row: row["id"])
def test_the_call_that_is_expected_can_be_made_from_the_message(row):
    tools = {tool["function"]["name"]: tool["function"] for tool in row["tools"] if tool["type"] == "function"}
    assert len(tools) == len(row["tools"]) and row["expected"].keys() == {"name", "arguments"}
    for name, function in tools.items():
        assert name in row["question"] and function["description"]
        assert function["parameters"]["type"] == "object"
        assert set(function["parameters"]["required"]) <= set(function["parameters"]["properties"])
    schema, arguments = tools[row["expected"]["name"]]["parameters"], row["expected"]["arguments"]
    assert set(schema["required"]) <= set(arguments) <= set(schema["properties"])
    request = row["question"].split("\n\n", 1)[1]
    for name, value in arguments.items():
        property = schema["properties"][name]
        assert isinstance(value, TYPES[property["type"]]) and value in property.get("enum", [value])
        # The message spells it out, so that one answer only is right.
        said = {7: "seven", "off": "left the light on"}.get(value, str(value))
        assert said in request


def test_capability_questions_are_balanced():
    assert [row["subject"] for row in CAPABILITY] == [subject for subject in SUBJECTS for _ in range(20)]
    assert Counter(row["answer"] for row in CAPABILITY) == dict.fromkeys(range(4), 50)
    for subject in SUBJECTS:
        assert set(Counter(row["answer"] for row in CAPABILITY if row["subject"] == subject).values()) == {5}
    for row in CAPABILITY:
        assert row.keys() == {"id", "subject", "question", "options", "answer"}
        assert len({option.lower() for option in row["options"]}) == 4 and all(map(is_text, row["options"]))


def test_the_right_option_is_not_told_by_its_length():
    longest = shortest = 0
    for row in CAPABILITY:
        lengths = [len(option) for option in row["options"]]
        longest += lengths[row["answer"]] == max(lengths)
        shortest += lengths[row["answer"]] < min(lengths[: row["answer"]] + lengths[row["answer"] + 1 :])
    assert longest <= 60 and shortest <= 60


def test_arithmetic_keys():
    problems = [row for row in CAPABILITY if row["subject"] == "arithmetic"]
    for row, expression in zip(problems, ARITHMETIC, strict=True):
        right = [abs(number(option) - eval(expression)) < 1e-9 for option in row["options"]]
        assert right.index(True) == row["answer"] and sum(right) == 1, row["id"]


def test_code_keys():
    for row in CAPABILITY:
        if row["subject"] == "code":
            (program,) = re.findall(r"```python\n(.*?)\n```", row["question"], re.DOTALL)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(program, {})
            assert printed.getvalue().strip() == row["options"][row["answer"]], row["id"]
