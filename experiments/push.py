"""Share a run's model on the hub: python -m experiments.push RUN --repo OWNER/NAME --dry-run FOLDER, or --send.

The model goes with its card: figures, intervals, and what they do not say. --lists adds a data set of the query lists
that it was trained on. Without --send, nothing leaves this machine.
"""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datamodules.corpus import find_file
from datamodules.query_lists.files import read_metadata, read_query_lists, write_query_lists
from datamodules.specs import ListFile, TrainFile, corpus_name, read_list_files
from datamodules.storage.files import write_json, write_text
from datamodules.storage.yaml_files import read_yaml
from experiments.cli.errors import KindParser
from experiments.settings.finished_runs import exported_results
from retriever.errors import InputError
from retriever.printable import printable

# of a run's results, what names no place on this machine
FIGURES = ("name", "seed", "objective", "steps", "datasets")
# of a list file's metadata, what says how it was made and names no place on this machine
SHARED = ("corpus", "split", "teacher", "teacher_weights", "scale", "dev_fraction")


def write_model(run: Path, results: Mapping[str, Any], repository: str, folder: Path) -> None:
    """Write what is sent of a run: its exported model, its card for this repository, its figures.

    Args:
        run: a finished run's folder, with an exported model.
        results: the run's.
        repository: the name on the hub, ``OWNER/NAME``.
        folder: a new folder.

    Raises:
        InputError: the run was made with ``debug``.
    """
    if (read_yaml(run / "config.yaml", "Name another run.").get("debug")) is not None:
        raise InputError(f"{run}: a run with debug=…, whose figures are of a few passages. Share another one.")
    shutil.copytree(run / "model", folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    write_text(folder / "README.md", card.replace('"PATH"', json.dumps(repository)))
    write_json(folder / "results.json", {key: results[key] for key in FIGURES if key in results})


def write_lists(run: Path, folder: Path) -> None:
    """Write the query lists that a run was trained on, as a data set with a card.

    Args:
        run: the run's folder, whose configuration names the files.
        folder: a new folder.

    Raises:
        InputError: a file is not there any more, or holds plain texts.
    """
    from callbacks.reporting.lists_card import SharedFile, lists_card
    from callbacks.reporting.model_card import teacher_names  # imports torch
    from datamodules.query_lists.plain_texts import SUFFIX

    data = read_yaml(run / "config.yaml", "Name another run.")["data"]
    named = {"train": read_list_files(TrainFile, data["train"], "data.train")}
    named["dev"] = read_list_files(ListFile, data.get("dev") or (), "data.dev")
    files: list[SharedFile] = []
    for part, specs in named.items():
        for number, spec in enumerate(specs):
            source = find_file(spec.path)
            if source.suffix == SUFFIX:
                raise InputError(
                    f"{run} was trained on plain texts ({spec.path}), which are no query lists. Share the model alone: "
                    "leave out --lists."
                )
            name = f"{part}-{number:02d}.parquet"
            lists = list(read_query_lists(source))
            stored = read_metadata(source)
            write_query_lists(folder / name, lists, {key: stored[key] for key in SHARED if key in stored})
            types = Counter(one.query_type for one in lists)
            corpus, teacher = corpus_name(spec.corpus), teacher_names(stored.get("teacher"))
            files.append(SharedFile(part, name, len(lists), types, corpus, teacher))
    write_text(folder / "README.md", lists_card(files))


def send(folder: Path, repository: str, kind: str, private: bool) -> str:
    """Upload a folder to the hub, in one commit.

    Args:
        folder: what is sent.
        repository: ``OWNER/NAME``; made where it is not there.
        kind: ``model`` or ``dataset``.
        private: whether a new repository is private.

    Returns:
        The repository's address.

    Raises:
        InputError: nobody is logged in, the hub refuses, or it is out of reach.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, repo_type=kind, commit_message="Upload by experiments.push"
        )
    except Exception as error:  # whatever the HTTP library of the hub's client raises
        raise InputError(
            f"{repository} could not be sent ({' '.join(str(error).split())[:300]}). Log in by `hf auth login`, or set "
            "HF_TOKEN to a token that may write, and look at the name. The same command tries again."
        ) from error
    return str(address)


def push(run: Path, repository: str, output: Path | None, lists: bool, private: bool) -> list[str]:
    """Write a run's model, and its lists if asked, into ``output``, or send them where it is None.

    Returns:
        The folders written, or the addresses sent to.

    Raises:
        InputError: a wrong name, a run that is not finished or exported no model, or see :func:`write_model`,
            :func:`write_lists` and :func:`send`.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"--repo is {repository!r}: {error}") from error
    if repository.count("/") != 1:
        raise InputError(f"--repo is {repository!r}; expected OWNER/NAME, as in me/minilm-cranfield.")
    if output is not None and output.exists():
        raise InputError(f"{output} is there already. Name a new folder.")
    results = exported_results(run)  # before anything is written there
    with TemporaryDirectory(dir=run, prefix=".push.") as place:
        whole = Path(place) / "whole"
        write_model(run, results, repository, whole / "model")
        if lists:
            write_lists(run, whole / "dataset")
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(whole, output)
            return [str(output / part.name) for part in sorted(output.iterdir(), reverse=True)]
        names = {"model": repository, "dataset": f"{repository}-lists"}
        return [send(whole / kind, name, kind, private) for kind, name in names.items() if (whole / kind).is_dir()]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = KindParser(prog="python -m experiments.push", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run's folder")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the repository on the hub")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write what would be sent, and send nothing")
    what.add_argument("--send", action="store_true", help="send it")
    parser.add_argument("--lists", action="store_true", help="and the query lists, as the data set OWNER/NAME-lists")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    options = parser.parse_args(arguments)
    try:
        for place in push(options.run, options.repo, options.dry_run, options.lists, options.private):
            print(printable(place))
    except InputError as error:
        sys.exit(printable(f"error: {error}"))


if __name__ == "__main__":
    main()
