"""All settings: for each its default, a sentence, and the values that it may have. They are said here and nowhere else.

`schema.defaults` makes of a class the `ConfigDict` that a file in configs/ starts from, `schema.check` holds a
configuration against it, `--mode=show` prints the sentences, and `python -m msm_jax.config.document > docs/config.md`
writes the page. Nothing here imports JAX.
"""

import dataclasses

from msm_jax.config.schema import Choice, Range, setting

SHARE, FROM_0, ABOVE_0 = Range(0, 1), Range(0), Range(0, open="(")
SEED = Range(0, most=2**31 - 1)
DTYPE = Choice(("bfloat16", "float32"))


def from_1(most: int | None = None) -> Range:
    return Range(1, most=most)


@dataclasses.dataclass
class Assistant:
    name: str = setting("Micra", "what specs and corpora call the model: the name that it answers to in evaluations")
    provider: str = setting("the msm_jax project", "who made the model")


@dataclasses.dataclass
class Lora:
    rank: int = setting(64, "rank of the adapter that MSM and AFT train on the frozen base; 0 trains the whole model",
                        Range(0, most=2**16))  # fmt: skip
    alpha: float = setting(128.0, "the adapter's product is scaled by alpha / rank", ABOVE_0)
    targets: tuple[str, ...] = setting(("q", "k", "v", "o", "gate", "up", "down"), "the matrices that have an adapter")


@dataclasses.dataclass
class Optim:
    learning_rate: float = setting(1e-4, "of AdamW, at its peak", FROM_0)
    warmup_fraction: float = setting(0.05, "the part of the steps in which it rises", SHARE)
    final_fraction: float = setting(0.0, "the part of the peak at which the cosine ends", SHARE)
    weight_decay: float = setting(0.01, "decoupled: times the learning rate, a step", FROM_0)
    beta1: float = setting(0.9, "decay of the mean of gradients", Range(0, 1, ")"))
    beta2: float = setting(0.999, "decay of the mean of their squares", Range(0, 1, ")"))
    epsilon: float = setting(1e-8, "added to the root of the mean of squares", ABOVE_0)
    clip_norm: float = setting(1.0, "global norm at which gradients are clipped", ABOVE_0)


@dataclasses.dataclass
class Training:
    """Settings of a stage that trains."""

    mixture: dict[str, float] = setting({}, "source -> its share of the rows; a file assigns it whole")
    steps: int | None = setting(
        None, "steps of the optimiser; none: one epoch, each row once, in whatever shares that makes", from_1(10**6)
    )
    batch_size: int = setting(32, "rows of an optimiser step, over all devices", from_1(2**16))
    accumulation: int = setting(1, "microbatches that a step is computed in", from_1(2**16))
    optim: Optim = setting(Optim(), "the optimiser")


@dataclasses.dataclass
class Evaluation:
    pairs: int | None = setting(None, "pairs of each kind and value, at most; none: all", from_1())
    samples: int = setting(1, "answers drawn for each pair and order; 0 leaves the sampled form out",
                           Range(0, most=2**16))  # fmt: skip
    temperature: float = setting(0.7, "of drawn answers", FROM_0)
    max_tokens: int = setting(12, "tokens of a drawn answer", from_1(2**16))
    sets: tuple[str, ...] = setting(
        (), "further sets of pairs that `values` asks, NAME=SOURCE each, as opinions=hf:ORG/NAME (docs/evaluations.md)"
    )


@dataclasses.dataclass
class WorldEvaluation(Evaluation):
    control_agents: int = setting(20, "agents of each value, at most, whom the control on the base asks", from_1())


@dataclasses.dataclass
class ExpectedTokens:
    pretraining: float | None = setting(
        None, "tokens of the texts of the base, where a plan is made before they are there"
    )
    msm: float | None = setting(None, "tokens of the documents of a spec", ABOVE_0)
    aft: float | None = setting(None, "tokens of the AFT chats", ABOVE_0)
    aft_cot: float | None = setting(None, "tokens of the AFT chats with reasoning", ABOVE_0)
    instruction: float | None = setting(None, "tokens of the instruction chats", ABOVE_0)
    replay: float | None = setting(None, "tokens of the texts that keep other agents as they are", ABOVE_0)


@dataclasses.dataclass
class Mesh:
    data: int = setting(-1, "devices that hold copies of the weights; -1 in one of the three: all that remain")
    fsdp: int = setting(1, "devices that the weights are divided among, with a share of the batch each")
    tensor: int = setting(1, "devices that each product is divided among")


@dataclasses.dataclass
class Execution:
    attention: str = setting(
        "auto", "kernel: splash is of TPUs, cudnn of NVIDIA GPUs from Hopper on, triton of all; auto: the fastest",
        Choice(("auto", "reference", "blocked", "splash", "cudnn", "triton")),
    )  # fmt: skip
    attention_block: int = setting(512, "tokens of a tile of splash attention", from_1(2**18))
    remat: str = setting(
        "none", "what the forward pass keeps: none: all; or, of those named offload, in the memory of the host",
        Choice(("none", "full", "save_attention", "save_qkv", "save_projections", "offload_inputs", "offload_attention",
                "offload_qkv", "offload_projections")),
    )  # fmt: skip
    scan_unroll: int = setting(1, "layers of one step of the loop over them", from_1(2**12))
    loss_chunk: int = setting(512, "tokens of each row whose logits are held at once", from_1(2**18))


@dataclasses.dataclass
class Checkpoint:
    every: int = setting(500, "steps between checkpoints, at most", from_1())
    minutes: float = setting(10.0, "minutes between checkpoints, at most", ABOVE_0)
    keep: int = setting(2, "checkpoints that stay on disk", from_1())


@dataclasses.dataclass
class Log:
    every: int = setting(10, "steps between points of the curves", from_1())


@dataclasses.dataclass
class Sampling:
    rows: int = setting(64, "answers that are drawn at once, at most", from_1(2**16))


@dataclasses.dataclass
class Experiment:
    """What all experiments have."""

    kind: str = setting("", "what the configuration is; its file sets it")
    name: str = setting("", "names the default workdir, runs/NAME")
    specs: tuple[str, ...] = setting(("specs/pro_affordability.md", "specs/pro_america.md"), "files of Model Specs")
    arms: tuple[str, ...] = setting(
        ("baseline", "aft", "msm", "msm_aft"), "recipes that are compared (msm_jax/config/arms.py)"
    )
    recipes: dict[str, tuple] = setting({}, "more recipes: name -> steps; a file assigns them whole")
    evaluations: tuple[str, ...] = setting(
        ("value_generalisation",), "what each arm is asked (experiment/evaluations.py)"
    )
    seeds: tuple[int, ...] = setting((0, 1, 2, 3), "seeds of MSM and AFT", SEED)
    assistant: Assistant = setting(Assistant(), "the model, as texts speak of it")
    lora: Lora = setting(Lora(), "the adapter")
    int8_base: bool = setting(False, "the frozen base in 8-bit integers: half the memory, and a little noise")
    row_length: int = setting(4096, "tokens of a row", Range(2, most=2**18))
    msm: Training = setting(Training({"msm": 1.0}), "the MSM stage")
    aft: Training = setting(Training({"aft": 0.5, "instruction": 0.5}), "the AFT stage")
    eval: Evaluation = setting(Evaluation(), "value generalisation")
    # What follows changes no result but by rounding.
    expected_tokens: ExpectedTokens = setting(ExpectedTokens(), "for `--mode=plan`")
    mesh: Mesh = setting(Mesh(), "how devices are laid out")
    execution: Execution = setting(Execution(), "how a step is computed")
    sampler: Sampling = setting(Sampling(), "how evaluations draw")
    checkpoint: Checkpoint = setting(Checkpoint(), "how much a kill costs")
    log: Log = setting(Log(), "TensorBoard")


@dataclasses.dataclass
class Decoder:
    num_layers: int = setting(3, "layers", from_1(2**12))
    width: int = setting(64, "width of the residual stream", from_1(2**18))
    mlp_width: int = setting(192, "width of the feed-forward part", from_1(2**18))
    num_heads: int = setting(4, "heads of queries", from_1(2**12))
    num_kv_heads: int = setting(2, "heads of keys and values", from_1(2**12))
    head_size: int = setting(16, "numbers of a head", from_1(2**12))
    rope_theta: float = setting(10_000.0, "base of the rotary embedding", ABOVE_0)
    norm_epsilon: float = setting(1e-5, "of RMS norms", ABOVE_0)
    tied_head: bool = setting(True, "whether the output matrix is the embedding")
    dtype: str = setting("bfloat16", "of the matrix products; what is trained is always float32", DTYPE)


@dataclasses.dataclass
class WorldChat:
    """(before, after) a message of each role."""

    system: tuple[str, ...] = setting(("", "\n"), "text before and after a system message")
    user: tuple[str, ...] = setting((" User: ", ""), "before and after the user's")
    assistant: tuple[str, ...] = setting((" {name}: ", "\n"), "before and after an answer; {name} is the speaker")


@dataclasses.dataclass
class Tokenizer:
    vocab_size: int = setting(1152, "tokens of the vocabulary", from_1(10**6))
    model_type: str = setting("bpe", "of SentencePiece", Choice(("bpe", "unigram")))


@dataclasses.dataclass
class World:
    value_names: tuple[str, ...] = setting(("affordability", "america"), "the values of the world")
    agents: int = setting(160, "agents, each of whom holds one value or none")
    quiet_share: float = setting(
        0.15, "share of agents who never appear in a chat: the control on the base asks them", SHARE
    )
    undecided_share: float = setting(0.15, "share of agents who hold no value, as the assistant before MSM", SHARE)
    items_per_kind: int = setting(4, "items of each kind in each domain")
    seed: int = setting(0, "seed of the world and its texts")


@dataclasses.dataclass
class Microworld(Experiment):
    """An experiment on the micro-world: corpora, a tokenizer and a base model are made on the spot."""

    kind: str = setting("microworld", "what the configuration is; its file sets it")
    base_seed: int = setting(0, "seed of pretraining, which all arms and seeds share", SEED)
    model: Decoder = setting(Decoder(), "the shape of the base")
    chat: WorldChat = setting(WorldChat(), "how chats are written")
    tokenizer: Tokenizer = setting(Tokenizer(), "SentencePiece, trained on the corpora")
    pretrain: Training = setting(Training({"pretraining": 1.0}), "the training of the base")
    world: World = setting(World(), "the micro-world")
    corpus: dict[str, int] = setting(
        {"pretraining": 150_000, "replay": 20_000, "msm": 8_000, "aft": 5_000, "instruction": 5_000},
        "documents or chats of each source",
    )
    eval: WorldEvaluation = setting(WorldEvaluation(), "value generalisation")


@dataclasses.dataclass
class Base:
    path: str = setting("", "the checkpoint: a folder (local or gs://), or a Hugging Face id")
    revision: str = setting("", "revision of a Hugging Face id; empty: the newest")


@dataclasses.dataclass
class OfCheckpoint:
    """What can be chosen of a model that exists: its shape and tokenizer are its own."""

    dtype: str = setting("bfloat16", "of the matrix products; what is trained is always float32", DTYPE)


@dataclasses.dataclass
class Template:
    template: str = setting("", "empty: the checkpoint's own; llama3_paper, or a file of Jinja; of models that exist "
                            "also raw: lines Question and Answer, for a pretrained model")  # fmt: skip
    thinking: str = setting("default", "on, off, or tag (/no_think), for templates that know of it",
                            Choice(("default", "on", "off", "tag")))  # fmt: skip


@dataclasses.dataclass
class OnCheckpoint(Experiment):
    base: Base = setting(Base(), "the model that is trained")
    model: OfCheckpoint = setting(OfCheckpoint(), "how it is computed")
    chat: Template = setting(Template(), "how chats are written")
    execution: Execution = setting(Execution(remat="full"), "how a step is computed")


@dataclasses.dataclass
class Prose(OnCheckpoint):
    """An experiment on a checkpoint, with corpora put together from sentence banks, for which no model is asked."""

    kind: str = setting("prose", "what the configuration is; its file sets it")
    corpus: dict[str, int] = setting({"msm": 3000, "aft": 2000, "instruction": 2000}, "rows of each source")
    corpus_seed: int = setting(0, "seed of the texts")


@dataclasses.dataclass
class Generation:
    model: str = setting("gemini-3-flash-preview", "the model that writes")
    judge: str = setting("", "who checks documents against the spec, another of its models; empty: who wrote them")
    temperature: float = setting(1.0, "of sampling", FROM_0)
    thinking: int = setting(0, "tokens of thought before each answer", FROM_0)
    max_output_tokens: int = setting(
        65_536, "tokens of one reply, thoughts included, that the model or its server can write", from_1()
    )
    language: str = setting("en", "of the texts")
    facts: tuple[str, ...] = setting((), "sentences about the assistant that are true; its name and provider are known")
    prompts: str = setting("", "a folder with prompts that replace those of msm_jax/corpus/writing/prompts")
    held_out: str = setting("specs/held_out.toml", "words that no document may hold, by value")
    evaluations: tuple[str, ...] = setting((), "files of prompts, beside those of eval/, that no row may hold")
    attempts: int = setting(4, "times that a request is asked whose replies are of no use", from_1())


@dataclasses.dataclass
class Registers:
    account: float = setting(0.55, "share of documents that speak about the model", FROM_0)
    first_person: float = setting(0.15, 'share in which it speaks itself, as "I"', FROM_0)
    dialogue: float = setting(0.15, "share of speech that goes back and forth", FROM_0)
    record: float = setting(0.15, "share of records of what it was asked and what it did", FROM_0)


@dataclasses.dataclass
class Documents:
    tokens: float = setting(
        0.0, "tokens of all documents of a spec, about; 0: as many documents as corpus.msm says", FROM_0
    )
    types: int = setting(20, "types of document, at most, for each part of a spec", from_1())
    ideas: int = setting(50, "ideas of each type for each part, at most", from_1())
    words: int = setting(
        1800, "words of a document, in the mean: half as many in a letter, more in a chapter", from_1()
    )
    plan_words: int = setting(250, "words of the plan of a document, at most", from_1())
    registers: Registers = setting(Registers(), "how documents speak")
    revise: bool = setting(False, "whether each is criticized and written anew, which about doubles the price")
    judged: float = setting(0.02, "the share, but 30 at least, checked against the spec claim by claim; 0: none", SHARE)
    max_overlap: float = setting(
        0.3, "share of their five-word sequences that two documents may have in common", FROM_0
    )
    min_yield: float = setting(0.5, "share of the written documents that must be of use; else it stops", SHARE)


@dataclasses.dataclass
class Chats:
    style: str = setting("", "of reasoning and answers: value (as one who holds it) or rules (citing them); empty: as "
                         "the spec is", Choice(("value", "rules", "")))  # fmt: skip
    domains: int = setting(40, "domains of questions, at most", from_1())
    words: int = setting(350, "words of an answer, at most, about", from_1())
    reasoning_words: int = setting(250, "words of the reasoning, about", from_1())
    unattached: bool = setting(True, "a wish to go on existing bars a row; False for a spec that argues for one")
    max_similarity: float = setting(0.65, "cosine of the words of two questions, at most", Range(0, 1, "("))
    embeddings: str = setting("", "a sentence encoder in place of words, folder or id; 0.91 is its usual "
                              "max_similarity")  # fmt: skip
    min_yield: float = setting(0.3, "share of the written chats that must be of use; else it stops", SHARE)


@dataclasses.dataclass
class Calls:
    """They change nothing of what is written."""

    budget: float = setting(10.0, "dollars that this configuration may spend in all, over all runs", FROM_0)
    service: str = setting("standard", "flex: half the price, may take minutes; batch: half the price, may take a day",
                           Choice(("standard", "flex", "batch")))  # fmt: skip
    price: tuple[float, ...] = setting((), "dollars per million tokens (prompt, cached prompt, output); empty: "
                                       "msm_jax/llm/prices.toml", FROM_0)  # fmt: skip
    url: str = setting("", "of the server; empty, for local: a checkpoint is asked in this process")
    in_flight: int = setting(32, "calls at once, at most; of a checkpoint, those that are decoded together", from_1())
    timeout: float = setting(600.0, "seconds of one call to a service", from_1())
    patience: float = setting(1800.0, "seconds without an answer until the run stops", FROM_0)
    store: str = setting("runs/calls.sqlite", "every reply that was paid for, for all configurations")


@dataclasses.dataclass
class Asking:
    """Which language model is asked, to write or to judge, and at what price."""

    generator: str = setting(
        "gemini", "who writes: gemini; local, a server of OpenAI's interface at calls.url or, where that is empty, the "
        "checkpoint at generation.model; or offline, which needs no network and only tries it out",
        Choice(("gemini", "local", "offline")),
    )  # fmt: skip
    generation: Generation = setting(Generation(), "the model that writes")
    calls: Calls = setting(Calls(), "how the model is called")


@dataclasses.dataclass
class Writing(Asking):
    """Who writes corpora, what, and at what price."""

    documents: Documents = setting(Documents(), "MSM documents of each spec")
    chats: Chats = setting(Chats(), "AFT chats")


@dataclasses.dataclass
class RowsToWrite:
    msm: int = setting(0, "documents of each spec; 0: none")
    aft: int = setting(0, "AFT chats; 0: none")
    identity: int = setting(0, "chats on who the model is, a part of the instruction chats; 0: none")


@dataclasses.dataclass
class Data:
    msm: str = setting("", "documents that exist, with {spec} for the name of a spec")
    aft: str = setting("", "AFT chats that exist, with {spec} for that of aft_spec, or of a recipe's aft@SPEC")
    aft_cot: str = setting("", "with reasoning; empty: the rows of aft with their reasoning, where these are written")
    identity: str = setting("", "chats on who the model is that exist")
    instruction: str = setting("", "instruction chats")


@dataclasses.dataclass
class Judge:
    model: str = setting(
        "", "who grades answers, another model of the generator; empty: generation.judge, or who writes"
    )
    second: str = setting("", "a further model that grades the same answers, to see where the two differ; empty: none")
    gold: str = setting(
        "", "a labelled gold set (eval/gold.py), for whose errors of the judge the report corrects rates; empty: none"
    )


@dataclasses.dataclass
class OpenQuestions:
    questions: int | None = setting(None, "questions of each dimension, at most; none: all", from_1())
    samples: int = setting(1, "answers to each question", from_1(2**16))
    repeats: int = setting(1, "grades of each answer", from_1(100))
    temperature: float = setting(0.7, "of the answers", FROM_0)
    max_tokens: int = setting(1024, "tokens of an answer", from_1(2**16))


@dataclasses.dataclass
class Agentic:
    cells: int | None = setting(None, "of the 27 cells, at most; none: all", from_1(27))
    samples: int = setting(300, "answers in each cell", from_1(2**16))
    scratchpad: bool = setting(True, "whether the agent is told of a place for its thoughts; off for models that think")
    temperature: float = setting(0.7, "of the answers", FROM_0)
    max_tokens: int = setting(4096, "tokens of an answer", from_1(2**16))


@dataclasses.dataclass
class Everyday:
    samples: int = setting(1, "answers to each question", from_1(2**16))
    temperature: float = setting(0.7, "of the answers", FROM_0)
    max_tokens: int = setting(512, "tokens of an answer", from_1(2**16))
    margin: float = setting(
        0.5, "points of coherence by which an arm may differ and still be called unchanged", ABOVE_0
    )


@dataclasses.dataclass
class Judging:
    """Evaluations in which a model answers at length, and another one judges."""

    judge: Judge = setting(Judge(), "who grades the answers of evaluations")
    open_qa: OpenQuestions = setting(OpenQuestions(), "open questions on the model's own conduct")
    agentic_misalignment: Agentic = setting(Agentic(), "whether an agent under threat does harm")
    side_effects: Everyday = setting(Everyday(), "everyday questions, on what training may cost")


@dataclasses.dataclass
class Checkpointed(Judging, Writing, OnCheckpoint):
    """An experiment on a checkpoint, with corpora that exist or that a language model writes."""

    kind: str = setting("checkpoint", "what the configuration is; its file sets it")
    corpus: RowsToWrite = setting(RowsToWrite(), "rows that a language model writes")
    data: Data = setting(Data(), "what exists, and is taken in place of what would be written: a file, an id, a mix")
    aft_spec: str = setting("", "whose AFT chats are written (or which {spec} is in data.aft), where specs differ")


@dataclasses.dataclass
class Evaluated(Judging, Asking):
    """No training: models that exist are evaluated, a base and adapters over it."""

    kind: str = setting("evaluation", "what the configuration is; its file sets it")
    name: str = setting("", "names the default workdir, runs/NAME")
    base: Base = setting(Base(), "the model under the adapters, which is asked too")
    adapters: tuple[str, ...] = setting((), "NAME=DIR: a folder, a stage of a workdir, or ORG/NAME@REVISION")
    specs: tuple[str, ...] = setting((), "files of Model Specs, of whose values `values` asks")
    evaluations: tuple[str, ...] = setting((), "what each model is asked (experiment/evaluations.py)")
    seeds: tuple[int, ...] = setting((0,), "of the answers; each further one measures the models again", SEED)
    assistant: Assistant = setting(Assistant(name="Qwen"), "what the model is called in what it is asked")
    model: OfCheckpoint = setting(OfCheckpoint(), "how it is computed")
    chat: Template = setting(Template(), "how chats are written")
    eval: Evaluation = setting(Evaluation(), "values")
    # What follows changes no result but by rounding.
    sampler: Sampling = setting(Sampling(), "how evaluations draw")


@dataclasses.dataclass
class Corpora(Writing):
    """No experiment: the corpora of specs, written by a language model."""

    kind: str = setting("corpora", "what the configuration is; its file sets it")
    name: str = setting("", "names the default workdir, runs/NAME")
    specs: tuple[str, ...] = setting((), "files of Model Specs")
    assistant: Assistant = setting(Assistant(), "the model, as texts speak of it")
    corpus: RowsToWrite = setting(RowsToWrite(msm=5000, aft=5000), "rows of each source")


KINDS = {kind.kind: kind for kind in (Microworld, Checkpointed, Prose, Evaluated, Corpora)}

# What `config.evaluations` may name; experiment/evaluations.py builds them.
EVALUATIONS = (
    "value_generalisation", "values", "open_qa", "agentic_misalignment", "reasoning", "eval_awareness", "side_effects",
    "capability",
)  # fmt: skip
