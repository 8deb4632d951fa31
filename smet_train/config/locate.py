"""Where the YAML files are."""

from pathlib import Path


def config_folder() -> Path:
    """The repository's ``configs/`` when the package lies in one (editable install, clone), else the wheel's copy."""
    package = Path(__file__).resolve().parents[1]
    repository = package.parent
    if (repository / "pyproject.toml").is_file() and (repository / "configs" / "train.yaml").is_file():
        return repository / "configs"
    return package / "_configs"


def group_options(group: str) -> list[str]:
    """Names that ``group=NAME`` can choose among, sorted."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def groups() -> list[str]:
    """The groups of YAML files, sorted."""
    return sorted(path.name for path in config_folder().iterdir() if path.is_dir())
