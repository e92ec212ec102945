"""What a run says about its training besides its logs: run.json of each fold, and plans.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ext.json_object import JsonObject

_HARDWARE = ("processor", "device", "gpu")


def read_run_record(file: Path) -> dict[str, Any] | None:
    """What a report uses of a run.json; None when there is no such file.

    Returns:
        `plans`, `settings`, `software` and `hardware` without what is null, `parameters`, `gmacs_per_patch` and
        `peak_memory_bytes` where they are known, `epoch_seconds`, `validation` or None, and where the record has them
        `backends` (without what is null), `environment`, `other_datasets`, `history` and
        `network` (path, package, called_with).

    Raises:
        UserError: a value has another type.
    """
    if not file.is_file():
        return None
    record = JsonObject.read(file, "restore it, or remove it to report without it")
    hardware, software = record.optional_object("hardware"), record.optional_object("software")
    validation = record.optional_object("validation")
    found = {
        "plans": record.optional_text("plans"),
        "settings": _schedule(record.optional_object("settings")),
        "software": _known({name: software.optional_text(name) for name in software.content}),
        "hardware": _known({name: hardware.optional_text(name) for name in _HARDWARE}),
        "parameters": record.optional_whole("parameters"),
        "gmacs_per_patch": record.optional_number("gmacs_per_patch"),
        "peak_memory_bytes": record.optional_whole("peak_memory_bytes"),
        "epoch_seconds": record.optional_numbers("epoch_seconds") or [],
    }
    for name in ("backends", "environment", "network"):
        if name in record.content:
            object_ = record.optional_object(name)
            found[name] = _known({key: object_.optional_text(key) for key in object_.content})
    if "other_datasets" in record.content:
        found["other_datasets"] = list(record.texts("other_datasets"))
    if record.content.get("history") is not None:
        found["history"] = [_event(entry) for entry in record.objects("history")]
    if validation.content:
        found["validation"] = {"seconds": validation.number("seconds"), "cases": validation.whole("cases")}
    return _known(found)


def read_plans(file: Path) -> dict[str, Any]:
    """`dataset_name`, and for every configuration what it says of patch, batch size and network; {} without the file.

    Each of `configurations` may have `batch_size`, `patch_size`, `inherits_from`, `network` (a dotted path) and
    `arguments`, its keyword arguments.

    Raises:
        UserError: a value has another type.
    """
    if not file.is_file():
        return {}
    plans = JsonObject.read(file, "restore nnU-Net's plans.json")
    configurations = plans.optional_object("configurations")
    return _known(
        {
            "dataset_name": plans.optional_text("dataset_name"),
            "configurations": {name: _configuration(configurations.object(name)) for name in configurations.content},
        }
    )


def _event(entry: JsonObject) -> dict[str, Any]:
    """A start or resume: `event`, `epoch`, `settings`, and `date` where it was recorded."""
    return _known(
        {
            "event": entry.text("event"),
            "epoch": entry.whole("epoch"),
            "date": entry.optional_text("date"),
            "settings": _schedule(entry.optional_object("settings")),
        }
    )


def _schedule(settings: JsonObject) -> dict[str, Any]:
    whole = {name: settings.optional_whole(name) for name in ("epochs", "iterations")}
    more = {
        "precision": settings.optional_text("precision"),
        "learning_rate": settings.optional_number("learning_rate"),
    }
    return _known({**whole, **_planned(settings), **more})


def _configuration(about: JsonObject) -> dict[str, Any]:
    network = about.optional_object("architecture")
    named = {
        "inherits_from": about.optional_text("inherits_from"),
        "network": network.optional_text("network_class_name"),
        "arguments": network.optional_object("arch_kwargs").content,
    }
    return {**_planned(about), **_known(named)}


def _planned(about: JsonObject) -> dict[str, Any]:
    patch = about.optional_numbers("patch_size", whole=True)
    return _known({"batch_size": about.optional_whole("batch_size"), "patch_size": patch})


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
