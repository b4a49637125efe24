"""Run the study's notebooks in order and make a report: `python -m robustlib.study`.

Everything a user can get wrong is checked before the first notebook starts. A failing notebook
does not stop the others. Exit codes: 0 all ran, 1 a notebook failed, 2 bad input.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from robustlib.core import paths
from robustlib.core.checks import check_name
from robustlib.study import kernels
from robustlib.study.declarations import declared
from robustlib.study.parameters import check_declared, validated
from robustlib.study.values import coerce

if TYPE_CHECKING:  # imported late: while the kernels' warm process gets ready
    import nbformat

    from robustlib.study.report import Outcome


@dataclass(frozen=True)
class Job:
    """One notebook to execute.

    Attributes:
        notebook: the file.
        passed: values that replace the notebook's defaults.
        parameters: every declared parameter with its value.
    """

    notebook: Path
    passed: dict[str, Any]
    parameters: dict[str, Any]


def plan(
    notebooks: Path,
    *,
    run: str,
    params: Path | None = None,
    overrides: Sequence[Sequence[str]] = (),
    only: Sequence[str] = (),
) -> list[Job]:
    """What to execute, in reading order, with every value coerced and checked.

    Args:
        notebooks: folder of the notebooks.
        run: passed to each notebook that declares the parameter `run`.
        params: folder of flat YAML files, `<notebook>.yaml`; None for the notebooks' defaults.
        overrides: names and values that win over `params`; each applies to every notebook that
            declares it.
        only: notebooks by name or by the beginning of it; all if empty.

    Raises:
        ValueError: an unknown notebook or parameter (with the nearest name), a value of the wrong
            type or out of range, unreadable YAML, a malformed parameters cell. The message names
            the file.
    """
    files = {path.stem: path for path in sorted(notebooks.glob("*.ipynb"))}
    if not files:
        raise ValueError(f"there is no notebook in {notebooks}.")
    chosen = sorted({_find(name, list(files)) for name in only}) or list(files)
    from_files = read_params(params, list(files)) if params else {}
    declarations = {stem: declared(files[stem]) for stem in chosen}
    known = sorted({name for found in declarations.values() for name in found})
    for name, _ in overrides:
        if name == "run":
            raise ValueError("name the run with --run NAME, not with -p run.")
        check_name(name, known, "parameter (declared by none of the chosen notebooks)")
    jobs = []
    for stem in chosen:
        where = files[stem].name
        found = declarations[stem]
        check_declared({name: d.type for name, d in found.items()}, where)
        passed: dict[str, Any] = {}
        for name, value in from_files.get(stem, {}).items():
            check_name(name, found, f"parameter of {where} in {params}:")
            passed[name] = value
        try:
            passed |= {n: _relative_to_project(n, value) for n, value in overrides if n in found}
            if "run" in found:
                passed["run"] = run
            values = {name: d.default for name, d in found.items()} | passed
            validated(**values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        typed = {name: coerce(name, value, found[name].type) for name, value in values.items()}
        jobs.append(Job(files[stem], {name: typed[name] for name in passed}, typed))
    return jobs


def _find(name: str, stems: Sequence[str]) -> str:
    stem = Path(name).name.removesuffix(".ipynb")
    starting = [other for other in stems if other.startswith(stem)]
    return starting[0] if len(starting) == 1 else check_name(stem, stems, "notebook")


def read_params(folder: Path, stems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The values of every YAML file in `folder`, by notebook."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder of parameters {folder}.")
    values = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".yaml", ".yml"):
            continue
        check_name(path.stem, stems, f"notebook, named by {path}:")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path} can't be read: {' '.join(str(error).split())}.") from None
        if not isinstance(content, dict | None):
            raise ValueError(f"{path} must hold lines 'name: value', got {content!r}.")
        values[path.stem] = content or {}
    if not values:
        raise ValueError(f"{folder} holds no YAML file.")
    return values


def _relative_to_project(name: str, value: str) -> Any:
    """Files and folders given from the working directory, as the notebooks will find them."""
    if name == "options":
        from robustlib.study.options import seen_from_project

        return seen_from_project(coerce(name, value, "list[str]"))
    if name != "data_root" or not value or not Path(value).exists():
        return value
    given = Path(value)
    return value if given.is_absolute() else os.path.relpath(given, paths.project_root())


def execute(jobs: Sequence[Job], out: Path, run: str) -> tuple[list[Outcome], Path]:
    """Execute `jobs` one after the other into `out`, with a line of progress for each.

    An error ends its notebook only. Each executed notebook carries its `Outcome`. While one runs,
    the page of that before it is made. Returns the outcomes and the index of the pages of `run`.
    """
    from robustlib.study import report, results

    facts = results.provenance()
    outcomes, bodies = [], {}
    with ThreadPoolExecutor(1) as pages:
        for position, job in enumerate(jobs, start=1):
            line = f"notebook {position}/{len(jobs)} {job.notebook.stem} ... "
            bar: bool | dict[str, Any] = False
            if sys.stderr.isatty():
                bar = {"desc": line.rstrip(". "), "leave": False}
            else:
                print(line, end="", flush=True)
            outcome, notebook = _execute_one(job, out / job.notebook.name, bar, facts)
            outcomes.append(outcome)
            bodies[job.notebook.stem] = pages.submit(report.body, notebook)
            result = f"{report.duration(outcome.seconds)}{', FAILED' if outcome.error else ''}"
            print(f"{line}{result}" if bar else result, flush=True)
        ready = {stem: body.result() for stem, body in bodies.items()}
    return outcomes, report.build_site(out, run, ready)


def _execute_one(
    job: Job, target: Path, bar: bool | dict[str, Any], facts: dict[str, str]
) -> tuple[Outcome, nbformat.NotebookNode]:
    import nbformat
    import papermill

    from robustlib.study import engine, report

    target.unlink(missing_ok=True)
    start = time.perf_counter()
    error = ""
    try:
        with _kernel_environment():
            papermill.execute_notebook(
                job.notebook,
                target,
                job.passed,
                kernel_name="python3",
                progress_bar=bar,
                cwd=job.notebook.parent,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
                engine_name=engine.NAME,
            )
    except KeyboardInterrupt:
        target.unlink(missing_ok=True)  # half a notebook would look like a whole one
        raise
    except Exception as failure:  # whatever it is, the next notebook gets its turn
        error = " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
    seconds = time.perf_counter() - start
    source = target if target.is_file() else job.notebook
    notebook = nbformat.read(source, as_version=4)
    in_cell, cell = report.first_error(notebook)
    said = error and (in_cell or error)
    outcome = report.Outcome(said, round(seconds, 2), job.parameters, facts, cell)
    report.record(notebook, outcome)
    _tidy(notebook, job.notebook.name)
    nbformat.write(notebook, target)
    return outcome, notebook


def _tidy(notebook: nbformat.NotebookNode, name: str) -> None:
    """Keep the last state of progress bars, and no path of this machine."""
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    notes = notebook.metadata.setdefault("papermill", {})
    notes["input_path"] = notes["output_path"] = name
    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    root = f"{paths.project_root()}{os.sep}"
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = output.text.replace(root, "")
            elif output.output_type == "error":
                output.traceback = [line.replace(root, "") for line in output.traceback]


_KERNEL_ENVIRONMENT = {
    "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not the user's own "python3"
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no warning about the debugger in the terminal
    "PYTHONWARNINGS": "",  # the usual filters, whatever this process was started with
    "COLUMNS": "100",
    "TQDM_MININTERVAL": "1",
}


@contextmanager
def _kernel_environment() -> Iterator[None]:
    """Variables that kernels inherit: this `robustlib`, inline figures, few progress updates."""
    search = [str(paths.project_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    with _environment({**_KERNEL_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(search)}):
        yield


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"the folder of reports {folder} can't be written to ({error.strerror}); free it or "
            "name another with the variable ROBUSTLIB_REPORTS."
        ) from None


def _locate(folder: str) -> Path:
    """A folder as seen from the working directory or, failing that, from the project."""
    given = Path(folder)
    return given if given.exists() else paths.project_root() / given


def _latest_run() -> str:
    """The name of the run whose notebooks were written last."""
    found = paths.reports_dir("-").parent.glob("*/*.ipynb")
    latest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    if latest is None:
        raise ValueError("there is no run to make a report of; execute one first: make study.")
    return latest.parent.name


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Run the notebooks of the study and make a report."
    )
    parser.add_argument("--params", metavar="FOLDER", help="flat YAML files, one a notebook")
    parser.add_argument("--run", metavar="NAME", help="default: the name of FOLDER, or study")
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="set a parameter in every notebook that declares it; lists as a,b,c",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NOTEBOOK", help="e.g. 03_mtlat")
    parser.add_argument(
        "--no-execute",
        action="store_true",
        help="rebuild the pages of an earlier run (default: the latest) from its notebooks",
    )
    return parser


def main(
    arguments: Sequence[str] | None = None,
    notebooks: Path | None = None,
    *,
    prog: str = "python -m robustlib.study",
) -> int:
    """The command line, but for what `robustlib.study.main` adds; returns the exit code.

    notebooks: a folder in place of the project's. prog: how it is called, for its messages.
    """
    args = _parser(prog).parse_args(arguments)
    try:
        return _study(args, notebooks or paths.project_root() / "notebooks")
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2


def _study(args: argparse.Namespace, notebooks: Path) -> int:
    if args.no_execute:
        if args.params or args.p or args.only:
            raise ValueError("--no-execute goes with --run only.")
        run = args.run or _latest_run()
        validated(run=run)
        from robustlib.study import report

        print(f"report: {_short(report.build_site(paths.reports_dir(run), run))}")
        return 0
    if not notebooks.is_dir():
        raise ValueError(
            f"it runs the notebooks of the project, and {notebooks.parent} has no folder "
            f"{notebooks.name!r}: get the project with git clone, and run it in there."
        )
    params = _locate(args.params) if args.params else None
    run = args.run or (params.resolve().name if params else "study")
    validated(run=run)
    with _kernel_environment():
        kernels.warm_up()
    from robustlib.core.store import Store
    from robustlib.study import report

    jobs = plan(notebooks, run=run, params=params, overrides=args.p, only=args.only)
    out = paths.reports_dir(run)
    _check_writable(out)
    Store()  # raises if the notebooks could not write to it
    start = time.perf_counter()
    outcomes, index = execute(jobs, out, run)
    failed = [(j.notebook.stem, o) for j, o in zip(jobs, outcomes, strict=True) if o.error]
    wall = report.duration(time.perf_counter() - start)
    print(f"run {run!r}: {len(jobs)} notebooks in {wall}, {len(failed) or 'none'} failed")
    for stem, outcome in failed:
        print(f"  {stem}: {outcome.error}")
    print(f"report: {_short(index)}")
    return 1 if failed else 0


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
