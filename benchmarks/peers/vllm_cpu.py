"""vLLM's CPU build as a side of `benchmarks.sample`: eager, in one process, with its prefix cache."""

import os

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": f"0-{os.cpu_count() - 1}",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip

import contextlib  # noqa: E402
import sys  # noqa: E402

import numpy as np  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

from benchmarks import turns  # noqa: E402


def main() -> None:
    options = turns.side_options()
    with contextlib.redirect_stdout(sys.stderr):  # of which the other end reads the times alone
        engine = LLM(
            options.model, dtype=options.dtype, enforce_eager=True, max_model_len=2304, skip_tokenizer_init=True,
            enable_prefix_caching=True, max_num_seqs=64, max_num_batched_tokens=2304, generation_config="vllm",
        )  # fmt: skip
    rng = np.random.default_rng(0)

    def run() -> None:
        asked = [{"prompt_token_ids": rng.integers(3, 49152, options.length).tolist()} for _ in range(options.prompts)]
        sampling = SamplingParams(
            n=options.samples, temperature=1.0, top_p=1.0, top_k=-1, max_tokens=options.new, ignore_eos=True,
            detokenize=False,
        )  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr):
            found = engine.generate(asked, sampling, use_tqdm=False)
        answers = [answer.token_ids for prompt in found for answer in prompt.outputs]
        assert [len(answer) for answer in answers] == [options.new] * options.prompts * options.samples

    turns.serve(run, lambda: {"memory": turns.process_memory()})


if __name__ == "__main__":
    main()
