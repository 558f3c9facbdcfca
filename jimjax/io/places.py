"""Where the files lie that a table names, and which of these places belong to its project.

A table may come from somebody else, and its names may lead anywhere. To the project belong what
lies in or below the working directory, and in or below the folder that the table's own folder is
in, so that a folder of results beside one of particles can name them as ``../particles/x.mrcs``.
The root of the file system and the home folder are no projects. A link that lies in the project is
the user's, and may lead where it likes; ``..`` behind a folder's name may not leave by one.
"""

import os
from pathlib import Path


class OutsideError(Exception):
    """The file is none of the project's; ``roots`` are the folders that are."""

    def __init__(self, roots: tuple[Path, ...]):
        super().__init__(roots)
        self.roots = roots


def locate(path: Path, folder: Path, *, allow_outside: bool) -> Path | list[Path]:
    """Finds a file that a table names.

    Args:
        path: as named; a relative one is looked for in ``folder``, then in the working directory.
        folder: of the table.
        allow_outside: also where it is none of the project's.

    Returns:
        The absolute path, or the places where it is not.

    Raises:
        OutsideError: if it can only be outside of the project, or is there alone.
    """
    bases = [Path(os.path.realpath(base)) for base in (folder, Path())]
    roots = project_roots(folder)
    inside = [base for base in bases if allow_outside or _is_inside(path, base, roots)]
    for base in inside:
        candidate = base / path
        if os.path.exists(candidate):
            # A ".." after a link leads to the link's target's parent: let the system tell.
            return Path(os.path.realpath(candidate)) if ".." in path.parts else candidate
    if not inside or any(os.path.exists(base / path) for base in bases):
        raise OutsideError(roots)
    return list(dict.fromkeys(base / path for base in inside))


def project_roots(folder: Path) -> tuple[Path, ...]:
    """The folders, without links, in which the files of a table in ``folder`` may lie."""
    own, working = Path(os.path.realpath(folder)), Path(os.path.realpath(Path()))
    no_projects = {Path(own.anchor), Path(os.path.realpath(os.path.expanduser("~")))}
    around = own if own.parent in no_projects else own.parent
    roots = [around] if working == Path(working.anchor) else [working, around]
    return tuple(dict.fromkeys(roots))


def moved_path(path: Path, old_folder: Path, folder: Path) -> Path:
    """What a table in ``folder`` has to name a file that one in ``old_folder`` names ``path``.

    Args:
        path: an absolute one stays.
        old_folder: without links.
        folder: likewise.
    """
    if path.is_absolute():
        return path
    target = old_folder / path
    if not os.path.exists(target):
        target = Path.cwd() / path
        is_hidden = os.path.exists(target) and os.path.exists(folder / path)
        return target if is_hidden and not os.path.samefile(target, folder / path) else path
    relative = Path(os.path.relpath(target, folder))
    # A link on the way can make ".." mean something else; the absolute path cannot fail.
    return relative if os.path.exists(folder / relative) else target


def _is_inside(path: Path, base: Path, roots: tuple[Path, ...]) -> bool:
    """Whether a file named from ``base``, which has no links in it, lies below one of the roots."""
    real = Path(os.path.realpath(base / path))
    if any(real.is_relative_to(root) for root in roots):
        return True
    steps = list(path.parts)
    while steps and steps[0] == "..":
        steps.pop(0)
    as_written = Path(os.path.normpath(base / path))
    return ".." not in steps and any(as_written.is_relative_to(root) for root in roots)
