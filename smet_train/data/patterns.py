"""Globs as a person types them, made independent of the working directory."""

import glob
import os


def absolute_pattern(pattern: str) -> str:
    """``pattern`` seen from the root. A file or folder that is there under this very name is meant literally; of a glob
    what the person has typed is a glob, and not the working or home folder's name, which may hold ``[ ]`` itself."""
    literal = os.path.abspath(os.path.expanduser(pattern))
    if os.path.exists(literal):
        return literal
    if pattern.startswith("~"):
        home, separator, rest = pattern.partition("/")
        return os.path.normpath(glob.escape(os.path.expanduser(home)) + separator + rest)
    return os.path.normpath(os.path.join(glob.escape(os.getcwd()), pattern))
