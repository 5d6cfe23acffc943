"""All scores of an experiment -> report.html, figures and report.json."""

import pathlib
from typing import Any

from msm_jax.stages.graph import Kind, StageContext, flat, read_manifest


def write(context: StageContext) -> dict[str, Any]:
    """Gathers all scores into `report.html`, figures and `report.json`.

    Inputs: `scores`, of which `params["cells"]` says whose each is; `controls`; `rows`, `trained` and `base`, of which
    the manifests tell. Params: with "gold", the labels of `config["judge"]["gold"]` correct rates.
    """
    import datetime

    from msm_jax.eval import gold
    from msm_jax.eval.report import write_report

    config, arms = context.params["config"], context.params["arms"]
    manifests = {role: read_manifest(folder) for role, folder in flat(context.inputs).items()}
    stages = [
        {"key": about["key"], "kind": about["kind"], "seconds": about["seconds"],
         "tokens": about["summary"].get("tokens")}
        for about in manifests.values()
    ]  # fmt: skip
    scores, graded = [], []
    for cell in context.params["cells"]:
        manifest = manifests[f"scores:{cell['input']}"]
        about, summary = {name: cell[name] for name in ("arm", "spec", "seed")}, manifest["summary"]
        if manifest["kind"] == Kind.VERDICTS:
            about |= {"evaluation": cell["evaluation"], "stage": manifest["key"]}
            graded.append(about | {"transcripts": manifest["inputs"]["transcripts"], "summary": summary})
        else:
            scores += [about | entry for entry in summary["scores"]]
    corpora = []
    for name in context.stage.inputs["rows"]:
        summary = manifests[f"rows:{name}"]["summary"]
        counts = {key: summary[key] for key in ("split", "tokens", "trained_tokens", "rows", "fill")}
        counts |= {key: summary.get(key, 0) for key in ("truncated", "dropped", "contaminated", "unwritable")}
        counts |= {key: summary[key] for key in ("first_unwritable",) if key in summary}
        corpora.append({"name": name, "documents": summary["examples"], **counts})
    controls = []
    for name in context.stage.inputs["controls"]:
        controls += manifests[f"controls:{name}"]["summary"]["controls"]
    result = {
        "experiment": config["name"],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": config,
        "model": config["model"] | {"parameters": manifests["base"]["summary"]["parameters"]},
        "arms": arms,
        "columns": context.params["columns"],
        "seeds": config["seeds"],
        "scores": scores,
        "graded": graded,
        "controls": controls,
        "stages": stages,
        "corpora": corpora,
    }
    if context.params.get("gold"):
        result["gold"] = gold.facts(pathlib.Path(config["judge"]["gold"]))
    write_report(context.folder, result)
    return {"scores": len(scores), "graded": len(graded)}
