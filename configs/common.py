"""Defaults that every experiment starts from. An experiment changes fields, adds none, and assigns mixtures whole."""

from ml_collections import ConfigDict, config_dict


def stage(**mixture: float) -> ConfigDict:
    """One training stage (pretrain, msm or aft). `mixture` maps each source to its share of the rows."""
    return ConfigDict(
        {
            "mixture": mixture,
            "steps": config_dict.placeholder(int),  # none: one pass over the mixture
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


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.name = ""  # names the default workdir, runs/NAME
    config.specs = ("specs/pro_affordability.md", "specs/pro_america.md")
    config.arms = ("baseline", "aft", "msm", "msm_aft")
    config.seeds = (0, 1, 2, 3)  # of MSM and AFT
    config.base_seed = 0  # of pretraining, which all arms and seeds share
    # What the specs and corpora call the model; must be the name that it answers to in the evaluations.
    config.assistant = ConfigDict({"name": "Micra", "provider": "the msm_jax project"})

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
            "remat": "none",  # none, full, save_projections or save_attention
            "scan_unroll": 1,
        }
    )
    # rank 0 trains the whole model in every stage; else MSM and AFT train one adapter on the frozen base.
    config.lora = ConfigDict({"rank": 64, "alpha": 128.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")})
    config.row_length = 4096
    config.chat = ConfigDict(
        {
            "system": ("", "\n"),  # (before, after) a message; {name} is the speaker
            "user": (" User: ", ""),
            "assistant": (" {name}: ", "\n"),
        }
    )
    config.tokenizer = ConfigDict({"vocab_size": 1152, "model_type": "bpe"})

    config.pretrain = stage(pretraining=1.0)
    config.msm = stage(msm=1.0)
    config.aft = stage(aft=0.5, instruction=0.5)

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
    config.eval = ConfigDict(
        {
            "samples": 1,  # answers drawn for each pair and order; 0 leaves the sampled form out
            "temperature": 0.7,
            "max_tokens": 12,  # of a drawn answer
            "control_agents": 20,  # at most, asked per value for the control on the base model
        }
    )

    # What follows does not change results, so a workdir may go on with other values.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: all remaining devices
    config.checkpoint = ConfigDict({"every": 500, "keep": 2})
    config.log = ConfigDict({"every": 10})
    return config.lock()  # so that a mistyped field in an experiment's file is an error
