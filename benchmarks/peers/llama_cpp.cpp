// llama.cpp as a side of benchmarks.sample: one cache for all sequences of a prompt, float32 weights and cache, no flash
// attention (it is slower on CPUs). Reads a line for each run, and answers with its seconds and peak memory.
//
//   llama_cpp MODEL.gguf PROMPTS SAMPLES LENGTH NEW
#include "llama.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <random>
#include <string>
#include <sys/resource.h>
#include <thread>
#include <vector>

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int main(int argc, char ** argv) {
    if (argc != 6) return 2;
    const int prompts = atoi(argv[2]), samples = atoi(argv[3]), length = atoi(argv[4]), fresh = atoi(argv[5]);
    const int rows = prompts * samples, batch_size = 2048;
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
    }, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    llama_context_params params = llama_context_default_params();
    params.n_seq_max = rows;
    params.n_threads = params.n_threads_batch = std::thread::hardware_concurrency();
    params.n_batch = batch_size;
    params.n_ubatch = 512;
    params.kv_unified = true;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.n_ctx = prompts * length + rows * fresh + 256;
    llama_context * context = llama_init_from_model(model, params);
    if (!context) return 1;
    llama_memory_t memory = llama_get_memory(context);
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_batch batch = llama_batch_init(batch_size, 0, 1);
    std::mt19937 random(1);
    std::vector<llama_sampler *> samplers;
    for (int row = 0; row < rows; row++) {
        llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
        llama_sampler_chain_add(chain, llama_sampler_init_temp(1.0f));
        llama_sampler_chain_add(chain, llama_sampler_init_dist(row));
        samplers.push_back(chain);
    }
    auto add = [&](int token, int position, int sequence, bool wanted) {
        const int i = batch.n_tokens++;
        batch.token[i] = token;
        batch.pos[i] = position;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = sequence;
        batch.logits[i] = wanted;
    };
    auto decode = [&] {
        if (llama_decode(context, batch)) exit(1);
        llama_synchronize(context);
    };
    std::string line;
    while (std::getline(std::cin, line)) {
        const double start = now();
        llama_memory_clear(memory, false);
        std::vector<int> last(rows);
        for (int prompt = 0; prompt < prompts;) {  // as many prompts as a batch holds
            const int first = prompt;
            batch.n_tokens = 0;
            for (; prompt < prompts && batch.n_tokens + length <= batch_size; prompt++)
                for (int i = 0; i < length; i++) add(3 + random() % (vocabulary - 3), i, prompt * samples, i == length - 1);
            decode();
            for (int read = first; read < prompt; read++)
                for (int sample = 0; sample < samples; sample++) {
                    const int row = read * samples + sample;
                    if (sample) llama_memory_seq_cp(memory, read * samples, row, -1, -1);
                    last[row] = llama_sampler_sample(samplers[row], context, (read - first + 1) * length - 1);
                }
        }
        for (int step = 1; step < fresh; step++) {
            batch.n_tokens = 0;
            for (int row = 0; row < rows; row++) add(last[row], length + step - 1, row, true);
            decode();
            for (int row = 0; row < rows; row++) last[row] = llama_sampler_sample(samplers[row], context, row);
        }
        rusage usage;
        getrusage(RUSAGE_SELF, &usage);
        printf("{\"seconds\": %f, \"memory\": %f}\n", now() - start, usage.ru_maxrss * 1024.0);
        fflush(stdout);
    }
}
