"""Measure this project beside its peers: python -m experiments.bench [parts=[step]] [key=value ...]."""

import logging
import os
import platform
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from datamodules.corpus.data_sets import find_file, require_dataset
from datamodules.storage.files import write_json, write_text
from experiments.benchmarks.settings import PARTS, BenchSettings
from experiments.cli.arguments import check_added, say_what_is_kept
from experiments.cli.errors import run_kindly, single
from experiments.cli.quiet import quiet_imports
from experiments.cli.targets import check_arguments, check_written
from experiments.settings.encoders import SPECS
from experiments.settings.renamed import OF_BENCH, rename_arguments
from retriever.typed import read_top

log = logging.getLogger(__name__)


def bench(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Measure the parts asked for; write ``report.json``, ``report.md`` and ``curves.png`` into the folder."""
    check_written(config, SPECS)
    settings = read_top(BenchSettings, config)
    require_dataset(settings.corpus)
    for name in settings.files:
        find_file(name)
    with quiet_imports():
        from callbacks.reporting.run_record import environment
        from experiments.benchmarks.measuring import chosen_device
        from experiments.benchmarks.parts import Bench, what_is_measured
        from retriever.encoder.precision import cpu_instructions, cpu_name

    check_arguments(config, SPECS)
    facts = environment(chosen_device(config.device))
    measured = Bench(config, folder, facts["git"])
    log.info("%s, %d threads: %s", facts["device"], measured.threads, what_is_measured(config))
    packages = ("torch", "transformers", "sentence-transformers", "beir", "faiss-cpu", "faiss-gpu")
    measured.report["environment"] = {k: facts[k] for k in ("python", "platform", "processor", "device", "git")} | {
        "cpu": cpu_name(),
        "instructions": cpu_instructions(),
        "cores": os.cpu_count(),
        "threads": measured.threads,
        "machine": platform.machine(),
        "packages": {name: facts["packages"].get(name) for name in packages},
    }
    machine = f"{cpu_name()} ({', '.join(cpu_instructions())}), {facts['device']}, {measured.threads} threads"
    pages = [f"Measured on {machine}, torch {facts['packages'].get('torch')}, {facts['git']}.\n"]
    for part in (p for p in PARTS if p in config.parts):
        pages.append(getattr(measured, part)())
        write_json(folder / "report.json", measured.report)
        write_text(folder / "report.md", "\n".join(pages))
    log.info("%s", folder / "report.md")
    return measured.report


@hydra.main(version_base="1.3", config_path="conf", config_name="bench")
@single
def application(config: DictConfig) -> None:
    """One benchmark."""
    check_added(config, HydraConfig.get(), "bench.yaml")
    say_what_is_kept(config, HydraConfig.get().overrides.task)
    bench(config, Path(HydraConfig.get().runtime.output_dir).absolute())


def main() -> None:
    """The command."""
    rename_arguments(OF_BENCH)
    run_kindly(application)


if __name__ == "__main__":
    main()
