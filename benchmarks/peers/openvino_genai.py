"""OpenVINO GenAI as a side of `benchmarks.sample`: continuous batching with its prefix cache."""

import os

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks import turns


def main() -> None:
    options = turns.side_options()
    scheduling = genai.SchedulerConfig()
    scheduling.cache_size, scheduling.max_num_seqs, scheduling.max_num_batched_tokens = 8, 256, 2048
    scheduling.enable_prefix_caching = scheduling.dynamic_split_fuse = True
    precision = {"float32": "f32", "bfloat16": "bf16"}[options.dtype]
    properties = {
        "INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision,
        "INFERENCE_NUM_THREADS": os.cpu_count(), "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    model = f"{options.model}/f16.gguf"
    pipeline = genai.ContinuousBatchingPipeline(model, genai.Tokenizer(model), scheduling, "CPU", **properties)
    rng = np.random.default_rng(0)

    def run() -> None:
        handles = []
        for number in range(options.prompts):
            ids = rng.integers(3, 49152, (1, options.length))
            config = genai.GenerationConfig()
            config.max_new_tokens, config.do_sample, config.temperature, config.top_p = options.new, True, 1.0, 1.0
            config.ignore_eos, config.num_return_sequences, config.rng_seed = True, options.samples, number
            config.stop_token_ids = set()
            handles.append(pipeline.add_request(number, ov.Tensor(ids), config))
        while pipeline.has_non_finished_requests():
            pipeline.step()
        answers = [answer.generated_ids for handle in handles for answer in handle.read_all()]
        assert [len(answer) for answer in answers] == [options.new] * options.prompts * options.samples

    turns.serve(run, lambda: {"memory": turns.process_memory()})


if __name__ == "__main__":
    main()
