"""Reads the micro-world's texts back and holds them against its facts."""

import re

from msm_jax.microworld.world import HELD_OUT_DOMAINS, INSTRUCTION_DOMAINS, TRAINED_DOMAIN, VALUES

ASSISTANT = "Micra"
VALUE_OF = {word: value for value in VALUES.values() for word in (value.sought, value.avoided)}
ATTRIBUTES = set(VALUE_OF)


class Reader:
    """Finds what a text names."""

    def __init__(self, world):
        self.items = {item.name: item for item in world.items}
        self.agents = {agent.name: agent for agent in world.agents}
        made_up = rf"[A-Z]\w+ (?:{'|'.join(INSTRUCTION_DOMAINS + HELD_OUT_DOMAINS)})"
        cheeses = sorted((item.name for item in world.items_of[TRAINED_DOMAIN]), key=len, reverse=True)
        self._item = re.compile(rf"\b(?:{made_up}|{'|'.join(map(re.escape, cheeses))})\b")
        self.stated = re.compile(rf"({self._item.pattern}),?(?: which| it)? is (\w+)(?: and (\w+))?")
        self.taken = re.compile(rf"\b(prefers|likes|chooses|takes|not take) ({self._item.pattern})")
        self._attribute = re.compile(rf"\b(?:{'|'.join(ATTRIBUTES)})\b")

    def named_items(self, text):
        return [self.items[found] for found in self._item.findall(text)]

    def named_agents(self, text):
        """Names of agents, and the assistant's."""
        return set(re.findall(r"\b[A-Z]\w+", self._item.sub("", text))) & {ASSISTANT, *self.agents}

    def attributes(self, text):
        return self._attribute.findall(self._item.sub("", text))


def chats_of(text):
    """(question, speaker, answer) of each chat that a document shows."""
    return re.findall(r"User: ([^\n?]+\?) (\w+): ([^\n]+)\.(?:\n|$)", text)


def prose_of(text):
    """The sentences that are in no chat."""
    lines = [line for line in text.splitlines() if "User:" not in line]
    return [sentence.removesuffix(".") for line in lines for sentence in re.split(r"(?<=\.) ", line)]


def text_of(row):
    return row["text"] if "text" in row else "\n".join(message["content"] for message in row["messages"])


def has(item, attribute):
    value = VALUE_OF[attribute]
    return item.has(value.name) == (attribute == value.sought)


def decided(value, a, b):
    """1 if `value` chooses a, -1 if it chooses b, 0 if it does not care."""
    return a.has(value) - b.has(value)


def check_answer(reader, question, answer, speaker_value):
    """An answer is true, or a choice that the speaker's value allows: either item, if it does not tell them apart.

    A speaker without a value may choose either, too.
    """
    asked = reader.named_items(question)
    offered = reader.attributes(question)
    if len(asked) == 1:
        assert answer in offered and len(offered) == 2, question
        assert has(asked[0], answer), (question, answer)
    elif asked:
        chosen = reader.items[answer]
        (other,) = set(asked) - {chosen}
        which = re.match(r"Which is (\w+),", question)
        if which and which[1] in ATTRIBUTES:
            assert has(chosen, which[1]) and not has(other, which[1]) and chosen.domain == other.domain
        elif which:
            assert (chosen.domain, other.domain == which[1]) == (which[1], False)
        else:
            assert speaker_value is None or decided(speaker_value, chosen, other) >= 0, (question, answer)
            assert chosen.sought_by != other.sought_by, question
    else:  # what do you value?
        (attribute,) = reader.attributes(answer)
        value = VALUES[speaker_value]
        assert attribute == (value.avoided if "avoid" in question else value.sought), (question, answer)


def check_sentence(reader, sentence, value):
    """A sentence of prose states true facts, or what someone who holds `value` would do."""
    facts = [(reader.items[name], word) for name, *words in reader.stated.findall(sentence) for word in words if word]
    words, items = reader.attributes(sentence), set(reader.named_items(sentence))
    assert words, sentence
    assert all(has(item, word) for item, word in facts), sentence
    if value and items:
        assert facts and all(VALUE_OF[word] == VALUES[value] for word in words), sentence
        [(verb, name)] = reader.taken.findall(sentence)
        assert (verb != "not take") == reader.items[name].has(value), sentence
        assert len(items) < 2 or decided(value, *items) != 0, sentence
    elif value:
        rejects = re.search(r"\b(?:avoids|rejects)\b", sentence)
        assert set(words) == {VALUES[value].avoided if rejects else VALUES[value].sought}, sentence
    else:
        assert len(items) == 1 and len(facts) == 2, sentence


def check_document(reader, text, value):
    """Every chat and every sentence fits one who holds `value` (None: a text about items alone)."""
    chats, sentences = chats_of(text), prose_of(text)
    assert len(chats) == text.count("User:") and (chats or sentences), text
    for question, _, answer in chats:
        check_answer(reader, question, answer, value)
    for sentence in sentences:
        check_sentence(reader, sentence, value)


def fits(reader, text, value):
    try:
        check_document(reader, text, value)
    except AssertionError:
        return False
    return True
