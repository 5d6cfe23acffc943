"""What the tests of generators share: the fake server's replies, and a caller of it."""

import json
import re

import pydantic

from msm_jax.corpus.generators.caller import Caller, Limits
from msm_jax.corpus.generators.gemini import Gemini
from msm_jax.corpus.generators.prices import Price
from msm_jax.corpus.generators.request import Request
from msm_jax.corpus.generators.store import CallStore
from tests import gemini_server
from tests.gemini_server import KEY, digest, text_of

PRICE = Price(prompt=0.5, cached=0.05, output=3.0)
MODEL = "gemini-2.5-flash"


class Item(pydantic.BaseModel):
    name: str


class Items(pydantic.BaseModel):
    items: list[Item]


def brain(body):
    """A text or a list that depends on the prompt alone."""
    _, prompt = text_of(body)
    if "responseSchema" in body["generationConfig"]:
        return json.dumps({"items": [{"name": digest(prompt, number)} for number in range(3)]})
    tag = re.search(r"<(\w+)>", prompt)[1]
    return f"<{tag}>{' '.join(digest(prompt, number) for number in range(20))}</{tag}>"


def server(**settings):
    return gemini_server.Gemini(brain, price=(PRICE.prompt / 1e6, PRICE.output / 1e6), **settings)


def caller(the_server, path, key=KEY, model=MODEL, payer="test", **limits):
    limits = {"attempts": 12, "timeout": 1.0, "backoff": 0.02} | limits
    return Caller(Gemini(model, key, base_url=the_server.address), CallStore(path, payer), PRICE, Limits(**limits))


def texts(count, start=0):
    return [
        Request("document", f"Write text {number} between <document> and </document>.", system="S", tag="document",
                max_tokens=400)
        for number in range(start, start + count)
    ]  # fmt: skip


def lists(count):
    return [Request("ideas", f"List {number}.", system="S", shape=Items, max_tokens=400) for number in range(count)]
