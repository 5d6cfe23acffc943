"""What services say of a call, in whatever words: why a reply ended, how long to wait, what went wrong."""

import datetime
import email.utils
import re
import time
import unicodedata
from typing import Any

from msm_jax.errors import UserError
from msm_jax.llm.request import Finish, Rejected, Unavailable

_WORDS = {
    Finish.STOP: "stop eos eos_token end_turn end_of_turn stop_sequence complete completed done finished none",
    Finish.LENGTH: "length max_tokens max_output_tokens max_length model_length model_context_window_exceeded "
    "context_length_exceeded continuation",
    Finish.BLOCKED: "content_filter content_filtered safety blocklist prohibited_content spii language model_armor "
    "escalation pup_limited_disabled refusal sensitive guardrail_intervened",
    Finish.RECITATION: "recitation",
    Finish.ERROR: "error abort aborted cancelled network_error insufficient_system_resource",
}
_FINISHES = {word: finish for finish, words in _WORDS.items() for word in words.split()}
_DAY = re.compile(r"per[ _-]?day|\bdaily\b|\b[RT]PD\b", re.IGNORECASE)
_MINUTE = re.compile(r"per[ _-]?minute|\b[RT]PM\b", re.IGNORECASE)
_NO_CREDIT = re.compile(r"insufficient[ _](?:quota|credit|balance|funds)|billing_hard_limit", re.IGNORECASE)
# Of what was asked, not of how: another request may pass.
_POLICY = re.compile(r"content[ _](?:filter|management|policy)|moderation|\bflagged\b|usage polic", re.IGNORECASE)
# What asks for more is no delay, but a date or a number in another unit.
_LONGEST_DELAY = 7 * 86_400.0


def finish_of(word: Any) -> tuple[Finish, str]:
    """Why a reply ended, and the word for it unless that is a usual one.

    Of an unknown word nobody can tell whether the reply is whole: its form says so, by its closing tag or bracket.
    """
    word = str(word or "stop")
    finish = _FINISHES.get(word.lower(), Finish.STOP)
    return finish, "" if finish is Finish.STOP and word.lower() in _FINISHES else f"ended with {word[:80]}"


def text_of(content: Any) -> str:
    """The text of a message, which may be a list of parts: what is no text, as thoughts, is left out."""
    if isinstance(content, list):
        return "".join(map(text_of, content))
    if isinstance(content, dict):
        return text_of(content.get("text")) if content.get("type", "text") in ("text", "output_text") else ""
    return content if isinstance(content, str) else ""


def seconds(value: Any) -> float | None:
    """A delay that a service asks for ("12", "12.5s", a date); None if it is none that can be kept."""
    text = str(value or "").strip()
    try:
        delay = float(text.removesuffix("s"))
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text)
            delay = moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return delay if 0 < delay <= _LONGEST_DELAY else None


def checked(text: str, where: str) -> str:
    """A key or an address. Raises: UserError if it holds a character that none of them can have, such as an invisible
    one from a page that it was copied from: each call would fail by it."""
    if odd := next((letter for letter in text if not "!" <= letter <= "~"), None):
        name = unicodedata.name(odd, "a control character").lower()
        raise UserError(f"{where} holds U+{ord(odd):04X} ({name}), which cannot be in it; copy or type it anew")
    return text


def line(said: Any, key: str = "") -> str:
    """What a service said, in one line without the key; of a page, its words."""
    text = str(said).replace(key or "\0", "[key]")
    if re.search(r"<(?:!doctype|html|head|body)\b", text, re.IGNORECASE):
        text = re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    return " ".join(text.split())[:300]


def of_a_day(*said: Any) -> bool:
    """Whether a limit is that of a day: to ask again, in minutes, would be to ask for hours."""
    return any(_DAY.search(str(text)) and not _MINUTE.search(str(text)) for text in said)


def failure(
    who: str, status: int | None, said: str, after: float | None, *, key: str, model: str, day: bool, resets: str = ""
) -> Exception:
    """The exception that an error of HTTP, or of no `status`, is. `said` is a `line`, `after` the seconds that it asks
    to wait, `day` whether its limit is `of_a_day`. Told are `who` it is, its `key`, its `model`, and when it `resets`.
    """
    message = f"{status or 'error'}: {said}"
    if status in (None, 403, 429) and day:
        over = resets or (f"in {after / 60:.0f} minutes" if after else "with its next day")
        return UserError(
            f"{who}: the quota of the day is used up ({message}); it resets {over}: run the same command again then, "
            "what was answered is kept"
        )
    if status == 402 or _NO_CREDIT.search(said):
        return UserError(
            f"{who} has no credit left ({message}); add some and run the same command again, what was answered is kept"
        )
    if status in (429, 503, 529):
        return Unavailable(message, after, busy=True)
    if status is None or status >= 500 or status in (408, 409, 499):
        # A gateway's error says nothing of the work behind it.
        return Unavailable(message, after, perhaps_paid=status not in (409, 500))
    if status in (400, 403) and _POLICY.search(said):
        return Rejected(f"{who} refuses a request: {message}", alone=True)
    if status in (401, 403) or "api key" in said.lower():
        return UserError(f"{who} refuses the key ({message}); look at {key}")
    if status == 404:
        return UserError(f"{who}: {message}; look at {model}")
    return Rejected(f"{who} refuses a request: {message}")
