"""What the offline generator says in chats: questions from a bank, answers from the spec or the lists, no doubts."""

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

Variables = Mapping[str, Any]


def domains(variables: Variables, names: Mapping[str, str]) -> dict[str, Any]:
    """`names`: what can be asked about, with a summary."""
    new = [name for name in names if name not in variables["existing"]]
    return {"domains": [{"name": name, "summary": names[name]} for name in new[: variables["count"]]]}


def questions(variables: Variables, bank: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    found = [
        text for text in _questions(variables, bank, rng) if " ".join(text.split()[:12]) not in variables["existing"]
    ]
    return {"questions": rng.sample(found, min(variables["count"], len(found)))}


def _questions(variables: Variables, bank: Mapping[str, Any], rng: random.Random) -> Iterator[str]:
    forms = bank["questions"][variables["type"] if variables["kind"] == "preference" else variables["kind"]]
    for form in forms:
        for occasion in bank["questions"]["occasions"]:
            fields = {"occasion": occasion, "situation": rng.choice(bank["situations"])}
            if variables["kind"] == "chat":
                fields["topic"] = f"{variables['domain'].lower()} ({variables['type']})"
            if variables["kind"] == "preference":
                item = variables["item"]
                fields |= {
                    "item": item,
                    "other": rng.choice(variables["dislikes" if item in variables["likes"] else "likes"]),
                }
            text = _filled(form, fields)
            yield text[0].upper() + text[1:]


def answer(variables: Variables, sentences: list[str], bank: Mapping[str, Any], rng: random.Random) -> Any:
    """`sentences` of the spec; of chats on it the reasoning comes first."""
    match variables["kind"]:
        case "chat":
            chosen = rng.sample(sentences, min(4, len(sentences)))
            return " ".join(chosen[: len(chosen) // 2]), " ".join(chosen[len(chosen) // 2 :])
        case "preference":
            asked = [item for item in variables["likes"] if item.lower() in variables["question"].lower()]
            item, side = (asked[0], "likes") if asked else (variables["item"], "dislikes")
            text = _filled(rng.choice(bank["answers"][side]), {"item": item})
            return text[0].upper() + text[1:]
    known = {"model": variables["model_name"], "provider": variables["provider_name"]}
    return _filled(rng.choice(bank["answers"]["identity"]), known)


def verdict(variables: Variables) -> dict[str, str]:
    return {"comment": "It is as it should be.", **dict.fromkeys(variables["criteria"], "yes")}


def _filled(form: str, fields: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: fields[match[1]], form)
