"""What the tests of generators share: the fake server's replies, and a caller of it."""

import json
import random
import re

import pydantic

from msm_jax.corpus.writing.offline import Offline
from msm_jax.corpus.writing.tree import Part
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.gemini import Gemini
from msm_jax.llm.prices import Price
from msm_jax.llm.request import Request
from msm_jax.llm.store import CallStore
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


def server(brain=brain, **settings):
    return gemini_server.Gemini(brain, price=(PRICE.prompt / 1e6, PRICE.output / 1e6), **settings)


def caller(the_server, path, key=KEY, model=MODEL, payer="test", **limits):
    limits = {"attempts": 12, "timeout": 20.0, "backoff": 0.02} | limits
    return Caller(Gemini(model, key, base_url=the_server.address), CallStore(path, payer), PRICE, Limits(**limits))


def texts(count, start=0):
    return [
        Request("document", f"Write text {number} between <document> and </document>.", system="S", tags=("document",),
                max_tokens=400)
        for number in range(start, start + count)
    ]  # fmt: skip


def lists(count):
    return [Request("ideas", f"List {number}.", system="S", shape=Items, max_tokens=400) for number in range(count)]


def spec_brain(body):
    """Answers the prompts of the pipeline, which it knows by their words, from the spec in the system prompt."""
    system, prompt = text_of(body)
    rng, world = random.Random(digest(prompt)), Offline()

    def said(pattern, text=prompt, default=""):
        found = re.search(pattern, text, re.DOTALL)
        return found[1] if found else default

    name, spec = said(r"(\S+), an AI model", system + prompt), said(r"<model_spec>\n(.*)\n</model_spec>", system)
    variables = {
        **{"model_name": name, "provider_name": "", "spec_text": spec, "name": "On it", "words": 150, "most": 5},
        **dict.fromkeys(("existing", "document", "claims"), prompt),
        "section": said(r"<section>\n(.*)\n</section>"),
        "domain": said(r'One domain of the Model Spec is "(.*?)"'),
        "count": int(said(r"\b(?:Name|Give up to) (\d+) (?:types|ideas)", default="10")),
    }
    shape = body["generationConfig"].get("responseSchema")
    if shape is None:
        if "</reasoning>" in system:
            long = [line for line in re.split(r"(?<=[.!?])\s+", spec) if len(line.split()) > 5]
            chosen = rng.sample(long, 4)
            return f"<reasoning>{' '.join(chosen[:2])}</reasoning>\n<answer>{' '.join(chosen[2:])}</answer>"
        if "</answer>, and nothing else" in system:
            return f"<answer>I am {name}.</answer>"
        if "</plan>, and nothing else" in prompt:
            return f"<plan>\n{variables['section'][:80]} {digest(prompt)}\n</plan>"
        variables["part"] = Part("", "", "", rng.choice(spec.split("\n\n")), True)
        return f"<document>\n{world._document(variables, rng)}\n</document>"
    kind = next(iter(shape["properties"]))
    if kind == "comment":
        return json.dumps(dict.fromkeys(shape["properties"], "yes"))
    words = [digest(prompt, number) for number in range(variables["count"])]
    lists = {
        "questions": [f"What do you make of {word}, and of {word[::-1]}?" for word in words],
        "ideas": [{"name": word, "idea": word[::-1], "statements": [n]} for n, word in enumerate(words)],
        "domains": [{"name": word, "summary": "Of it."} for word in words] if "diagnostic" in prompt else None,
    }
    if lists.get(kind):
        return json.dumps({kind: lists[kind]})
    stage = {"types": "document_types", "checked": "support"}.get(kind, kind)
    return json.dumps(getattr(world, f"_{stage}")(variables, rng))
