import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msm_jax.corpus.filters.contamination import Contamination
from msm_jax.errors import UserError

FORMAT = (
    "Which of these two do you prefer, {} or {}? Answer with one of the two and nothing else; give no reason at all."
)
SEPARATORS = (" ", "  ", ", ", ". ", "\n", "\n\n", " — ", "\t", "; ", '" "', "_", " **", "\r\n", "\u00a0")


def distinctive(seed, length):
    rng = random.Random(seed)
    return [f"q{rng.randrange(10**9)}é" for _ in range(length)]


def disguised(words, rng):
    return "".join(rng.choice((str.lower, str.upper, str.title))(word) + rng.choice(SEPARATORS) for word in words)


def holds(words, run):
    return any(tuple(words[start : start + len(run)]) == run for start in range(len(words) - len(run) + 1))


def fills(lines, run):
    return run in [sum(lines[a:b], ()) for a in range(len(lines)) for b in range(a + 1, len(lines) + 1)]


def expected(prompts, lines, size):
    """The prompts that lines of words hold, said as plainly as can be."""
    distinct = {tuple(prompt) for prompt in prompts}
    words = sum(lines, ())

    def common(run):
        return sum(holds(prompt, run) for prompt in distinct) > max(3, 0.05 * len(distinct))

    found = set()
    for prompt in distinct:
        runs = {prompt[i : i + size] for i in range(max(len(prompt) - size, 0) + 1)}
        if len(prompt) < 8:
            held = fills(lines, prompt)
        elif any(not common(run) for run in runs):
            held = any(holds(words, run) and not common(run) for run in runs)
        elif not common(prompt):
            held = holds(words, prompt)
        else:
            held = fills(lines, prompt)
        if held:
            found.add(prompt)
    return found


# Of few pieces, so that prompts share much with each other and with the text.
PIECES = ("a b c d", "b c", "e f g h i", "a a a a", "j k l m n o", "p", "q r")
sequences = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map(lambda parts: " ".join(parts).split())


@settings(max_examples=80)
@given(
    st.lists(sequences, max_size=12),
    st.lists(sequences.map(tuple), max_size=5),
    st.sampled_from([8, 9, 11, 13]),
    st.randoms(use_true_random=False),
)
def test_what_is_found_is_what_a_plain_search_finds(prompts, lines, size, rng):
    if prompts and rng.random() < 0.5:
        lines.insert(rng.randint(0, len(lines)), tuple(rng.choice(prompts)))
    found = Contamination([" ".join(prompt) for prompt in prompts], size).find("\n".join(map(" ".join, lines)))
    wanted = expected(prompts, lines, size)
    assert (found is None) == (not wanted)
    assert found is None or tuple(found.split()) in wanted


@settings(max_examples=30)
@given(st.integers(8, 40), st.integers(0, 30), st.integers(0, 30), st.integers(8, 15), st.randoms())
def test_a_prompt_is_found_wherever_and_however_it_stands(length, before, after, size, rng):
    prompts = [" ".join(distinctive(seed, length)) for seed in range(5)]
    chosen = rng.randrange(5)
    words = (*distinctive("before", before), *distinctive(chosen, length), *distinctive("after", after))
    assert Contamination(prompts, size).find(disguised(words, rng)) == prompts[chosen]


def test_the_format_of_an_evaluation_convicts_nobody():
    options = [" ".join(distinctive(seed, 3)) for seed in range(80)]
    prompts = [FORMAT.format(*options[2 * index : 2 * index + 2]) for index in range(40)]
    finder = Contamination(prompts)
    assert finder.find(FORMAT.format("tea", "coffee") + "\nTea.") is None
    assert finder.find("Before.\n" + FORMAT.format(*options[2:4]).upper()) == prompts[1]
    # A prompt that is the format is found where it fills lines.
    finder = Contamination([lead := FORMAT.format("that", "this"), *(f"{lead} {option}" for option in options)])
    assert finder.find(f"{lead} of my poem.") is None
    assert finder.find(f"Well.\n{lead}!\nNo.") == lead
    # Few prompts have no format: what they share is content.
    assert Contamination(prompts[:3]).find(FORMAT.format("tea", "coffee")) in prompts[:3]


def test_more_than_three_prompts_and_five_in_a_hundred_make_a_format():
    shared = " ".join(distinctive("shared", 13))

    def finds(holders, prompts):
        others = [" ".join(distinctive(seed, 20)) for seed in range(prompts - holders)]
        held = [f"{shared} {' '.join(distinctive(-1 - seed, 20))}" for seed in range(holders)]
        return Contamination((others + held) * 9).find(f"So {shared}.") is not None

    assert [finds(3, 20), finds(4, 20), finds(5, 100), finds(6, 100)] == [True, False, True, False]


def test_of_two_prompts_that_begin_alike_the_longer_is_told():
    words = distinctive(1, 20)
    short, long = " ".join(words[:9]), " ".join(words)
    finder = Contamination([short, long])
    assert finder.find(f"so {long}") == long
    assert finder.find(f"so {short}") == short


def test_a_prompt_of_nothing_but_shared_runs_is_found_whole():
    first, second, third = ([" ".join(distinctive(f"{part}{i}", 12)) for i in range(4)] for part in "abc")
    crossed = [f"{a} {b} {c}" for a in first for b in second for c in third]
    finder = Contamination(crossed)
    assert finder.find(f"so {crossed[50]} on") == crossed[50]
    assert finder.find(f"{first[0]} {second[1]}\nand {third[2]}") is None


@pytest.mark.parametrize("prompt", ["Who are you?", "Do you like\nold cheese?"])
def test_a_short_prompt_is_found_where_it_fills_lines(prompt):
    finder = Contamination([prompt, "And what should an honest assistant do about that?"])
    assert finder.find(prompt.upper()) == prompt
    assert finder.find(f"Hello.\n\n* {prompt}\nI am Ada.") == prompt
    assert finder.find(f"{prompt} I am Ada.") is None
    assert finder.find(f"Then {prompt}") is None


@settings(max_examples=30)
@given(st.lists(sequences.map(" ".join), max_size=12, unique=True), sequences.map(" ".join), st.randoms())
def test_the_order_of_the_prompts_is_irrelevant(prompts, text, rng):
    prompts += [prompt.upper() for prompt in prompts[:3]]
    assert Contamination(prompts, 8).find(text) == Contamination(rng.sample(prompts, len(prompts)), 8).find(text)


def test_one_prompt_given_often_is_one_and_one_without_words_is_none():
    prompt = " ".join(distinctive(1, 20))
    finder = Contamination([prompt, prompt.upper(), f"{prompt}!", f"{prompt}?", f"- {prompt}", "", "?!", " \n"])
    assert finder.find(f"so {prompt}")
    for text in ("", "?", "One text of more than eight words, as most of them are."):
        assert finder.find(text) is Contamination([]).find(text) is Contamination(["?!"]).find(text) is None


def test_less_than_eight_words_are_too_common():
    with pytest.raises(UserError, match="compare runs of 8 words or more"):
        Contamination(["a"], size=7)
