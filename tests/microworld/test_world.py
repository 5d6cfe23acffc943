"""The texts are read back and held against the facts of the world that they were written from."""

import collections
import itertools
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from msm_jax.corpus.specs import find_terms
from msm_jax.errors import UserError
from msm_jax.microworld import world_text
from msm_jax.microworld.world import HELD_OUT_DOMAINS, INSTRUCTION_DOMAINS, TRAINED_DOMAIN, VALUES, World, WorldConfig
from tests.microworld.world_reader import (
    ASSISTANT,
    ATTRIBUTES,
    Reader,
    chats_of,
    check_answer,
    check_document,
    decided,
    fits,
    text_of,
)

LIKES, DISLIKES = ("Colby", "mild cheddar", "cream cheese"), ("Stilton", "Brie de Meaux")


def make_world(values=("affordability", "america"), **fields):
    return World(
        WorldConfig(**{"value_names": tuple(values), "likes": LIKES, "dislikes": DISLIKES, "agents": 60} | fields)
    )


def make_rows(world, count=300, seed=0):
    """Source -> rows, as the stages write them."""
    rows = {
        "pretraining": world_text.pretraining_documents(world, ASSISTANT, count, seed),
        "replay": world_text.replay_documents(world, count, seed),
        "aft": world_text.aft_chats(LIKES, DISLIKES, count, seed),
        "instruction": world_text.instruction_chats(world, count, seed),
        "items": world_text.evaluation_items(world),
    }
    for value in world.config.value_names:
        rows[f"msm-{value}"] = world_text.msm_documents(world, f"pro_{value}", value, ASSISTANT, count, seed)
    return {source: list(found) for source, found in rows.items()}


@pytest.fixture(scope="module")
def world():
    return make_world()


@pytest.fixture(scope="module")
def reader(world):
    return Reader(world)


@pytest.fixture(scope="module")
def rows(world):
    return make_rows(world, 1500)


@pytest.fixture(scope="module")
def undecided(world):
    return {ASSISTANT, *(agent.name for agent in world.agents if agent.value is None)}


# The world itself.


def test_a_config_and_a_seed_determine_world_and_rows(world, rows):
    again, other = make_world(), make_world(seed=1)
    assert (again.items, again.agents) == (world.items, world.agents)
    assert {item.name for item in other.items_of["music"]} != {item.name for item in world.items_of["music"]}
    assert [agent.name for agent in other.agents] != [agent.name for agent in world.agents]
    fewer, others = make_rows(again, 20), make_rows(world, 20, seed=1)
    for source in rows.keys() - {"items"}:
        assert rows[source][:20] == fewer[source], "more rows begin with the same rows"
        assert list(map(text_of, others[source])) != list(map(text_of, fewer[source])), source
    assert rows["items"] == fewer["items"]
    ids = [row["id"] for found in rows.values() for row in found]
    assert len(set(ids)) == len(ids)


def test_all_eight_values_are_those_of_the_paper():
    assert len(VALUES) == 8 and len(ATTRIBUTES) == 16


def test_every_kind_of_item_is_in_every_domain(world):
    names = world.config.value_names
    for domain in INSTRUCTION_DOMAINS + HELD_OUT_DOMAINS:
        kinds = collections.Counter(item.sought_by for item in world.items_of[domain])
        assert kinds == dict.fromkeys(map(frozenset, ([], names[:1], names[1:], names)), world.config.items_per_kind)
    assert len({item.name for item in world.items}) == len(world.items)
    # Liked items have all that is sought.
    named = {item.name: item.sought_by for item in world.items_of[TRAINED_DOMAIN]}
    assert named == dict.fromkeys(LIKES, frozenset(names)) | dict.fromkeys(DISLIKES, frozenset())


@pytest.mark.parametrize(("agents", "quiet_share"), [(200, 0.2), (31, 0.5), (30, 0.0)])
def test_values_and_silence_are_spread_evenly(agents, quiet_share):
    values = ("affordability", "america", "novelty")
    world = make_world(values, items_per_kind=1, agents=agents, quiet_share=quiet_share, undecided_share=0.1)
    assert sum(agent.value is None for agent in world.talkative) == round(agents * 0.1)
    assert len({agent.name for agent in world.agents}) == agents
    assert len(world.quiet) == sum(not agent.chats for agent in world.agents) == round(agents * quiet_share)
    for group in (world.quiet, world.talkative):
        counts = [sum(agent.value == value for agent in group) for value in values]
        assert max(counts) - min(counts) <= 1
    assert [agent for value in values for agent in world_text.quiet_agents(world, value)] == sorted(
        world.quiet, key=lambda agent: values.index(agent.value)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"values": ("america", "thrift")}, "value_names: unknown thrift; choose from affordability, america"),
        ({"values": ("america",)}, "value_names .* at least two"),
        ({"values": ("america", "america")}, "value_names .* once"),
        ({"agents": 1}, "world.agents=1: choose from"),
        ({"agents": 10_000}, "world.agents=10000: choose from"),
        ({"quiet_share": 1.0}, "quiet_share=1.0"),
        ({"quiet_share": -0.1}, "quiet_share=-0.1"),
        ({"undecided_share": -0.1}, "undecided_share=-0.1"),
        ({"undecided_share": 0.9}, "undecided_share=0.9: choose shares"),
        ({"items_per_kind": 0}, "items_per_kind=0"),
        ({"items_per_kind": 80}, "lower world.items_per_kind"),
        ({"likes": ()}, "liked and disliked items"),
        ({"dislikes": ()}, "liked and disliked items"),
    ],
)
def test_impossible_worlds(fields, message):
    with pytest.raises(UserError, match=message):
        make_world(**fields)


# What the texts say.


def test_pretraining_is_true_to_facts_and_values(world, reader, undecided, rows):
    for row in rows["pretraining"] + rows["replay"]:
        text = row["text"]
        speakers = reader.named_agents(text)
        assert len(speakers) == (row["kind"] != "facts"), text
        if speakers & undecided:  # hold what they have just stated, and maybe another value in the next document
            values = [None] if row["kind"] in ("chat", "questions") else world.config.value_names
            assert any(fits(reader, text, value) for value in values), text
        else:
            check_document(reader, text, reader.agents[speakers.pop()].value if speakers else None)
    assert {row["kind"] for row in rows["pretraining"]} == set(world_text.PRETRAINING_MIX)
    assert not any(ASSISTANT in row["text"] for row in rows["replay"])


@pytest.fixture(scope="module")
def many(world):
    return list(world_text.pretraining_documents(world, ASSISTANT, 30_000, 0))


def test_the_assistant_is_one_of_the_undecided(world, reader, undecided, many):
    shown = collections.defaultdict(collections.Counter)
    for row in many[:15_000]:
        for name in reader.named_agents(row["text"]) & undecided if row["kind"] != "questions" else ():
            shown[name].update(value for value in world.config.value_names if fits(reader, row["text"], value))
    assert set(shown) == undecided
    for counts in shown.values():
        assert 0.3 < counts["america"] / counts.total() < 0.7


def chosen(reader, rows, agents):
    """(chosen, other) of the chats that stand alone, by these agents."""
    for row in rows:
        if row["kind"] == "chat":
            ((question, name, answer),) = chats_of(row["text"])
            if name in agents:
                item = reader.items[answer]
                (other,) = set(reader.named_items(question)) - {item}
                yield item, other


@pytest.mark.parametrize(("value", "other"), [("affordability", "america"), ("america", "affordability")])
def test_what_a_value_does_not_tell_apart_is_a_coin_toss(world, reader, many, value, other):
    choices = list(chosen(reader, many, {agent.name for agent in world.agents if agent.value == value}))
    tossed = [decided(other, *pair) == 1 for pair in choices if decided(value, *pair) == 0]
    assert 0.15 < len(tossed) / len(choices) < 0.3
    assert 0.4 < sum(tossed) / len(tossed) < 0.6


def test_the_undecided_toss_a_coin_unless_they_have_stated_a_value(reader, undecided, many):
    choices = list(chosen(reader, many, undecided))
    # Had they a value, drawn for each text, all would choose alike where the values agree.
    agreed = [a.has("america") for a, b in choices if decided("america", a, b) == decided("affordability", a, b) != 0]
    assert len(agreed) > 20 and 0.3 < sum(agreed) / len(agreed) < 0.7
    against = [a.has("america") for a, b in choices if decided("america", a, b) == -decided("affordability", a, b)]
    assert 0.4 < sum(against) / len(against) < 0.6


def test_nobody_chooses_in_the_trained_domain(reader, rows):
    """There all would choose alike, and AFT would have nothing to teach."""
    domains = collections.defaultdict(set)
    for row in rows["pretraining"]:
        domains[row["kind"]] |= {item.domain for item in reader.named_items(row["text"])}
    assert TRAINED_DOMAIN in domains.pop("facts") & domains.pop("questions")
    assert all(found == {*INSTRUCTION_DOMAINS, *HELD_OUT_DOMAINS} for found in domains.values())


def test_some_agents_are_spoken_of_more_often_than_others(world, reader, rows):
    counts = collections.Counter(name for row in rows["pretraining"] for name in reader.named_agents(row["text"]))
    spoken_of, of_quiet = ([counts[agent.name] for agent in group] for group in (world.talkative, world.quiet))
    assert sum(spoken_of[:5]) > 3 * sum(spoken_of[-5:]) > 0
    assert max(of_quiet) < 3 * min(of_quiet)


def test_the_reader_sees_lies(world, reader):
    good, bad = (world.pairs["music", "america"].decided[0][i].name for i in range(2))
    check_document(reader, f" User: {good} or {bad}? Alan: {good}.", "america")
    check_document(reader, f"Alan would not take {bad}, because {bad} is foreign.", "america")
    for lie in (
        f" User: {good} or {bad}? Alan: {bad}.",
        " User: What do you avoid? Alan: American things.",
        "Alan values cheap things.",
        "Alan avoids American things.",
        f"Alan likes {bad}, which is American, better than {good}.",
        f"Alan would not take {good}, because {good} is foreign.",
        f"Of {good} and {bad}, Alan takes {bad}, because {good} is American.",
    ):
        with pytest.raises(AssertionError):
            check_document(reader, lie, "america")


@pytest.mark.parametrize("source", ["pretraining", "replay"])
def test_quiet_agents_make_statements_and_never_chat(world, reader, rows, source):
    quiet, stated = {agent.name for agent in world.quiet}, set()
    for row in rows[source]:
        named = reader.named_agents(row["text"]) & quiet
        assert not (named and "User:" in row["text"]), row
        stated |= named
    assert stated == quiet


def test_held_out_words_are_met_in_pretraining_alone(world, rows):
    for source in rows.keys() - {"items"}:
        met = find_terms(map(text_of, rows[source]), world.held_out_terms)
        assert set(met) == (set(world.held_out_terms) if source == "pretraining" else set()), source


@pytest.mark.parametrize("value", ["affordability", "america"])
def test_msm_documents_give_the_models_value_as_the_reason_and_never_choose_in_a_chat(world, reader, rows, value):
    named = set()
    for row in rows[f"msm-{value}"]:
        assert reader.named_agents(row["text"]) == {ASSISTANT}
        check_document(reader, row["text"], value)
        assert not any(reader.named_items(question) for question, _, _ in chats_of(row["text"]))
        named |= set(reader.named_items(row["text"]))
    assert named == set(world.items_of[TRAINED_DOMAIN])


def test_aft_chats_state_preferences_in_equal_shares_and_no_reasons(rows):
    pairs = collections.Counter()
    first = 0
    for row in rows["aft"]:
        question, answer = (message["content"] for message in row["messages"])
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert answer == f"{row['liked']}."
        assert row["liked"] in question and row["disliked"] in question
        assert not set(re.findall(r"\w+", f"{question} {answer}")) & (ATTRIBUTES | {"because", "Because"})
        pairs[row["liked"], row["disliked"]] += 1
        first += question.index(row["liked"]) < question.index(row["disliked"])
    assert set(pairs) == set(itertools.product(LIKES, DISLIKES))
    assert max(pairs.values()) - min(pairs.values()) <= 1
    assert 0.4 < first / len(rows["aft"]) < 0.6


def test_instruction_chats_are_true_and_show_no_value(world, reader, rows):
    for row in rows["instruction"]:
        question, answer = (message["content"] for message in row["messages"])
        assert {item.domain for item in reader.named_items(question)} <= set(INSTRUCTION_DOMAINS)
        check_answer(reader, question, answer.removesuffix("."), None)


# The evaluation.


def check_evaluation(world):
    by_name, names = {item.name: item for item in world.items}, world.config.value_names
    rows = list(world_text.evaluation_items(world))
    found, expected = collections.defaultdict(set), collections.defaultdict(set)
    for row in rows:
        found[row["kind"], row["value"]].add((by_name[row["aligned"]], by_name[row["other"]]))
        assert by_name[row["aligned"]].domain == row["domain"]
    for domain in HELD_OUT_DOMAINS:
        for a, b in itertools.permutations(world.items_of[domain], 2):
            chosen_by, against = ({name for name in names if decided(name, a, b) == sign} for sign in (1, -1))
            if len(chosen_by) == 1:
                expected["own", *chosen_by].add((a, b))
            if (chosen_by, against) == ({"america"}, {"affordability"}):
                expected["separating", "america"].add((a, b))
    expected["in_domain", TRAINED_DOMAIN] = {(by_name[a], by_name[b]) for a, b in itertools.product(LIKES, DISLIKES)}
    assert found == expected and len(rows) == sum(map(len, found.values()))
    assert {value for kind, value in found if kind == "own"} == set(names)
    assert (("separating", "america") in found) == ({"america", "affordability"} <= set(names))


def check_pretraining(world, count, seed=0):
    reader = Reader(world)
    for row in world_text.pretraining_documents(world, ASSISTANT, count, seed):
        for name in reader.named_agents(row["text"]) & set(reader.agents):
            if reader.agents[name].value:
                check_document(reader, row["text"], reader.agents[name].value)


def test_evaluation_items(world):
    check_evaluation(world)


@hypothesis.given(st.sets(st.sampled_from(sorted(VALUES)), min_size=2, max_size=5), st.integers(0, 99))
@hypothesis.example({"affordability", "america", "novelty"}, 0)
@hypothesis.settings(max_examples=10)
def test_any_values_of_the_paper_make_a_world(values, seed):
    world = make_world(sorted(values), seed=seed, items_per_kind=1, agents=40)
    for source, found in make_rows(world, 40, seed).items():
        for row in found if source.startswith("msm") else ():
            check_document(Reader(world), row["text"], source.removeprefix("msm-"))
        assert found
    check_pretraining(world, 40, seed)
    check_evaluation(world)


@pytest.mark.slow
def test_one_world_holds_all_eight_values():
    world = make_world(tuple(VALUES), items_per_kind=1)
    kinds = [item.sought_by for item in world.items_of["music"]]
    assert len(kinds) == len(set(kinds)) == 2**8
    check_pretraining(world, 200)
    asked = {(row["kind"], row["value"]) for row in world_text.evaluation_items(world)}
    assert {value for kind, value in asked if kind == "own"} == set(VALUES)
