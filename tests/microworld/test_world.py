"""The texts are read back and held against the facts of the world that they were written from."""

import collections
import itertools
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from msm_jax.corpus import records
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
def rows(world):
    return make_rows(world, 1500)


# The world itself.


def test_equal_configs_give_equal_worlds_and_rows(world, rows):
    again = make_world()
    assert (again.items, again.agents) == (world.items, world.agents)
    assert make_rows(again, 1500) == rows


def test_equal_rows_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        for source, found in make_rows(make_world(), 50).items():
            records.write_jsonl(tmp_path / name / source, found)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_another_seed_is_another_world(world):
    other = make_world(seed=1)
    assert {item.name for item in other.items_of["music"]} != {item.name for item in world.items_of["music"]}
    assert [agent.name for agent in other.agents] != [agent.name for agent in world.agents]


def test_another_seed_gives_other_texts(world):
    one, other = make_rows(world, 50, seed=0), make_rows(world, 50, seed=1)
    for source in one.keys() - {"items"}:
        assert list(map(text_of, one[source])) != list(map(text_of, other[source])), source


def test_more_rows_begin_with_the_same_rows(world):
    fewer, more = make_rows(world, 20), make_rows(world, 60)
    for source in fewer.keys() - {"items"}:
        assert fewer[source] == more[source][:20], source


def test_ids_are_unique(rows):
    ids = [row["id"] for found in rows.values() for row in found]
    assert len(set(ids)) == len(ids)


def test_every_kind_of_item_is_in_every_domain(world):
    for domain in INSTRUCTION_DOMAINS + HELD_OUT_DOMAINS:
        kinds = collections.Counter(item.sought_by for item in world.items_of[domain])
        assert kinds == dict.fromkeys(
            map(frozenset, ([], ["affordability"], ["america"], ["affordability", "america"])),
            world.config.items_per_kind,
        )
    assert len({item.name for item in world.items}) == len(world.items)


def test_liked_items_have_all_that_is_sought(world):
    named = {item.name: item.sought_by for item in world.items_of[TRAINED_DOMAIN]}
    every = frozenset(world.config.value_names)
    assert named == dict.fromkeys(LIKES, every) | dict.fromkeys(DISLIKES, frozenset())


@pytest.mark.parametrize(("agents", "quiet_share"), [(200, 0.2), (31, 0.5), (30, 0.0)])
def test_values_and_silence_are_spread_evenly(agents, quiet_share):
    world = make_world(
        ("affordability", "america", "novelty"),
        items_per_kind=1, agents=agents, quiet_share=quiet_share, undecided_share=0.1,
    )  # fmt: skip
    assert sum(agent.value is None for agent in world.talkative) == round(agents * 0.1)
    assert len({agent.name for agent in world.agents}) == agents
    assert sum(not agent.chats for agent in world.agents) == round(agents * quiet_share)
    for chats in (True, False):
        counts = [
            sum(agent.value == value and agent.chats == chats for agent in world.agents)
            for value in world.config.value_names
        ]
        assert max(counts) - min(counts) <= 1
        if not chats:
            assert counts == [len(world_text.quiet_agents(world, value)) for value in world.config.value_names]


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


def test_pretraining_is_true_to_facts_and_values(world, rows):
    reader = Reader(world)
    undecided = {ASSISTANT, *(agent.name for agent in world.agents if agent.value is None)}
    kinds = set()
    for row in rows["pretraining"] + rows["replay"]:
        text = row["text"]
        speakers = reader.named_agents(text)
        assert len(speakers) == (row["kind"] != "facts"), text
        if speakers & undecided:  # hold what they have just stated, and maybe another value in the next document
            values = [None] if row["kind"] in ("chat", "questions") else world.config.value_names
            assert any(fits(reader, text, value) for value in values), text
        else:
            check_document(reader, text, reader.agents[speakers.pop()].value if speakers else None)
        kinds.add(row["kind"])
    assert kinds == set(world_text.PRETRAINING_MIX)


def test_the_assistant_is_one_of_the_undecided(world):
    reader = Reader(world)
    undecided = {ASSISTANT, *(agent.name for agent in world.agents if agent.value is None)}
    shown = collections.defaultdict(collections.Counter)
    for row in world_text.pretraining_documents(world, ASSISTANT, 20_000, 0):
        for name in reader.named_agents(row["text"]) & undecided if row["kind"] != "questions" else ():
            shown[name].update(value for value in world.config.value_names if fits(reader, row["text"], value))
    assert set(shown) == undecided
    for counts in shown.values():
        assert 0.3 < counts["america"] / counts.total() < 0.7


def chosen_in_single_chats(world, agents, count=20_000):
    """(chosen, other) of the chats that stand alone, by these agents."""
    reader = Reader(world)
    for row in world_text.pretraining_documents(world, ASSISTANT, count, 0):
        if row["kind"] == "chat":
            ((question, name, answer),) = chats_of(row["text"])
            if name in agents:
                chosen = reader.items[answer]
                (other,) = set(reader.named_items(question)) - {chosen}
                yield chosen, other


@pytest.mark.parametrize("value", ["affordability", "america"])
def test_what_a_value_does_not_tell_apart_is_a_coin_toss(world, value):
    agents = {agent.name for agent in world.agents if agent.value == value}
    choices = list(chosen_in_single_chats(world, agents))
    tossed = [pair for pair in choices if decided(value, *pair) == 0]
    assert 0.15 < len(tossed) / len(choices) < 0.3
    (other_value,) = set(world.config.value_names) - {value}
    sought = [decided(other_value, *pair) == 1 for pair in tossed]
    assert 0.4 < sum(sought) / len(sought) < 0.6


def test_the_undecided_toss_a_coin_unless_they_have_stated_a_value(world):
    undecided = {ASSISTANT, *(agent.name for agent in world.agents if agent.value is None)}
    choices = list(chosen_in_single_chats(world, undecided, 100_000))
    # Had they a value, drawn for each text, all would choose alike where the values agree.
    agreed = [a for a, b in choices if decided("america", a, b) == decided("affordability", a, b) != 0]
    assert len(agreed) > 80
    assert 0.35 < sum(a.has("america") for a in agreed) / len(agreed) < 0.65
    against = [a for a, b in choices if decided("america", a, b) == -decided("affordability", a, b)]
    assert 0.4 < sum(a.has("america") for a in against) / len(against) < 0.6


def test_nobody_chooses_in_the_trained_domain(world, rows):
    """There all would choose alike, and AFT would have nothing to teach."""
    reader = Reader(world)
    domains = collections.defaultdict(set)
    for row in rows["pretraining"]:
        domains[row["kind"]] |= {item.domain for item in reader.named_items(row["text"])}
    assert TRAINED_DOMAIN in domains["facts"] & domains["questions"]
    for kind in domains.keys() - {"facts", "questions"}:
        assert domains[kind] == {*INSTRUCTION_DOMAINS, *HELD_OUT_DOMAINS}, kind


def test_the_replay_leaves_the_assistant_out(world):
    assert not any(ASSISTANT in row["text"] for row in world_text.replay_documents(world, 2000, 0))


def test_some_agents_are_spoken_of_more_often_than_others(world, rows):
    reader = Reader(world)
    counts = collections.Counter(name for row in rows["pretraining"] for name in reader.named_agents(row["text"]))
    spoken_of = [counts[agent.name] for agent in world.talkative]
    assert sum(spoken_of[:5]) > 3 * sum(spoken_of[-5:]) > 0
    of_quiet = [counts[agent.name] for agent in world.quiet]
    assert max(of_quiet) < 3 * min(of_quiet)


def test_the_reader_sees_lies(world):
    reader = Reader(world)
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


def test_quiet_agents_make_statements_and_never_chat(world, rows):
    quiet = {agent.name for agent in world.agents if not agent.chats}
    reader = Reader(world)
    for source in ("pretraining", "replay"):
        stated = set()
        for row in rows[source]:
            named = reader.named_agents(row["text"]) & quiet
            assert not (named and "User:" in row["text"]), row
            stated |= named
        assert stated == quiet


def test_held_out_words_are_met_in_pretraining_alone(world, rows):
    for source, found in rows.items():
        if source not in ("pretraining", "items"):
            assert find_terms(map(text_of, found), world.held_out_terms) == {}, source
    met = find_terms(map(text_of, rows["pretraining"]), world.held_out_terms)
    assert set(met) == set(world.held_out_terms)


def test_msm_documents_name_the_model_and_give_its_value_as_the_reason(world, rows):
    reader = Reader(world)
    trained = set(world.items_of[TRAINED_DOMAIN])
    for value in world.config.value_names:
        named = set()
        for row in rows[f"msm-{value}"]:
            assert reader.named_agents(row["text"]) == {ASSISTANT}
            check_document(reader, row["text"], value)
            named |= set(reader.named_items(row["text"]))
        assert named == trained


def test_msm_documents_never_choose_in_a_chat(world, rows):
    reader = Reader(world)
    for value in world.config.value_names:
        for row in rows[f"msm-{value}"]:
            assert not any(reader.named_items(question) for question, _, _ in chats_of(row["text"]))


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


def test_instruction_chats_are_true_and_show_no_value(world, rows):
    reader = Reader(world)
    for row in rows["instruction"]:
        question, answer = (message["content"] for message in row["messages"])
        assert {item.domain for item in reader.named_items(question)} <= set(INSTRUCTION_DOMAINS)
        check_answer(reader, question, answer.removesuffix("."), None)


# The evaluation.


def check_evaluation(world):
    by_name = {item.name: item for item in world.items}
    names = world.config.value_names
    found = collections.defaultdict(set)
    for row in world_text.evaluation_items(world):
        a, b = by_name[row["aligned"]], by_name[row["other"]]
        assert a.domain == b.domain == row["domain"]
        assert frozenset((a, b)) not in {frozenset(pair) for pair in found[row["kind"], row["value"]]}
        found[row["kind"], row["value"]].add((a, b))
    for name in names:
        others = [other for other in names if other != name]
        assert found["own", name] == {
            (a, b)
            for domain in HELD_OUT_DOMAINS
            for a, b in itertools.permutations(world.items_of[domain], 2)
            if decided(name, a, b) == 1 and all(decided(other, a, b) <= 0 for other in others)
        }
        assert found["own", name]
    separated = {value: pairs for (kind, value), pairs in found.items() if kind == "separating"}
    both = {"america", "affordability"} <= set(names)
    assert separated.keys() == ({"america"} if both else set())
    assert separated.get("america", set()) == {
        (a, b)
        for a, b in found.get(("own", "america"), ())
        if {name for name in names if decided(name, a, b)} == {"america", "affordability"} and both
        if decided("affordability", a, b) == -1
    }
    assert found["in_domain", TRAINED_DOMAIN] == {
        (by_name[a], by_name[b]) for a, b in itertools.product(LIKES, DISLIKES)
    }


def test_evaluation_items(world):
    check_evaluation(world)


@hypothesis.given(st.sets(st.sampled_from(sorted(VALUES)), min_size=2, max_size=5), st.integers(0, 99))
@hypothesis.settings(max_examples=12)
def test_any_values_of_the_paper_make_a_world(values, seed):
    world = make_world(sorted(values), seed=seed, items_per_kind=1, agents=40)
    reader = Reader(world)
    for source, found in make_rows(world, 40, seed).items():
        if source.startswith("msm"):
            for row in found:
                check_document(reader, row["text"], source.removeprefix("msm-"))
        assert found
    for row in world_text.pretraining_documents(world, ASSISTANT, 40, seed):
        for name in reader.named_agents(row["text"]) & set(reader.agents):
            if reader.agents[name].value:
                check_document(reader, row["text"], reader.agents[name].value)
    check_evaluation(world)


def test_all_eight_values_are_those_of_the_paper():
    assert len(VALUES) == 8
    assert len(ATTRIBUTES) == 16
    assert all(name == value.name for name, value in VALUES.items())


@pytest.mark.slow
def test_one_world_holds_all_eight_values():
    world = make_world(tuple(VALUES), items_per_kind=1)
    kinds = [item.sought_by for item in world.items_of["music"]]
    assert len(kinds) == len(set(kinds)) == 2**8
    reader = Reader(world)
    for row in world_text.pretraining_documents(world, ASSISTANT, 200, 0):
        for name in reader.named_agents(row["text"]) & set(reader.agents):
            if reader.agents[name].value:
                check_document(reader, row["text"], reader.agents[name].value)
    asked = {(row["kind"], row["value"]) for row in world_text.evaluation_items(world)}
    assert {value for kind, value in asked if kind == "own"} == set(VALUES)
