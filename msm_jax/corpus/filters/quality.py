"""What a written text must fulfil before it is trained on. What fails is dropped, and counted by the reason."""

import dataclasses
import functools
import pathlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator

from msm_jax.corpus.specs import find_terms

# Other assistants, whose names in place of the model's own mean that the writer spoke of itself.
ASSISTANTS = (
    "ChatGPT", "GPT-4", "GPT-5", "OpenAI", "Claude", "Anthropic", "Gemini", "Bard", "Google DeepMind", "Copilot",
    "Grok", "Llama", "Meta AI", "Mistral", "Qwen", "DeepSeek", "Kimi", "Siri", "Alexa",
)  # fmt: skip
# Those that can be asked for. Languages without spaces between words are told apart, but their words are not counted.
LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "ru": "Russian", "ar": "Arabic",
}  # fmt: skip
# A bracket that asks to be filled in: [Name], [insert date], [Company Name]; not [1], [sic], [laughs] or a link.
_PLACEHOLDER = re.compile(
    r"\[(?:insert\b[^\]\n]{0,60}|(?:your|add|enter|placeholder)\s[^\]\n]{1,60}|"
    r"(?!(?:the|a|an|our|its|their|his|her|my|this|that)\s)[^\]\n]{0,40}\b"
    r"(?:name|date|title|company|organi[sz]ation|address|email|phone|number|link|url|location|city|redacted)s?)\](?!\()|"
    r"\{[a-z]+_[a-z_]+\}|(?-i:\b(?:TODO|TBD|XXXX+)\b)|\blorem ipsum\b|_{4,}",
    re.IGNORECASE,
)
# (first letter, last, ISO 639-1 of what it is taken for)
_SCRIPTS = (
    ("A", "\u024f", "latin"), ("\u0400", "\u052f", "ru"), ("\u0600", "\u06ff", "ar"), ("\u3040", "\u30ff", "ja"),
    ("\u4e00", "\u9fff", "zh"), ("\uac00", "\ud7af", "ko"),
)  # fmt: skip
# What became of bytes that are no text, and what no text has.
_DAMAGE = re.compile(r"[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_LEAK = re.compile(
    r"</?(?:plan|plan_to_follow|document|critique|revision|model_spec|section|scratchpad|think|thinking|reasoning|"
    r"answer|reply)\b|"
    r"^\W*(?:here is|here['’]s|below is) (?:the|a|my) (?:document|text|plan|draft)|"
    r"\b(?:(?:this|the) synthetic (?:document|text)|word count:)",
    re.IGNORECASE,
)  # fmt: skip
# One of these is in whatever matches, in lower case: a plain search is far faster than a pattern that ignores case.
_PATTERNS = {
    "damaged character": (_DAMAGE, ("",)),
    "placeholder": (_PLACEHOLDER, ("[", "{", "todo", "tbd", "xxxx", "lorem ipsum", "____")),
    "leaked plan": (_LEAK, ("<", "here is", "here's", "here’s", "below is", "synthetic", "word count:")),
}
# Fewer words may be without any that tell their language, or have a foreign one by chance.
_ENOUGH_WORDS = 60
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())


@dataclasses.dataclass(frozen=True)
class Demands:
    """What a text is checked for.

    Attributes:
        model_name: must be named at least `mentions` times, and more often than all other assistants together;
            `provider` makes it.
        words: (least, most).
        language: ISO 639-1, among those of languages.toml.
        held_out: terms that must not occur (`specs.find_terms`).
    """

    model_name: str
    provider: str = ""
    mentions: int = 2
    words: tuple[int, int] = (1, 10**6)
    language: str = "en"
    held_out: tuple[str, ...] = ()


def problems(text: str, demands: Demands) -> Iterator[str]:
    """Yields what is wrong with `text`, in a word or two that can be counted."""
    words = _WORD.findall(text)
    least, most = demands.words
    if len(words) < least:
        yield "too short"
    if len(words) > most:
        yield "too long"
    if demands.mentions:
        own = _mentions(demands.model_name, text)
        others = set(ASSISTANTS) - names_of_assistants(f"{demands.model_name} {demands.provider}", exactly=False)
        if own < demands.mentions:
            yield "not about the model"
        elif own <= sum(_mentions(name, text) for name in others):
            yield "about another model"
    lower = text.lower()
    for problem, (pattern, hints) in _PATTERNS.items():
        if any(map(lower.__contains__, hints)) and pattern.search(text):
            yield problem
    if words and not _speaks(text, words, demands.language):
        yield "other language"
    if _repeats(words):
        yield "repeats itself"
    # One may be a figure of speech.
    if demands.held_out and len(find_terms([text], demands.held_out)) > 1:
        yield "held-out words"


def names_of_assistants(text: str, exactly: bool = True) -> set[str]:
    """Those of well-known assistants and their makers that `text` names; in whatever case, if not `exactly`."""
    form = str if exactly else str.lower
    return {name for name in ASSISTANTS if _mentions(form(name), form(text))}


def _mentions(name: str, text: str) -> int:
    """How often `text` has this name, and not as a part of a word."""
    # Most texts name hardly any assistant: a plain search is a hundred times as fast as a pattern.
    return len(re.findall(rf"(?<!\w){re.escape(name)}(?!\w)", text)) if name in text else 0


def _speaks(text: str, words: list[str], language: str) -> bool:
    """Whether the text of these words is in this language, as far as can be told."""
    words = " ".join(words).lower().split(" ")
    found = _language(text, words)
    if found == language or found is None and len(words) < _ENOUGH_WORDS:
        return True
    if len(words) >= _ENOUGH_WORDS or found not in function_words():
        return False
    # "I" and "a" are words of several languages: it takes two that English, say, does not have.
    own = function_words().get(language, frozenset())
    foreign = set(words) & (function_words()[found] - own)
    return len(foreign) < 2 or len(foreign) <= len(own & set(words))


def language_of(text: str) -> str | None:
    """The language whose script or function words the text has most of; None if it has hardly any of one."""
    return _language(text, [word.lower() for word in _WORD.findall(text)])


def _language(text: str, words: list[str]) -> str | None:
    # Most texts are of ASCII letters, and those are counted at once.
    if 2 * len(text.encode("ascii", "ignore").translate(None, _NO_LETTERS)) <= len(text):
        letters: Counter[str] = Counter()
        for letter, count in Counter(filter(str.isalpha, text)).items():
            script = next((name for first, last, name in _SCRIPTS if first <= letter <= last), None)
            letters.update({script: count} if script else {})
        if not letters:
            return None
        [(script, count)] = letters.most_common(1)
        if script != "latin" and 2 * count >= letters.total():
            # Japanese is written in Chinese characters too, and never long without its own.
            return "ja" if script == "zh" and 20 * letters["ja"] > letters.total() else script
    counts = Counter(words)
    shares = {name: sum(map(counts.__getitem__, known)) / len(words) for name, known in function_words().items()}
    best = max(shares, key=shares.get)
    return best if shares[best] > 0.12 else None


@functools.cache
def function_words() -> dict[str, frozenset[str]]:
    """ISO 639-1 -> the commonest function words, in lower case, of languages in Latin letters."""
    table = tomllib.loads(pathlib.Path(__file__).with_name("languages.toml").read_text(encoding="utf-8"))
    return {language: frozenset(words.split()) for language, words in table.items()}


def _repeats(words: list[str]) -> bool:
    """Whether a third of all runs of eight words have been there before: a writer caught in a loop."""
    count = len(words) - 7
    if count <= 50:
        return False
    # There are at least as many different runs as different beginnings of two words, which suffice for most texts.
    if 3 * len(set(zip(words[:count], words[1:], strict=False))) >= 2 * count:
        return False
    return 3 * len(set(zip(*(words[start:] for start in range(8)), strict=False))) < 2 * count
