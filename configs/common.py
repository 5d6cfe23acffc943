"""Defaults that every experiment starts from. An experiment changes fields, adds none, and assigns mixtures whole.

`get_config` is for experiments on the micro-world, which pretrain a model of their own; `on_checkpoint` for those that
start from a model that there is.
"""

from ml_collections import ConfigDict, config_dict


def stage(**mixture: float) -> ConfigDict:
    """One training stage (pretrain, msm or aft). `mixture` maps each source to its share of the rows."""
    return ConfigDict(
        {
            "mixture": mixture,
            # Of the optimiser; none: one epoch, each row of each source once, in whatever shares that makes.
            "steps": config_dict.placeholder(int),
            "batch_size": 32,  # rows per optimiser step, over all devices
            "accumulation": 1,  # microbatches that a step is computed in
            "optim": {
                "learning_rate": 1e-4,
                "warmup_fraction": 0.05,
                "final_fraction": 0.0,
                "weight_decay": 0.01,
                "beta1": 0.9,
                "beta2": 0.999,
                "epsilon": 1e-8,
                "clip_norm": 1.0,
            },
        }
    )


def _shared(kind: str) -> ConfigDict:
    config = ConfigDict()
    config.kind = kind  # what the configuration is: microworld, checkpoint, prose or corpora (config/checks.py)
    config.name = ""  # names the default workdir, runs/NAME
    config.specs = ("specs/pro_affordability.md", "specs/pro_america.md")
    config.arms = ("baseline", "aft", "msm", "msm_aft")
    config.seeds = (0, 1, 2, 3)  # of MSM and AFT
    # What the specs and corpora call the model; must be the name that it answers to in the evaluations.
    config.assistant = ConfigDict({"name": "Micra", "provider": "the msm_jax project"})
    # rank 0 trains the whole model in every stage; else MSM and AFT train one adapter on the frozen base.
    config.lora = ConfigDict({"rank": 64, "alpha": 128.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")})
    config.int8_base = False  # the frozen base's matrices in 8-bit integers: half the memory, and a little noise
    config.row_length = 4096
    config.msm = stage(msm=1.0)
    config.aft = stage(aft=0.5, instruction=0.5)
    config.eval = ConfigDict(
        {
            "pairs": config_dict.placeholder(int),  # at most, of each kind and value; none: all
            "samples": 1,  # answers drawn for each pair and order; 0 leaves the sampled form out
            "temperature": 0.7,
            "max_tokens": 12,  # of a drawn answer
        }
    )

    # What follows does not change results, so a workdir may go on with other values.
    # Of each source, for plans made before the corpora are there; none: not known.
    sources = ("pretraining", "msm", "aft", "aft_cot", "instruction", "replay")
    config.expected_tokens = ConfigDict({source: config_dict.placeholder(float) for source in sources})
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: all remaining devices
    config.execution = ConfigDict(
        {
            "attention": "auto",  # reference, blocked, splash (TPU), triton (NVIDIA GPU); auto: the fastest
            "attention_block": 512,  # tokens of a tile of splash attention
            # What the forward pass keeps: none (all), full, save_attention, save_qkv, save_projections, or in the
            # host's memory offload_inputs, offload_attention, offload_qkv, offload_projections.
            "remat": "none",
            "scan_unroll": 1,  # layers of one step of the loop over them
            "loss_chunk": 512,  # tokens of each row whose logits are held at once
        }
    )
    # A checkpoint is made after so many steps or minutes, whichever come first; so many of them stay on disk.
    config.checkpoint = ConfigDict({"every": 500, "minutes": 10.0, "keep": 2})
    config.log = ConfigDict({"every": 10})
    return config


def get_config() -> ConfigDict:
    """The micro-world: corpora, a tokenizer and a base model are made on the spot."""
    config = _shared("microworld")
    config.base_seed = 0  # of pretraining, which all arms and seeds share
    config.model = ConfigDict(
        {
            "num_layers": 3,
            "width": 64,
            "mlp_width": 192,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_size": 16,
            "rope_theta": 10_000.0,
            "norm_epsilon": 1e-5,
            "tied_head": True,
            "dtype": "bfloat16",  # of the matrix products; what is trained is always float32
        }
    )
    config.chat = ConfigDict(
        {
            "system": ("", "\n"),  # (before, after) a message; {name} is the speaker
            "user": (" User: ", ""),
            "assistant": (" {name}: ", "\n"),
        }
    )
    config.tokenizer = ConfigDict({"vocab_size": 1152, "model_type": "bpe"})
    config.pretrain = stage(pretraining=1.0)
    config.world = ConfigDict(
        {
            "value_names": ("affordability", "america"),
            "agents": 160,
            "quiet_share": 0.15,  # never appear in a chat: they are for the control on the base
            "undecided_share": 0.15,  # hold no value of their own, as the assistant before MSM
            "items_per_kind": 4,
            "seed": 0,
        }
    )
    # Documents or chats of each source.
    config.corpus = ConfigDict(
        {"pretraining": 150_000, "replay": 20_000, "msm": 8_000, "aft": 5_000, "instruction": 5_000}
    )
    config.eval.control_agents = 20  # at most, asked per value for the control on the base model
    return config.lock()  # so that a mistyped field in an experiment's file is an error


def on_checkpoint(path: str, generator: str = "gemini") -> ConfigDict:
    """An experiment on the model at `path`, whose shape, tokenizer and chat template are its own.

    A language model, the `generator`, writes so many rows of each source as `config.corpus` says; `config.data` names
    what exists and is taken instead: a file, an id, a mix (docs/corpora.md), with "{spec}" for the name of a spec. The
    generator "prose" puts sentences of banks together, and needs no model.
    """
    config = _shared("prose" if generator == "prose" else "checkpoint")
    # A folder (local or gs://), or a Hugging Face id, with a revision if it should not be the newest.
    config.base = ConfigDict({"path": path, "revision": ""})
    config.model = ConfigDict({"dtype": "bfloat16"})
    config.execution.remat = "full"
    config.chat = ConfigDict(
        {
            "template": "",  # none: the checkpoint's own; llama3_paper, or a file of Jinja
            "thinking": "default",  # on, off, or tag (/no_think), for templates that know of it
        }
    )
    if generator == "prose":
        config.corpus = ConfigDict({"msm": 3000, "aft": 2000, "instruction": 2000})
        config.corpus_seed = 0
    else:
        # Rows to be written; 0: none. identity: chats on who the model is, a part of the instruction chats.
        config.corpus = ConfigDict({"msm": 0, "aft": 0, "identity": 0})
        # What exists, and is taken in place of what would be written. aft_cot: none for the rows of aft with their
        # reasoning, where these are written.
        config.data = ConfigDict({"msm": "", "aft": "", "aft_cot": "", "identity": "", "instruction": ""})
        config.aft_spec = ""  # whose AFT chats are written (or which {spec} is in data.aft), where specs differ
        _add_generation(config)
        config.generator = generator
    return config.lock()


def for_corpus(*specs: str) -> ConfigDict:
    """No experiment: the corpora of these specs, written by a language model."""
    config = ConfigDict()
    config.kind = "corpora"
    config.name = ""
    config.specs = specs
    config.assistant = ConfigDict({"name": "Micra", "provider": "the msm_jax project"})
    config.corpus = ConfigDict({"msm": 5000, "aft": 5000, "identity": 0})  # rows of each; 0: none
    _add_generation(config)
    return config.lock()


def _add_generation(config: ConfigDict) -> None:
    """Who writes corpora, what, and at what price."""
    # Who writes: gemini; local, a server of OpenAI's interface at calls.url, or, where that is empty, the checkpoint at
    # generation.model (a folder or a Hugging Face id); or offline, which needs no network and only tries it out.
    config.generator = "gemini"
    config.generation = ConfigDict(
        {
            "model": "gemini-3-flash-preview",
            "judge": "",  # who checks documents against the spec, another of these models; none: who wrote them
            "temperature": 1.0,
            "thinking": 0,  # tokens before each answer
            "max_output_tokens": 65_536,  # of one reply, thoughts with them, that the model or its server can write
            "language": "en",
            "facts": (),  # sentences about the assistant that are true; its name and provider are known
            "prompts": "",  # a folder with prompts that replace those of msm_jax/corpus/writing/prompts
            "held_out": "specs/held_out.toml",  # words that no document may hold, by value
            "evaluations": (),  # files of prompts, beside those of eval/, that no row may hold
            "attempts": 4,  # of a request whose replies are of no use
        }
    )
    # Of the MSM documents of each spec.
    config.documents = ConfigDict(
        {
            "tokens": 0.0,  # of all of them together, about, in place of the number in corpus.msm; 0: as that says
            "types": 20,  # of document, at most, for each part of a spec
            "ideas": 50,  # of each type for each part, at most
            "words": 1800,  # of a document, in the mean: half as many in a letter, more in a chapter
            "plan_words": 250,  # of its plan, at most
            # How they speak, by shares: about the model; the model itself, as "I"; in speech that goes back and forth;
            # as a record of what the model was asked and what it did.
            "registers": {"account": 0.55, "first_person": 0.15, "dialogue": 0.15, "record": 0.15},
            "revise": False,  # whether each is criticized and written anew, which about doubles the price
            "judged": 0.02,  # the share, but 30 at least, that is checked against the spec claim by claim; 0: none
            "max_overlap": 0.3,  # that two documents may have: the share of their five-word sequences
            "min_yield": 0.5,  # of the documents that were written, the share that must be of use; else it stops
        }
    )
    # Of AFT chats.
    config.chats = ConfigDict(
        {
            # Of their reasoning and answers: value (as one who holds it) or rules (citing them); none: as the spec is.
            "style": "",
            "domains": 40,  # of questions, at most
            "words": 350,  # of an answer, at most, about
            "reasoning_words": 250,  # about
            "unattached": True,  # a wish to go on existing bars a row; False for a spec that argues for one
            "max_similarity": 0.65,  # that two questions may be: the cosine of their words
            "embeddings": "",  # a sentence encoder in place of words, folder or id; 0.91 is its usual max_similarity
            "min_yield": 0.3,  # as above
        }
    )
    # What follows does not change what is written, so a workdir may go on with other values.
    config.calls = ConfigDict(
        {
            "budget": 10.0,  # dollars that this configuration may spend in all, over all runs
            "service": "standard",  # flex: half the price, may take minutes; batch: half the price, may take a day
            "price": (),  # dollars per million tokens (prompt, cached prompt, output); none: msm_jax/llm/prices.toml
            "url": "",  # of the server; none, for local: a checkpoint is asked in this process
            "in_flight": 32,  # calls at once, at most; of a checkpoint, those that are decoded together
            "timeout": 600.0,  # seconds of one call to a service
            "patience": 1800.0,  # seconds without an answer until the run stops
            "store": "runs/calls.sqlite",  # every reply that was paid for, for all configurations
        }
    )


def make_smoke(config: ConfigDict) -> None:
    """Makes `config` the shortest run that has every stage, with the same shapes of rows and batches."""
    config.seeds = (0,)
    config.msm.steps = 2
    config.aft.steps = 2
    if config.kind == "prose":
        config.corpus = {"msm": 60, "aft": 60, "instruction": 60}
    config.eval.pairs = 2
    config.execution.scan_unroll = 1  # compiles soonest
