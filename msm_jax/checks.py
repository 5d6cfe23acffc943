"""What a configuration must fulfil, checked before anything runs. Each error names the field and what it may be.

Raises: UserError, from every function here.
"""

import math
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.corpus import world_text
from msm_jax.corpus.specs import Spec
from msm_jax.corpus.world import World
from msm_jax.errors import UserError

ARMS = ("baseline", "aft", "msm", "msm_aft")
TRAINING = ("pretrain", "msm", "aft")  # the fields of training stages

# The numbers that a field may be; "*.x" is x of every training stage. Fields that others check are not here.
_RANGES = (
    ("2 or more", lambda x: x >= 2, "row_length"),
    ("1 or more", lambda x: x >= 1, "model.num_layers model.width model.mlp_width model.num_heads model.num_kv_heads"),
    ("1 or more", lambda x: x >= 1, "model.head_size model.scan_unroll *.steps *.batch_size *.accumulation"),
    ("1 or more", lambda x: x >= 1, "eval.max_tokens eval.control_agents checkpoint.every checkpoint.keep log.every"),
    ("0 or more", lambda x: 0 <= x < math.inf, "*.optim.learning_rate *.optim.weight_decay"),
    ("0 or more", lambda x: 0 <= x < math.inf, "lora.rank eval.samples eval.temperature"),
    ("above 0", lambda x: 0 < x < math.inf, "*.optim.epsilon *.optim.clip_norm"),
    ("above 0", lambda x: 0 < x < math.inf, "lora.alpha model.rope_theta model.norm_epsilon"),
    ("from 0 to 1", lambda x: 0 <= x <= 1, "*.optim.warmup_fraction *.optim.final_fraction"),
    ("from 0 to 1", lambda x: 0 <= x <= 1, "world.quiet_share world.undecided_share"),
    ("from 0 to below 1", lambda x: 0 <= x < 1, "*.optim.beta1 *.optim.beta2"),
)
_MAX_SEED = 2**31 - 1


def check_config(config: ConfigDict) -> None:
    """All that can be told from the fields alone."""
    _check_numbers(config)
    _check_seeds(config)
    _check_names(config)
    _check_mixtures(config)
    _check_model(config)


def check_specs(config: ConfigDict, specs: Sequence[Spec]) -> None:
    """`specs` are those of `config.specs`: all explain the same preferences, each by a value of the world."""
    names = [spec.name for spec in specs]
    first = specs[0]
    for spec, path in zip(specs, config.specs, strict=True):
        if spec.kind != "preferences":
            raise UserError(f"{path}: is of kind {spec.kind}; the micro-world needs specs of kind preferences")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", spec.name):
            raise UserError(f"{path}: its name goes into names of stages; use letters, digits, '_', '.' and '-' alone")
        if names.count(spec.name) > 1:
            raise UserError(f"config.specs has two files named {spec.name}; rename one, for arms are known by it")
        if (set(spec.likes), set(spec.dislikes)) != (set(first.likes), set(first.dislikes)):
            raise UserError(f"{path}: likes or dislikes differ from {config.specs[0]}; arms share one AFT set")
        if spec.value not in config.world.value_names:
            raise UserError(f"{path}: value {spec.value} is not among config.world.value_names; add it there")


def check_world(config: ConfigDict, world: World) -> None:
    for role, affixes in world_text.CHAT_FORMAT.items():
        if tuple(config.chat[role]) != affixes:
            raise UserError(f"config.chat.{role} is {tuple(config.chat[role])}; the micro-world writes {affixes}")
    name = config.assistant.name
    if any(agent.name == name for agent in world.agents):
        raise UserError(f"config.assistant.name is {name}, as one of the world's agents is; choose another")
    for value in world.values:
        if not world_text.quiet_agents(world, value.name):
            raise UserError(
                f"no quiet agent holds {value.name}, and the control on the base model asks one of each value; "
                "raise config.world.quiet_share or config.world.agents"
            )


def check_devices(config: ConfigDict) -> None:
    """The mesh must fit the devices, and each batch the mesh."""
    from msm_jax.parallel import make_mesh

    mesh = make_mesh(config.mesh)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for stage in TRAINING:
        batch_size, accumulation = config[stage].batch_size, config[stage].accumulation
        if batch_size // accumulation % ways:
            microbatches = f" in config.{stage}.accumulation={accumulation} microbatches" if accumulation > 1 else ""
            raise UserError(
                f"config.{stage}.batch_size={batch_size}{microbatches} cannot be divided among {ways} devices "
                f"(config.mesh: data x fsdp); make it a multiple of {ways * accumulation}"
            )


def _check_numbers(config: ConfigDict) -> None:
    values = config_lib.flatten(config)
    for field, value in values.items():
        if value is None and not field.endswith(".steps"):
            raise UserError(f"config.{field} is none; give it a value (only steps may be none: one epoch)")
    for wanted, fits, patterns in _RANGES:
        for field in dict.fromkeys(name.replace("*", stage) for name in patterns.split() for stage in TRAINING):
            if values[field] is not None and not fits(values[field]):
                raise UserError(f"config.{field} is {values[field]}; it must be {wanted}")
    for stage in TRAINING:
        batch_size, accumulation = config[stage].batch_size, config[stage].accumulation
        if batch_size % accumulation:
            raise UserError(
                f"config.{stage}.batch_size={batch_size} cannot be divided into config.{stage}.accumulation="
                f"{accumulation} microbatches; make it a multiple of {accumulation}"
            )


def _check_seeds(config: ConfigDict) -> None:
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"config.seeds is {tuple(config.seeds)}; give at least one, and none twice")
    for field, seeds in (("seeds", config.seeds), ("base_seed", [config.base_seed])):
        for seed in seeds:
            if not 0 <= seed <= _MAX_SEED:
                raise UserError(f"config.{field}: {seed} is no seed; choose from 0 to {_MAX_SEED}")


def _check_names(config: ConfigDict) -> None:
    arms = tuple(config.arms)
    if not arms or not set(arms) <= set(ARMS) or len(set(arms)) < len(arms):
        raise UserError(f"config.arms is {arms}; choose from {', '.join(ARMS)}, none of them twice")
    if not config.specs:
        raise UserError("config.specs is empty; name at least one file, as in specs/pro_america.md")
    if not re.fullmatch(r"\w[\w-]*", config.assistant.name):
        raise UserError(f"config.assistant.name is {config.assistant.name!r}; it must be one word")
    for role, affixes in config.chat.items():
        if len(affixes) != 2:
            raise UserError(f"config.chat.{role} is {tuple(affixes)}; it is (text before a message, after it)")
    if not config.chat.assistant[1]:
        raise UserError("config.chat.assistant has no text after a message, by which a reader knows that it has ended")


# What each stage may read. Pretraining text mentions held-out domains, so it stays out of MSM and AFT.
_SOURCES = {
    "pretrain": ("pretraining", "replay", "instruction"),
    "msm": ("msm", "replay", "instruction"),
    "aft": ("aft", "instruction", "replay"),
}


def _check_mixtures(config: ConfigDict) -> None:
    for stage in TRAINING:
        mixture = config[stage].mixture
        if not mixture:
            raise UserError(f"config.{stage}.mixture is empty; the sources are {', '.join(config.corpus)}")
        for source, share in mixture.items():
            if source not in config.corpus:
                meant = config_lib.nearest(source, config.corpus)
                hint = f"did you mean {meant}?" if meant else f"the sources are {', '.join(config.corpus)}"
                raise UserError(f"config.{stage}.mixture has no source {source}; {hint}")
            if source not in _SOURCES[stage]:
                raise UserError(
                    f"config.{stage}.mixture has the source {source}, which does not belong there; "
                    f"it may have {', '.join(_SOURCES[stage])}"
                )
            if not 0 < share < math.inf:
                raise UserError(f"config.{stage}.mixture.{source} is {share}; a share must be above 0")
            if config.corpus[source] < 1:
                raise UserError(f"config.corpus.{source} is {config.corpus[source]}; ask for at least 1")
    for stage, arms in (("msm", ("msm", "msm_aft")), ("aft", ("aft", "msm_aft"))):
        if stage not in config[stage].mixture and set(arms) & set(config.arms):
            raise UserError(f"config.{stage}.mixture has no share of '{stage}', so its arms would learn nothing of it")
    if "instruction" not in config.aft.mixture:
        raise UserError("config.aft.mixture needs a share of 'instruction': it is what the baseline is trained on")


def _check_model(config: ConfigDict) -> None:
    from msm_jax.models import DecoderConfig, LoraConfig

    DecoderConfig(vocab_size=1, **config.model)
    if config.lora.rank:
        LoraConfig(**config.lora)
        if not config.lora.targets:
            raise UserError("config.lora.targets is empty; name some, or train the whole model by config.lora.rank=0")
