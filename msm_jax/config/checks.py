"""What a configuration must fulfil, checked before anything runs. Each error names the field and what it may be.

Raises: UserError, from every function here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from msm_jax import config as config_lib
from msm_jax.config import schema
from msm_jax.config.arms import RECIPES, SECTIONS, check_recipes, named_by
from msm_jax.config.settings import EVALUATIONS, KINDS
from msm_jax.corpus.datasets import sources
from msm_jax.corpus.specs import Spec
from msm_jax.errors import UserError
from msm_jax.microworld import world_text
from msm_jax.microworld.world import World

_MOST_ROWS = 10**8 - 1
_MOST_SEEDS = 1000


def training(config: ConfigDict) -> tuple[str, ...]:
    """The fields of training stages, in their order: without "pretrain" where a checkpoint is the base."""
    return ("pretrain", "msm", "aft") if config.kind == "microworld" else ("msm", "aft")


def check_config(config: ConfigDict) -> None:
    """All that can be told from the fields alone."""
    schema.check(config, KINDS[config.kind])
    _check_batches(config)
    _check_seeds(config)
    _check_names(config)
    _check_mixtures(config)
    _check_model(config)


def check_evaluation(config: ConfigDict) -> None:
    """The same of a configuration of kind "evaluation"."""
    schema.check(config, KINDS[config.kind])
    _check_seeds(config)
    names = tuple(config.evaluations)
    if not names or not set(names) <= set(EVALUATIONS) or len(set(names)) < len(names):
        raise UserError(f"config.evaluations is {names}; choose from {', '.join(EVALUATIONS)}, none of them twice")
    same = [name for name in names if name in ("values", "capability")]
    if len(config.seeds) > 1 and same:
        raise UserError(
            f"config.seeds is {tuple(config.seeds)}, by which models that exist are measured again; "
            f"{' and '.join(same)} {'is' if len(same) == 1 else 'are'} asked once: leave it out, or give one seed"
        )
    long = [name for name in names if name not in ("values", "capability")]
    if config.chat.template == "raw" and long:
        raise UserError(
            f"config.chat.template=raw: an answer is then a line, and {long[0]} asks for more; it is for values and "
            "capability"
        )
    if config.eval.sets and "values" not in names:
        raise UserError("config.eval.sets is for the evaluation values; put it into config.evaluations")
    if config.judge.gold and "agentic_misalignment" not in names:
        raise UserError("config.judge.gold is for the evaluation agentic_misalignment; put it into config.evaluations")
    if not config.base.path:
        raise UserError("config.base.path is empty; name a folder, a gs:// folder or a Hugging Face id")
    if "values" in names and not config.specs and not config.eval.sets:
        raise UserError("config.specs is empty; name the specs of whose values is asked, as in specs/pro_america.md")
    if "value_generalisation" in names:
        raise UserError(
            "config.evaluations has value_generalisation, which is for models that are trained here; take values"
        )


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

    device = mesh.devices.flat[0]
    about = device.platform, getattr(device, "compute_capability", None)
    kernel = Execution(**config.execution).on(*about).attention
    check_platform(kernel, *about)
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
    if source != "msm" and spec and "{spec}" not in path:
        raise UserError(
            f"config.recipes has {source}@{spec.name}, and {field}={path} is the same for all specs; put {{spec}} in it"
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


def mixtures_of(config: ConfigDict) -> dict[str, Mapping[str, float]]:
    """Those that recipes change, by their sections."""
    return {section: dict(config[section].mixture) for section in SECTIONS}


def sources_of(config: ConfigDict) -> list[str]:
    """What mixtures may name."""
    return list(dict.fromkeys([*config.corpus, *(config.data if may_be_written(config) else ())]))


def _check_batches(config: ConfigDict) -> None:
    for stage in training(config):
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


def _check_names(config: ConfigDict) -> None:
    for field, known in (("arms", [*RECIPES, *config.recipes]), ("evaluations", EVALUATIONS)):
        names = tuple(config[field])
        if not set(names) <= set(known) or len(set(names)) < len(names) or (field == "arms" and not names):
            raise UserError(f"config.{field} is {names}; choose from {', '.join(known)}, none of them twice")
    if not config.specs:
        raise UserError("config.specs is empty; name at least one file, as in specs/pro_america.md")
    if not re.fullmatch(r"\w[\w-]*", config.assistant.name):
        raise UserError(f"config.assistant.name is {config.assistant.name!r}; it must be one word")
    if config.kind == "microworld":
        _check_affixes(config)


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
    mixtures = mixtures_of(config)
    check_recipes(config.recipes, mixtures, known)
    recipes = [config.recipes.get(arm) or RECIPES[arm] for arm in config.arms]
    for section, changes in (step for recipe in recipes for step in recipe):
        for source in named_by(changes).intersection(config.corpus) if not may_be_written(config) else ():
            check_rows(config, source, 1)
        if config[section].steps is None and any(
            isinstance(stands, Mapping) and len(stands) > 1 for stands in changes.values()
        ):
            raise UserError(
                f"config.recipes puts several sources in place of one, and config.{section}.steps is none: in an epoch "
                f"the shares are those of the rows; set config.{section}.steps"
            )
        if section not in mixtures[section] and changes.get(section) != "":
            raise UserError(
                f"config.{section}.mixture has no share of '{section}', so its arms would learn nothing of it"
            )
        if changes.get("aft") == "aft_cot" and "aft_cot" not in known:
            raise UserError(f"config.arms has arms with reasoning, and an experiment of kind {config.kind} has none")
    if "instruction" not in config.aft.mixture:
        raise UserError("config.aft.mixture needs a share of 'instruction': it is what the baseline is trained on")


def _check_model(config: ConfigDict) -> None:
    from msm_jax.models import DecoderConfig, Execution, LoraConfig

    Execution(**config.execution)
    if config.kind == "microworld":
        DecoderConfig(**config.model, vocab_size=1)
    else:  # the shape is the checkpoint's, so any will do
        sizes = {"vocab_size": 1, "num_layers": 1, "width": 2, "mlp_width": 1, "head_size": 2}
        DecoderConfig(**config.model, **sizes, num_heads=1, num_kv_heads=1)
        if not config.base.path:
            raise UserError("config.base.path is empty; name a folder, a gs:// folder or a Hugging Face id")
    if config.int8_base and not config.lora.rank:
        raise UserError("config.int8_base is for a frozen base, and config.lora.rank=0 trains it; set one of them")
    if config.lora.rank:
        LoraConfig(**config.lora)
        if not config.lora.targets:
            raise UserError("config.lora.targets is empty; name some, or train the whole model by config.lora.rank=0")
