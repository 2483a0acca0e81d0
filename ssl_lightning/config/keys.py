"""Table of special config keys: types, ranges, and use by each command; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Range(NamedTuple):
    """Allowed values of a key.

    Args:
        holds: Whether a value of the right kind is allowed; never called with null.
        text: The allowed values in words, after "allowed is".
    """

    holds: Callable[[Any], bool]
    text: str


@dataclass(frozen=True)
class Key:
    """A special config key.

    A key without a row has these defaults: the constructor of its group checks it, it enters the digests, and
    it may not change on resume.

    Args:
        name: Dotted key.
        kind: Annotation that the value must match; None: the constructor of its group checks it.
        range: Allowed range; None for no limits.
        science: Whether the value enters `config_sha256`.
        resume: Whether `train.py resume=` may change it.
        place: Use of a path in the value. A `written` path must lie in the run folder, a `read` path may lie
            anywhere, a `cache` holds data that can be recreated, and an `unused` path is ignored once the run
            folder exists.
        evaluate: Whether `evaluate.py run=` ignores the key, prefers it to the run's value, or refuses it.
        audit_sets: Whether `audit.py` sets it for each row.
        audit_use: Replacement to suggest when `audit.py` refuses this key; empty if it takes the key.
        compare_sets: Whether `compare.py` sets it for each row and refuses it.
        series: Whether a report's label of a series shows an override of the key, hides it because runs of a
            series may differ in it, or begins with its value (`named`).
        lightning: For keys of `trainer`: whether Lightning's Trainer takes the key.
        probes: For keys of `trainer`: whether the trainers of probes get the key too.
    """

    name: str
    kind: Any = None
    range: Range | None = None
    science: bool = True
    resume: bool = False
    place: Literal["written", "read", "cache", "unused"] = "written"
    evaluate: Literal["ignored", "taken", "refused"] = "ignored"
    audit_sets: bool = False
    audit_use: str = ""
    compare_sets: bool = False
    series: Literal["shown", "hidden", "named"] = "shown"
    lightning: bool = True
    probes: bool = False


def is_part(value: float) -> bool:
    """Whether a value is a positive number of batches, or a fraction in (0, 1]."""
    return 0 < value <= 1 if isinstance(value, float) else value > 0


ONE_OR_MORE = Range(lambda n: n >= 1, "a whole number, 1 or more")
PART = "a number of batches above 0, or a fraction of them, above 0.0 to 1.0"
EPOCHS = Range(lambda n: n >= 1 or n == -1, "a whole number, 1 or more, or -1 with trainer.max_steps")
STEPS = Range(lambda n: n >= 1 or n == -1, "a whole number, 1 or more, or -1 to use trainer.max_epochs")
CLIP = Range(lambda n: n > 0, "a finite number above 0, or null for no clipping")
DEVICES = Range(
    lambda n: n in ("auto", -1) or n >= 1,
    "auto or a whole number, 1 or more; to choose GPUs, set CUDA_VISIBLE_DEVICES",
)
# Lightning's other strategies start processes themselves, or store checkpoints in their own way
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "fsdp")
NOT_EMPTY = Range(lambda text: text != "", "text that is not empty: the last part of the run folder")
PREFIXES = Range(lambda _: True, 'a mapping without quoted keys, such as {module.:"",fc.:null}, or null')

KEYS = (
    # Groups of conf/
    Key("task", Mapping, evaluate="refused", series="named", compare_sets=True),
    Key("data", Mapping, place="read", evaluate="taken", series="named"),
    Key("backbone", Mapping, evaluate="refused", series="named"),
    Key("optimizer", Mapping, evaluate="refused", compare_sets=True),
    Key("scheduler", Mapping, evaluate="refused", compare_sets=True),
    Key("trainer", Mapping, evaluate="taken"),
    Key("probe", Mapping, evaluate="taken", compare_sets=True),
    Key("encoding", Mapping, evaluate="taken"),
    # choices on the command line; the config has no such keys
    Key("budget", series="hidden", compare_sets=True),
    Key("common_backbone"),
    Key("benchmark", Mapping, science=False, compare_sets=True),
    # Length
    Key("trainer.max_epochs", int, EPOCHS, resume=True, compare_sets=True),
    Key("trainer.max_steps", int, STEPS, resume=True, compare_sets=True),
    Key("trainer.limit_train_batches", int | float | None, Range(is_part, PART)),
    Key("trainer.limit_val_batches", int | float | None, Range(lambda n: n == 0 or is_part(n), f"0, {PART}")),
    # Hardware
    Key("trainer.devices", int | Literal["auto"], DEVICES, science=False, resume=True, probes=True),
    Key(
        "trainer.accelerator",
        Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"],
        science=False,
        resume=True,
        probes=True,
    ),
    Key("trainer.num_nodes", int, ONE_OR_MORE, science=False, resume=True, probes=True),
    Key("trainer.strategy", Literal[STRATEGIES], science=False, resume=True, probes=True),
    Key(
        "trainer.launcher", Literal["local", "slurm", "torchrun"], science=False, resume=True, lightning=False
    ),
    # Images and corruptions stay float32 in each precision
    Key("trainer.precision", Literal["auto", "32-true", "16-mixed", "bf16-mixed"], probes=True),
    Key("trainer.sync_batchnorm", bool, lightning=False),
    # Steps
    Key("trainer.accumulate_grad_batches", int, ONE_OR_MORE),
    Key("trainer.gradient_clip_val", float | None, CLIP),
    Key("trainer.check_val_every_n_epoch", int, ONE_OR_MORE),
    Key("trainer.val_check_interval", int | float, Range(is_part, PART)),
    Key("trainer.log_every_n_steps", int, ONE_OR_MORE, science=False, resume=True),
    Key("trainer.enable_progress_bar", bool),
    # Paths and processes of the groups
    Key("data.root", science=False, resume=True, place="cache"),
    Key("data.batch_size", compare_sets=True),
    Key("data.dir", place="read"),
    Key("data.pretrain_dir", place="read"),
    Key("data.train_dir", place="read"),
    Key("data.test_dir", place="read"),
    Key("data.num_workers", science=False, resume=True),
    Key("data.device_resident", science=False, resume=True),
    Key("task.cache_dir", place="cache"),
    Key("task.vgg_weights", place="read"),
    Key("probe.embedding.folder", place="read"),
    # Display
    Key("logger", Mapping, science=False, resume=True),
    Key("callbacks", Mapping, science=False, resume=True),
    Key("objective", str | None, science=False, resume=True),
    Key("summary", Literal["full", "brief"], science=False, resume=True, series="hidden"),
    # Computation
    Key("seed", int, evaluate="refused", audit_use="audit.seeds=[...]", series="hidden", compare_sets=True),
    Key("diverged", float | None, science=False, resume=True),
    Key("deterministic", bool, science=False, evaluate="taken"),
    Key("channels_last", bool),
    Key("compile", Literal["auto"] | bool, science=False, resume=True),
    Key("cuda_graphs", Literal["auto"] | bool, science=False, resume=True),
    Key("probe_untrained", bool, audit_sets=True, compare_sets=True),
    # Initial weights
    Key("init_from", str | None, place="read", evaluate="refused"),
    Key("prefix_map", Mapping[str, str | None] | None, PREFIXES, place="read", evaluate="refused"),
    Key("weights", str | None, place="read", evaluate="refused"),
    Key("checkpoint", str, place="read"),
    # Identity; YAML reads name=42 as a number
    Key(
        "name",
        str | int | float,
        NOT_EMPTY,
        science=False,
        place="unused",
        evaluate="refused",
        audit_sets=True,
        series="hidden",
    ),
    Key("output_dir", str, science=False, place="unused", audit_sets=True, series="hidden"),
    Key("folder", str, science=False, place="unused", audit_use="name=", series="hidden", compare_sets=True),
    Key("run_dir", str, science=False, audit_use="name=", compare_sets=True, series="hidden"),
    Key("choices", Mapping),
    Key("overrides", Sequence[str], science=False, place="read"),
    # Existing runs
    Key("resume", str | None, place="unused", audit_use="the same name=", compare_sets=True, series="hidden"),
    Key("run", str | None, place="unused"),
    Key("skip_finished", bool, science=False, evaluate="refused", series="hidden"),
    Key("go_on", bool, science=False),
)

TOP = {key.name: key for key in KEYS if "." not in key.name and key.kind is not None}
TRAINER = {key.name.removeprefix("trainer."): key for key in KEYS if key.name.startswith("trainer.")}
DATA = {key.name.removeprefix("data."): key for key in KEYS if key.name.startswith("data.")}
PATHS = {key.name for key in KEYS if key.place in ("read", "cache")} | {"run", "output_dir"}
# Keys and groups that `compare.py` refuses; an experiment sets some of the keys
COMPARE_SETS = (*(key.name for key in KEYS if key.compare_sets), "experiment")
