"""Measure this project beside its peers: python -m experiments.bench [parts=[step]] [key=value ...]."""

from __future__ import annotations

import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from callbacks.reporting.run_record import environment
from datamodules.storage.files import atomic_path, write_json
from experiments.benchmarks import report
from experiments.benchmarks.cost_model import estimate, needed_and_recomputed, paper_workload
from experiments.benchmarks.measuring import chosen_device, medians, run_in_turns
from experiments.benchmarks.settings import PARTS, read_bench_settings
from experiments.cli.arguments import check_added, say_what_is_kept
from experiments.cli.errors import run_kindly
from experiments.cli.targets import check_arguments
from experiments.settings.encoders import SPECS
from retriever.encoder.text_encoder import EncoderSpec
from retriever.errors import InputError
from retriever.pretrained.source import find_model, with_preset

log = logging.getLogger(__name__)
_ESTIMATED = {
    "training_hours": "training, hours",
    "evaluation_hours": "one evaluation, hours",
    "training_gibibytes": "GiB per GPU in training",
    "evaluation_gibibytes": "GiB of passage embeddings per GPU",
}
_COMMON = (
    "device",
    "seed",
    "token_budget",
    "peer_batch",
    "rate_seconds",
    "cache_dir",
    "empty_passages",
    "unknown_qrels",
    "on_bad_list",
)


class Bench:
    """The parts of the benchmark; each fills ``report`` and gives its tables as Markdown.

    Args:
        config: as composed from ``experiments/conf/bench.yaml``.
        folder: where the report goes; what this revision measured there already is not measured again.
        revision: the code's, by git.
    """

    def __init__(self, config: DictConfig, folder: Path, revision: str | None) -> None:
        self.config = OmegaConf.to_container(config, resolve=True)
        self.folder = folder
        self.revision = revision
        self.console = Console(width=None if sys.stdout.isatty() else 160)
        self.threads = self.config["threads"] or os.cpu_count()
        self.report: dict[str, Any] = {}

    def step(self) -> str:
        """A training step of each system, for each case."""
        self.report["step"] = [self._step_case(case) for case in self.config["step"]["cases"]]
        title = "A training step: forward and backward pass, clipping, AdamW"
        rows = report.step_rows(self.report["step"])
        return report.print_and_collect(title, report.STEP_COLUMNS, rows, self.console)

    def profile(self) -> str:
        """Where the time of a step of ours goes."""
        options = self.config["profile"]
        job = self._job(
            "profile",
            self._encoder(self.config["max_length"]),
            files=self.config["files"],
            corpus=self.config["corpus"],
            size=options["lists"],
            list_length=self.config["list_length"],
            kept_tokens=self.config["kept_tokens"],
        )
        result = run_in_turns({"ours": job}, 1, f"profile of {options['lists']} lists", self.folder / "measured")[
            "ours"
        ][0]
        self.report["profile"] = {**options, **result}
        rows = [
            [kind, f"{seconds:.2f}", f"{100 * seconds / result['seconds']:.1f}%"]
            for kind, seconds in result["kinds"].items()
        ]
        kept = self.config["kept_tokens"]
        title = f"Where a step of {options['lists']} lists spends its time ({kept} tokens not computed again)"
        return report.print_and_collect(title, ("kind of operation", "seconds", "share"), rows, self.console)

    def evaluation(self) -> str:
        """Corpus encoding, exact search and nDCG@10 of each system."""
        options = self.config["evaluation"]
        encoder = self._encoder(options["max_length"])
        jobs = {
            name: self._job("evaluation", encoder, system=name, dataset=options["dataset"])
            for name in options["systems"]
        }
        rounds = run_in_turns(jobs, options["rounds"], "evaluation", self.folder / "measured")
        self.report["evaluation"] = {name: medians(results) for name, results in rounds.items()}
        title = (
            f"Evaluation of {options['dataset']}, texts of at most {options['max_length']} tokens, from text to nDCG@10"
        )
        rows = report.evaluation_rows(self.report["evaluation"])
        return report.print_and_collect(title, report.EVALUATION_COLUMNS, rows, self.console)

    def curves(self) -> str:
        """How a step of ours and a search grow."""
        options = self.config["curves"]
        case = {"rounds": 1, "systems": ["ours_infonce"]}
        by_lists = [self._step_case({**case, "lists": n}) for n in options["lists"]]
        by_length = [
            self._step_case({**case, "lists": options["list_length_at"], "list_length": k})
            for k in options["list_lengths"]
        ]
        encoder = self._encoder(self.config["max_length"])
        jobs = {
            f"search-{n}-{q}": self._job("search", encoder, passages=n, queries=q)
            for q in options["queries"]
            for n in options["passages"]
        }
        searches = run_in_turns(jobs, 1, "search", self.folder / "measured")
        curves = {
            "lists of a batch": [_point(c, c["lists"]) for c in by_lists],
            "passages of a list": [_point(c, c["list_length"]) for c in by_length],
            "passages searched": [
                {
                    "x": jobs[name]["passages"],
                    "group": f"{jobs[name]['queries']} queries",
                    "seconds": result[0]["seconds"],
                    "bytes": result[0]["search_bytes"],
                }
                for name, result in searches.items()
            ],
        }
        self.report["curves"] = curves
        report.plot_curves(curves, self.folder / "curves.png")
        rows = [
            [name, f"{p['x']:,}", p.get("group", ""), f"{p['seconds']:.2f}", f"{p['bytes'] / 2**30:.3f}"]
            for name, points in curves.items()
            for p in points
        ]
        columns = ("what grows", "to", "", "seconds", "GiB")
        return report.print_and_collect("Time and memory as things grow", columns, rows, self.console) + (
            "\n![curves](curves.png)\n"
        )

    def cost(self) -> str:
        """The paper's run from operations and rates, and the same model checked against steps measured here."""
        options = self.config["cost"]
        small, large = self._measured_steps()
        budget = self.config["kept_tokens"]
        rate = needed_and_recomputed(small, budget) / small["seconds"]
        predicted = needed_and_recomputed(large, budget) / rate
        workload = paper_workload(options, budget)
        # activations grow with tokens, layers and width; their number per token is that of the measured step
        size = options["layers"] * options["width"] / (large["layers"] * large["width"])
        flops, activations = options["gpu_flops"] * options["utilisation"], large["activation_bytes"] * size
        estimates = [estimate(workload, n, flops, activations) for n in options["gpus"]]
        check = {"rate": rate, "measured_seconds": large["seconds"], "predicted_seconds": predicted}
        self.report["cost"] = {"assumptions": options, "check": check, "estimates": estimates}
        said = (
            f"Check: at the {rate / 1e9:.0f} GFLOP/s that the step of {small['lists']} lists reached here, the step of "
            f"{large['lists']} should take {predicted:.1f} s; it took {large['seconds']:.1f} s "
            f"({predicted / large['seconds']:.2f}). Assumed, not measured: {options}; activations of a micro-batch of "
            f"{budget} tokens as measured here, scaled by layers and width."
        )
        self.console.print(said)
        rows = [[str(e["gpus"]), *(f"{e[k]:.2f}" for k in _ESTIMATED)] for e in estimates]
        title = (
            f"The paper's run: {options['lists']:,} lists of {options['list_length']}, {options['epochs']} epoch(s); "
            f"{options['corpus']:,} passages evaluated once"
        )
        columns = ("GPUs", *_ESTIMATED.values())
        return report.print_and_collect(title, columns, rows, self.console) + f"\n{said}\n"

    def _measured_steps(self) -> list[dict[str, Any]]:
        """The smallest and the largest step of ours that were measured; where there are not two, two are measured."""
        cases = [c for c in self.report.get("step", ()) if "ours_infonce" in c["results"] and not c["variant"]]
        if len({c["lists"] for c in cases}) < 2:
            sizes = self.config["curves"]["lists"][:2]
            cases = [self._step_case({"lists": n, "rounds": 1, "systems": ["ours_infonce"]}) for n in sizes]
        cases = sorted(cases, key=lambda c: c["lists"])
        return [{**c["results"]["ours_infonce"], "lists": c["lists"]} for c in (cases[0], cases[-1])]

    def _step_case(self, case: dict[str, Any]) -> dict[str, Any]:
        max_length = case.get("max_length", self.config["max_length"])
        list_length = case.get("list_length", self.config["list_length"])
        kept = case.get("kept_tokens", self.config["kept_tokens"])
        variant = {k: case[k] for k in ("attention", "kept_tokens") if k in case}
        gradients = self.folder / "gradients"
        gradients.mkdir(parents=True, exist_ok=True)
        jobs = {}
        for system in case["systems"]:
            encoder = self._encoder(max_length)
            if system.startswith("ours"):
                encoder["attention"] = case.get("attention", encoder["attention"])
            name = "-".join(map(str, (system, case["lists"], list_length, max_length, *variant.values())))
            jobs[system] = self._job(
                "step",
                encoder,
                system=system,
                files=self.config["files"],
                corpus=self.config["corpus"],
                size=case["lists"],
                list_length=list_length,
                kept_tokens=kept,
                peer_batch=case.get("peer_batch", self.config["peer_batch"]),
                gradient=str(gradients / f"{name}.npy"),
            )
        rounds = run_in_turns(jobs, case["rounds"], f"step of {case['lists']} lists", self.folder / "measured")
        results = {name: medians(r) for name, r in rounds.items()}
        for name, result in results.items():
            if "rate_share" in result:
                twice = needed_and_recomputed(result, kept) / result["needed_flops"]
                result["rate_share_with_recomputed"] = twice * result["rate_share"]
            ours = "ours_" + name.partition("_")[2]
            if name != ours and ours in results:
                result["cosine"] = _cosine(jobs[ours]["gradient"], jobs[name]["gradient"])
        said = "".join(f", {k} {v}" for k, v in variant.items())
        return {
            "lists": case["lists"],
            "list_length": list_length,
            "max_length": max_length,
            "variant": said,
            "rounds": case["rounds"],
            "results": results,
            "each_round": rounds,
        }

    def _encoder(self, max_length: int) -> dict[str, Any]:
        return {**self.config["encoder"], "query_max_length": max_length, "passage_max_length": max_length}

    def _job(self, kind: str, encoder: dict[str, Any], **options: Any) -> dict[str, Any]:
        common = {k: self.config[k] for k in _COMMON}
        common |= {"threads": self.threads, "revision": self.revision}
        return {"job": kind, "encoder": encoder, **common, **options}


def _point(case: dict[str, Any], x: int) -> dict[str, Any]:
    result = case["results"]["ours_infonce"]
    return {"x": x, "seconds": result["seconds"], "bytes": result["step_bytes"]}


def _cosine(left: str, right: str) -> float:
    a, b = (np.load(path).astype(np.float64) for path in (left, right))
    if a.shape != b.shape:
        raise InputError(f"{left} and {right}: gradients of {len(a)} and {len(b)} weights; these are not one model's.")
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _what(config: DictConfig) -> str:
    """What is measured, in one line."""
    encoder = OmegaConf.to_container(config.encoder, resolve=True)
    stated = {name: encoder.get(name) for name in EncoderSpec.__dataclass_fields__}
    _, packaged = with_preset(encoder["model"], encoder.get("preset"), stated, stated)
    origin = find_model(encoder["model"], encoder.get("revision"), packaged).origin
    files = ", ".join(config.files)
    return f"{', '.join(config.parts)} with {encoder['model']} ({origin}); lists of {files} over {config.corpus}"


def bench(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Measure the parts asked for; write ``report.json``, ``report.md`` and ``curves.png`` into the folder."""
    check_arguments(config, SPECS)
    read_bench_settings(config)
    facts = environment(chosen_device(config.device))
    measured = Bench(config, folder, facts["git"])
    log.info("%s, %d threads: %s", facts["device"], measured.threads, _what(config))
    measured.report["environment"] = {k: facts[k] for k in ("python", "platform", "processor", "device", "git")} | {
        "cores": os.cpu_count(),
        "threads": measured.threads,
        "machine": platform.machine(),
        "packages": {
            k: facts["packages"].get(k)
            for k in ("torch", "transformers", "sentence-transformers", "beir", "faiss-cpu", "faiss-gpu")
        },
    }
    pages = []
    for part in (p for p in PARTS if p in config.parts):
        pages.append(getattr(measured, part)())
        write_json(folder / "report.json", measured.report)
        with atomic_path(folder / "report.md") as temporary:
            temporary.write_text("\n".join(pages), encoding="utf-8")
    log.info("%s", folder / "report.md")
    return measured.report


@hydra.main(version_base="1.3", config_path="conf", config_name="bench")
def application(config: DictConfig) -> None:
    """One benchmark."""
    check_added(config, HydraConfig.get(), "bench.yaml")
    say_what_is_kept(config, HydraConfig.get().overrides.task)
    bench(config, Path(HydraConfig.get().runtime.output_dir).absolute())


def main() -> None:
    """The command."""
    run_kindly(application)


if __name__ == "__main__":
    main()
