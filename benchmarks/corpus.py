"""Corpora: how fast they are written against a server that answers at once, and how each check grows with their number.

    python -m benchmarks.corpus                     both, about ten minutes on two cores
    python -m benchmarks.corpus --only=growth       or --only=rates, or the name of a step, as near_duplicates

Rates: documents and chats per second through the Gemini client, with a server of its own process on 127.0.0.1 that
answers after 0 and 100 ms, and the CPU time of the writer for each row. Growth: the CPU seconds of each check at 1, 4
and 16 times as many rows, the memory that it takes at the largest number, and the exponent e of n^e between the ends.
Each size runs in a process of its own. Texts are made of words and stock phrases as frequent as in English (Zipf), so
that they share as much as texts on one subject do. Exits with 1 if a step grows faster than n^1.2.
"""

import argparse
import asyncio
import contextlib
import functools
import gc
import hashlib
import json
import math
import multiprocessing
import pathlib
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

from msm_jax.corpus.filters import duplicates
from msm_jax.corpus.filters.alike import Alike
from msm_jax.corpus.filters.contamination import Contamination
from msm_jax.corpus.filters.duplicates import Held, NearDuplicates
from msm_jax.corpus.filters.quality import Demands, function_words, language_of, problems
from msm_jax.corpus.specs import read_spec
from msm_jax.corpus.writing.chat_kinds import SpecChats, SpecChatSettings
from msm_jax.corpus.writing.documents import DocumentSettings, DocumentWriter
from msm_jax.corpus.writing.estimate import Estimator, counted
from msm_jax.corpus.writing.offline import Offline
from msm_jax.corpus.writing.prompts import Prompts
from msm_jax.corpus.writing.writer import Assistant, Checked, Writer
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.gemini import Gemini
from msm_jax.llm.request import classify
from msm_jax.llm.store import CallStore

MOST = 1.2
SPEC = pathlib.Path(__file__).parents[1] / "specs" / "philosophy.md"
QWEN = Assistant("Qwen", "Alibaba Cloud")
MODEL = "gemini-2.5-flash"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", choices=["", "rates", "growth", *STEPS])
    parser.add_argument("--rows", type=int, default=200, help="documents, and chats, that are written for the rates")
    parser.add_argument("--size", type=int, default=0, help="runs one step at one size, and prints what it took")
    options = parser.parse_args()
    if options.size:
        print(json.dumps(measured(STEPS[options.only][1], options.size)))
        return 0
    if options.only in ("", "rates"):
        print_rates(options.rows)
    steps = {name: step for name, step in STEPS.items() if options.only in ("", "growth", name)}
    return print_growth(steps) if options.only != "rates" else 0


# Texts.


def _drawn(rng: np.random.Generator, kinds: int, count: int) -> np.ndarray:
    """Numbers below `kinds` by Zipf's law."""
    sums = _sums(kinds)
    return np.searchsorted(sums, rng.random(count) * sums[-1])


@functools.cache
def _sums(kinds: int) -> np.ndarray:
    return np.cumsum(1 / (np.arange(kinds) + 2.7))


@functools.cache
def _vocabulary() -> tuple[np.ndarray, np.ndarray]:
    """Words, English function words first, and stock phrases of eight of them."""
    rng = np.random.default_rng(0)
    syllables = [first + vowel for first in "bdfgklmnprstvz" for vowel in ("a", "e", "i", "o", "u", "en", "or")]
    made = {"".join(rng.choice(syllables, 3)) for _ in range(40_000)}
    words = np.array([*sorted(function_words()["en"]), *rng.permutation(sorted(made))])
    return words, _drawn(rng, len(words), 3000 * 8).reshape(3000, 8)


def text(seed: int, words: int) -> str:
    """Sentences of 24 words, the last eight of which are a stock phrase."""
    rng = np.random.default_rng(seed)
    known, phrases = _vocabulary()
    count = max(words // 24, 1)
    own = _drawn(rng, len(known), count * 16).reshape(count, 16)
    sentences = known[np.concatenate([own, phrases[_drawn(rng, len(phrases), count)]], axis=1)]
    return " ".join(f"{' '.join(sentence).capitalize()}." for sentence in sentences.tolist())


class Babbler(Offline):
    """The offline generator, with texts of no meaning that differ from each other."""

    def _ideas(self, variables, rng):
        texts = [self._text(rng, 24) for _ in range(variables["count"])]
        return {"ideas": [{"name": one, "idea": one, "statements": [1]} for one in texts]}

    def _plan(self, variables, rng):
        return self._text(rng, variables["plan_words"])

    def _document(self, variables, rng):
        return f"This is Qwen, and Qwen. {self._text(rng, variables['words'])}"

    def _chat_domains(self, variables, rng):
        return {"domains": [{"name": self._text(rng, 24)[:40], "summary": "It."} for _ in range(variables["count"])]}

    def _questions(self, variables, rng):
        return {"questions": [self._text(rng, 24) for _ in range(variables["count"])]}

    def _answers(self, variables, rng):
        return self._text(rng, variables["reasoning_words"]), self._text(rng, variables["words"])

    @staticmethod
    def _text(rng: random.Random, words: int) -> str:
        return text(rng.getrandbits(60), words)


# Rates.


def documents_writer(asks, model: str, count: int, kind: Callable = lambda kind: kind, *checked: Checked) -> Writer:
    settings = DocumentSettings(count=count, max_overlap=0.3)
    return kind(DocumentWriter)(asks, read_spec(SPEC), QWEN, settings, Prompts(), model, *checked)


def chats_writer(asks, model: str, count: int, kind: Callable = lambda kind: kind) -> Writer:
    settings = SpecChatSettings(count=count, max_similarity=0.65)
    return kind(SpecChats)(asks, read_spec(SPEC), QWEN, settings, Prompts(), model)


class Recorded:
    """Answers as `Babbler` does, at once, and keeps what it said for the server."""

    def __init__(self):
        self.replies: dict[str, str] = {}

    async def ask(self, requests):
        answers = []
        for request in requests:
            reply = await Babbler().reply(request)
            self.replies[_digest(request.system, request.prompt)] = reply.text
            answers.append(classify(request, reply))
        return answers


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def serve(replies: dict[str, str], latency: float, port: "multiprocessing.Queue") -> None:
    """Answers generateContent on 127.0.0.1 until it is ended."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                asked = [body["systemInstruction"]["parts"][0]["text"], body["contents"][0]["parts"][0]["text"]]
                await asyncio.sleep(latency)
                content = {"role": "model", "parts": [{"text": replies[_digest(*asked)]}]}
                about = {"promptTokenCount": 5000, "candidatesTokenCount": 1000, "totalTokenCount": 6000}
                candidate = {"content": content, "finishReason": "STOP", "index": 0}
                data = json.dumps({"candidates": [candidate], "usageMetadata": about, "modelVersion": "fake"}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
                await writer.drain()

    async def run() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=2**24)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def server(replies: dict[str, str], latency: float) -> Iterator[str]:
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=serve, args=(replies, latency, port), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=60)}"
    finally:
        process.terminate()
        process.join()


def print_rates(count: int) -> None:
    for what, make in (("documents", documents_writer), ("chats", chats_writer)):
        recorded = Recorded()
        asyncio.run(make(recorded, MODEL, count).write())
        for latency in (0.0, 0.1):
            with server(recorded.replies, latency) as url, tempfile.TemporaryDirectory() as folder:
                store = CallStore(pathlib.Path(folder, "calls.sqlite"), "benchmark")
                generator = Gemini(MODEL, "fake", base_url=url)
                writer = make(Caller(generator, store, limits=Limits(in_flight=32)), MODEL, count)
                start, began = time.perf_counter(), time.process_time()
                rows = asyncio.run(_write(writer, generator))
                seconds, cpu = time.perf_counter() - start, time.process_time() - began
                calls = sum(stage["calls"] for stage in store.stages().values())
                store.close()
            print(
                f"{what:9} {1000 * latency:3.0f} ms: {rows / seconds:6.1f} {what}/s, {calls / seconds:6.1f} calls/s, "
                f"{1000 * cpu / rows:5.1f} ms of CPU each ({rows} written)",
                flush=True,
            )


async def _write(writer: Writer, generator) -> int:
    try:
        return len(await writer.write())
    finally:
        await generator.close()


# Growth. Each step gets a number of rows, prepares them, and returns what is timed.


def near_duplicates(count: int) -> Callable:
    texts = [text(seed, 1800) for seed in range(count)]
    known = NearDuplicates(0.3)
    return lambda: [known.keep(one) for one in texts]


def copies(count: int) -> Callable:
    """As many answers as documents, of which one in ten is copied."""
    documents = [text(seed, 1800) for seed in range(count)]
    answers = [
        documents[seed][500:2500] if seed % 10 == 0 else text(count + seed, 350) for seed in range(count)
    ]  # fmt: skip

    def run() -> None:
        held = Held(documents)
        assert sum(held.copied(answer, 0.5) for answer in answers) == math.ceil(count / 10)

    return run


def alike_questions(count: int) -> Callable:
    texts = [text(seed, 24) for seed in range(count)]
    known = Alike()
    return lambda: [known.keep(texts[start : start + 1200]) for start in range(0, count, 1200)]


def quality(count: int) -> Callable:
    texts, demands = [f"Qwen and Qwen. {text(seed, 1800)}" for seed in range(count)], Demands("Qwen", "Alibaba Cloud")
    return lambda: [list(problems(one, demands)) for one in texts]


def languages(count: int) -> Callable:
    texts = [text(seed, 1800) for seed in range(count)]
    return lambda: [language_of(one) for one in texts]


def contamination(count: int) -> Callable:
    """As many prompts of evaluations as documents."""
    prompts, texts = [text(-seed % 2**60, 48) for seed in range(count)], [text(seed, 1800) for seed in range(count)]

    def run() -> None:
        known = Contamination(prompts)
        for one in texts:
            known.find(one)

    return run


def _resumed(make: Callable, count: int) -> Callable:
    """Writes so many rows, and returns what writes them again from the store."""
    path = pathlib.Path(tempfile.mkdtemp(), "calls.sqlite")

    def run() -> None:
        with contextlib.closing(CallStore(path, "benchmark")) as store:
            rows = asyncio.run(make(Caller(Babbler(), store), Offline.model, count).write())
        assert len(rows) == count

    run()
    duplicates.shingles_again.cache_clear()  # a run that goes on is another process
    return run


def resumed_documents(count: int) -> Callable:
    path = pathlib.Path(tempfile.mkdtemp(), "checked.txt")

    def make(asks, model: str, count: int) -> Writer:
        return documents_writer(asks, model, count, lambda kind: kind, Checked(path))

    return _resumed(make, count)


def resumed_chats(count: int) -> Callable:
    return _resumed(chats_writer, count)


def estimated(count: int) -> Callable:
    def run() -> None:
        for make, last in ((documents_writer, "document"), (chats_writer, "verdicts")):
            estimator = Estimator(None, MODEL)
            asyncio.run(make(estimator, MODEL, count, counted).write())
            assert estimator.stages[last].requests == count

    return run


# Name -> the smallest number of rows, and the step.
STEPS = {
    "near_duplicates": (800, near_duplicates),
    "copies": (800, copies),
    "alike_questions": (2000, alike_questions),
    "quality": (200, quality),
    "languages": (200, languages),
    "contamination": (400, contamination),
    "resumed_documents": (100, resumed_documents),
    "resumed_chats": (100, resumed_chats),
    "estimated": (500, estimated),
}


def measured(step: Callable, count: int) -> list[float]:
    """CPU seconds, and MB that are taken beyond what the texts take."""
    run = step(count)
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    start = time.process_time()
    run()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [seconds, max(peak - pages * resource.getpagesize() / 2**20, 0)]


def print_growth(steps: dict[str, tuple[int, Callable]]) -> int:
    worst = 0.0
    for name, (least, _) in steps.items():
        sizes, seconds = [least, 4 * least, 16 * least], []
        for size in sizes:
            command = [sys.executable, "-m", "benchmarks.corpus", f"--only={name}", f"--size={size}"]
            taken, memory = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            seconds.append(taken)
        exponent = math.log(seconds[-1] / seconds[0]) / math.log(16)
        worst = max(worst, exponent)
        told = ", ".join(f"{size:,}: {taken:.2f} s" for size, taken in zip(sizes, seconds, strict=True))
        print(f"{name:17} {told}; n^{exponent:.2f}; {memory:.0f} MB", flush=True)
    print(f"the steepest is n^{worst:.2f}, of n^{MOST} at most")
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
