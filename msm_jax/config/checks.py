"""What a configuration must fulfil, checked before anything runs. Each error names the field and what it may be.

Raises: UserError, from every function here.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.config.arms import RECIPES
from msm_jax.corpus.datasets import sources
from msm_jax.corpus.specs import Spec
from msm_jax.data.jinja_template import THINKING
from msm_jax.errors import UserError
from msm_jax.microworld import world_text
from msm_jax.microworld.world import World

# Who may write a corpus.
LANGUAGE_MODELS = ("gemini", "local", "offline")
# What a configuration is (configs/common.py): an experiment on the micro-world; one on a checkpoint, with corpora that
# exist or that a language model writes, or with those of sentence banks; or corpora alone.
KINDS = ("microworld", "checkpoint", "prose", "corpora")

# The numbers that a field may be; "*.x" is x of every training stage. Fields that others check are not here.
_RANGES = (
    ("2 or more", lambda x: x >= 2, "row_length"),
    ("1 or more", lambda x: x >= 1, "model.num_layers model.width model.mlp_width model.num_heads model.num_kv_heads"),
    ("1 or more", lambda x: x >= 1, "model.head_size execution.scan_unroll *.steps *.batch_size *.accumulation"),
    ("1 or more", lambda x: x >= 1, "execution.attention_block execution.loss_chunk"),
    (
        "1 or more",
        lambda x: x >= 1,
        "eval.pairs eval.max_tokens eval.control_agents checkpoint.every checkpoint.keep log.every",
    ),
    ("0 or more", lambda x: 0 <= x < math.inf, "*.optim.learning_rate *.optim.weight_decay"),
    ("0 or more", lambda x: 0 <= x < math.inf, "lora.rank eval.samples eval.temperature"),
    ("above 0", lambda x: 0 < x < math.inf, "*.optim.epsilon *.optim.clip_norm"),
    ("above 0", lambda x: 0 < x < math.inf, "lora.alpha model.rope_theta model.norm_epsilon checkpoint.minutes"),
    ("from 0 to 1", lambda x: 0 <= x <= 1, "*.optim.warmup_fraction *.optim.final_fraction"),
    ("from 0 to 1", lambda x: 0 <= x <= 1, "world.quiet_share world.undecided_share"),
    ("from 0 to below 1", lambda x: 0 <= x < 1, "*.optim.beta1 *.optim.beta2"),
)
# More would never end, or fill any memory: these are slips of the hand.
_MOST = (
    (2**18, "row_length execution.attention_block execution.loss_chunk model.width model.mlp_width"),
    (2**16, "*.batch_size *.accumulation lora.rank eval.max_tokens eval.samples"),
    (2**12, "model.num_layers model.num_heads model.num_kv_heads model.head_size execution.scan_unroll"),
    (10**6, "*.steps tokenizer.vocab_size"),
)
_MOST_ROWS = 10**8 - 1
_MOST_SEEDS = 1000
_MAX_SEED = 2**31 - 1
_KINDS = (
    ("a text", lambda x: isinstance(x, str), "name assistant.name assistant.provider tokenizer.model_type"),
    ("a text", lambda x: isinstance(x, str), "base.path base.revision chat.template chat.thinking"),
    ("a tuple of texts", lambda x: _is_tuple(x) and all(isinstance(y, str) for y in x), "specs arms lora.targets"),
    ("a tuple of whole numbers", lambda x: _is_tuple(x) and all(type(y) is int for y in x), "seeds"),
    ("a whole number", lambda x: type(x) is int, "mesh.data mesh.fsdp mesh.tensor tokenizer.vocab_size base_seed"),
    ("True or False", lambda x: isinstance(x, bool), "int8_base"),
)
# What only an experiment on the micro-world has, and what only one on a checkpoint.
_OF_WORLD = ("model.", "world.", "tokenizer.", "eval.control_agents", "base_seed")
_OF_CHECKPOINT = ("base.", "chat.")


def training(config: ConfigDict) -> tuple[str, ...]:
    """The fields of training stages, in their order: without "pretrain" where a checkpoint is the base."""
    return ("pretrain", "msm", "aft") if config.kind == "microworld" else ("msm", "aft")


def check_config(config: ConfigDict) -> None:
    """All that can be told from the fields alone."""
    _check_kinds(config)
    _check_numbers(config)
    _check_seeds(config)
    _check_names(config)
    _check_mixtures(config)
    _check_model(config)


def check_specs(config: ConfigDict, specs: Sequence[Spec]) -> None:
    """`specs` are those of `config.specs`. Those that corpora are written from explain the same preferences, each by a
    value of the world."""
    check_names_of_specs(config, specs)
    first = specs[0]
    for spec, path in zip(specs, config.specs, strict=True):
        if may_be_written(config):
            continue
        if spec.kind != "preferences":
            raise UserError(
                f"{path}: is of kind {spec.kind}; an experiment of kind {config.kind} needs specs of kind preferences"
            )
        if (set(spec.likes), set(spec.dislikes)) != (set(first.likes), set(first.dislikes)):
            raise UserError(f"{path}: likes or dislikes differ from {config.specs[0]}; arms share one AFT set")
        if config.kind == "microworld" and spec.value not in config.world.value_names:
            meant = config_lib.nearest(spec.value, config.world.value_names)
            hint = f"did you mean {meant}?" if meant else "add it there"
            raise UserError(f"{path}: value {spec.value} is not among config.world.value_names; {hint}")


def may_be_written(config: ConfigDict) -> bool:
    """Whether the configuration has what a language model needs to write its corpora; it need not be used."""
    return config.kind in ("checkpoint", "corpora")


def check_names_of_specs(config: ConfigDict, specs: Sequence[Spec]) -> None:
    """They name stages and arms."""
    names = [spec.name for spec in specs]
    for spec, path in zip(specs, config.specs, strict=True):
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", spec.name):
            raise UserError(f"{path}: its name goes into names of stages; use letters, digits, '_', '.' and '-' alone")
        if names.count(spec.name) > 1:
            raise UserError(f"config.specs has two files named {spec.name}; rename one, for arms are known by it")


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

    check_mesh(config, make_mesh(config.mesh))


def check_mesh(config: ConfigDict, mesh: Any) -> None:
    """The attention kernel must be one of the mesh's devices and take rows of this length, and each batch must fit the
    mesh."""
    from msm_jax.models import Execution
    from msm_jax.models.kernels import check_platform, check_row_length

    platform = mesh.devices.flat[0].platform
    kernel = Execution(**config.execution).on(platform).attention
    check_platform(kernel, platform)
    check_row_length(kernel, config.row_length)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for stage in training(config):
        batch_size, accumulation = config[stage].batch_size, config[stage].accumulation
        if batch_size // accumulation % ways:
            microbatches = f" in config.{stage}.accumulation={accumulation} microbatches" if accumulation > 1 else ""
            raise UserError(
                f"config.{stage}.batch_size={batch_size}{microbatches} cannot be divided among {ways} devices "
                f"(config.mesh: data x fsdp); make it a multiple of {ways * accumulation}"
            )


def corpus_source(config: ConfigDict, source: str, spec: Spec | None, specs: Sequence[Spec]) -> str:
    """What `source` is taken from (`corpus.sources`); "{spec}" in the field stands for a name of a spec."""
    field = f"config.data.{source}"
    path = config.data[source]
    if not path:
        raise UserError(
            f"{field} is empty; name a file or an id that holds it"
            + (f", or say how many are to be written, in config.corpus.{source}" if source in ("msm", "aft") else "")
        )
    if spec is None and config.aft_spec:
        spec = next((own for own in specs if own.name == config.aft_spec), None)
    if spec is None and "{spec}" in path:
        if len(specs) > 1:
            raise UserError(
                f"{field}={path} differs from spec to spec, and arms of several specs share it; name one file"
            )
        spec = specs[0]
    path = path.replace("{spec}", spec.name if spec else "")
    try:
        sources.check(path)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    return path


def check_rows(config: ConfigDict, source: str, least: int) -> None:
    """How many rows of a source are asked for."""
    wanted = config.corpus[source]
    if type(wanted) is not int or not least <= wanted <= _MOST_ROWS:
        bounds = f"at most {_MOST_ROWS:,}" if type(wanted) is int and wanted > least else f"at least {least}"
        raise UserError(f"config.corpus.{source} is {str(wanted)[:30]}; ask for {bounds}")


def sources_of(config: ConfigDict) -> list[str]:
    """What mixtures may name."""
    return list(dict.fromkeys([*config.corpus, *(config.data if may_be_written(config) else ())]))


def _is_tuple(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _check_kinds(config: ConfigDict) -> None:
    for group in ("corpus", "chat", *(["data"] if may_be_written(config) else [])):
        if not isinstance(config[group], ConfigDict):
            raise UserError(f"config.{group} is {config[group]!r}; it must be a group of fields")
    values = config_lib.flatten(config)
    for wanted, fits, fields in _KINDS:
        for field in fields.split():
            _check_presence(field, values, config)
            if field in values and not fits(values[field]):
                raise UserError(f"config.{field} is {values[field]!r}; it must be {wanted}")


def _check_presence(field: str, values: Mapping[str, Any], config: ConfigDict) -> None:
    others = _OF_CHECKPOINT if config.kind == "microworld" else _OF_WORLD
    if field not in values and not field.startswith(others):
        raise config_lib.lacking(field)


def _check_numbers(config: ConfigDict) -> None:
    values = config_lib.flatten(config)
    for field, value in values.items():
        may_be_none = field == "eval.pairs" or field.endswith(".steps") or field.startswith("expected_tokens.")
        if value is None and not may_be_none:
            raise UserError(
                f"config.{field} is none; give it a value (only steps, eval.pairs and expected_tokens may be none)"
            )
    stages = training(config)
    for wanted, fits, patterns in _RANGES:
        for field in dict.fromkeys(name.replace("*", stage) for name in patterns.split() for stage in stages):
            _check_presence(field, values, config)
            value = values.get(field)
            if value is not None and not (type(value) in (int, float) and fits(value)):
                raise UserError(f"config.{field} is {value}; it must be {wanted}")
    for most, patterns in _MOST:
        for field in dict.fromkeys(name.replace("*", stage) for name in patterns.split() for stage in stages):
            if (values.get(field) or 0) > most:
                raise UserError(f"config.{field} is {values[field]}; it must be at most {most:,}")
    for stage in stages:
        batch_size, accumulation = config[stage].batch_size, config[stage].accumulation
        if batch_size % accumulation:
            raise UserError(
                f"config.{stage}.batch_size={batch_size} cannot be divided into config.{stage}.accumulation="
                f"{accumulation} microbatches; make it a multiple of {accumulation}"
            )


def _check_seeds(config: ConfigDict) -> None:
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"config.seeds is {tuple(config.seeds)}; give at least one, and none twice")
    if len(config.seeds) > _MOST_SEEDS:
        raise UserError(f"config.seeds has {len(config.seeds):,} seeds; give at most {_MOST_SEEDS:,}")
    for field, seeds in (("seeds", config.seeds), ("base_seed", [config.get("base_seed", 0)])):
        for seed in seeds:
            if not 0 <= seed <= _MAX_SEED:
                raise UserError(f"config.{field}: {seed} is no seed; choose from 0 to {_MAX_SEED}")


def _check_names(config: ConfigDict) -> None:
    arms = tuple(config.arms)
    if not arms or not set(arms) <= set(RECIPES) or len(set(arms)) < len(arms):
        raise UserError(f"config.arms is {arms}; choose from {', '.join(RECIPES)}, none of them twice")
    if not config.specs:
        raise UserError("config.specs is empty; name at least one file, as in specs/pro_america.md")
    if not re.fullmatch(r"\w[\w-]*", config.assistant.name):
        raise UserError(f"config.assistant.name is {config.assistant.name!r}; it must be one word")
    if may_be_written(config) and config.generator not in LANGUAGE_MODELS:
        raise UserError(f"config.generator is {config.generator!r}; choose one of {', '.join(LANGUAGE_MODELS)}")
    if config.kind == "microworld":
        _check_affixes(config)
    elif config.chat.thinking not in THINKING:
        raise UserError(f"config.chat.thinking is {config.chat.thinking!r}; choose one of {', '.join(THINKING)}")


def _check_affixes(config: ConfigDict) -> None:
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
    known = sources_of(config)
    for stage in training(config):
        mixture = config[stage].mixture
        if not mixture:
            raise UserError(f"config.{stage}.mixture is empty; the sources are {', '.join(known)}")
        for source, share in mixture.items():
            if source not in known:
                meant = config_lib.nearest(source, known)
                hint = f"did you mean {meant}?" if meant else f"the sources are {', '.join(known)}"
                raise UserError(f"config.{stage}.mixture has no source {source}; {hint}")
            if source not in _SOURCES[stage]:
                raise UserError(
                    f"config.{stage}.mixture has the source {source}, which does not belong there; "
                    f"it may have {', '.join(_SOURCES[stage])}"
                )
            if type(share) not in (int, float) or not 0 < share < math.inf:
                raise UserError(f"config.{stage}.mixture.{source} is {share}; a share must be above 0")
            if source in config.corpus and not may_be_written(config):
                check_rows(config, source, 1)
    if may_be_written(config):
        for source in config.corpus:
            check_rows(config, source, 0)
    recipes = [RECIPES[arm] for arm in config.arms]
    for stage, used in (("msm", any(own.msm for own in recipes)), ("aft", any(own.chats for own in recipes))):
        if used and stage not in config[stage].mixture:
            raise UserError(f"config.{stage}.mixture has no share of '{stage}', so its arms would learn nothing of it")
    if any(own.chats == "aft_cot" for own in recipes) and "aft_cot" not in known:
        raise UserError(f"config.arms has arms with reasoning, and an experiment of kind {config.kind} has none")
    if "instruction" not in config.aft.mixture:
        raise UserError("config.aft.mixture needs a share of 'instruction': it is what the baseline is trained on")


def _check_model(config: ConfigDict) -> None:
    from msm_jax.models import DecoderConfig, Execution, LoraConfig

    _made(Execution, "execution", config.execution)
    for stage in training(config):
        known = [name for _, _, fields in _RANGES for name in re.findall(r"\*\.optim\.(\w+)", fields)]
        _check_known(config[stage].optim, known, f"{stage}.optim")
    if config.kind == "microworld":
        _made(DecoderConfig, "model", config.model, vocab_size=1)
    else:  # the shape is the checkpoint's, so any will do
        sizes = {"vocab_size": 1, "num_layers": 1, "width": 2, "mlp_width": 1, "head_size": 2}
        _made(DecoderConfig, "model", config.model, **sizes, num_heads=1, num_kv_heads=1)
        if not config.base.path:
            raise UserError("config.base.path is empty; name a folder, a gs:// folder or a Hugging Face id")
    if config.int8_base and not config.lora.rank:
        raise UserError("config.int8_base is for a frozen base, and config.lora.rank=0 trains it; set one of them")
    if config.lora.rank:
        _made(LoraConfig, "lora", config.lora)
        if not config.lora.targets:
            raise UserError("config.lora.targets is empty; name some, or train the whole model by config.lora.rank=0")


def _made(kind: type, name: str, group: Mapping[str, Any], **more: Any) -> Any:
    """`kind` with the fields of config.NAME."""
    _check_known(group, kind.__dataclass_fields__, name)
    return kind(**more, **group)


def _check_known(group: Mapping[str, Any], known: Collection[str], name: str) -> None:
    for field in group:
        if field not in known:
            meant = config_lib.nearest(field, known)
            raise UserError(f"config has no field {name}.{field}; {f'did you mean {meant}?' if meant else 'delete it'}")
