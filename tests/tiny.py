"""The smallest experiment that has every stage: tests run it through the launcher."""

from msm_jax.configs import common


def get_config():
    config = common.get_config()
    config.name = "tiny"
    config.seeds = (0,)
    config.model.num_layers = 1
    config.model.width = 16
    config.model.mlp_width = 32
    config.model.num_heads = 2
    config.model.num_kv_heads = 1
    config.model.head_size = 8
    config.model.dtype = "float32"
    config.lora.rank = 4
    config.lora.alpha = 8.0
    config.row_length = 64
    config.tokenizer.vocab_size = 512
    config.world.agents = 20
    config.world.items_per_kind = 1
    config.corpus = {"pretraining": 120, "replay": 40, "msm": 40, "aft": 36, "instruction": 40}
    config.pretrain.steps = 6
    config.msm.steps = 4
    config.msm.mixture = {"msm": 0.5, "replay": 0.5}
    config.aft.steps = 4
    for stage in (config.pretrain, config.msm, config.aft):
        stage.batch_size = 8
        stage.optim.learning_rate = 1e-2
    config.eval.control_agents = 1
    config.checkpoint.every = 2
    config.log.every = 2
    return config
