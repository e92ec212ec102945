"""The path of one data set through a cluster: plan, train folds x trainers, select, predict, evaluate, report.

`Pipeline` is the frozen description, kept as pipeline.json beside the scripts; `jobs` turns it into text only.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_ext.json_object import JsonObject, is_text
from nnunet_ext.slurm.job import Job, Resources, within_quotes

PREPARE, TRAIN, SELECT = "1_prepare", "2_train", "3_select"
PREDICT, EVALUATE, REPORT = "4_predict", "5_evaluate", "6_report"
# Between telling the trainer to stop at the next batch and the time limit: room to write a checkpoint.
_SAVE_SECONDS = 60
# The schedulers' own words for GPUs: --gres=gpu:a100:1, --gpus-per-node=1, -G 1, -gpu num=1, -l ngpus=1.
_GPU_OPTION = re.compile(r"-G\b|--?gpu|(--gres|--tres|-l)\b.*gpu", re.IGNORECASE)
# Processors, MiB and minutes of the steps without GPU: preprocessing reads whole volumes, the others count voxels.
_SMALL = {PREPARE: (8, 32 * 1024, 8 * 60)}
_SMALLER = (4, 16 * 1024, 2 * 60)


@dataclass(frozen=True)
class Training:
    """One trainer on one set of plans; `data` is the preprocessed folder these plans use."""

    trainer: str
    plans: str
    data: str


@dataclass(frozen=True)
class Small:
    """What a step without GPU asks for; None leaves it to `_SMALL`, which is at most what a training gets."""

    cpus: int | None = None
    memory_mib: int | None = None
    minutes: int | None = None


@dataclass(frozen=True)
class Pipeline:
    """Everything the scripts depend on.

    Attributes:
        scheduler: a key of `nnunet_ext.slurm.dialects.DIALECTS`.
        dataset: full name, e.g. Dataset004_Hippocampus.
        configuration: nnU-Net's, e.g. 3d_fullres.
        runs: what is trained and compared.
        folds: numbers as text, or only "all".
        folder: absolute; gets scripts, logs, predictions and report.
        raw, preprocessed, results: nnU-Net's three folders.
        path: folder of the commands.
        resources: of one training task, and of prediction with at most one GPU.
        images: test images to predict; None for none.
        references: their label maps; None where there are none.
        scratch: shell word of a folder on the node's own disk to train from; None trains from `preprocessed`.
        at_once: training tasks at the same time; None leaves it to the scheduler.
        warn_seconds: the training is told so long before its time limit.
        cpu_partition: for the steps without GPU; None takes the other one.
        setup: shell lines at the head of every script.
        variables: settings of training, nnU-Net's and this package's.
        small: of the steps without GPU, each at most as much as a training task.
        accept_finished: pool finished folds even if they were trained by another schedule.
    """

    scheduler: str
    dataset: str
    configuration: str
    runs: tuple[Training, ...]
    folds: tuple[str, ...]
    folder: str
    raw: str
    preprocessed: str
    results: str
    path: str
    resources: Resources
    images: str | None = None
    references: str | None = None
    scratch: str | None = None
    at_once: int | None = None
    warn_seconds: int = 300
    cpu_partition: str | None = None
    setup: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    small: Small = Small()
    accept_finished: bool = False

    def result_folder(self, run: Training) -> Path:
        """nnU-Net's folder of a run, above its folds."""
        return Path(self.results, self.dataset, f"{run.trainer}__{run.plans}__{self.configuration}")

    def tasks(self) -> list[tuple[Training, str]]:
        """(run, fold) of every training task, in the order of the array."""
        return [(run, fold) for run in self.runs for fold in self.folds]

    def to_json(self) -> dict[str, Any]:
        """What pipeline.json holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, about: JsonObject) -> Pipeline:
        """The inverse of `to_json`.

        Raises:
            UserError: a value is missing or not of its kind.
        """
        resources, small = about.object("resources"), about.optional_object("small")
        variables = about.content.get("variables")
        if not isinstance(variables, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and all(map(is_text, pair)) for pair in variables
        ):
            about.refuse("variables", "a list of names with their values")
        names = ("scheduler", "dataset", "configuration", "folder", "raw", "preprocessed", "results", "path")
        optional = ("images", "references", "scratch", "cpu_partition")
        texts: dict[str, Any] = {name: about.text(name) for name in names}
        texts |= {name: about.optional_text(name) for name in optional}
        asked: dict[str, Any] = {name: resources.whole(name) for name in ("cpus", "gpus", "memory_mib", "minutes")}
        asked |= {name: resources.optional_text(name) for name in ("partition", "account", "mail_user", "mail_type")}
        return cls(
            **texts,
            runs=tuple(
                Training(run.text("trainer"), run.text("plans"), run.text("data")) for run in about.objects("runs")
            ),
            folds=about.texts("folds"),
            at_once=about.optional_whole("at_once"),
            warn_seconds=about.whole("warn_seconds"),
            setup=about.texts("setup"),
            variables=tuple((name, value) for name, value in variables),
            resources=Resources(**asked, extra=resources.texts("extra")),
            small=Small(**{name: small.optional_whole(name) for name in ("cpus", "memory_mib", "minutes")}),
            accept_finished=about.content.get("accept_finished") is True,
        )


def jobs(pipeline: Pipeline) -> list[Job]:
    """The steps in order; steps that have nothing to do are left out."""
    steps = [_prepare(pipeline), _train(pipeline)]
    if pipeline.folds != ("all",):
        steps.append(_select(pipeline))
    if pipeline.images is not None:
        steps.append(_predict(pipeline))
    if pipeline.folds != ("all",) or pipeline.references is not None:
        steps += [_evaluate(pipeline), _report(pipeline)]
    return steps


def _job(pipeline: Pipeline, name: str, purpose: str, body: list[str], gpu: bool = False, **more: Any) -> Job:
    resources = pipeline.resources if gpu else _without_gpu(pipeline, name)
    environment = (
        ("nnUNet_raw", pipeline.raw),
        ("nnUNet_preprocessed", pipeline.preprocessed),
        ("nnUNet_results", pipeline.results),
        *pipeline.variables,
    )
    if name != TRAIN:
        mark = f"{name}_$task" if "tasks" in more else name
        body = [*body, f'touch "$folder/done/{mark}"']
    return Job(
        name=name,
        label=f"{pipeline.dataset.split('_')[0]}_{name}",
        purpose=purpose,
        resources=resources,
        environment=environment,
        path=pipeline.path,
        folder=pipeline.folder,
        body="\n".join(body),
        setup=pipeline.setup,
        **more,
    )


def _without_gpu(pipeline: Pipeline, step: str) -> Resources:
    """A small and short job on processors alone; without a scheduler a step has the machine for itself."""
    own, asked = pipeline.resources, pipeline.small
    own = replace(own, gpus=0, partition=pipeline.cpu_partition or own.partition)
    if pipeline.scheduler == "local":
        return own
    cpus, memory_mib, minutes = _SMALL.get(step, _SMALLER)
    return replace(
        own,
        cpus=asked.cpus or min(cpus, own.cpus),
        memory_mib=asked.memory_mib or min(memory_mib, own.memory_mib),
        minutes=asked.minutes or min(minutes, own.minutes),
        extra=tuple(option for option in own.extra if not _GPU_OPTION.match(option)),
    )


def _prepare(pipeline: Pipeline) -> Job:
    plans = sorted({run.plans for run in pipeline.runs})
    command = [
        "nnunet_ext", "slurm", "prepare", "-d", pipeline.dataset, "-c", pipeline.configuration, "-p", *plans,
    ]  # fmt: skip
    body = [
        "# Plans and preprocesses what is not there yet, and writes the folds before anyone trains.",
        shlex.join(command) + ' -n "$nnUNet_def_n_proc"',
    ]
    return _job(pipeline, PREPARE, f"Plan, preprocess and split {pipeline.dataset}.", body)


def _train(pipeline: Pipeline) -> Job:
    gpus = pipeline.resources.gpus
    runs = pipeline.runs
    dataset, configuration = shlex.quote(pipeline.dataset), shlex.quote(pipeline.configuration)
    quoted = within_quotes(pipeline.dataset), within_quotes(pipeline.configuration)
    body = [
        f"trainers=({shlex.join(run.trainer for run in runs)})",
        f"plans=({shlex.join(run.plans for run in runs)})",
        f"folds=({shlex.join(pipeline.folds)})",
        "run=$((task / ${#folds[@]}))",
        "fold=${folds[task % ${#folds[@]}]} trainer=${trainers[run]} plan=${plans[run]}",
        f'result="$nnUNet_results/{quoted[0]}/${{trainer}}__${{plan}}__{quoted[1]}/fold_$fold"',
        'echo "$(date "+%F %T") $trainer $plan fold $fold on $(hostname)"',
        'if [ -f "$result/validation/summary.json" ]; then',
        '  echo "finished already"',
        "  exit 0",
        "fi",
        "",
        *_scratch(pipeline),
        "# --c from the first time on: it continues where there is a checkpoint and begins where there is none.",
        f'nnUNetv2_train {dataset} {configuration} "$fold" -tr "$trainer" -p "$plan"'
        + (f" -num_gpus {gpus}" if gpus > 1 else "" if gpus else " -device cpu")
        + " --c &",
        "pid=$!",
        'warned="" timer=""',
        *_tell(gpus),
        "# Warned of the time limit: finish the epoch; if that takes too long, stop at the next batch.",
        f"trap 'warned=yes; tell USR1; sleep {max(pipeline.warn_seconds - _SAVE_SECONDS, 10)} & timer=$!' USR1",
        "# Cancelled or preempted: stop at the next batch. Whoever preempts queues the task again.",
        "trap 'tell TERM' TERM",
        'while kill -0 "$pid" 2> /dev/null; do  # a trapped signal ends wait early',
        '  wait -n "$pid" ${timer:+"$timer"}',
        '  if [ -n "$timer" ] && ! kill -0 "$timer" 2> /dev/null; then tell TERM; timer=""; fi',
        "done",
        "trap '' USR1 TERM  # nor may one hide the status",
        'wait "$pid"',
        "status=$?",
        '[ -z "$timer" ] || kill "$timer" 2> /dev/null',
        'echo "$(date "+%F %T") $trainer $plan fold $fold ended with status $status"',
        *_again(gpus),
        "  @requeue@",
        "fi",
        'exit "$status"',
    ]
    return _job(
        pipeline,
        TRAIN,
        f"Train {pipeline.dataset} {pipeline.configuration}: task = run x {len(pipeline.folds)} + fold.",
        body,
        gpu=True,
        tasks=len(pipeline.tasks()),
        threaded=gpus == 0,
        at_once=pipeline.at_once,
        warn_seconds=pipeline.warn_seconds,
    )


def _tell(gpus: int) -> list[str]:
    if gpus < 2:
        return ['tell() { kill "-$1" "$pid"; }']
    return [
        "# nnU-Net trains in one process per GPU below this one, which itself knows no signal.",
        'tell() { pkill "-$1" -P "$pid" -f spawn_main || kill "-$1" "$pid"; }',
    ]


def _again(gpus: int) -> list[str]:
    saved = "85: all is saved. 138: the signal came before the trainer listened."
    if gpus < 2:
        return [f"# {saved}", 'if [ -n "$warned" ] && [[ $status =~ ^(85|138)$ ]]; then']
    return [f"# {saved} 1: nnU-Net's word for either with several GPUs.",
            'if [ -n "$warned" ] && [[ $status =~ ^(85|138|1)$ ]]; then']  # fmt: skip


def _scratch(pipeline: Pipeline) -> list[str]:
    if pipeline.scratch is None:
        return []
    dataset = within_quotes(pipeline.dataset)
    return [
        "# What training reads, on the node's own disk. The name follows plans and folds; the rename makes the copy",
        "# appear whole, also for a neighbour on this node that wants it too.",
        f"data=({shlex.join(run.data for run in pipeline.runs)})",
        f'scratch="{pipeline.scratch}"',
        f'source="$nnUNet_preprocessed/{dataset}"',
        'key=$(cat "$source"/*.json | cksum | cut -d" " -f1)',
        'copy="$scratch/nnunet_ext-$(id -u)-$key-${data[run]}"',
        'if [ ! -d "$copy" ]; then',
        '  mkdir -p "$scratch" && new=$(mktemp -d "$scratch/.nnunet_ext-XXXXXX") || exit 1',
        f'  inside="$new/{dataset}"',
        '  mkdir "$inside"',
        '  cp -r "$source/${data[run]}" "$source/gt_segmentations" "$source"/*.json "$inside" || exit 1',
        '  mv -T "$new" "$copy" 2> /dev/null || rm -rf "$new"',
        "fi",
        '[ -O "$copy" ] || { echo "cannot copy to $copy"; exit 1; }',
        'export nnUNet_preprocessed="$copy"',
        "",
    ]


def _select(pipeline: Pipeline) -> Job:
    runs = [f"{run.trainer}__{run.plans}" for run in pipeline.runs]
    command = [
        "nnunet_ext", "slurm", "select", "-d", pipeline.dataset, "-c", pipeline.configuration, "-f", *pipeline.folds,
        "-r", *runs,
    ]  # fmt: skip
    body = [
        "# The best by nnU-Net's own rule, and for every run whether keeping the largest component helps.",
        shlex.join(command) + ' -n "$nnUNet_def_n_proc"',
    ]
    return _job(pipeline, SELECT, "Pool the folds, choose the best run, determine the post-processing.", body)


def _predict(pipeline: Pipeline) -> Job:
    device = "" if pipeline.resources.gpus else " -device cpu"
    folds, images = shlex.join(pipeline.folds), shlex.quote(str(pipeline.images))
    dataset, configuration = shlex.quote(pipeline.dataset), shlex.quote(pipeline.configuration)
    body = [
        f"trainers=({shlex.join(run.trainer for run in pipeline.runs)})",
        f"plans=({shlex.join(run.plans for run in pipeline.runs)})",
        "trainer=${trainers[task]} plan=${plans[task]}",
        f"name=${{trainer}}__${{plan}}__{configuration}",
        "workers=$((cpus < 3 ? 1 : 3))",
        f'nnUNetv2_predict -d {dataset} -i {images} -o "$folder/predictions/$name" '
        f'-tr "$trainer" -p "$plan" -c {configuration} -f {folds} -npp "$workers" -nps "$workers"{device}',
    ]
    if pipeline.folds != ("all",):
        pooled = f"crossval_results_folds_{'_'.join(pipeline.folds)}"
        body += [
            f'pooled="$nnUNet_results/{within_quotes(pipeline.dataset)}/$name/{pooled}"',
            'final="$folder/predictions/${name}_postprocessed"',
            'nnUNetv2_apply_postprocessing -i "$folder/predictions/$name" -o "$final" -np "$nnUNet_def_n_proc" '
            '-pp_pkl_file "$pooled/postprocessing.pkl" -plans_json "$pooled/plans.json"',
            'cp "$pooled/dataset.json" "$final"',
        ]
    one_gpu = replace(pipeline, resources=replace(pipeline.resources, gpus=min(pipeline.resources.gpus, 1)))
    purpose = "Predict the test images with all folds: task = run."
    return _job(
        one_gpu, PREDICT, purpose, body, gpu=True, tasks=len(pipeline.runs), threaded=not one_gpu.resources.gpus
    )


def predictions(pipeline: Pipeline, run: Training) -> Path:
    """Folder of the final predictions of a run."""
    suffix = "" if pipeline.folds == ("all",) else "_postprocessed"
    return Path(pipeline.folder, "predictions", f"{run.trainer}__{run.plans}__{pipeline.configuration}{suffix}")


def _evaluate(pipeline: Pipeline) -> Job:
    body = []
    for run in pipeline.runs:
        if pipeline.folds != ("all",):
            body.append(
                shlex.join(["nnunet_ext", "evaluate", "--folds", str(pipeline.result_folder(run))]) + ' -n "$cpus"'
            )
    if pipeline.images is not None and pipeline.references is not None:
        for run in pipeline.runs:
            command = ["nnunet_ext", "evaluate", "-r", pipeline.references, "-p", str(predictions(pipeline, run))]
            body.append(shlex.join(command) + ' -n "$cpus"')
    return _job(pipeline, EVALUATE, "Evaluate the folds, and the test predictions where references exist.", body)


def _report(pipeline: Pipeline) -> Job:
    if pipeline.folds == ("all",):
        compared = [predictions(pipeline, run) for run in pipeline.runs]
        shown = ["-r", str(pipeline.references), "--images", str(pipeline.images)]
    else:
        compared, shown = [pipeline.result_folder(run) for run in pipeline.runs], []
        if pipeline.images is not None and pipeline.references is not None:
            shown = ["--test-set", *(str(predictions(pipeline, run)) for run in pipeline.runs)]
    command = ["nnunet_ext", "report", *map(str, compared), *shown]
    return _job(
        pipeline,
        REPORT,
        "Compare the runs on one page.",
        [shlex.join(command) + ' -o "$folder/report.html" -n "$cpus"'],
    )
