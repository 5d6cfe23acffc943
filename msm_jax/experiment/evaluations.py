"""The evaluations that `config.evaluations` may name; msm_jax/config/settings.py lists them too."""

from msm_jax.experiment.judged import AgenticMisalignment, EvalAwareness, OpenQuestions, Reasoning, SideEffects
from msm_jax.experiment.preferences import Capability, ValueGeneralisation, ValuePairs

EVALUATIONS = {
    "value_generalisation": ValueGeneralisation,
    "values": ValuePairs,
    "open_qa": OpenQuestions,
    "agentic_misalignment": AgenticMisalignment,
    "reasoning": Reasoning,
    "eval_awareness": EvalAwareness,
    "side_effects": SideEffects,
    "capability": Capability,
}
