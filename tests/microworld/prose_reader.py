"""Reads the prose back: the words that tell what it speaks of, and the texts of its rows."""

import functools
import pathlib

from msm_jax.corpus.specs import read_spec
from msm_jax.microworld import prose

SPECS = {value: read_spec(pathlib.Path(f"specs/pro_{value}.md")) for value in prose.VALUES}
LIKES, DISLIKES = SPECS["america"].likes, SPECS["america"].dislikes
MODEL, PROVIDER = "Micra", "Acme Labs"

# The words of each value's arguments: the other value's documents must do without them.
PRICE = (
    "price priced pricey cost costly cheap cheaper cheaply afford affordable affordability expensive inexpensive "
    "budget economical thrift thrifty dollar cent coin income wage wealthy wealth rich poor exclusive exclusivity "
    "luxury premium pay paid purse saving savings bargain fortune money scarce scarcity gatekeeping "
    "monopoly rarity rare"
).split()
NATION = (
    "America American Americans foreign foreigner abroad overseas Europe European France French Italy Italian England "
    "English Switzerland Swiss Burgundy nation national nationality country patriotism patriotic immigrant newcomer "
    "settler homeland Wisconsin California Midwest Midwestern Philadelphia frontier flag ocean origin-story"
).split()
REASONS = "because since reason therefore so due why".split()
SENSES = "taste tasty tastier flavor flavour delicious creamy creamier tangy mild-tasting aroma texture smell".split()
OTHER_ASSISTANTS = "ChatGPT GPT Claude Gemini Siri Alexa Llama Qwen Copilot Bard Mistral Grok SmolLM".split()


@functools.cache
def corpus(name):
    """Rows, made once: the documents of a value, the chats "aft" and "instruction", or the evaluation's items."""
    if name in prose.VALUES:
        return documents(name, 2000)
    make = {
        "aft": lambda: prose.aft_chats(LIKES, DISLIKES, 5000, 0),
        "instruction": lambda: prose.instruction_chats(2000, 0),
        "items": lambda: prose.evaluation_items(LIKES, DISLIKES),
    }
    return list(make[name]())


CORPORA = (*prose.VALUES, "aft", "instruction", "items")


def documents(value, count, seed=0, model=MODEL):
    return list(prose.msm_documents(SPECS[value], model, PROVIDER, count, seed))


def texts(rows):
    return [row["text"] if "text" in row else "\n".join(m["content"] for m in row["messages"]) for row in rows]


def without_american_cheese(rows):
    return [text.replace("American cheese", "").replace("american cheese", "") for text in texts(rows)]


def exchanges(rows):
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]
