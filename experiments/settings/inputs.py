"""The files that a run reads, by content."""

from pathlib import Path

from omegaconf import DictConfig

from datamodules.corpus import find_dataset, find_file, judgement_files
from datamodules.dev_lists import dev_file_beside
from datamodules.formats.records import find_records
from datamodules.specs import EvaluationSpec, ListFile, TrainFile, read_evaluation_specs, read_list_files
from datamodules.storage.input_hashes import input_sha256


def input_hashes(config: DictConfig) -> dict[str, str]:
    """File, as the configuration names it → SHA-256: lists, corpora, queries and judgements of a run."""
    files: dict[str, Path] = {}

    train = read_list_files(TrainFile, config.data.get("train") or (), "data.train")
    dev = read_list_files(ListFile, config.data.get("dev") or (), "data.dev")
    for spec in [*train, *dev]:
        files[spec.path] = find_file(spec.path)
        files.update(files_of_data_set(spec.corpus, None, config.data_dir))
    for spec in train if config.data.get("dev") is None else ():
        beside = dev_file_beside(find_file(spec.path))
        if beside is not None:  # the dev lists, where the train lists are split already
            files[str(beside)] = beside
    for spec in read_evaluation_specs(config.evaluation.get("datasets") or ()):
        files.update(files_of_set(spec, config.data_dir))
    return {name: input_sha256(path) for name, path in sorted(files.items()) if path.is_file()}


def files_of_set(spec: EvaluationSpec, data_dir: str | Path) -> dict[str, Path]:
    """File, as an evaluation set names it → path: corpus, queries and judgements, or lists."""
    lists = {} if spec.lists is None else {spec.lists: find_file(spec.lists)}
    return lists | files_of_data_set(spec.path, spec.split, data_dir)


def files_of_data_set(name: str, split: str | None, data_dir: str | Path) -> dict[str, Path]:
    """File, by the data set's name → path: the corpus and, of a split, queries and judgements."""
    folder = find_dataset(name, data_dir)
    found = [*find_records(folder, "corpus"), *(judgement_files(folder, split) if split else ())]
    return {f"{name}/{path.relative_to(folder)}": path for path in found}
