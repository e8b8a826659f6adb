"""The parts of the benchmark: what is measured, in what order, and the tables that it fills."""

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from experiments.benchmarks import report
from experiments.benchmarks.cost_model import needed_and_recomputed, paper_costs
from experiments.benchmarks.measuring import chosen_device, medians, run_in_turns
from experiments.benchmarks.scale import WORK
from experiments.benchmarks.settings import PARTS
from experiments.benchmarks.system_name import SystemName
from retriever.encoder.precision import BFLOAT16, cpu_has_bfloat16
from retriever.encoder.spec import EncoderSpec
from retriever.errors import InputError
from retriever.pretrained.preset import with_preset
from retriever.pretrained.source import find_model

log = logging.getLogger(__name__)
# what is left out of a job: its own options say it, or it changes nothing that is measured
_NOT_OF_JOBS = {"parts", "output_dir", "allowed_targets", "encoder", *PARTS}
_OF_LISTS = {"step", "profile", "curves", "cost"}  # parts that read query lists
_OF_ENCODER = ("attention", "trainable_layers")  # what a case may set in our encoder


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
        self.console = Console(width=None if sys.stdout.isatty() else 160)
        self.threads = self.config["threads"] or os.cpu_count()
        self.common = {k: v for k, v in self.config.items() if k not in _NOT_OF_JOBS}
        self.common |= {"threads": self.threads, "revision": revision}
        self.report: dict[str, Any] = {}

    def step(self) -> str:
        """A training step of each system, for each case."""
        self.report["step"] = [self._step_case(case) for case in self.config["step"]["cases"]]
        title = "A training step: forward and backward pass, clipping, AdamW"
        return self._table(title, report.step_rows(self.report["step"]))

    def profile(self) -> str:
        """Where the time of a step of ours goes."""
        lists = self.config["profile"]["lists"]
        [result] = self._run({"ours": self._job("profile", size=lists)}, 1, f"profile of {lists} lists")["ours"]
        self.report["profile"], kept = {"lists": lists, **result}, result["uncheckpointed_tokens"]
        rows = [
            {"kind of operation": kind, "seconds": f"{seconds:.2f}", "share": f"{seconds / result['seconds']:.1%}"}
            for kind, seconds in result["kinds"].items()
        ]
        return self._table(f"Where a step of {lists} lists spends its time ({kept:,} tokens not computed again)", rows)

    def evaluation(self) -> str:
        """Corpus encoding, exact search and nDCG@10 of each system."""
        options = self.config["evaluation"]
        dataset, length = options["dataset"], options["max_length"]
        jobs = {s: self._job("evaluation", system=s, dataset=dataset, max_length=length) for s in options["systems"]}
        rounds = self._run(jobs, options["rounds"], "evaluation")
        self.report["evaluation"] = {
            name: medians(results) | {"seconds_of_rounds": [one["seconds"] for one in results]}
            for name, results in rounds.items()
        }
        title = f"Evaluation of {dataset}, texts of at most {length} tokens, from text to nDCG@10"
        return self._table(title, report.evaluation_rows(self.report["evaluation"]))

    def curves(self) -> str:
        """How a step of ours and a search grow."""
        options = self.config["curves"]
        jobs = {
            f"search-{n}-{q}": self._job("search", passages=n, queries=q)
            for q in options["queries"]
            for n in options["passages"]
        }
        at = options["list_length_at"]
        curves = {
            "lists of a batch": [self._point(n, lists=n) for n in options["lists"]],
            "passages of a list": [self._point(k, lists=at, list_length=k) for k in options["list_lengths"]],
            "passages searched": [
                {"x": jobs[name]["passages"], "group": f"{jobs[name]['queries']} queries", **result}
                for name, [result] in self._run(jobs, 1, "search").items()
            ],
        }
        self.report["curves"] = curves
        report.plot_curves(curves, self.folder / "curves.png")
        rows = [
            {
                "what grows": name,
                "to": f"{p['x']:,}",
                "": p.get("group", ""),
                "seconds": f"{p['seconds']:.2f}",
                "GiB": f"{p['bytes'] / 2**30:.3f}",
            }
            for name, points in curves.items()
            for p in points
        ]
        return self._table("Time and memory as things grow", rows) + "\n![curves](curves.png)\n"

    def cost(self) -> str:
        """The paper's run from operations and rates, and the same model checked against steps measured here."""
        options = self.config["cost"]
        small, large = self._measured_steps()
        rate = needed_and_recomputed(small) / small["seconds"]
        predicted, budget = needed_and_recomputed(large) / rate, large["uncheckpointed_tokens"]
        # activations grow with tokens, layers and width; their number per token is that of the measured step
        size = options["layers"] * options["width"] / (large["layers"] * large["width"])
        flops, activations = options["gpu_flops"] * options["utilisation"], large["activation_bytes"] * size
        estimates = paper_costs(options, budget, flops, activations)
        check = {"rate": rate, "measured_seconds": large["seconds"], "predicted_seconds": predicted}
        self.report["cost"] = {"assumptions": options, "check": check, "estimates": estimates}
        said = (
            f"Check: at the {rate / 1e9:.0f} GFLOP/s that the step of {small['lists']} lists reached here, the step of "
            f"{large['lists']} should take {predicted:.1f} s; it took {large['seconds']:.1f} s "
            f"({predicted / large['seconds']:.2f}). Assumed, not measured: {options}; activations of a micro-batch of "
            f"{budget} tokens as measured here, scaled by layers and width."
        )
        self.console.print(said)
        title = (
            f"The paper's run: {options['lists']:,} lists of {options['list_length']}, {options['epochs']} epoch(s); "
            f"{options['corpus']:,} passages evaluated once"
        )
        return self._table(title, report.cost_rows(estimates)) + f"\n{said}\n"

    def scale(self) -> str:
        """The stages of prepare and the opening of lists on made-up corpora, and what larger ones would take."""
        options = self.config["scale"]
        points: dict[str, list[dict[str, Any]]] = {name: [] for name in WORK}
        for passages in options["passages"]:
            folder = self.folder / "made_up" / str(passages)
            own = {name: options[name] for name in ("depth", "bm25_queries")}
            job = self._job("scale", folder=str(folder), passages=passages, **own)
            [result] = self._run({f"{passages:,} passages": job}, 1, "scale")[f"{passages:,} passages"]
            for name, took in result["work"].items():
                points[name].append({"passages": passages, **took})
            shutil.rmtree(folder, ignore_errors=True)
        [encoding] = self._run(
            {"encode": self._job("encode", max_length=None, folder=str(self.folder / "made_up" / "encoded"))}, 1, "rate"
        )["encode"]
        rates = {
            name: work["per_passage"] / (work["per_second"] or encoding["per_second"])
            for name, work in options["neural"].items()
        }
        self.report["scale"] = {"points": points, "seconds_a_passage": rates}
        said = (
            f"Lists: one for each passage, of 2 × {options['depth']} hits. Time is CPU time of one process with "
            f"{self.threads} thread(s); memory is its own (no mapped files), above what it held before. Encoding: "
            f"{encoding['per_second']:.0f} passages of 60 words a CPU second. Steps in blocks are shared by shard=…: "
            "Hydra jobs of hydra/launcher=ray or submitit_slurm; the others are one process."
        )
        self.console.print(said)
        tables = [
            self._table("Preparing a made-up corpus, and opening its lists", report.scale_rows(points)),
            self._table("What larger corpora would take", report.larger_rows(points, rates, options["extrapolated"])),
        ]
        return "\n".join(tables) + f"\n{said}\n"

    def _measured_steps(self) -> list[dict[str, Any]]:
        """The smallest and the largest step of ours that were measured; where there are not two, two are measured."""
        cases = [c for c in self.report.get("step", ()) if "ours_infonce" in c["results"] and not c["variant"]]
        if len({c["lists"] for c in cases}) < 2:
            cases = [self._our_step(lists=n) for n in self.config["curves"]["lists"][:2]]
        cases = sorted(cases, key=lambda c: c["lists"])
        return [{**c["results"]["ours_infonce"], "lists": c["lists"]} for c in (cases[0], cases[-1])]

    def _our_step(self, **case: int) -> dict[str, Any]:
        return self._step_case({**case, "rounds": 1, "systems": ["ours_infonce"]})

    def _point(self, x: int, **case: int) -> dict[str, Any]:
        result = self._our_step(**case)["results"]["ours_infonce"]
        return {"x": x, "seconds": result["seconds"], "bytes": result["bytes"]}

    def _step_case(self, case: dict[str, Any]) -> dict[str, Any]:
        settings = {k: v for k, v in case.items() if k not in ("lists", "rounds", "systems", *_OF_ENCODER)}
        variant = {k: case[k] for k in (*_OF_ENCODER, "uncheckpointed_tokens") if k in case}
        gradients = self.folder / "gradients"
        gradients.mkdir(parents=True, exist_ok=True)
        jobs = {}
        for system in case["systems"]:
            job = jobs[system] = self._job("step", system=system, size=case["lists"], **settings)
            if SystemName.parse(system).is_ours:
                job["encoder"] |= {k: case[k] for k in _OF_ENCODER if k in case}
            of_name = (system, case["lists"], job["list_length"], job["max_length"], *variant.values())
            job["gradient"] = str(gradients / f"{'-'.join(map(str, of_name)).replace('@', '-')}.npy")
        rounds = self._run(jobs, case["rounds"], f"step of {case['lists']} lists")
        results = {name: medians(r) for name, r in rounds.items()}
        for name, result in results.items():
            if "rate_share" in result:
                twice = needed_and_recomputed(result) / result["needed_flops"]
                result["rate_share_with_recomputed"] = twice * result["rate_share"]
            ours = report.ours_beside(results, name, result["precision"]) or report.ours_beside(results, name)
            if ours not in (None, name):
                result["cosine"] = _cosine(jobs[ours]["gradient"], jobs[name]["gradient"])
        return {
            "lists": case["lists"],
            "list_length": job["list_length"],
            "max_length": job["max_length"],
            "variant": "".join(f", {k} {v}" for k, v in variant.items()),
            "rounds": case["rounds"],
            "results": results,
            "each_round": rounds,
        }

    def _job(self, kind: str, **options: Any) -> dict[str, Any]:
        job = {"job": kind, **self.common, **options}
        lengths = dict.fromkeys(("query_max_length", "passage_max_length"), job["max_length"])
        return job | {"encoder": self.config["encoder"] | lengths}

    def _run(self, jobs: dict[str, dict[str, Any]], rounds: int, say: str) -> dict[str, list[dict[str, Any]]]:
        if chosen_device(self.config["device"]).type == "cpu" and not cpu_has_bfloat16():
            # it would take many times as long
            left_out = [name for name in jobs if SystemName.parse(name).precision == BFLOAT16]
            jobs = {name: job for name, job in jobs.items() if name not in left_out}
            if left_out:
                log.info("This processor has no bfloat16; left out: %s", ", ".join(left_out))
        return run_in_turns(jobs, rounds, say, self.folder / "measured")

    def _table(self, title: str, rows: list[dict[str, str]]) -> str:
        return report.print_and_collect(title, rows, self.console)


def _cosine(left: str, right: str) -> float:
    a, b = (np.load(path).astype(np.float64) for path in (left, right))
    if a.shape != b.shape:
        raise InputError(f"{left} and {right}: gradients of {len(a)} and {len(b)} weights; these are not one model's.")
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def what_is_measured(config: DictConfig) -> str:
    """What is measured, in one line."""
    encoder = OmegaConf.to_container(config.encoder, resolve=True)
    stated = {name: encoder.get(name) for name in EncoderSpec.__dataclass_fields__}
    _, packaged = with_preset(encoder["model"], encoder.get("preset"), stated, stated)
    origin = find_model(encoder["model"], encoder.get("revision"), packaged).origin
    said = [f"{', '.join(config.parts)} with {encoder['model']} ({origin})"]
    if "evaluation" in config.parts:
        said.append(f"evaluation on {config.evaluation.dataset}")
    if not _OF_LISTS.isdisjoint(config.parts):
        said.append(f"lists of {', '.join(config.files)} over {config.corpus}")
    return "; ".join(said)
