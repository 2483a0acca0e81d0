"""Names of tasks, and of rows of tables, in sentences."""

TITLES = {
    "super_resolution": "super-resolution",
    "context_prediction": "context prediction",
    "simclr": "SimCLR",
    "pirl": "PIRL",
    "mae": "MAE",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "byol": "BYOL",
    "dino": "DINO",
    "lejepa": "LeJEPA",
    # rows of cifar10_methods
    "rotation_colorization": "rotation + colorization",
    "rotation_simclr": "rotation + SimCLR",
    "rotation_pirl": "rotation + PIRL",
}


def title(task: str) -> str:
    """Return the name of a task, or of a row of a table, inside a sentence."""
    return TITLES.get(task, task)


def title_first(task: str) -> str:
    """Return the same at the start of a sentence.

    >>> title_first("pirl"), title_first("blur_level")
    ('PIRL', 'Blur level')
    """
    name = title(task).replace("_", " ")
    return name[0].upper() + name[1:]
