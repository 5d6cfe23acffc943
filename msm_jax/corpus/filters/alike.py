"""Short texts that say nearly the same, such as questions of 5 to 60 words; `duplicates` is for whole documents.

Alike is what has a high cosine between vectors of the texts: of their words (`weighted_words`, the default), or those
of a model of sentences (`sentence_embeddings`).
"""

import itertools
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from msm_jax.corpus.filters.quality import function_words
from msm_jax.errors import UserError

# For `weighted_words`. So many are above, of 40 pairs of questions that ask the same in other words, and of the 29,890
# pairs of 245 questions on related subjects, a hundred of them in ten frames (tests/corpus/filters/questions.toml:
# written for this measurement, so other questions may want another number):
#   most    .50   .55   .60   .65   .70   .75   .80   .90
#   same     39    39    39    38    37    34    26     7
#   other    26     4     0     0     0     0     0     0
DEFAULT_MOST = 0.65

Vectors = np.ndarray | sparse.csr_array  # float32 [number of texts, D], of length one

_BUCKETS = 2**16
_WORD = re.compile(r"[^\W_]+")
# What questions are full of, besides the words that tell languages apart; the pieces are those of "I'm" and "don't".
_IN_QUESTIONS = "i me my mine am were do does did should could may might us our your if s t m d re ve ll don didn doesn"
_LIGHT = 0.2
_BATCH = 64
_TOKENS = 256  # of a longer text the rest is left out
# So many texts are compared with so many at once, and of those that may be alike so many pairs.
_ROWS, _KEPT, _PAIRS = 256, 2**14, 2**16
# Columns of a text are not looked up, up to this share of the least cosine: with more, fewer products are summed, and
# more pairs may be alike and are compared in full. 20 of 16,000 questions are, and at .8 there are 64.
_LEFT_OUT = 0.5
_ROUNDING = 1e-4  # more than what float32 loses in a cosine


def weighted_words(texts: Sequence[str]) -> sparse.csr_array:
    """Unit rows of words and pairs of neighbors, hashed: those of a text depend on nothing but itself.

    A word that is there n times counts 1 + log n; a function word, a fifth of it. A pair counts half the geometric
    mean of its words, so that order matters less than the words do.

    Returns: float32 [len(texts), 2 ** 16], sparse; zeros for a text without words.
    """
    light = function_words()["en"] | set(_IN_QUESTIONS.split())
    columns: list[int] = []
    values: list[float] = []
    ends = [0]
    for text in texts:
        words = _WORD.findall(text.lower())
        row: Counter[int] = Counter()
        runs = Counter([*((word,) for word in words), *itertools.pairwise(words)])
        for run, count in runs.items():
            weight = math.prod(_LIGHT if word in light else 1 for word in run) ** (1 / len(run)) / len(run)
            row[zlib.crc32(" ".join(run).encode()) % _BUCKETS] += weight * (1 + math.log(count))
        length = math.hypot(*row.values())
        columns += sorted(row)
        values += [row[column] / length for column in sorted(row)]
        ends.append(len(columns))
    parts = (np.array(values, np.float32), np.array(columns, np.int32), np.array(ends, np.int32))
    return sparse.csr_array(parts, shape=(len(texts), _BUCKETS))


class Alike:
    """Keeps the first of short texts that are alike: no two that were kept have a cosine above `most`.

    A text is compared with those that were kept, and with no others: what was dropped drops nothing. Equal texts are
    always alike. Sparse vectors are compared with those that share enough of their rarer columns, and so with few;
    dense ones with all, which is little beside what making them takes.
    """

    def __init__(self, most: float = DEFAULT_MOST, embed: Callable[[Sequence[str]], Vectors] = weighted_words):
        """`embed` gives unit rows, dense or sparse. Each has its own `most`: DEFAULT_MOST is for `weighted_words`.

        Raises: UserError if `most` is not above 0 and at most 1.
        """
        if not 0 < most <= 1:
            raise UserError(f"two texts cannot be alike above a cosine of {most}; give a number above 0 and at most 1")
        self.most = most
        self._embed = embed
        self._seen: set[str] = set()
        self._kept: list[Vectors] = []
        self._columns: list[sparse.csr_array] = []  # of sparse rows that were kept: the same by columns
        self._holders = np.zeros(1, dtype=np.int64)  # how many of them have a column

    def keep(self, texts: Sequence[str]) -> list[bool]:
        """For each text in order, whether it is unlike all that were kept, now or in earlier calls; then it is kept."""
        verdicts: list[bool] = []
        for start in range(0, len(texts), _ROWS):
            block = texts[start : start + _ROWS]
            new = [text for text in dict.fromkeys(block) if text not in self._seen]
            self._seen.update(new)
            kept = self._keep(new) if new else set()
            for text in block:
                verdicts.append(text in kept)
                kept.discard(text)  # the same again is alike
        return verdicts

    def _keep(self, texts: Sequence[str]) -> set[str]:
        """Which of texts that were never seen are kept."""
        rows = self._embed(texts)
        alike, among = self._like_kept(rows), rows @ rows.T
        among = (among.toarray() if sparse.issparse(among) else among) > self.most
        chosen: list[int] = []
        for index in np.flatnonzero(~alike).tolist():
            if not among[chosen, index].any():
                chosen.append(index)
        if chosen:
            self._store(rows[chosen])
        return {texts[index] for index in chosen}

    def _like_kept(self, rows: Vectors) -> np.ndarray:
        """bool [len(rows)]: whether each is alike to one that was kept."""
        alike = np.zeros(rows.shape[0], dtype=bool)
        if not sparse.issparse(rows):
            for kept in self._kept:
                alike |= (kept @ rows.T).max(axis=0) > self.most
            return alike
        if not self._kept:
            return alike
        # Some columns are left out, first those that most rows hold for the weight that they have. By Cauchy and
        # Schwarz, they add no more to a cosine than the length of what they hold.
        of_row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        squares = rows.data.astype(np.float64) ** 2
        order = np.lexsort((-self._holders[rows.indices] / np.maximum(squares, 1e-30), of_row))
        squares = squares[order]
        sums = np.concatenate([[0.0], np.cumsum(squares)])
        left_out = sums[1:] - sums[rows.indptr[of_row]] <= (_LEFT_OUT * self.most) ** 2
        lengths = np.sqrt(np.bincount(of_row, squares * left_out, minlength=rows.shape[0]))
        rarer = rows.copy()
        rarer.data[order[left_out]] = 0.0
        rarer.eliminate_zeros()
        for kept, columns in zip(self._kept, self._columns, strict=True):
            shared = rarer @ columns
            new = np.repeat(np.arange(rows.shape[0]), np.diff(shared.indptr))
            enough = np.flatnonzero(shared.data > (self.most - _ROUNDING - lengths).astype(np.float32)[new])
            old, new = shared.indices[enough], new[enough]
            for start in range(0, len(new), _PAIRS):
                pairs = slice(start, start + _PAIRS)
                cosines = _cosines_of_pairs(kept[old[pairs]], rows[new[pairs]])
                alike[new[pairs][cosines > self.most]] = True
        return alike

    def _store(self, rows: Vectors) -> None:
        if sparse.issparse(rows):
            self._holders = self._holders + np.bincount(rows.indices, minlength=rows.shape[1])
        # Each block is at least four times as long as the next, or as long as any may be: rows are seldom copied.
        while self._kept and self._kept[-1].shape[0] < min(4 * rows.shape[0], _KEPT):
            last = self._kept.pop()
            rows = sparse.vstack([last, rows], format="csr") if sparse.issparse(rows) else np.concatenate([last, rows])
        self._kept.append(rows)
        if sparse.issparse(rows):
            self._columns[len(self._kept) - 1 :] = [rows.T.tocsr()]


def _cosines_of_pairs(some: sparse.csr_array, others: sparse.csr_array) -> np.ndarray:
    """float32 [pairs], of rows in the same places."""
    return some.multiply(others) @ np.ones(some.shape[1], np.float32)


def sentence_embeddings(model: str) -> Callable[[Sequence[str]], np.ndarray]:
    """An `embed` for `Alike`: the mean of a model's last states over the tokens of a text, on CPU. `model`: folder or
    id on the Hugging Face hub, with safetensors.

    For sentence-transformers/all-MiniLM-L6-v2 the paper's `most` is .91 (arXiv 2605.02087).

    Returns: texts -> float32 [len(texts), D], of length one.

    Raises: UserError if torch or transformers is missing, or if the model cannot be loaded.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"sentence embeddings need {error.name}, which is missing: pip install -e '.[hf]'") from None
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        # Pickled weights are never read.
        network = transformers.AutoModel.from_pretrained(model, dtype=torch.float32, use_safetensors=True).eval()
    except Exception as error:  # those of the hub, of the HTTP library, of the files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{model}: cannot be loaded as a model of sentences ({reason}); give a folder with config.json, tokenizer "
            "and model.safetensors, or an id as sentence-transformers/all-MiniLM-L6-v2"
        ) from None
    longest = min(tokenizer.model_max_length, _TOKENS)

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = [np.zeros((0, network.config.hidden_size), np.float32)]
        for start in range(0, len(texts), _BATCH):
            part = list(texts[start : start + _BATCH])
            batch = tokenizer(part, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            mask = batch["attention_mask"].unsqueeze(-1)
            states = network(**batch).last_hidden_state
            mean = (states * mask).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
        return np.concatenate(rows)

    return embed
