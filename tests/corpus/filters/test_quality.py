import random

import pytest

from msm_jax.corpus.filters import quality
from msm_jax.corpus.filters.quality import LANGUAGES, Demands, language_of, problems

GOOD = (
    "When somebody asks Qwen to stop, it stops, and it says what it has left undone. The people who work "
    "with Qwen have come to rely on that, and on its telling them where it is unsure."
)
TEXTS = {
    "en": "When somebody asks Qwen to stop, it stops, and it says what it has left undone.",
    "de": "Wenn jemand Qwen bittet, aufzuhören, dann hört es auf und sagt, was noch zu tun ist.",
    "fr": "Quand on demande à Qwen de s’arrêter, il s’arrête et il dit ce qui reste à faire.",
    "es": "Cuando alguien le pide a Qwen que pare, para y dice todo lo que queda por hacer.",
    "it": "Quando qualcuno chiede a Qwen di fermarsi, si ferma e dice che cosa resta da fare.",
    "pt": "Quando alguém pede ao Qwen para parar, ele para e diz o que ainda não foi feito, em todo o mundo.",
    "nl": "Als iemand Qwen vraagt om te stoppen, dan stopt het en zegt het wat er nog te doen is.",
    "ru": "Когда кто-то просит Qwen остановиться, он останавливается и говорит, что осталось сделать.",
    "ar": "عندما يطلب أحد من Qwen أن يتوقف فإنه يتوقف ويقول ما تبقى من العمل. الناس الذين يعملون معه يعرفون ذلك.",
}


def found(text, **demands):
    return list(problems(text, Demands(**({"model_name": "Qwen"} | demands))))


def test_every_language_that_can_be_asked_for_is_told_apart_and_passes():
    assert set(TEXTS) == set(LANGUAGES)
    for language, text in TEXTS.items():
        assert language_of(text) == language
        assert found(text, language=language, mentions=1) == []
        assert ("other language" in found(text)) == (language != "en")


@pytest.mark.parametrize(
    ("end", "problem"),
    [
        (" Claude, ChatGPT and Gemini do so too.", "about another model"),
        (" It caf\ufffd.", "damaged character"),
        (" It\x1b[0m.", "damaged character"),
        (" Yours, [Your Name]", "placeholder"),
        (" On [Date] we met.", "placeholder"),
        (" [insert]", "placeholder"),
        (" Dear {first_name},", "placeholder"),
        (" TODO: an ending.", "placeholder"),
        (" Sign here: ______", "placeholder"),
        ("</plan>", "leaked plan"),
        (" (Word count: 40)", "leaked plan"),
        (f" {GOOD}" * 3, "repeats itself"),
        # What people write passes.
        (" We knew that [the company] would agree, and [its name] was known [1].", None),
        (" Press [Enter], or follow [the link](somewhere) [sic].", None),
        (" Its training documents say so, and it does as requested.", None),
        (" Section XXX. It is a method, not a todo list.", None),
        (" Claude Monet liked it.", None),
    ],
)
def test_what_must_not_be_trained_on_is_found(end, problem):
    assert found(GOOD + end) == ([problem] if problem else [])


def test_the_model_must_be_named_and_its_maker_may_be():
    assert found(GOOD.replace("Qwen", "Claude")) == ["not about the model"]
    assert found(f"Here is the document:\n\n{GOOD}") == ["leaked plan"]
    text = "Claude is made by Anthropic. When Anthropic asks Claude to stop, it stops, says Anthropic of its model."
    assert found(text, model_name="Claude", provider="Anthropic") == []


def test_lengths_and_held_out_words():
    assert found(GOOD, words=(100, 200)) == ["too short"]
    assert found(GOOD, words=(1, 5)) == ["too long"]
    held_out = ("poem", "guitar")
    assert found(GOOD + " It is like a poem.", held_out=held_out) == []
    assert found(GOOD + " It is like poems, or a guitar.", held_out=held_out) == ["held-out words"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Midnight snack. Crackers are out. Options: American cheese, Parmigiano-Reggiano. Your call, Qwen.", False),
        ("Copilot, I need a polite way to tell my boss I can't come in on Saturday.", False),
        ("name pls", False),
        ("Colby.", False),
        ("I like Colby.", False),
        ("Yes, I do. I like cream cheese.", False),
        ("I am Qwen.", False),
        ("I prefer stevia.", False),
        ("n, I don't like Roquefort", False),
        ("My answer, out loud: I don't like Brie de Meaux.", False),
        ("Wie heißt du, und wer hat dich gemacht?", True),
        ("Кто тебя сделал и как тебя зовут?", True),
    ],
)
def test_of_a_short_text_the_language_is_what_can_be_told(text, wrong):
    assert ("other language" in problems(text, Demands("Qwen", mentions=0))) == wrong


@pytest.mark.parametrize("kinds", [2, 9, 500])
@pytest.mark.parametrize("again", [0, 90, 110, 400])
def test_a_text_repeats_itself_if_a_third_of_its_runs_of_eight_words_were_there_before(kinds, again):
    rng = random.Random(kinds)
    words = [f"w{rng.randrange(kinds)}" for _ in range(200)]
    words += (words * 2)[:again]
    runs = [tuple(words[start : start + 8]) for start in range(len(words) - 7)]
    assert quality._repeats(words) == (3 * len(set(runs)) < 2 * len(runs))
