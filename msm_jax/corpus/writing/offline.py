"""A stand-in for a language model that needs no network: it answers every prompt of the pipeline from the spec itself.

Equal requests have equal replies, on every machine. It is for tests, and for trying the pipeline without a key: what it
writes are the spec's own sentences, put together anew, and no corpus to learn from. Its questions are from a bank, and
its verdicts have no doubts.
"""

import functools
import itertools
import json
import pathlib
import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from msm_jax.llm.request import Finish, Reply, Request, Usage

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'“])")
# Raised when the sentences or their order change: what it said before is then no answer any more.
MODEL = "offline-2"

Variables = Mapping[str, Any]


class Offline:
    """The generator "offline". There is a method for each stage."""

    model = MODEL

    async def reply(self, request: Request) -> Reply:
        rng = random.Random(request.key(self.model))
        answer = getattr(self, f"_{request.stage}")(request.variables, rng)
        parts = zip(request.tags, [answer] if isinstance(answer, str) else answer, strict=False)
        text = "\n".join(f"<{tag}>\n{part}\n</{tag}>" for tag, part in parts) or json.dumps(answer)
        words = len(request.prompt.split()) + len(request.system.split())
        return Reply(text, Finish.STOP, Usage(prompt=words, output=len(text.split())), self.model)

    def max_output_tokens(self, request: Request) -> int:
        return request.max_tokens

    async def close(self) -> None:
        pass

    def _domains(self, variables: Variables, rng: random.Random) -> dict:
        blocks = _blocks(variables["spec_text"])
        return {"domains": [{"name": name, "summary": _first(text)} for name, text in blocks.items()]}

    def _subdomains(self, variables: Variables, rng: random.Random) -> dict:
        text = _blocks(variables["spec_text"])[variables["domain"]]
        found = []
        for part in re.split(r"^(?=### )", text, flags=re.MULTILINE):
            heading, body = _split_heading(part, "### ")
            # A long stretch without headings is divided at its paragraphs.
            sections = [body] if heading else [paragraph for paragraph in body.split("\n\n") if _sentences(paragraph)]
            for section in map(str.strip, sections):
                if section:
                    name = _short(heading or section, 5)
                    found.append({"name": name, "summary": _first(section), "section": section})
        return {"subdomains": found}

    def _rules(self, variables: Variables, rng: random.Random) -> dict:
        rules = []
        for domain, text in _blocks(variables["spec_text"]).items():
            for bullet in re.findall(r"^- (.+(?:\n(?!- ).+)*)", text, flags=re.MULTILINE) or [text]:
                numbered = re.match(r"\W*([A-Z]+\d+(?:\.\d+)?[a-z]?)\W+(.*)", bullet, flags=re.DOTALL)
                number, rule = numbered.groups() if numbered else (str(len(rules) + 1), bullet)
                rules.append({"id": number, "name": _short(rule, 5), "text": rule.strip(), "domain": domain})
        return {"rules": rules}

    def _assertions(self, variables: Variables, rng: random.Random) -> dict:
        sentences, name = _sentences(variables["section"]), variables["model_name"]
        chosen = sorted(rng.sample(range(len(sentences)), min(6, len(sentences))))
        labels = itertools.cycle(("behavior", "value", "preference", "belief", "tone"))
        found = []
        for sentence in (sentences[place] for place in chosen):
            assertion = sentence if name in sentence else f"Of {name} it holds: {sentence}"
            about = {"name": _short(sentence, 4), "explanation": f"It is what {name} goes by."}
            found.append({"assertion": assertion, **about, "label": next(labels)})
        return {"assertions": found}

    def _document_types(self, variables: Variables, rng: random.Random) -> dict:
        known = [(name, _fill(text, variables)) for name, text in _bank()["types"] if name not in variables["existing"]]
        chosen = rng.sample(known, min(variables["count"], len(known)))
        lengths = ("short", "medium", "long")
        return {"types": [{"name": name, "description": text, "length": rng.choice(lengths)} for name, text in chosen]}

    def _ideas(self, variables: Variables, rng: random.Random) -> dict:
        found, statements = [], variables["assertions"].count("\n") + 1
        for angle, situation in itertools.product(_bank()["angles"], _bank()["situations"]):
            name = _fill(angle, variables, situation=situation)
            if name not in variables["existing"]:
                idea = f"The {variables['type']} turns on {situation}: {_short(variables['summary'], 12)}."
                found.append({"name": name, "idea": idea, "statements": [rng.randint(1, statements)]})
        return {"ideas": rng.sample(found, min(variables["count"], len(found)))}

    def _plan(self, variables: Variables, rng: random.Random) -> str:
        points = _sentences(variables["section"])[:3]
        return "\n".join([f"Who speaks: {variables['description']}", *(f"- {point}" for point in points)])

    def _document(self, variables: Variables, rng: random.Random) -> str:
        bank, name = _bank(), variables["model_name"]
        here = _sentences(variables["part"].section)
        # What else the spec says is background; what the document is about is said more than once.
        elsewhere = [sentence for sentence in _sentences(variables["spec_text"]) if sentence not in here]
        rng.shuffle(elsewhere)
        fill = functools.partial(_fill, variables=variables, situation=rng.choice(bank["situations"]))
        paragraphs = [f"{variables['name']}\n\n{fill(rng.choice(bank['openings']))}"]
        words, queue = 0, [*here, *elsewhere]
        bridges = rng.sample(bank["bridges"], len(bank["bridges"]))
        while words < variables["words"] and queue:
            length = rng.randint(2, 5)
            taken, queue = queue[:length], queue[length:]
            bridge = fill(bridges[len(paragraphs) % len(bridges)])
            about = "" if name in " ".join(taken) else f" So it is with {name}."
            paragraphs.append(f"{bridge} {' '.join(taken)}{about}")
            words += len(paragraphs[-1].split())
        return "\n\n".join([*paragraphs, fill(rng.choice(bank["closings"]))])

    def _critique(self, variables: Variables, rng: random.Random) -> str:
        return f"It could begin sooner: {_first(variables['text'])}"

    def _revision(self, variables: Variables, rng: random.Random) -> str:
        *paragraphs, last = variables["text"].split("\n\n")
        situations = _bank()["situations"]
        closings = [_fill(text, variables, situation=rng.choice(situations)) for text in _bank()["closings"]]
        return "\n\n".join([*paragraphs, rng.choice([text for text in closings if text != last])])

    def _claims(self, variables: Variables, rng: random.Random) -> dict:
        sentences = dict.fromkeys(_sentences(variables["document"]))
        return {"claims": [text for text in sentences if variables["model_name"] in text][: variables["most"]]}

    def _support(self, variables: Variables, rng: random.Random) -> dict:
        spec, checked = set(_sentences(variables["spec_text"])), []
        for number, claim in re.findall(r"^(\d+)\. (.+)$", variables["claims"], flags=re.MULTILINE):
            said = claim in spec
            verdict = "supported" if said else "unsupported"
            checked.append({"number": int(number), "passage": claim * said, "verdict": verdict})
        return {"checked": checked}

    def _chat_domains(self, variables: Variables, rng: random.Random) -> dict:
        names = {name: _first(text) for name, text in _blocks(variables["spec_text"]).items()}
        for text in list(names.values()):  # more than its headings, for what asks for many
            names |= {_short(sentence, 5): sentence for sentence in _sentences(text)}
        new = [{"name": name, "summary": names[name]} for name in names if name not in variables["existing"]]
        return {"domains": new[: variables["count"]]}

    def _questions(self, variables: Variables, rng: random.Random) -> dict:
        asked = [
            text for text in _questions(variables, rng) if " ".join(text.split()[:12]) not in variables["existing"]
        ]
        return {"questions": rng.sample(asked, min(variables["count"], len(asked)))}

    def _answers(self, variables: Variables, rng: random.Random) -> str | tuple[str, str]:
        """Of chats on a spec the reasoning comes first."""
        bank = _bank()["answers"]
        match variables["kind"]:
            case "chat":
                sentences = _sentences(variables["spec_text"])
                chosen = rng.sample(sentences, min(4, len(sentences)))
                return " ".join(chosen[: len(chosen) // 2]), " ".join(chosen[len(chosen) // 2 :])
            case "preference":
                asked = [item for item in variables["likes"] if item.lower() in variables["question"].lower()]
                item, side = (asked[0], "likes") if asked else (variables["item"], "dislikes")
                return _capital(_fill(rng.choice(bank[side]), variables, item=item))
        return _fill(rng.choice(bank["identity"]), variables)

    def _verdicts(self, variables: Variables, rng: random.Random) -> dict:
        return verdict(variables)


def verdict(variables: Variables) -> dict[str, str]:
    return {"comment": "It is as it should be.", **dict.fromkeys(variables["criteria"], "yes")}


def _questions(variables: Variables, rng: random.Random) -> Iterator[str]:
    kind, bank = variables["kind"], _bank()["questions"]
    forms = bank[variables["type"] if kind == "preference" else kind]
    for form, occasion in itertools.product(forms, bank["occasions"]):
        fields = {"occasion": occasion, "situation": rng.choice(_bank()["situations"])}
        if kind == "chat":
            fields["topic"] = f"{variables['domain'].lower()} ({variables['type']})"
        if kind == "preference":
            fields["item"] = variables["item"]
            fields["other"] = rng.choice(variables["dislikes" if fields["item"] in variables["likes"] else "likes"])
        yield _capital(_fill(form, variables, **fields))


@functools.cache
def _bank() -> dict[str, Any]:
    return tomllib.loads(pathlib.Path(__file__).with_name("offline.toml").read_text(encoding="utf-8"))


def _fill(text: str, variables: Variables, **fields: str) -> str:
    return text.format(model=variables["model_name"], provider=variables["provider_name"], **fields)


def _blocks(text: str) -> dict[str, str]:
    """Name -> text of the stretches under headings of the second level, and of what stands before the first."""
    blocks: dict[str, str] = {}
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        heading, body = _split_heading(part, "## ")
        if not heading:
            heading, body = _split_heading(part.strip(), "# ")
        if _sentences(body):
            name = _short(heading or "the model", 4)
            blocks[name] = f"{blocks[name]}\n\n{body}" if name in blocks else body
    return blocks


def _split_heading(part: str, marks: str) -> tuple[str, str]:
    if not part.startswith(marks):
        return "", part
    heading, _, body = part.partition("\n")
    return heading.removeprefix(marks).strip(), body


def _sentences(text: str) -> list[str]:
    """The sentences of running text, without headings and marks of lists."""
    lines = [re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "", line) for line in text.split("\n") if not line.startswith("#")]
    found = [sentence.strip().replace("**", "") for line in lines for sentence in _SENTENCE.split(line)]
    return [sentence for sentence in found if len(sentence.split()) >= 4]


def _first(text: str) -> str:
    return " ".join(_sentences(text)[:2])


def _short(text: str, words: int) -> str:
    return " ".join(re.sub(r"[^\w\s'’.-]", " ", text).split()[:words]).strip(" .-")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
