"""Results of a benchmark, a file for each method and seed: an interrupted one goes on with them."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Case = TypeVar("Case")


def complete(
    paths: Mapping[str, Path],
    about: Mapping[str, Any],
    prepare: Callable[[], Case],
    measure: Callable[[str, Case], Mapping[str, Any]],
) -> None:
    """Runs the methods whose results are not there yet.

    Args:
        paths: where the result of each method goes.
        about: what they are run on, such as noise and seed; kept in each file.
        prepare: makes what they are run on; not called if nothing is missing.
        measure: runs a method on it, and says what else its file is to hold.
    """
    from jimjax.commands import files
    from jimjax.commands.progress import say

    missing = {name: path for name, path in paths.items() if not path.exists()}
    if not missing:
        return
    for path in missing.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    case = prepare()
    where = ", ".join(f"{key} {value}" for key, value in about.items())
    for name, path in missing.items():
        say(f"{name}: {where}")
        files.write_json(path, {"method": name, **about, **measure(name, case)})


def seed_paths(folder: Path, names: Iterable[str], seed: int) -> dict[str, Path]:
    """Where the results of one seed go."""
    return {name: folder / f"result_{name}_{seed}.json" for name in names}


def read_results(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """What is there, by data set, from little noise to much, by method and seed.

    Args:
        folder: with a folder for each data set.
        names: all methods, in the order of the table.
    """
    from jimjax.commands.files import read_json

    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    found = [read_json(path) for path in folder.glob("*/result_*.json")]
    return sorted(
        found,
        key=lambda r: (r.get("dataset", ""), -r["snr"], order[r["method"]], r.get("seed", 0)),
    )
