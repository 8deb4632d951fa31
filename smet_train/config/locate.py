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


def option_comment(group: str, name: str) -> str:
    """What ``group=NAME`` is, in the words of the first comment in its file; "" if it has none."""
    lines = (config_folder() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comments = [line for line in lines if not line.startswith("# @")][:1]
    return comments[0].removeprefix("#").strip() if comments and comments[0].startswith("#") else ""


def documents_folder() -> Path | None:
    """The folder of the documents, where the package lies in its repository; a wheel has none."""
    folder = config_folder().parent / "docs"
    return folder if (folder / "index.md").is_file() else None
