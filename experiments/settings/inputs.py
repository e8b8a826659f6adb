"""The files that a run reads, by content."""

from pathlib import Path

from omegaconf import DictConfig

from datamodules.corpus import find_dataset, find_file, judgement_files
from datamodules.dev_lists import dev_file_beside
from datamodules.formats.records import find_records
from datamodules.specs import ListFile, TrainFile, read_evaluation_specs, read_list_files
from datamodules.storage.input_hashes import input_sha256


def input_hashes(config: DictConfig) -> dict[str, str]:
    """File, as the configuration names it → SHA-256: lists, corpora, queries and judgements of a run."""
    files: dict[str, Path] = {}

    def add_data_set(name: str, split: str | None = None) -> None:
        folder = find_dataset(name, config.data_dir)
        found = [*find_records(folder, "corpus"), *(judgement_files(folder, split) if split else ())]
        files.update({f"{name}/{path.relative_to(folder)}": path for path in found})

    train = read_list_files(TrainFile, config.data.get("train") or (), "data.train")
    dev = read_list_files(ListFile, config.data.get("dev") or (), "data.dev")
    for spec in [*train, *dev]:
        files[spec.path] = find_file(spec.path)
        add_data_set(spec.corpus)
    for spec in train if config.data.get("dev") is None else ():
        beside = dev_file_beside(find_file(spec.path))
        if beside is not None:  # the dev lists, where the train lists are split already
            files[str(beside)] = beside
    for spec in read_evaluation_specs(config.evaluation.get("datasets") or ()):
        if spec.lists is not None:
            files[spec.lists] = find_file(spec.lists)
        add_data_set(spec.path, spec.split)
    return {name: input_sha256(path) for name, path in sorted(files.items()) if path.is_file()}
