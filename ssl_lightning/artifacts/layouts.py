"""Find the weights of a backbone in a file of another project, by names and shapes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_lightning.artifacts.state_dicts import mismatches

DEPTH = 10  # parts of a name that may come before the backbone
WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)  # of torch, at any place of a name
COUNTER = (
    "num_batches_tracked"  # of a batch norm: old files and frozen batch norms lack it; inference ignores it
)
# Second choice if another backbone of the file fits too: it follows that one, or performs worse
COPY = re.compile(r"momentum|target|(^|[._])(ema|k|m|key|student|discriminator)([._]|$)")
# Parts behind the last stage of a backbone, and parts that only pretraining needs
HEAD = re.compile(
    r"(fc|linear|last_linear|pre_logits|norm|fc_norm|encoder\.ln|conv_head|bn2|neck|mask_token|queue\w*|"
    r"prototypes?\w*|aux\w*|AuxLogits|\w*(head|classif|project|predict|decoder)\w*)(\.|$)"
)
LAYOUTS = (  # pattern of a prefix, and who writes it; the first match counts
    (r"encoder_q\.", "MoCo's query encoder"),
    (r"base_encoder\.", "MoCo v3's encoder"),
    (r"_feature_blocks\.", "VISSL's trunk"),
    (r"teacher", "the teacher of DINO or iBOT"),
    (r"online", "BYOL's online network"),
    (r"embedding_model\.", "LightlyTrain's backbone"),
    (r"backbone\.body\.", "the backbone of a torchvision detector"),
    (r"backbone\.", "the backbone of a task, as in mmselfsup, solo-learn, Lightly and here"),
    (r"_orig_mod\.", "torch.compile"),
    (r"^module\.$", "DistributedDataParallel"),
)


@dataclass(frozen=True)
class Reading:
    """One way to read a file as a backbone.

    Args:
        names: Names in the file by names in the backbone.
        prefix: Text before the names in the file.
        numbered: Whether the file numbers the children of the backbone, as `nn.Sequential` does.
        fitting: Weights that are there and have the right shape, without the counters of batch norms.
    """

    names: Mapping[str, str]
    prefix: str
    numbered: bool
    fitting: int

    @property
    def layout(self) -> str:
        """The layout in words; empty if the file has the names of the backbone."""
        known = next((words for pattern, words in LAYOUTS if re.search(pattern, self.prefix)), "")
        below = f"below {self.prefix}" * bool(self.prefix)
        return ", ".join(filter(None, [known, below, "children by number" * self.numbered]))


@dataclass(frozen=True)
class Found:
    """Weights of a backbone in a file.

    Args:
        reading: The chosen way to read the file.
        state: The weights by their names in the backbone; some may be missing or of another shape.
        unexpected: Names beside them that belong to no known head.
        left_out: All other names: heads, copies, queues, optimizers.
        rivals: Prefixes of other weights that fit equally well and have other values.
    """

    reading: Reading
    state: dict[str, Tensor]
    unexpected: list[str]
    left_out: list[str]
    rivals: list[str]


def find_backbone(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], chosen: Collection[str] = ()
) -> Found:
    """Find the weights in a file that fit a backbone best.

    Any prefix may come before the names. Wrappers of torch in the names are ignored, and timm's
    `features_only` may spell them in another way (`stages_0` for `stages.0`).

    Args:
        own: `state_dict()` of the backbone.
        state: Weights of the file by name.
        chosen: Names that the user has made by a `prefix_map`: they win over all others.
    """
    readings = list(_by_name(own, state))
    if not any(_is_complete(each, own) for each in readings):
        readings += _by_number(own, state)
    complete = [each for each in readings if _is_complete(each, own)]
    best = _best(readings)
    reading = min(best, key=lambda each: len(each.prefix), default=Reading({}, "", False, 0))
    if chosen:
        reading = next((each for each in complete if not each.prefix), reading)
    used = set(reading.names.values())
    others = tuple(each.prefix for each in complete if not reading.prefix.startswith(each.prefix))
    unexpected = {
        name
        for name in (set(chosen) or state.keys()) - used
        if not name.startswith(others) and _is_inside(name, reading)
    }
    taken = {ours: state[theirs] for ours, theirs in reading.names.items()}
    counters = {name: value for name, value in own.items() if name.endswith(COUNTER)}
    return Found(
        reading,
        counters | taken,
        [name for name in state if name in unexpected],
        [name for name in state if name not in used | unexpected],
        []
        if chosen
        else [each.prefix for each in best if each in complete and _differs(each, reading, state)],
    )


def rename(state: Mapping[str, Tensor], prefix_map: Mapping[str, str | None]) -> dict[str, Tensor]:
    """Replace the prefixes of names; names with a prefix mapped to None are dropped.

    Raises:
        ValueError: Two weights get the same name.

    >>> rename({"net.a": 1, "fc.b": 2, "c": 3}, {"net.": "", "fc.": None})
    {'a': 1, 'c': 3}
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        prefix = max((p for p in prefix_map if name.startswith(p)), key=len, default="")
        new = prefix_map.get(prefix, "")
        if new is None:
            continue
        if (named := new + name[len(prefix) :]) in renamed:
            raise ValueError(f"prefix_map gives the name {named!r} to two weights; drop one by null")
        renamed[named] = value
    return renamed


def advice(own: Mapping[str, Tensor], state: Mapping[str, Tensor], found: Found) -> list[str]:
    """Say why weights do not fit and what the user can do about it, with commands that work.

    Args:
        own: `state_dict()` of the backbone.
        state: Weights of the file by name.
        found: Result of `find_backbone` for them.
    """
    misfits = [
        name for name, value in own.items() if getattr(found.state.get(name), "shape", ()) != value.shape
    ]
    if len(misfits) == 1 and (theirs := found.state.get(misfits[0])) is not None:
        ours = own[misfits[0]]
        if ours.dim() == theirs.dim() == 4 and ours.shape[1] != theirs.shape[1]:
            taught, takes = theirs.shape[1], ours.shape[1]
            return [f"it was trained on images with {taught} channels, this backbone takes {takes}"]
        if misfits[0].endswith("pos_embed") and (patch := _patch_size(own)):
            size = math.isqrt(theirs.shape[-2]) * patch  # class tokens do not complete a square
            return [f"it is for images of {size} px: backbone.img_size={size} data.image_size={size}"]
    reasons = [f"the names below {found.reading.prefix} come closest"] if found.reading.prefix else []
    if prefix_map := _prefix_map(own, state, found):
        does = (
            "drop them, if the backbone does not need them" if None in prefix_map.values() else "rename them"
        )
        written = ",".join(f"{old}:{'null' if new is None else new}" for old, new in prefix_map.items())
        reasons.append(f"{does}: 'prefix_map={{{written}}}'")
    return reasons


def _patch_size(own: Mapping[str, Tensor]) -> int | None:
    return next(
        (each.shape[-1] for name, each in own.items() if name.endswith("patch_embed.proj.weight")), None
    )


def _prefix_map(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], found: Found
) -> dict[str, str | None] | None:
    """Return a map after which the weights fit, if there is one.

    It renames unexpected prefixes in their order if weights are missing, and drops them otherwise.
    """
    prefix = found.reading.prefix
    odd = list(dict.fromkeys(prefix + _begin(name[len(prefix) :]) for name in found.unexpected))
    lacking = list(dict.fromkeys(_begin(name) for name in own if name not in found.state))
    in_grammar = all(re.fullmatch(r"[\w.-]+", each) for each in odd)  # of Hydra
    if not odd or not in_grammar or (lacking and len(odd) != len(lacking)):
        return None
    new: list[str | None] = [*lacking] or [None] * len(odd)
    prefix_map = dict(zip(odd, new, strict=True))
    after = find_backbone(own, rename(state, prefix_map))
    return None if after.unexpected or mismatches(own, after.state) else prefix_map


def _begin(name: str) -> str:
    """Return the first part of a name, with its dot.

    >>> _begin("layer1.0.conv1.weight"), _begin("scale")
    ('layer1.', 'scale')
    """
    first, dot, _ = name.partition(".")
    return first + dot


def _is_complete(reading: Reading, own: Mapping[str, Tensor]) -> bool:
    return reading.fitting == sum(not name.endswith(COUNTER) for name in own)


def _best(readings: Sequence[Reading]) -> list[Reading]:
    """Return the readings with most weights that fit, without copies of another one."""
    ranks = [(each.fitting, len(each.names)) for each in readings]
    best = [each for each, rank in zip(readings, ranks, strict=True) if rank == max(ranks)]
    return [each for each in best if not COPY.search(each.prefix)] or best


def _by_name(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[Reading]:
    """Read the file below every prefix that leaves a name of the backbone."""
    # timm's features_only wraps some networks as `model`, and joins nested names by underscores
    spelled = {name.removeprefix("model.").replace(".", "_"): name for name in own}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in state:
        parts = name.split(".")
        for start in range(min(len(parts), DEPTH)):
            rest = "_".join(part for part in parts[start:] if part not in WRAPPERS)
            if parts[start] not in WRAPPERS and rest in spelled:
                found[".".join([*parts[:start], ""])][spelled[rest]] = name
    for prefix, names in found.items():
        yield Reading(names, prefix, False, _count_fitting(names, own, state))


def _by_number(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[Reading]:
    """Read numbered children, below any prefix, as the children of the backbone in their order."""
    children = list(dict.fromkeys(name.partition(".")[0] for name in own))
    numbered: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in state:
        for match in re.finditer(r"(?:^|(?<=\.))(\d{1,4})\.", name):
            numbered[name[: match.start()]][int(match[1])].append(name)
    for prefix, groups in numbered.items():
        names = {}
        for number, child in zip(sorted(groups), children, strict=False):
            for name in groups[number]:
                inside = name[len(prefix) :].partition(".")[2]
                names[f"{child}.{inside}"] = name
        if names := {ours: theirs for ours, theirs in names.items() if ours in own}:
            yield Reading(names, prefix, True, _count_fitting(names, own, state))


def _count_fitting(names: Mapping[str, str], own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int:
    return sum(
        own[ours].shape == state[theirs].shape for ours, theirs in names.items() if not ours.endswith(COUNTER)
    )


def _is_inside(name: str, reading: Reading) -> bool:
    """Whether an unused name may be a part that the backbone lacks, rather than a head."""
    if not name.startswith(reading.prefix):
        return False
    inside = name[len(reading.prefix) :]
    if reading.numbered:
        last = max(int(each[len(reading.prefix) :].partition(".")[0]) for each in reading.names.values())
        number = inside.partition(".")[0]
        return number.isdigit() and int(number) <= last
    return not HEAD.match(".".join(part for part in inside.split(".") if part not in WRAPPERS))


def _differs(one: Reading, other: Reading, state: Mapping[str, Tensor]) -> bool:
    return one is not other and any(
        not torch.equal(state[one.names[name]], state[other.names[name]])
        for name in one.names.keys() & other.names.keys()
    )
