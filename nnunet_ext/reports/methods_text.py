"""The paragraph for a paper's methods section, and the references it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnunet_ext import __version__
from nnunet_ext.discovery import table
from nnunet_ext.evaluation.compare import RESAMPLES
from nnunet_ext.reports.comparison import ALPHA, Comparison
from nnunet_ext.reports.folds import disagreements, join, span
from nnunet_ext.reports.resources import Resources, resources_of
from nnunet_ext.reports.runs import Method

_NNUNET = (
    "Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, "
    "Nature Methods 2021, doi:10.1038/s41592-020-01008-z"
)


def why_withheld(data: Comparison) -> list[str]:
    """What one sentence per method cannot say: folds of a method that were not trained alike, or not to the end."""
    return [text for run in data.runs for text in disagreements(run)]


def methods_paragraph(data: Comparison) -> str:
    """Plain text: data, training, evaluation, statistics, all from what the runs recorded.

    It is true of runs for which `why_withheld` is empty.
    """
    run = data.runs[0]
    resources = {r.name: resources_of(r) for r in data.runs}
    return " ".join(
        sentence
        for sentence in (
            _data(data),
            *(_training(r, resources[r.name]) for r in data.runs),
            _software(list(resources.values())),
            _evaluation(data, run),
            _statistics(data),
        )
        if sentence
    )


def references(runs: Sequence[Method]) -> list[str]:
    """Papers of nnU-Net and of the trained networks."""
    papers = {e.name: f"{e.model.paper.citation}, {e.model.paper.link}" for e in table.trainers() if e.model}
    trainers = [run.identity[0] for run in runs if run.identity]
    own = [papers[trainer] for trainer in trainers if trainer in papers and trainer != "nnUNetTrainerExt"]
    return list(dict.fromkeys([_NNUNET] * bool(trainers) + own))


def _data(data: Comparison) -> str:
    first = data.runs[0]
    labels = ", ".join(label for label in data.labels if label != "mean")
    units = f" of {len(data.units)} patients" if data.patient_of else ""
    cases = f"{len(data.cases)} cases{units} of {first.dataset}"
    folds = sorted({fold for name in data.cases if (fold := first.cases[name].fold) is not None})
    if not folds:
        return f"{cases} were predicted and scored for {labels}."
    planned = first.planned_folds or 0
    whole = f"{planned}-fold cross-validation"
    if folds == list(range(planned)):
        how = f"were predicted in {whole}, each by the model that had not seen it,"
    else:
        # Without splits_final.json nobody knows how many folds there should be.
        of = f"a {whole}" if folds[-1] < planned else "a cross-validation"
        which = f"{'folds' if len(folds) > 1 else 'fold'} {join([str(fold) for fold in folds])} of {of}"
        how = f"were predicted, the validation cases of {which}, each by the model that had not seen it,"
    return f"{cases} {how} and scored for {labels}."


def _training(run: Method, facts: Resources) -> str:
    if not run.identity:
        return ""
    trainer, plans, configuration = run.identity
    schedule = [
        f"{span(facts.epochs)} epochs" if facts.epochs else "",
        f"{span(facts.iterations)} iterations each" if facts.iterations else "",
        f"batch size {span(facts.batch_size)}" if facts.batch_size else "",
        f"patch size {span(facts.patch_size)}" if facts.patch_size else "",
        f"in {span(facts.precision)}" if facts.precision else "",
        f"on {join(facts.device)}" if facts.device else "",
    ]
    details = ", ".join(part for part in schedule if part)
    size = f" with {facts.parameters / 1e6:.1f} million parameters" if facts.parameters else ""
    return f"{run.name}{size} was trained as {trainer} ({plans}, {configuration}) for {details}.{_network(run)}"


def _network(run: Method) -> str:
    """Class, package and version, and arguments of a network named by its path."""
    network: dict[str, str] = next((record["network"] for record in run.records if "network" in record), {})
    if "path" not in network:
        return ""
    package = f" ({network['package']})" if "package" in network else ""
    return f" The network is {network['path']}{package}, built with {network.get('called_with', 'its defaults')}."


def _software(resources: Sequence[Resources]) -> str:
    versions = [r.software for r in resources if r.software]
    if not versions:
        return f"Results were evaluated with nnunet_ext {__version__}."
    used = []
    for package in ("nnunetv2", "torch", "nnunet_ext"):
        found = sorted({v[package] for v in versions if package in v})
        used.append(f"{package} {' and '.join(found)}")
    revisions = sorted({v["git"][:12] for v in versions if v.get("git")})
    revision = f" (revision {', '.join(revisions)})" if revisions else ""
    return f"Software: {', '.join(used)}{revision}; evaluated with nnunet_ext {__version__}."


def _evaluation(data: Comparison, run: Method) -> str:
    rules = run.settings.get("conventions", {})
    name = run.settings.get("convention", "default")
    parts = [f"Dice, and {rules['HD95']} (HD95)" if "HD95" in rules else "Dice"]
    if any(metric.key == "NSD" for metric in data.metrics):
        parts.append(f"normalised surface distance (NSD) at {run.settings['nsd_tolerance_mm']:g} mm"
                     + (f", {rules['NSD']}" if "NSD" in rules else ""))  # fmt: skip
    rule = f" by the convention {name} ({rules.get('source')})" if name != "default" else ""
    charge = ""
    if any(metric.key == "HD95" for metric in data.metrics) and "infinite" in str(rules.get("one_empty")):
        charge = (
            " A structure that was missed or falsely found scored Dice 0, and its distance was the length of the "
            "image diagonal."
        )
    absent = " Structures absent from reference and prediction were left out." if "undefined" in str(
        rules.get("both_empty")
    ) else ""  # fmt: skip
    return f"Metrics{rule} were {'; '.join(parts)}.{charge}{absent}"


def _statistics(data: Comparison) -> str:
    text = f"Intervals are 95% percentile bootstrap intervals of the mean over {data.unit} ({RESAMPLES} resamples)."
    if any(not math.isnan(pair.p_holm) for pair in data.pairs):
        text += (
            " Methods were compared pairwise by the Wilcoxon signed-rank test, corrected after Holm over all pairs and "
            f"labels of a metric (significance level {ALPHA:g})."
        )
    return text + " The variation between repeated trainings was not assessed."
